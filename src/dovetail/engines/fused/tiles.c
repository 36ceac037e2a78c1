/* Attention of narrow heads on a CPU with tiles for bf16 (AMX), there and back.
 *
 * 16 queries are the rows of a tile of scores, 16 keys its columns; two tiles side by side make 32 weights a row, which are a left
 * side for what is summed over keys as they lie, and in pairs of rows a right one for what is summed over queries. Their columns
 * are taken so that packing two registers of scores into one leaves keys in their order (`unpacked`).
 *
 * A weight is a power of two and wanted as bf16: a sign, eight bits of exponent, seven of what is over. Written in 128ths, score
 * and exponent make these bits but for a bend of 11 in the last seven, which a table of 64 has. 32 of them at a time, that is
 * three instructions for 16 weights where a polynomial takes nine. Relative error 2.3e-3, where rounding alone has 1.7e-3. */

#define _GNU_SOURCE
#include "tiles.h"

#ifdef __AVX512BF16__
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>

#define DEEP 32 /* queries or keys of a block */
#define TILE 512 /* bf16 numbers of a tile */
#define SPAN 64 /* queries whose gradients of scores are at hand at a time */
#define EIGHT 8 /* numbers of a head that are moved together */
#define WIDE __attribute__((aligned(64)))
#define MORE 1.001953125f /* 1 + 2^-9: cut to bf16, a gradient is as often too large as too small */
#define NOBODY 1e9f /* the exponent, downwards, of who is not there */

int tiles_allowed(void) { /* ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA */
    static int known = 0;
    if (!known) known = syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? 1 : -1;
    return known > 0;
}

struct shape {
    uint8_t palette, start, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};
static const struct shape whole = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

static inline void begin(const struct shape *s) { __asm__ volatile("ldtilecfg %0" ::"m"(*s)); } /* see `READ` */

void tiles_begin(void) { begin(&whole); } /* eight tiles of 16 rows of 64 bytes */

void tiles_begin_narrow(long d) { /* 1 has rows of `d` numbers, 2 as many pairs of rows as that */
    struct shape some = whole;
    some.bytes[1] = (uint16_t)(2 * d), some.rows[2] = (uint8_t)(d / 2);
    begin(&some);
}

void tiles_end(void) { _tile_release(); }

static long blocks_of(long count) { return (count + DEEP - 1) / DEEP; }
static long parts_of(long d) { return (d + LANES - 1) / LANES; }

long tiles_room(long n, long m, long d) {
    long rows = blocks_of(n), keys = blocks_of(m), over = parts_of(d + 1) * TILE;
    return 2 * (rows * (2 * DEEP * d + 2 * over) + keys * (2 * DEEP * d + over)) + 4 * rows * (over + 2 * DEEP);
}

static const bf16 zeros[DEEP] = {0};

static inline void rows_from(const bf16 *x, long step, long first, long count, const bf16 *row[DEEP]) {
    for (long i = 0; i < DEEP; i++) row[i] = first + i < count ? x + (first + i) * step : zeros;
}

static inline __m512i four(const bf16 *const row[DEEP], long first, long at) { /* every eighth row's next numbers */
    __m512i found = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(row[first] + at)));
    found = _mm512_inserti32x4(found, _mm_loadu_si128((const __m128i *)(row[first + 8] + at)), 1);
    found = _mm512_inserti32x4(found, _mm_loadu_si128((const __m128i *)(row[first + 16] + at)), 2);
    return _mm512_inserti32x4(found, _mm_loadu_si128((const __m128i *)(row[first + 24] + at)), 3);
}

static inline void turn_fours(__m512i r[4]) { /* 4 x 4 pairs in each quarter */
    __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    r[0] = _mm512_unpacklo_epi64(a, c), r[1] = _mm512_unpackhi_epi64(a, c);
    r[2] = _mm512_unpacklo_epi64(b, d), r[3] = _mm512_unpackhi_epi64(b, d);
}

/* Four pairs of numbers from `at` on, of 32 rows: lane `i` of to[high] has those of row `unpacked(high, i)`. */
static inline void pairs_of(const bf16 *const row[DEEP], long at, __m512i to[2][4]) {
    for (int high = 0; high < 2; high++) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) to[high][i] = four(row, 4 * high + i, at);
        turn_fours(to[high]);
    }
}

/* 32 rows as lanes, 16 of two right sides each: (2, d / 2 pairs, 16 rows). */
static inline void lanes_of(const bf16 *const row[DEEP], long d, bf16 *to) {
    for (long at = 0; at < d; at += EIGHT) {
        __m512i some[2][4];
        pairs_of(row, at, some);
        for (long i = 0; i < 8; i++) _mm512_store_si512(to + i / 4 * LANES * d + (at / 2 + i % 4) * 32, some[i / 4][i % 4]);
    }
}

/* Those turned over, as rows of left sides: (8 numbers, 32 rows). Below a head's last number is anything: so it is in what comes
 * of it. */
static inline void turned(const __m512i some[2][4], bf16 *to) {
    const __m512i low = _mm512_set1_epi32(0xffff);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++, to += 64) {
        _mm512_store_si512(to, _mm512_packus_epi32(_mm512_and_si512(some[0][i], low), _mm512_and_si512(some[1][i], low)));
        _mm512_store_si512(to + 32, _mm512_packus_epi32(_mm512_srli_epi32(some[0][i], 16), _mm512_srli_epi32(some[1][i], 16)));
    }
}

/* 32 rows in pairs, as right sides: (16 numbers each, 16 pairs); with a number of one after the last if there shall be `ones`. */
static inline void across_of(const bf16 *const row[DEEP], long d, int ones, bf16 *to) {
    for (long i = 0; i < LANES; i++, to += 32) {
        for (long at = 0; at < d; at += EIGHT) {
            __m128i one = _mm_loadu_si128((const __m128i *)(row[2 * i] + at));
            __m128i other = _mm_loadu_si128((const __m128i *)(row[2 * i + 1] + at)), *where = (__m128i *)(to + at / LANES * TILE);
            _mm_store_si128(where + at % LANES / 4, _mm_unpacklo_epi16(one, other));
            _mm_store_si128(where + at % LANES / 4 + 1, _mm_unpackhi_epi16(one, other));
        }
        if (ones) *(uint32_t *)(to + d / LANES * TILE + d % LANES * 2) = 0x3f803f80;
    }
}

static inline void plain_of(const bf16 *const row[DEEP], long d, bf16 *to) { /* as left sides: (32 rows, d) */
    for (long i = 0; i < DEEP; i++)
        for (long at = 0; at < d; at += EIGHT, to += EIGHT)
            _mm_store_si128((__m128i *)to, _mm_loadu_si128((const __m128i *)(row[i] + at)));
}

/* One number of each of 32 rows, in the order of `pairs_of`, as they come. */
static inline void in_order(floats low, floats high, float *to) {
    const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    _mm512_store_ps(to, _mm512_permutex2var_ps(low, first, high));
    _mm512_store_ps(to + LANES, _mm512_permutex2var_ps(low, _mm512_add_epi32(first, _mm512_set1_epi32(8)), high));
}

static inline void products_of(const __m512i one[2][4], const __m512i other[2][4], floats sums[2]) {
    for (int i = 0; i < 8; i++) sums[i / 4] = product(sums[i / 4], one[i / 4][i % 4], other[i / 4][i % 4]);
}

/* The squares of 32 rows. */
static inline void squares_of(const bf16 *const row[DEEP], long d, float *to) {
    floats sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (long at = 0; at < d; at += EIGHT) {
        __m512i some[2][4];
        pairs_of(row, at, some);
        products_of(some, some, sums);
    }
    in_order(sums[0], sums[1], to);
}

static uint8_t bend[64] WIDE; /* how far 128 times 2^x - 1 - x is below zero, x in 64ths */

void tiles_known(void) {
    static int known = 0;
    for (int i = 0; !known && i < 64; i++) {
        double both = 0;
        for (int x = 2 * i; x < 2 * i + 2; x++) both += (x + 128 - 128 * __builtin_exp2(x / 128.)) / 2;
        bend[i] = (uint8_t)(both + .5);
    }
    known = 1;
}

#define POINT (128 * 1.44269504f) /* exponents of two, in 128ths */
#define ZERO (128 * 127.f) /* what is written for an exponent of none */

/* 2^x of 32 scores as bf16, zero where there is nobody. */
static inline __m512i raised(const float *low, const float *high, floats scale, float base, __m512i table, __mmask32 there) {
    floats from = _mm512_set1_ps(base);
    __m512i one = _mm512_cvtps_epi32(_mm512_fmsub_ps(_mm512_load_ps(low), scale, from));
    __m512i other = _mm512_cvtps_epi32(_mm512_fmsub_ps(_mm512_load_ps(high), scale, from));
    __m512i straight = _mm512_packus_epi32(one, other);
    __m512i off = _mm512_maskz_permutexvar_epi8(0x5555555555555555, _mm512_srli_epi16(straight, 1), table);
    return _mm512_maskz_sub_epi16(there, straight, off);
}

/* Tile 1 times a right side of 16 rows. */
static inline void scores_of(const bf16 *right, float *to) {
    _tile_zero(0);
    READ(2, right, 64);
    _tile_dpbf16ps(0, 1, 2);
    _tile_stored(0, to, 64);
}

/* The largest of each row's scores; no number stays none. */
static void largest(const bf16 *keys, long m, long d, floats scale, float *to) {
    float scores[TILE] WIDE;
    floats most[LANES];
    for (int i = 0; i < LANES; i++) most[i] = _mm512_set1_ps(-3.4e38f);
    for (long j = 0; j < m; j += DEEP) {
        scores_of(keys + j * d, scores);
        scores_of(keys + j * d + LANES * d, scores + 256);
        for (int high = 0; high < 2; high++) {
            __mmask16 there = 0;
            for (int i = 0; i < LANES; i++) there |= (__mmask16)((j + unpacked(high, i) < m) << i);
            for (int i = 0; i < LANES; i++)
                most[i] = _mm512_mask_max_ps(most[i], there, most[i], _mm512_load_ps(scores + high * 256 + i * LANES));
        }
    }
    for (int i = 0; i < LANES; i++)
        if (to[i] == to[i]) to[i] = _mm512_reduce_max_ps(_mm512_mul_ps(most[i], scale));
}

/* What 16 queries see goes to rows of `out`, with logarithms of what they are divided by. */
static inline void seen_by(const struct head *h, long first, long d, const float *sums, const float *shift) {
    floats total = _mm512_i32gather_ps(rows_at(LANES / 2), sums + d / LANES * 256 + d % LANES, 4);
    float share[LANES] WIDE;
    _mm512_store_ps(share, _mm512_div_ps(_mm512_set1_ps(1.f), total));
    for (long i = 0; i < LANES && first + i < h->n; i++)
        for (long at = 0; at < d; at += LANES) {
            floats row = _mm512_mul_ps(_mm512_load_ps(sums + at / LANES * 256 + i * LANES), _mm512_set1_ps(share[i]));
            _mm256_mask_storeu_epi16(h->out + (first + i) * h->out_step + at, those_of(d - at), (__m256i)_mm512_cvtneps_pbh(row));
        }
    keep_logs(h, first, _mm512_load_ps(shift), total);
}

/* Tiles 4, 5 and 3 get what 16 queries see of 32 keys. */
static inline void seen_of(const bf16 *weights, const bf16 *values, long parts) {
    READ(6, weights, 64);
    READ(7, values, 64);
    _tile_dpbf16ps(4, 6, 7);
    if (parts > 1) {
        READ(7, values + TILE, 64);
        _tile_dpbf16ps(5, 6, 7);
    }
    if (parts > 2) {
        READ(7, values + 2 * TILE, 64);
        _tile_dpbf16ps(3, 6, 7);
    }
}

/* Keys as lanes and values in pairs; the norm of the longest key, no number if one of them has none. */
static float keys_there(const struct head *h, long d, bf16 *keys, bf16 *values) {
    const bf16 *row[DEEP];
    floats most = _mm512_setzero_ps();
    __mmask16 none = 0;
    for (long first = 0; first < h->m; first += DEEP) {
        float size[DEEP] WIDE;
        rows_from(h->key, h->key_step, first, h->m, row);
        lanes_of(row, d, keys + first * d);
        squares_of(row, d, size);
        for (int i = 0; i < DEEP; i += LANES) {
            none |= _mm512_cmp_ps_mask(_mm512_load_ps(size + i), _mm512_load_ps(size + i), _CMP_UNORD_Q);
            most = _mm512_max_ps(most, _mm512_load_ps(size + i));
        }
        rows_from(h->value, h->value_step, first, h->m, row);
        across_of(row, d, 1, values + first / DEEP * parts_of(d + 1) * TILE);
    }
    return none ? __builtin_nanf("") : __builtin_sqrtf(_mm512_reduce_max_ps(most));
}

/* 16 queries, tile 1, of which no score is over `shift` after scaling, to exponents of two. */
static void queries_there(const struct head *h, long d, const bf16 *keys, const bf16 *values, const float *shift, float *sums) {
    long parts = parts_of(d + 1), blocks = blocks_of(h->m);
    floats scale = _mm512_set1_ps(h->scale * POINT);
    __m512i table = _mm512_load_si512(bend);
    float scores[2][TILE] WIDE, base[LANES];
    bf16 weights[2][TILE] WIDE;
    for (int i = 0; i < LANES; i++) base[i] = 128 * shift[i] - ZERO;
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    scores_of(keys, scores[0]);
    scores_of(keys + LANES * d, scores[0] + 256);
    for (long j = 0; j < blocks; j++) {
        const float *now = scores[j % 2];
        __mmask32 there = first_of(h->m - j * DEEP);
        for (int high = 0; high < 2; high++) { /* the next ones, a tile at a time, while these are raised */
            if (j + 1 < blocks) scores_of(keys + (2 * (j + 1) + high) * LANES * d, scores[1 - j % 2] + 256 * high);
#pragma GCC unroll 8
            for (int i = 8 * high; i < 8 * high + 8; i++)
                _mm512_store_si512(weights[j % 2] + i * DEEP,
                                   raised(now + i * LANES, now + 256 + i * LANES, scale, base[i], table, there));
        }
        if (j) seen_of(weights[1 - j % 2], values + (j - 1) * parts * TILE, parts); /* those before are stored by now */
    }
    seen_of(weights[(blocks - 1) % 2], values + (blocks - 1) * parts * TILE, parts);
    _tile_stored(4, sums, 64);
    if (parts > 1) _tile_stored(5, sums + 256, 64);
    if (parts > 2) _tile_stored(3, sums + 512, 64);
}

void tiles_there(const struct head *h, char *room, long d) {
    bf16 *keys = (bf16 *)room, *values = keys + blocks_of(h->m) * DEEP * d;
    float bound = keys_there(h, d, keys, values);
    floats scale = _mm512_set1_ps(h->scale * 1.44269504f);
    for (long block = 0; block < h->n; block += DEEP) {
        const bf16 *row[DEEP];
        bf16 asks[DEEP * MOST] WIDE;
        float shift[DEEP] WIDE, sums[3 * 256] WIDE;
        rows_from(h->query, h->query_step, block, h->n, row);
        plain_of(row, d, asks);
        squares_of(row, d, shift); /* no score is more than the norms' product: Cauchy, Schwarz */
        for (int half = 0; half < DEEP && block + half < h->n; half += LANES) {
            floats most = _mm512_mul_ps(_mm512_mul_ps(_mm512_sqrt_ps(_mm512_load_ps(shift + half)), _mm512_set1_ps(bound)), scale);
            _mm512_store_ps(shift + half, most);
            READ(1, asks + half * d, 2 * d);
            if (_mm512_cmp_ps_mask(most, _mm512_set1_ps(SAFE), _CMP_NLE_UQ)) largest(keys, h->m, d, scale, shift + half);
            queries_there(h, d, keys, values, shift + half, sums);
            seen_by(h, block + half, d, sums, shift + half);
        }
    }
}

struct back { /* a head's rows, as they are multiplied on its way back */
    const struct head *of;
    long d, rows, keys; /* blocks of them */
    bf16 *asks, *ups, *asks_over, *ups_over; /* queries and what is up, as left sides, plain and turned over */
    bf16 *key, *value, *key_across; /* as right ones */
    float *to_query; /* (16 queries each, 16 numbers each, 256) */
    float *base, *less; /* of queries: what is taken off a score, in 128ths of an exponent, and off what is up */
};

static void laid_out(struct back *b, char *room) {
    const struct head *h = b->of;
    long d = b->d, rows = b->rows, keys = b->keys, over = parts_of(d) * TILE;
    const bf16 *row[DEEP], *with[DEEP];
    b->asks = (bf16 *)room, b->ups = b->asks + rows * DEEP * d;
    b->key = b->ups + rows * DEEP * d, b->value = b->key + keys * DEEP * d;
    b->asks_over = b->value + keys * DEEP * d, b->ups_over = b->asks_over + rows * over;
    b->key_across = b->ups_over + rows * over, b->to_query = (float *)(b->key_across + keys * over);
    b->base = b->to_query + rows * over, b->less = b->base + rows * DEEP;
    for (long i = 0; i < rows; i++) {
        __m512i some[2][4], others[2][4];
        floats less[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        rows_from(h->query, h->query_step, i * DEEP, h->n, row);
        plain_of(row, d, b->asks + i * DEEP * d);
        for (long at = 0; at < d; at += EIGHT) {
            pairs_of(row, at, some);
            turned(some, b->asks_over + i * over + at * DEEP);
        }
        rows_from(h->up, h->out_step, i * DEEP, h->n, row);
        rows_from(h->out, h->out_step, i * DEEP, h->n, with);
        plain_of(row, d, b->ups + i * DEEP * d);
        for (long at = 0; at < d; at += EIGHT) {
            pairs_of(row, at, some);
            pairs_of(with, at, others);
            turned(some, b->ups_over + i * over + at * DEEP);
            products_of(some, others, less);
        }
        in_order(less[0], less[1], b->less + i * DEEP);
    }
    for (long i = 0; i < keys; i++) {
        rows_from(h->key, h->key_step, i * DEEP, h->m, row);
        lanes_of(row, d, b->key + i * DEEP * d);
        across_of(row, d, 0, b->key_across + i * over);
        rows_from(h->value, h->value_step, i * DEEP, h->m, row);
        lanes_of(row, d, b->value + i * DEEP * d);
    }
    for (long i = 0; i < rows * DEEP; i++) b->base[i] = i < h->n ? 128 * h->logs[i] - ZERO : NOBODY;
}

struct slopes { /* of a span of queries and 32 keys: gradients of scores, as left sides (16 queries each); .. */
    bf16 left[SPAN * DEEP] WIDE;
    bf16 sloped[SPAN * DEEP] WIDE, weights[SPAN * DEEP] WIDE; /* .. the same and weights, as right ones (32 queries, 16 keys each) */
};

/* A quarter of the scores of 16 queries and 32 keys, and of what is up: (4, 256). */
static inline void both_of(const struct back *b, long row, long key, int quarter, float *to) {
    if (quarter == 0) READ(1, b->asks + row * b->d, 2 * b->d);
    if (quarter == 2) READ(1, b->ups + row * b->d, 2 * b->d);
    scores_of((quarter < 2 ? b->key : b->value) + (key + quarter % 2 * LANES) * b->d, to + 256 * quarter);
}

/* A quarter of their gradients: rows of one left side, and pairs of them and of weights as halves of two right ones. */
static inline void slopes_of(const struct back *b, long row, int quarter, const float *from, floats scale, __m512i table,
                             __mmask32 there, struct slopes *to) {
    long at = row % SPAN, right = at / DEEP * 2 * TILE + at % DEEP * 16;
    bf16 *left = to->left + at * DEEP, *weights = to->weights + right, *sloped = to->sloped + right;
    const __m512i none = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int i = 4 * quarter; i < 4 * quarter + 4; i += 2) {
        __m512i weight[2], slope[2];
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            const float *at = from + (i + k) * LANES;
            floats less = _mm512_set1_ps(b->less[row + i + k]);
            weight[k] = raised(at, at + 256, scale, b->base[row + i + k], table, there);
            floats one = (floats)_mm512_unpacklo_epi16(none, weight[k]), other = (floats)_mm512_unpackhi_epi16(none, weight[k]);
            one = _mm512_mul_ps(one, _mm512_sub_ps(_mm512_load_ps(at + 512), less));
            other = _mm512_mul_ps(other, _mm512_sub_ps(_mm512_load_ps(at + 768), less));
            slope[k] = _mm512_packus_epi32(_mm512_srli_epi32((__m512i)one, 16), _mm512_srli_epi32((__m512i)other, 16));
            _mm512_store_si512(left + (i + k) * DEEP, slope[k]);
        }
        _mm512_store_si512(weights + i * 16, _mm512_unpacklo_epi16(weight[0], weight[1]));
        _mm512_store_si512(weights + TILE + i * 16, _mm512_unpackhi_epi16(weight[0], weight[1]));
        _mm512_store_si512(sloped + i * 16, _mm512_unpacklo_epi16(slope[0], slope[1]));
        _mm512_store_si512(sloped + TILE + i * 16, _mm512_unpackhi_epi16(slope[0], slope[1]));
    }
}

/* As if there were no more queries in a block of 32. */
static void none_of(long at, struct slopes *to) {
    for (long tile = at / DEEP * 2 * TILE; tile < at / DEEP * 2 * TILE + 2 * TILE; tile += TILE) {
        memset(to->weights + tile + at % DEEP * 16, 0, TILE);
        memset(to->sloped + tile + at % DEEP * 16, 0, TILE);
    }
}

/* Sums (16 numbers, 16 keys) as rows of bf16 ones: those of `unpacked(high, ..)` from `first` on. */
static inline void keys_written(bf16 *to, long step, long first, long count, long numbers, int high, const float *sums,
                                floats factor) {
    for (long at = 0; at < numbers; at += EIGHT) {
        __m512i r[4];
        for (int i = 0; i < 4; i++) {
            const float *from = sums + (at + 2 * i) * LANES;
            r[i] = paired(_mm512_mul_ps(_mm512_load_ps(from), factor), _mm512_mul_ps(_mm512_load_ps(from + LANES), factor));
        }
        turn_fours(r);
        for (int i = 0; i < LANES; i++) {
            long row = first + unpacked(high, i);
            __m128i some[4];
            _mm512_storeu_si512(some, r[i % 4]);
            if (row < count) _mm_storeu_si128((__m128i *)(to + row * step + at), some[i / 4]);
        }
    }
}

/* Tiles 0, 3, 4 and 5, sums of keys' gradients, go on from what is there, or begin. */
static inline void going_on(const float *from, int begin) {
    if (begin) {
        _tile_zero(0);
        _tile_zero(3);
        _tile_zero(4);
        _tile_zero(5);
    } else {
        READ(0, from, 64);
        READ(3, from + 256, 64);
        READ(4, from + 512, 64);
        READ(5, from + 768, 64);
    }
}

/* What queries `first` to `last` add to the gradients of 32 values and keys: (16 numbers each, 4, 256). */
static void keys_added(const struct back *b, long first, long last, const struct slopes *from, float *to) {
    long parts = parts_of(b->d);
    for (long part = 0; part < parts; part++, to += 1024) {
        going_on(to, !first);
        for (long i = first; i < last; i += DEEP) {
            const bf16 *weights = from->weights + (i - first) * DEEP, *sloped = from->sloped + (i - first) * DEEP;
            READ(6, b->ups_over + (i / DEEP * parts + part) * TILE, 64);
            READ(7, weights, 64);
            _tile_dpbf16ps(0, 6, 7);
            READ(7, weights + TILE, 64);
            _tile_dpbf16ps(3, 6, 7);
            READ(6, b->asks_over + (i / DEEP * parts + part) * TILE, 64);
            READ(7, sloped, 64);
            _tile_dpbf16ps(4, 6, 7);
            READ(7, sloped + TILE, 64);
            _tile_dpbf16ps(5, 6, 7);
        }
        _tile_stored(0, to, 64);
        _tile_stored(3, to + 256, 64);
        _tile_stored(4, to + 512, 64);
        _tile_stored(5, to + 768, 64);
    }
}

/* What 32 keys add to theirs. */
static void queries_added(const struct back *b, long key, long first, long last, const struct slopes *from) {
    long parts = parts_of(b->d);
    for (long i = first; i < last; i += LANES) {
        float *to = b->to_query + i / LANES * parts * 256;
        READ(6, from->left + (i - first) * DEEP, 64);
        for (long part = 0; part < parts; part++, to += 256) {
            if (key) READ(0, to, 64);
            else _tile_zero(0);
            READ(7, b->key_across + (key / DEEP * parts + part) * TILE, 64);
            _tile_dpbf16ps(0, 6, 7);
            _tile_stored(0, to, 64);
        }
    }
}

static void queries_written(const struct back *b) {
    const struct head *h = b->of;
    long parts = parts_of(b->d);
    floats factor = _mm512_set1_ps(h->scale * MORE);
    for (long row = 0; row < h->n; row++)
        for (long part = 0; part < parts; part++) {
            floats sums = _mm512_load_ps(b->to_query + (row / LANES * parts + part) * 256 + row % LANES * LANES);
            _mm256_mask_storeu_epi16(h->to_query + row * h->query_step + part * LANES, those_of(b->d - part * LANES),
                                     (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sums, factor)));
        }
}

void tiles_back(const struct head *h, char *room, long d) {
    struct back b = {.of = h, .d = d, .rows = blocks_of(h->n), .keys = blocks_of(h->m)};
    floats scale = _mm512_set1_ps(h->scale * POINT), plain = _mm512_set1_ps(1.f), scaled = _mm512_set1_ps(h->scale * MORE);
    __m512i table = _mm512_load_si512(bend);
    float scores[2][2 * TILE] WIDE, keys[2][4][256] WIDE;
    struct slopes slopes;
    long rows = (h->n + LANES - 1) / LANES * LANES;
    laid_out(&b, room);
    for (long key = 0; key < h->m; key += DEEP) {
        __mmask32 there = first_of(h->m - key);
        for (long first = 0; first < rows; first += SPAN) {
            long last = rows - first < SPAN ? rows : first + SPAN;
            if (last % DEEP) none_of(last % SPAN, &slopes);
            for (int quarter = 0; quarter < 4; quarter++) both_of(&b, first, key, quarter, scores[0]);
            for (long i = first; i < last; i += LANES)
#pragma GCC unroll 4
                for (int quarter = 0; quarter < 4; quarter++) { /* the next ones, a tile at a time, while these are raised */
                    if (i + LANES < last) both_of(&b, i + LANES, key, quarter, scores[1 - i / LANES % 2]);
                    slopes_of(&b, i, quarter, scores[i / LANES % 2], scale, table, there, &slopes);
                }
            keys_added(&b, first, last, &slopes, keys[0][0]);
            queries_added(&b, key, first, last, &slopes);
        }
        for (long at = 0; at < d; at += LANES)
            for (int high = 0; high < 2; high++) {
                const float (*from)[256] = keys[at / LANES] + high;
                long count = d - at < LANES ? d - at : LANES;
                keys_written(h->to_value + at, h->value_step, key, h->m, count, high, from[0], plain);
                keys_written(h->to_key + at, h->key_step, key, h->m, count, high, from[2], scaled);
            }
    }
    queries_written(&b);
}
#else
int tiles_allowed(void) { return 0; }
void tiles_begin(void) {}
void tiles_begin_narrow(long d) { (void)d; }
void tiles_known(void) {}
void tiles_end(void) {}
long tiles_room(long n, long m, long d) { return n - n + m - m + d - d; }
void tiles_there(const struct head *h, char *room, long d) { (void)h, (void)room, (void)d; }
void tiles_back(const struct head *h, char *room, long d) { (void)h, (void)room, (void)d; }
#endif
#endif
