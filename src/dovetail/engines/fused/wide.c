/* Attention of wide heads on a CPU with tiles for bf16 (AMX), there and back.
 *
 * A head's keys and values lie packed, and its queries pass 32 at a time: scores are made in blocks of 32 keys (rows) by 32 queries
 * (lanes), raised while the cache holds them, and are one side of the next product as they are. Nothing of them is kept but the
 * logarithm of each query's sum; the way back makes them again, block by block (Dao et al. 2022, algorithms 1 and 4). */

#include "tiles.h"

#ifdef __AVX512BF16__
#ifdef __AMX_BF16__
#define CHUNK 8 /* blocks of keys whose exponentials are multiplied with values at once */
#define SQUARE 4 /* blocks of keys, and of queries, that the way back works off together */
#define SUMS 1024 /* of a block */

static long blocks_of(long count) { return (count + BLOCK - 1) / BLOCK; }

/* Rows `first` and those after it of a head, zeros where there are none. */
static inline void head_rows(const bf16 *x, long step, long first, long count, const char *row[32]) {
    static const bf16 nothing[WIDEST_HEAD] __attribute__((aligned(64))) = {0};
    for (long i = 0; i < 32; i++) row[i] = (const char *)(first + i < count ? x + (first + i) * step : nothing);
}

enum form {
    LEFT,
    RIGHT,
    LEFT_OVER,
    RIGHT_OVER
}; /* rows as a side's own; `over`: as the inner side, numbers as the side's own */

/* A head (count, d) as tiles: (blocks of 32 rows, blocks of 32 numbers, PAIR). */
static bf16 *formed(enum form form, bf16 *to, const bf16 *x, long step, long count, long d) {
    const char *row[32];
    for (long first = 0; first < count; first += BLOCK) {
        head_rows(x, step, first, count, row);
        for (long i = 0; i < d; i += BLOCK, to += PAIR) {
            __mmask32 all = first_of(d - i);
            if (form == LEFT) rows_left(row, 2 * i, all, 0, to);
            else if (form == RIGHT) rows_right(row, 2 * i, all, 0, to);
            else if (form == LEFT_OVER) columns_left(row, 2 * i, all, 0, to);
            else columns_right(row, 2 * i, all, 0, to);
        }
    }
    return to;
}

/* Every `step`th two tiles of `at`. */
static inline void every(struct tiles *to, const bf16 *at, long step, long count) {
    for (long i = 0; i < count; i++, at += step * PAIR) to[i] = (struct tiles){at, at + PAIR / 2};
}

static inline float product_of(const bf16 *a, const bf16 *b, long d) {
    floats sum = _mm512_setzero_ps();
    for (long i = 0; i < d; i += 32)
        sum = product(sum, _mm512_maskz_loadu_epi16(first_of(d - i), a + i), _mm512_maskz_loadu_epi16(first_of(d - i), b + i));
    return _mm512_reduce_add_ps(sum);
}

long wide_room(long n, long m, long d) {
    long wide = blocks_of(d), packed = PAIR * wide * (4 * blocks_of(n) + 3 * blocks_of(m)) + 3 * SQUARE * SQUARE * PAIR;
    return 2 * packed + 4 * SUMS * (4 + (2 * SQUARE + blocks_of(n)) * wide) + 8 * BLOCK * blocks_of(n);
}

/* What no score of 16 queries is over, to base two: by their lengths and the longest key's (Cauchy, Schwarz), or as it is. */
static floats largest(const struct head *h, const bf16 *query, const bf16 *keys, long d, float bound, int half, float *sums) {
    floats size = _mm512_setzero_ps(), scale = _mm512_set1_ps(h->scale * 1.44269504f), most = _mm512_set1_ps(-3.4e38f);
    long wide = blocks_of(d);
    for (long step = 0; step < wide; step++)
        for (long i = 0; i < LANES; i++) {
            pairs at = _mm512_load_si512(query + step * PAIR + half * PAIR / 2 + i * 32);
            size = product(size, at, at);
        }
    floats shift = _mm512_mul_ps(_mm512_mul_ps(_mm512_sqrt_ps(size), _mm512_set1_ps(bound)), scale);
    if (!_mm512_cmp_ps_mask(shift, _mm512_set1_ps(SAFE), _CMP_NLE_UQ)) return shift;
    struct tiles left[wide], right[wide];
    every(right, query, 1, wide);
    for (long key = 0; key < h->m; key += BLOCK) {
        every(left, keys + key / BLOCK * wide * PAIR, 1, wide);
        multiplied(left, right, wide, sums, 1);
        for (long i = 0; i < BLOCK && key + i < h->m; i++)
            most = _mm512_max_ps(most, _mm512_load_ps(sums + i / 16 * 512 + half * 256 + i % 16 * 16));
    }
    return _mm512_mul_ps(most, scale);
}

/* Exponentials of a block of scores: right tiles, pairs of keys by queries; zero of keys that there are none of. */
static inline void raised(const float *sums, floats scale, const floats shift[2], long keys, bf16 *to) {
    for (int half = 0; half < 2; half++)
#pragma GCC unroll 8
        for (int i = 0; i < LANES; i++) {
            const float *at = sums + i / 8 * 512 + half * 256 + i % 8 * 32;
            floats one = power(_mm512_fmsub_ps(_mm512_load_ps(at), scale, shift[half]));
            floats other = power(_mm512_fmsub_ps(_mm512_load_ps(at + 16), scale, shift[half]));
            _mm512_store_si512(to + half * PAIR / 2 + i * 32, paired(one, other));
        }
    for (long i = keys; i < BLOCK; i++)
        for (int half = 0; half < 2; half++) {
            pairs *at = (pairs *)(to + half * PAIR / 2) + i / 2;
            *at = i % 2 ? _mm512_and_si512(*at, _mm512_set1_epi32(0xffff)) : _mm512_setzero_si512();
        }
}

/* Sums (numbers, queries) as rows of the queries from `first` on. */
static void seen_as_rows(bf16 *to, long step, long first, long count, long d, float *sums, const floats factor[2]) {
    for (long i = 0; i < d; i += BLOCK, sums += SUMS)
        for (int half = 0; half < 2; half++) {
            __m512i rows[16];
            turned_rows(sums, half, factor[half], rows);
            for (long row = 0; row < 16 && first + 16 * half + row < count; row++)
                _mm512_mask_storeu_epi16(to + (first + 16 * half + row) * step + i, first_of(d - i), rows[row]);
        }
}

void wide_there(const struct head *h, char *room, long d) {
    long n = h->n, m = h->m, wide = blocks_of(d), blocks = blocks_of(m);
    bf16 *keys = (bf16 *)room, *values = formed(LEFT, keys, h->key, h->key_step, m, d);
    bf16 *query = formed(LEFT_OVER, values, h->value, h->value_step, m, d), *up = query + wide * PAIR;
    float *scores = (float *)(up + CHUNK * PAIR), *sums = scores + 2 * SUMS, bound = 0;
    floats scale = _mm512_set1_ps(h->scale * 1.44269504f);
    pairs ones = _mm512_set1_epi32(0x3f803f80);
    int spare = d % BLOCK != 0; /* a row of ones beside the values gives the sums of what was rounded */
    for (long i = 0; spare && i < blocks; i++)
        for (long j = 0; j < BLOCK; j++) values[(i * wide + wide - 1) * PAIR + d % BLOCK * 32 + j] = 0x3f80;
    for (long i = 0; i < m; i++) {
        float size = product_of(h->key + i * h->key_step, h->key + i * h->key_step, d);
        bound = size > bound || size != size ? size : bound;
    }
    bound = __builtin_sqrtf(bound);
    for (long first = 0; first < n; first += BLOCK) {
        struct tiles left[CHUNK], right[CHUNK], asked[wide];
        long left_over = n - first < BLOCK ? n - first : BLOCK;
        formed(RIGHT, query, h->query + first * h->query_step, h->query_step, left_over, d);
        floats shift[2], total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int half = 0; half < 2; half++) shift[half] = largest(h, query, keys, d, bound, half, scores);
        every(asked, query, 1, wide);
        every(left, keys, 1, wide);
        multiplied(left, asked, wide, scores, 1);
        for (long block = 0; block < blocks; block++) {
            long at = block % CHUNK, count = at + 1;
            if (block + 1 < blocks) { /* while those before are raised */
                every(left, keys + (block + 1) * wide * PAIR, 1, wide);
                multiplied(left, asked, wide, scores + (block + 1) % 2 * SUMS, 1);
            }
            raised(scores + block % 2 * SUMS, scale, shift, m - block * BLOCK, up + at * PAIR);
            for (int i = 0; !spare && i < 2 * LANES; i++)
                total[i / 16] = product(total[i / 16], _mm512_load_si512(up + at * PAIR + i * 32), ones);
            if (count < CHUNK && block + 1 < blocks) continue;
            every(right, up, 1, count);
            for (long i = 0; i < wide; i++) {
                every(left, values + ((block - at) * wide + i) * PAIR, wide, count);
                multiplied(left, right, count, sums + i * SUMS, block < CHUNK);
            }
        }
        floats factor[2];
        for (int half = 0; half < 2; half++) {
            if (spare) total[half] = _mm512_load_ps(sums + (wide - 1) * SUMS + d % BLOCK / 16 * 512 + half * 256 + d % 16 * 16);
            factor[half] = _mm512_div_ps(_mm512_set1_ps(1.f), total[half]);
            keep_logs(h, first + half * LANES, shift[half], total[half]);
        }
        seen_as_rows(h->out, h->out_step, first, n, d, sums, factor);
    }
}

struct slopes { /* of a block of scores, for the next products */
    bf16 *raised, *left, *right; /* exponentials as left tiles; gradients of scores as left tiles, and as right ones */
};

/* Exponentials of scores, and gradients of the scores by what is `up`; zero of keys that there are none of. */
static inline void sloped(const float *score, const float *up, floats scale, const floats log[2], const floats less[2],
                          long keys, struct slopes to) {
    for (int i = 0; i < LANES; i++) {
        floats slope[2][2];
        for (int odd = 0; odd < 2; odd++) {
            long row = 2 * i + odd, at = row / 16 * 512 + row % 16 * 16;
            __mmask16 there = row < keys ? 0xffff : 0;
            floats by[2];
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                by[half] = _mm512_maskz_mov_ps(
                    there, power(_mm512_fmsub_ps(_mm512_load_ps(score + at + half * 256), scale, log[half])));
                slope[half][odd] =
                    _mm512_maskz_mul_ps(there, by[half], _mm512_sub_ps(_mm512_load_ps(up + at + half * 256), less[half]));
            }
            _mm512_store_si512(to.raised + row * 32, (__m512i)_mm512_cvtne2ps_pbh(by[1], by[0]));
            _mm512_store_si512(to.left + row * 32, (__m512i)_mm512_cvtne2ps_pbh(slope[1][odd], slope[0][odd]));
        }
        for (int half = 0; half < 2; half++)
            _mm512_store_si512(to.right + half * PAIR / 2 + i * 32, paired(slope[half][0], slope[half][1]));
    }
}

/* Sums (rows, numbers) as rows from `first` on. */
static void as_rows(bf16 *to, long step, long first, long count, long d, const float *sums, floats factor) {
    for (long i = 0; i < d; i += BLOCK, sums += SUMS)
        for (long row = 0; row < BLOCK && first + row < count; row++) {
            const float *at = sums + row / 16 * 512 + row % 16 * 16;
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_load_ps(at + 256), factor),
                                                        _mm512_mul_ps(_mm512_load_ps(at), factor));
            _mm512_mask_storeu_epi16(to + (first + row) * step + i, first_of(d - i), both);
        }
}

void wide_back(const struct head *h, char *room, long d) {
    long n = h->n, m = h->m, wide = blocks_of(d), queries = blocks_of(n), keys = blocks_of(m);
    bf16 *query = (bf16 *)room, *up = formed(RIGHT, query, h->query, h->query_step, n, d);
    bf16 *query_over = formed(RIGHT, up, h->up, h->out_step, n, d);
    bf16 *up_over = formed(RIGHT_OVER, query_over, h->query, h->query_step, n, d);
    bf16 *key = formed(RIGHT_OVER, up_over, h->up, h->out_step, n, d), *value = formed(LEFT, key, h->key, h->key_step, m, d);
    bf16 *key_over = formed(LEFT, value, h->value, h->value_step, m, d);
    struct slopes all = {.raised = formed(LEFT_OVER, key_over, h->key, h->key_step, m, d)};
    all.left = all.raised + SQUARE * SQUARE * PAIR, all.right = all.left + SQUARE * SQUARE * PAIR;
    float *scores = (float *)(all.right + SQUARE * SQUARE * PAIR), *to_key = scores + 4 * SUMS,
          *to_value = to_key + SQUARE * wide * SUMS;
    float *to_query = to_value + SQUARE * wide * SUMS, *logs = to_query + queries * wide * SUMS, *less = logs + queries * BLOCK;
    floats scale = _mm512_set1_ps(h->scale * 1.44269504f), plain = _mm512_set1_ps(h->scale), factor[2] = {plain, plain};
    for (long row = 0; row < queries * BLOCK; row++) { /* where there is no such row nothing is raised */
        logs[row] = row < n ? h->logs[row] : 1e30f;
        less[row] = row < n ? product_of(h->up + row * h->out_step, h->out + row * h->out_step, d) : 0;
    }
    for (long j = 0; j < keys; j += SQUARE) {
        long tall = keys - j < SQUARE ? keys - j : SQUARE;
        for (long i = 0; i < queries; i += SQUARE) {
            long broad = queries - i < SQUARE ? queries - i : SQUARE;
            struct tiles left[SQUARE + wide], right[SQUARE + wide];
            for (long a = 0; a < tall; a++)
                for (long b = 0; b < broad; b++) {
                    floats log[2], off[2];
                    float *now = scores + (a * broad + b) % 2 * 2 * SUMS;
                    every(left, key + (j + a) * wide * PAIR, 1, wide);
                    every(right, query + (i + b) * wide * PAIR, 1, wide);
                    multiplied(left, right, wide, now, 1);
                    every(left, value + (j + a) * wide * PAIR, 1, wide);
                    every(right, up + (i + b) * wide * PAIR, 1, wide);
                    multiplied(left, right, wide, now + SUMS, 1);
                    for (int half = 0; half < 2; half++) {
                        log[half] = _mm512_loadu_ps(logs + (i + b) * BLOCK + half * 16);
                        off[half] = _mm512_loadu_ps(less + (i + b) * BLOCK + half * 16);
                    }
                    long at = (a * SQUARE + b) * PAIR, over = (b * SQUARE + a) * PAIR;
                    sloped(now, now + SUMS, scale, log, off, m - (j + a) * BLOCK,
                           (struct slopes){all.raised + at, all.left + at, all.right + over});
                }
            for (long a = 0; a < tall; a++)
                for (long part = 0; part < wide; part++) {
                    every(left, all.raised + a * SQUARE * PAIR, 1, broad);
                    every(right, up_over + (i * wide + part) * PAIR, wide, broad);
                    multiplied(left, right, broad, to_value + (a * wide + part) * SUMS, i == 0);
                    every(left, all.left + a * SQUARE * PAIR, 1, broad);
                    every(right, query_over + (i * wide + part) * PAIR, wide, broad);
                    multiplied(left, right, broad, to_key + (a * wide + part) * SUMS, i == 0);
                }
            for (long b = 0; b < broad; b++)
                for (long part = 0; part < wide; part++) {
                    every(left, key_over + (j * wide + part) * PAIR, wide, tall);
                    every(right, all.right + b * SQUARE * PAIR, 1, tall);
                    multiplied(left, right, tall, to_query + ((i + b) * wide + part) * SUMS, j == 0);
                }
        }
        for (long a = 0; a < tall; a++) {
            as_rows(h->to_value, h->value_step, (j + a) * BLOCK, m, d, to_value + a * wide * SUMS, _mm512_set1_ps(1.f));
            as_rows(h->to_key, h->key_step, (j + a) * BLOCK, m, d, to_key + a * wide * SUMS, plain);
        }
    }
    for (long i = 0; i < queries; i++)
        seen_as_rows(h->to_query, h->query_step, i * BLOCK, n, d, to_query + i * wide * SUMS, factor);
}
#else
long wide_room(long n, long m, long d) { return n - n + m - m + d - d; }
void wide_there(const struct head *h, char *room, long d) { (void)h, (void)room, (void)d; }
void wide_back(const struct head *h, char *room, long d) { (void)h, (void)room, (void)d; }
#endif
#endif
