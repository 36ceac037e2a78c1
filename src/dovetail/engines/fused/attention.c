/* Attention of narrow heads on a CPU that multiplies pairs of bf16 numbers (AVX-512 BF16), there and back.
 *
 * A head of 8 to 32 numbers is too thin for matrix products of their own. Here 16 queries (or, on the way back, 16 keys) are the
 * lanes of a register, scores live in registers alone, and tokens are read where they lie: (b, rows, ...) with `step` numbers
 * from row to row, a head's numbers together. Nothing is kept but the logarithm of each row's sum (Dao et al. 2022, sec. 3.1).
 * Processors that have tiles do pairs at half the pace of float32; theirs is tiles.c. */

#include <stdlib.h>

#include "attention.h"

#ifdef __AVX512BF16__
static inline pairs spread(const uint32_t *at) { return _mm512_set1_epi32((int)*at); }

/* Rows (count, d) at `step` from each other, as they are multiplied: `along` has pairs within a row, `across` pairs of rows. */
static void pack(const bf16 *x, long step, long count, long d, uint32_t *along, uint32_t *across) {
    for (long row = 0; row < count; row += 2) {
        const bf16 *one = x + row * step, *other = row + 1 < count ? one + step : 0;
        memcpy(along + row * d / 2, one, d * sizeof(bf16));
        if (other) memcpy(along + (row + 1) * d / 2, other, d * sizeof(bf16));
        else memset(along + (row + 1) * d / 2, 0, d * sizeof(bf16));
        for (long i = 0; i < d; i++) across[row / 2 * d + i] = one[i] | (uint32_t)(other ? other[i] : 0) << 16;
    }
}

/* 16 rows from `first` on as lanes, of rows that are packed `along`; rows that there are none of are zero. */
static inline void as_lanes(const uint32_t *along, long first, long count, long d, pairs *lanes) {
    uint32_t some[MOST / 2][LANES];
    for (long lane = 0; lane < LANES; lane++)
        for (long i = 0; i < d / 2; i++) some[i][lane] = first + lane < count ? along[(first + lane) * d / 2 + i] : 0;
    for (long i = 0; i < d / 2; i++) lanes[i] = _mm512_loadu_si512(some[i]);
}

static inline floats dots(const pairs *lanes, const uint32_t *row, long d) {
    floats sum = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (long i = 0; i < d / 2; i++) sum = product(sum, lanes[i], spread(row + i));
    return sum;
}

static inline __attribute__((always_inline)) void head_there(const struct head *h, uint32_t *room, long d) {
    long n = h->n, m = h->m, even_n = n + n % 2, even_m = m + m % 2;
    uint32_t *query = room, *spare = query + even_n * d / 2, *key = spare + even_n * d / 2, *across_key = key + even_m * d / 2;
    uint32_t *value = across_key + even_m * d / 2, *across = value + even_m * d / 2;
    pack(h->query, h->query_step, n, d, query, spare);
    pack(h->key, h->key_step, m, d, key, across_key);
    pack(h->value, h->value_step, m, d, value, across);
    pairs ones = _mm512_set1_epi32(0x3f803f80);
    floats scale = _mm512_set1_ps(h->scale * 1.44269504f), bound = _mm512_set1_ps(longest(h->key, h->key_step, m, d));
    for (long first = 0; first < n; first += LANES) {
        pairs lanes[MOST / 2];
        as_lanes(query, first, n, d, lanes);
        floats size = _mm512_setzero_ps(), total = _mm512_setzero_ps(), sums[MOST];
        for (long i = 0; i < d / 2; i++) size = product(size, lanes[i], lanes[i]);
        floats shift = _mm512_mul_ps(_mm512_mul_ps(_mm512_sqrt_ps(size), bound), scale); /* no score is more: Cauchy, Schwarz */
        if (_mm512_cmp_ps_mask(shift, _mm512_set1_ps(SAFE), _CMP_NLE_UQ)) {
            floats most = _mm512_set1_ps(-3.4e38f);
            for (long j = 0; j < m; j++) most = _mm512_max_ps(most, dots(lanes, key + j * d / 2, d));
            shift = _mm512_mul_ps(most, scale);
        }
#pragma GCC unroll 32
        for (long i = 0; i < d; i++) sums[i] = _mm512_setzero_ps();
        for (long j = 0; j < even_m; j += 2) {
            floats one = power(_mm512_fmsub_ps(dots(lanes, key + j * d / 2, d), scale, shift));
            floats other = power(_mm512_fmsub_ps(dots(lanes, key + (j + 1) * d / 2, d), scale, shift));
            if (j + 1 == m) other = _mm512_setzero_ps();
            pairs both = paired(one, other);
            total = product(total, both, ones); /* of what was rounded: where one key is all, it is seen as it is */
#pragma GCC unroll 32
            for (long i = 0; i < d; i++) sums[i] = product(sums[i], both, spread(across + j / 2 * d + i));
        }
        store(h->out, h->out_step, first, n, d, sums, _mm512_div_ps(_mm512_set1_ps(1.f), total));
        keep_logs(h, first, shift, total);
    }
}

/* Gradients of the queries (lanes are queries, rows are keys), or of keys and values (lanes are keys, rows are queries). */
static inline __attribute__((always_inline)) void head_back(const struct head *h, uint32_t *room, long d) {
    long n = h->n, m = h->m, even_n = n + n % 2, even_m = m + m % 2;
    uint32_t *query = room, *across_query = query + even_n * d / 2, *up = across_query + even_n * d / 2;
    uint32_t *across_up = up + even_n * d / 2, *key = across_up + even_n * d / 2, *across_key = key + even_m * d / 2;
    uint32_t *value = across_key + even_m * d / 2, *across_value = value + even_m * d / 2;
    float *along = (float *)(across_value + even_m * d / 2);
    pack(h->query, h->query_step, n, d, query, across_query);
    pack(h->up, h->out_step, n, d, up, across_up);
    pack(h->key, h->key_step, m, d, key, across_key);
    pack(h->value, h->value_step, m, d, value, across_value);
    products_of_rows(h, d, along);
    floats scale = _mm512_set1_ps(h->scale * 1.44269504f), plain = _mm512_set1_ps(h->scale), nothing = _mm512_setzero_ps();
    for (long first = 0; first < n; first += LANES) {
        pairs lanes[MOST / 2], ups[MOST / 2];
        as_lanes(query, first, n, d, lanes);
        as_lanes(up, first, n, d, ups);
        floats logs = some_of(h->logs, first, n), less = some_of(along, first, n), sums[MOST];
#pragma GCC unroll 32
        for (long i = 0; i < d; i++) sums[i] = nothing;
        for (long j = 0; j < even_m; j += 2) {
            const uint32_t *k = key + j * d / 2, *v = value + j * d / 2;
            floats one = power(_mm512_fmsub_ps(dots(lanes, k, d), scale, logs));
            floats other = power(_mm512_fmsub_ps(dots(lanes, k + d / 2, d), scale, logs));
            one = _mm512_mul_ps(one, _mm512_sub_ps(dots(ups, v, d), less));
            other = _mm512_mul_ps(other, _mm512_sub_ps(dots(ups, v + d / 2, d), less));
            if (j + 1 == m) other = nothing;
            pairs both = paired(one, other);
#pragma GCC unroll 32
            for (long i = 0; i < d; i++) sums[i] = product(sums[i], both, spread(across_key + j / 2 * d + i));
        }
        store(h->to_query, h->query_step, first, n, d, sums, plain);
    }
    for (long first = 0; first < m; first += LANES) {
        pairs lanes[MOST / 2], values[MOST / 2];
        as_lanes(key, first, m, d, lanes);
        as_lanes(value, first, m, d, values);
        floats keys[MOST], seen[MOST];
#pragma GCC unroll 32
        for (long i = 0; i < d; i++) keys[i] = seen[i] = nothing;
        for (long j = 0; j < even_n; j += 2) {
            const uint32_t *q = query + j * d / 2, *g = up + j * d / 2;
            long last = j + 1 < n ? j + 1 : j;
            floats one = power(_mm512_fmsub_ps(dots(lanes, q, d), scale, _mm512_set1_ps(h->logs[j])));
            floats other = power(_mm512_fmsub_ps(dots(lanes, q + d / 2, d), scale, _mm512_set1_ps(h->logs[last])));
            if (j + 1 == n) other = nothing;
            pairs both = paired(one, other);
            one = _mm512_mul_ps(one, _mm512_sub_ps(dots(values, g, d), _mm512_set1_ps(along[j])));
            other = _mm512_mul_ps(other, _mm512_sub_ps(dots(values, g + d / 2, d), _mm512_set1_ps(along[last])));
            pairs slopes = paired(one, other);
#pragma GCC unroll 32
            for (long i = 0; i < d; i++) {
                seen[i] = product(seen[i], both, spread(across_up + j / 2 * d + i));
                keys[i] = product(keys[i], slopes, spread(across_query + j / 2 * d + i));
            }
        }
        store(h->to_value, h->value_step, first, m, d, seen, _mm512_set1_ps(1.f));
        store(h->to_key, h->key_step, first, m, d, keys, plain);
    }
}

static void one_head(const struct head *h, uint32_t *room, long d, int back) {
#define OF(width) if (d == width) { if (back) head_back(h, room, width); else head_there(h, room, width); return; }
    OF(8) OF(16) OF(24) OF(32)
#undef OF
}

/* (b, n, heads, d) over (b, m, heads, d); steps are from row to row. `out` is (b, n, heads, d), `logs` (b, heads, n). */
void attend(const bf16 *query, const bf16 *key, const bf16 *value, bf16 *out, float *logs, const bf16 *up, bf16 *to_query,
            bf16 *to_key, bf16 *to_value, long b, long n, long m, long heads, long d, long query_step, long key_step,
            long value_step, float scale, int back) {
    int tiled = tiles_allowed(), wide = d > MOST;
    long size = wide ? wide_room(n, m, d) : tiled ? tiles_room(n, m, d) : (2 * (n + m + 2) * d + n + 2) * 4;
    tiles_known();
#pragma omp parallel if (b * heads * n * m > 4096)
    {
        void *room = aligned_alloc(64, (size + 127) / 64 * 64);
        if (tiled && wide) tiles_begin();
        else if (tiled) tiles_begin_narrow(d);
#pragma omp for schedule(static)
        for (long unit = 0; unit < b * heads; unit++) {
            long at = unit / heads, head = unit % heads;
            long q = at * n * query_step + head * d, k = at * m * key_step + head * d, v = at * m * value_step + head * d;
            long o = at * n * heads * d + head * d;
            struct head told = {query + q, key + k, value + v, back ? up + o : 0, out + o, back ? to_query + q : 0,
                                back ? to_key + k : 0, back ? to_value + v : 0, logs + unit * n, query_step, key_step,
                                value_step, heads * d, n, m, scale};
            if (wide && back) wide_back(&told, room, d);
            else if (wide) wide_there(&told, room, d);
            else if (!tiled) one_head(&told, room, d, back);
            else if (back) tiles_back(&told, room, d);
            else tiles_there(&told, room, d);
        }
        if (tiled) tiles_end();
        free(room);
    }
}

int attends(long d) { return d % 8 == 0 && d <= (tiles_allowed() ? WIDEST_HEAD : MOST); }
#else
void attend(void) {}
int attends(long d) { return d - d; }
#endif
