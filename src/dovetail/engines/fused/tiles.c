/* Attention of narrow heads on a CPU with tiles for bf16 (AMX), there and back.
 *
 * A product of tiles adds 16 x 32 times 32 x 16 numbers in the time of a few others, so that a head of 8 numbers may waste most of
 * it. A left side has rows of 32 numbers; a right side has 16 rows, each of 16 pairs of numbers that are multiplied with a row's
 * pair. Scores leave their tile to become exponentials, 16 lanes a row, and come back as the right side of the next product. */

#define _GNU_SOURCE
#include "tiles.h"

#ifdef __AVX512BF16__
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>

#define DEEP 32 /* numbers of a left side's row */
#define TILE 512 /* bf16 numbers of a tile */
#define WIDE __attribute__((aligned(64)))

static long padded(long count) { return (count + DEEP - 1) / DEEP * DEEP; }
static long halves(long d) { return (d + LANES - 1) / LANES; }

int tiles_allowed(void) { /* ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA */
    static int known = 0;
    if (!known) known = syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? 1 : -1;
    return known > 0;
}

void tiles_begin(void) { /* eight tiles of 16 rows of 64 bytes */
    static const struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shape);
}

void tiles_end(void) { _tile_release(); }

long tiles_room(long n, long m, long d) {
    long all = padded(n) + padded(m);
    return 2 * (2 * DEEP + halves(d) * DEEP) * all + 2 * padded(n) * padded(m) + 8 * padded(n);
}

static inline __m512i row_of(const bf16 *x, long d) { return _mm512_maskz_loadu_epi16(d >= 32 ? ~0u : (1u << d) - 1, x); }

/* Pair `i` of 16 rows from `first` on, zero where there is none. */
static inline __m512i pair_of(const bf16 *x, long step, long first, long count, long i) {
    if (first >= count) return _mm512_setzero_si512();
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), those_of(count - first), rows_at(step), x + first * step + 2 * i,
                                       1);
}

/* Rows as left sides: (count, 32). */
static bf16 *as_rows(bf16 *to, const bf16 *x, long step, long count, long d) {
    for (long row = 0; row < padded(count); row++)
        _mm512_store_si512(to + row * DEEP, row < count ? row_of(x + row * step, d) : _mm512_setzero_si512());
    return to + padded(count) * DEEP;
}

/* Rows as lanes of right sides: for each 16 of them (16 pairs of numbers, 16 rows). */
static bf16 *as_lanes(bf16 *to, const bf16 *x, long step, long count, long d) {
    for (long first = 0; first < padded(count); first += LANES)
        for (long i = 0; i < LANES; i++, to += DEEP)
            _mm512_store_si512(to, i < d / 2 ? pair_of(x, step, first, count, i) : _mm512_setzero_si512());
    return to;
}

/* Rows turned over, as left sides: for each 32 of them (16 or 32 numbers, 32 rows). */
static bf16 *turned(bf16 *to, const bf16 *x, long step, long count, long d) {
    for (long first = 0; first < padded(count); first += DEEP)
        for (long i = 0; i < halves(d) * LANES; i += 2, to += 2 * DEEP) {
            __m512i some = _mm512_setzero_si512(), more = some;
            if (i < d) some = pair_of(x, step, first, count, i / 2), more = pair_of(x, step, first + LANES, count, i / 2);
            for (int high = 0; high < 2; high++) {
                _mm256_store_si256((__m256i *)(to + high * DEEP), _mm512_cvtepi32_epi16(some));
                _mm256_store_si256((__m256i *)(to + high * DEEP + LANES), _mm512_cvtepi32_epi16(more));
                some = _mm512_srli_epi32(some, 16), more = _mm512_srli_epi32(more, 16);
            }
        }
    return to;
}

/* Pairs of rows, as right sides: for each 32 rows and each 16 numbers (16 pairs, 16 numbers). */
static bf16 *across(bf16 *to, const bf16 *x, long step, long count, long d) {
    for (long first = 0; first < padded(count); first += DEEP)
        for (long part = 0; part < d; part += LANES)
            for (long row = first; row < first + DEEP; row += 2, to += DEEP) {
                __mmask16 all = those_of(d - part);
                __m512i one = _mm512_setzero_si512(), other = one;
                if (row < count) one = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(all, x + row * step + part));
                if (row + 1 < count) other = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(all, x + (row + 1) * step + part));
                _mm512_store_si512(to, _mm512_or_si512(one, _mm512_slli_epi32(other, 16)));
            }
    return to;
}

/* 2^rest times 1 + 2^-9: cut to bf16, it is as often too large as too small. Relative error 8e-5 besides. */
#define MORE 1.001953125f
static inline floats raised_to(floats rest, floats whole, float last, float third, float second, float first) {
    floats seen = _mm512_fmadd_ps(_mm512_set1_ps(last * MORE), rest, _mm512_set1_ps(third * MORE));
    seen = _mm512_fmadd_ps(seen, rest, _mm512_set1_ps(second * MORE));
    return _mm512_scalef_ps(_mm512_fmadd_ps(seen, rest, _mm512_set1_ps(first * MORE)), whole);
}

/* 2^x. While tiles are at work only one of the two units multiplies: there and back, each has its way to use both. */
static inline floats raised_there(floats x) {
    const floats middle = _mm512_set1_ps(12582912.f); /* numbers near it are whole */
    floats whole = _mm512_sub_ps(_mm512_add_ps(x, middle), middle);
    return raised_to(_mm512_sub_ps(x, whole), whole, 5.5171665e-2f, 2.4261118e-1f, 6.9326099e-1f, 9.9992807e-1f);
}

static inline floats raised_back(floats x) {
    return raised_to(_mm512_reduce_ps(x, 1), x, 7.802452e-2f, 2.2606716e-1f, 6.9583353e-1f, 9.9992522e-1f);
}

/* Cut to bf16: lane i has number i of both. */
static inline pairs cut(floats first, floats second) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(first), 16), _mm512_castps_si512(second));
}

/* 32 rows of `left` times tile 2, as float32. */
static inline void scores_of(const bf16 *left, float *to) {
    _tile_zero(0);
    READ(1, left, 64);
    _tile_dpbf16ps(0, 1, 2);
    _tile_stored(0, to, 64);
    _tile_zero(3);
    READ(1, left + TILE, 64);
    _tile_dpbf16ps(3, 1, 2);
    _tile_stored(3, to + TILE / 2, 64);
}

static inline void both_of(const bf16 *left[2], const bf16 *right[2], long row, float to[2][TILE]) {
    for (int which = 0; which < 2; which++) {
        READ(2, right[which], 64);
        scores_of(left[which] + row * DEEP, to[which]);
    }
}

/* Tiles 4 and 5 get what values (16 or 32 numbers, 32 keys) are seen with those exponentials. */
static inline void seen_of(const bf16 *value, const pairs *raised, long parts) {
    READ(6, raised, 64);
    READ(7, value, 64);
    _tile_dpbf16ps(4, 7, 6);
    if (parts > 1) {
        READ(7, value + TILE, 64);
        _tile_dpbf16ps(5, 7, 6);
    }
}

void tiles_there(const struct head *h, char *room, long d) {
    long n = h->n, m = h->m, parts = halves(d);
    bf16 *keys = (bf16 *)room, *asks = as_rows(keys, h->key, h->key_step, m, d);
    bf16 *values = as_lanes(asks, h->query, h->query_step, n, d);
    bf16 *last = turned(values, h->value, h->value_step, m, d);
    /* A row of ones beside the values gives the sums of what was rounded: where one key is all, it is seen as it is. */
    int spare = d < parts * LANES;
    for (bf16 *at = values + d * DEEP; spare && at < last; at += parts * TILE)
        for (long i = 0; i < DEEP; i++) at[i] = 0x3f80;
    floats scale = _mm512_set1_ps(h->scale * 1.44269504f), bound = _mm512_set1_ps(longest(h->key, h->key_step, m, d));
    pairs ones = _mm512_set1_epi32(0x3f803f80);
    WIDE float scores[2][TILE];
    WIDE pairs both[2][LANES];
    for (long first = 0; first < n; first += LANES) {
        const bf16 *ask = asks + first * DEEP;
        floats size = _mm512_setzero_ps(), total[4] = {size, size, size, size}, sums[MOST];
        for (long i = 0; i < d / 2; i++) {
            pairs at = _mm512_load_si512(ask + i * DEEP);
            size = product(size, at, at);
        }
        floats shift = _mm512_mul_ps(_mm512_mul_ps(_mm512_sqrt_ps(size), bound), scale); /* no score is more: Cauchy, Schwarz */
        READ(2, ask, 64);
        if (_mm512_cmp_ps_mask(shift, _mm512_set1_ps(SAFE), _CMP_NLE_UQ)) {
            floats most = _mm512_set1_ps(-3.4e38f);
            for (long j = 0; j < m; j += DEEP) {
                scores_of(keys + j * DEEP, scores[0]);
                for (long i = 0; i < DEEP && j + i < m; i++) most = _mm512_max_ps(most, _mm512_load_ps(scores[0] + i * LANES));
            }
            shift = _mm512_mul_ps(most, scale);
        }
        _tile_zero(4);
        _tile_zero(5);
        scores_of(keys, scores[0]);
        for (long j = 0; j < m; j += DEEP) {
            float *seen = scores[j / DEEP % 2];
            pairs *to = both[j / DEEP % 2];
            if (j + DEEP < m) scores_of(keys + (j + DEEP) * DEEP, scores[1 - j / DEEP % 2]); /* while these are raised */
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                to[i] = cut(raised_there(_mm512_fmsub_ps(_mm512_load_ps(seen + 2 * i * LANES), scale, shift)),
                            raised_there(_mm512_fmsub_ps(_mm512_load_ps(seen + (2 * i + 1) * LANES), scale, shift)));
            for (long i = m - j; i < DEEP; i++) /* no such keys */
                to[i / 2] = i % 2 ? _mm512_and_si512(to[i / 2], _mm512_set1_epi32(0xffff)) : _mm512_setzero_si512();
            if (!spare)
                for (int i = 0; i < LANES; i++) total[i % 4] = product(total[i % 4], to[i], ones);
            /* of those before, which are stored by now */
            if (j) seen_of(values + (j / DEEP - 1) * parts * TILE, both[1 - j / DEEP % 2], parts);
        }
        seen_of(values + (m - 1) / DEEP * parts * TILE, both[(m - 1) / DEEP % 2], parts);
        _tile_stored(4, sums, 64);
        if (parts > 1) _tile_stored(5, sums + LANES, 64);
        total[0] = spare ? sums[d] : _mm512_add_ps(_mm512_add_ps(total[0], total[1]), _mm512_add_ps(total[2], total[3]));
        store(h->out, h->out_step, first, n, d, sums, _mm512_div_ps(_mm512_set1_ps(1.f), total[0]));
        keep_logs(h, first, shift, total[0]);
    }
}

/* What a row's 16 scores and gradients of exponentials give: exponentials, and gradients of the scores. */
static inline floats slope(const float *score, const float *up, floats scale, float log, float less, __mmask16 there,
                           floats *raised) {
    *raised = raised_back(_mm512_fmsub_ps(_mm512_load_ps(score), scale, _mm512_set1_ps(log)));
    return _mm512_maskz_mul_ps(there, *raised, _mm512_sub_ps(_mm512_load_ps(up), _mm512_set1_ps(less)));
}

/* Tiles 4 to 7 get what 32 queries add to the gradients of values and of keys. */
static inline void summed(const bf16 *up, const bf16 *query, long at, const pairs *raised, const pairs *sloped, long parts) {
    at *= parts * TILE;
    READ(0, raised, 64);
    READ(1, up + at, 64);
    _tile_dpbf16ps(4, 1, 0);
    READ(3, sloped, 64);
    READ(1, query + at, 64);
    _tile_dpbf16ps(5, 1, 3);
    if (parts > 1) {
        READ(1, up + at + TILE, 64);
        _tile_dpbf16ps(6, 1, 0);
        READ(1, query + at + TILE, 64);
        _tile_dpbf16ps(7, 1, 3);
    }
}

/* Gradients of keys and values, 16 keys as lanes at a time; those of the scores are kept, (rows, keys), for the queries'. */
void tiles_back(const struct head *h, char *room, long d) {
    long n = h->n, m = h->m, parts = halves(d), wide_m = padded(m);
    bf16 *query = (bf16 *)room, *up = as_rows(query, h->query, h->query_step, n, d);
    bf16 *query_over = as_rows(up, h->up, h->out_step, n, d), *up_over = turned(query_over, h->query, h->query_step, n, d);
    bf16 *key = turned(up_over, h->up, h->out_step, n, d), *value = as_lanes(key, h->key, h->key_step, m, d);
    bf16 *key_across = as_lanes(value, h->value, h->value_step, m, d), *slopes = across(key_across, h->key, h->key_step, m, d);
    float *less = (float *)(slopes + padded(n) * wide_m), *logs = less + padded(n);
    products_of_rows(h, d, less);
    memcpy(logs, h->logs, n * sizeof(float));
    for (long row = n; row < padded(n); row++) less[row] = 0, logs[row] = 1e30f; /* no such rows: nothing is raised */
    floats scale = _mm512_set1_ps(h->scale * 1.44269504f), plain = _mm512_set1_ps(h->scale), sums[MOST];
    const __m512i apart = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24, 22, 20, 18,
                                           16, 14, 12, 10, 8, 6, 4, 2, 0); /* a pair's rows */
    WIDE float scores[2][2][TILE]; /* of queries, and of what is up; these rows' and the next ones' */
    WIDE pairs raised[2][LANES], sloped[2][LANES];
    for (long first = 0; first < wide_m; first += LANES) {
        __mmask16 there = first < m ? those_of(m - first) : 0;
        _tile_zero(4);
        _tile_zero(5);
        _tile_zero(6);
        _tile_zero(7);
        if (!there) { /* no keys at all: the queries' product of 32 wants zeros */
            for (long row = 0; row < padded(n); row++)
                _mm256_store_si256((__m256i *)(slopes + row * wide_m + first), _mm256_setzero_si256());
            continue;
        }
        const bf16 *left[2] = {query, up}, *right[2] = {key + first * DEEP, value + first * DEEP};
        both_of(left, right, 0, scores[0]);
        for (long j = 0; j < n; j += DEEP) {
            long now = j / DEEP % 2;
            bf16 *to = slopes + j * wide_m + first;
            if (j + DEEP < n) both_of(left, right, j + DEEP, scores[1 - now]); /* while these are raised */
#pragma GCC unroll 8
            for (int i = 0; i < LANES; i++) {
                floats one, other;
                long row = j + 2 * i, at = 2 * i * LANES;
                floats by_one = slope(scores[now][0] + at, scores[now][1] + at, scale, logs[row], less[row], there, &one);
                at += LANES;
                floats by_other =
                    slope(scores[now][0] + at, scores[now][1] + at, scale, logs[row + 1], less[row + 1], there, &other);
                raised[now][i] = cut(one, other);
                sloped[now][i] = cut(by_one, by_other);
                __m512i rows = _mm512_permutexvar_epi16(apart, sloped[now][i]);
                _mm256_store_si256((__m256i *)(to + 2 * i * wide_m), _mm512_castsi512_si256(rows));
                _mm256_store_si256((__m256i *)(to + (2 * i + 1) * wide_m), _mm512_extracti64x4_epi64(rows, 1));
            }
            /* of those before, which are stored by now */
            if (j) summed(up_over, query_over, j / DEEP - 1, raised[1 - now], sloped[1 - now], parts);
        }
        long end = (n - 1) / DEEP;
        summed(up_over, query_over, end, raised[end % 2], sloped[end % 2], parts);
        _tile_stored(4, sums, 64);
        _tile_stored(6, sums + LANES, 64);
        store(h->to_value, h->value_step, first, m, d, sums, _mm512_set1_ps(1.f));
        _tile_stored(5, sums, 64);
        _tile_stored(7, sums + LANES, 64);
        store(h->to_key, h->key_step, first, m, d, sums, plain);
    }
    for (long first = 0; first < n; first += LANES) {
        _tile_zero(4);
        _tile_zero(5);
        for (long j = 0; j < m; j += DEEP) {
            const bf16 *right = key_across + j / DEEP * parts * TILE;
            READ(0, slopes + first * wide_m + j, 2 * wide_m);
            READ(1, right, 64);
            _tile_dpbf16ps(4, 0, 1);
            if (parts > 1) {
                READ(1, right + TILE, 64);
                _tile_dpbf16ps(5, 0, 1);
            }
        }
        _tile_stored(4, sums, 64);
        _tile_stored(5, sums + LANES, 64);
        for (long part = 0; part < d; part += LANES)
            for (long i = 0; i < LANES && first + i < n; i++)
                _mm256_mask_storeu_epi16(h->to_query + (first + i) * h->query_step + part, those_of(d - part),
                                         (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sums[part + i], plain)));
    }
}
#else
int tiles_allowed(void) { return 0; }
void tiles_begin(void) {}
void tiles_end(void) {}
long tiles_room(long n, long m, long d) { return n - n + m - m + d - d; }
void tiles_there(const struct head *h, char *room, long d) { (void)h, (void)room, (void)d; }
void tiles_back(const struct head *h, char *room, long d) { (void)h, (void)room, (void)d; }
#endif
#endif
