/* What both ways of attention share: a head, and what is done to 16 numbers at once. */

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

#ifdef __AVX512BF16__
#include <immintrin.h>

#define MOST 32 /* numbers of a narrow head */
#define WIDEST_HEAD 160 /* of a wide one */
#define LANES 16
#define SAFE 60.f /* exponents of two, up or down, that need no row's largest score taken off */

typedef __m512 floats;
typedef __m512i pairs; /* 16 lanes of two bf16 numbers */

struct head { /* of one picture */
    const bf16 *query, *key, *value, *up;
    bf16 *out, *to_query, *to_key, *to_value;
    float *logs;
    long query_step, key_step, value_step, out_step, n, m;
    float scale;
};

static inline float wide(bf16 x) {
    union { uint32_t bits; float number; } at = {.bits = (uint32_t)x << 16};
    return at.number;
}

static inline floats product(floats sum, pairs a, pairs b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

static inline floats power(floats x) { /* 2^x, relative error 8e-5, a twentieth of what bf16 rounds off */
    floats rest = _mm512_reduce_ps(x, 1), seen = _mm512_set1_ps(7.802452e-2f); /* what is over the next whole number below */
    seen = _mm512_fmadd_ps(seen, rest, _mm512_set1_ps(2.2606716e-1f));
    seen = _mm512_fmadd_ps(seen, rest, _mm512_set1_ps(6.9583353e-1f));
    seen = _mm512_fmadd_ps(seen, rest, _mm512_set1_ps(9.9992522e-1f));
    return _mm512_scalef_ps(seen, x);
}

/* As bf16, the nearest, and up from the middle: lane i has number i of both. */
static inline pairs paired(floats first, floats second) {
    __m512i half = _mm512_set1_epi32(0x8000), low = _mm512_add_epi32(_mm512_castps_si512(first), half);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(low, 16), _mm512_add_epi32(_mm512_castps_si512(second), half));
}

static inline __mmask16 those_of(long left) { return left >= LANES ? 0xffff : (__mmask16)((1 << left) - 1); }

static inline floats some_of(const float *at, long first, long count) {
    return _mm512_maskz_loadu_ps(those_of(count - first), at + first);
}

static inline __m512i rows_at(long step) { /* bytes to where each of 16 rows begins */
    return _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                              _mm512_set1_epi32((int)(2 * step)));
}

/* Lanes are rows, numbers of a row one below the other. */
static inline void store(bf16 *to, long step, long first, long count, long d, const floats *sums, floats factor) {
    for (long i = 0; i < d; i += 2)
        _mm512_mask_i32scatter_epi32(to + first * step + i, those_of(count - first), rows_at(step),
                                     paired(_mm512_mul_ps(sums[i], factor), _mm512_mul_ps(sums[i + 1], factor)), 1);
}

/* The norm of the longest of rows (count, d); no number if one of them has none. */
static inline float longest(const bf16 *x, long step, long count, long d) {
    floats most = _mm512_setzero_ps();
    __mmask16 none = 0;
    for (long first = 0; first < count; first += LANES) {
        floats sum = _mm512_setzero_ps();
        for (long i = 0; i < d; i += 2) {
            pairs at = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), those_of(count - first), rows_at(step),
                                                   x + first * step + i, 1);
            sum = product(sum, at, at);
        }
        none |= _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q);
        most = _mm512_max_ps(most, sum);
    }
    return none ? __builtin_nanf("") : __builtin_sqrtf(_mm512_reduce_max_ps(most));
}

/* What rows of the way back have taken off: up times out. */
static inline void products_of_rows(const struct head *h, long d, float *to) {
    __mmask32 all = d >= 32 ? ~0u : (1u << d) - 1;
    for (long row = 0; row < h->n; row++)
        to[row] = _mm512_reduce_add_ps(product(_mm512_setzero_ps(), _mm512_maskz_loadu_epi16(all, h->up + row * h->out_step),
                                               _mm512_maskz_loadu_epi16(all, h->out + row * h->out_step)));
}

static inline floats logarithm(floats x) { /* to base two, error 3e-7 */
    floats more = _mm512_sub_ps(_mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero), _mm512_set1_ps(1.f));
    floats seen = _mm512_set1_ps(1.55298738e-2f);
    seen = _mm512_fmadd_ps(seen, more, _mm512_set1_ps(-7.9557593e-2f));
    seen = _mm512_fmadd_ps(seen, more, _mm512_set1_ps(1.94294153e-1f));
    seen = _mm512_fmadd_ps(seen, more, _mm512_set1_ps(-3.25901872e-1f));
    seen = _mm512_fmadd_ps(seen, more, _mm512_set1_ps(4.73553381e-1f));
    seen = _mm512_fmadd_ps(seen, more, _mm512_set1_ps(-7.20585465e-1f));
    seen = _mm512_fmadd_ps(seen, more, _mm512_set1_ps(1.44266783f));
    return _mm512_fmadd_ps(seen, more, _mm512_getexp_ps(x));
}

static inline void keep_logs(const struct head *h, long first, floats shift, floats total) { /* to base two */
    if (first < h->n) _mm512_mask_storeu_ps(h->logs + first, those_of(h->n - first), _mm512_add_ps(shift, logarithm(total)));
}

/* In tiles.c, where the processor has tiles: whether it may be asked for them; what is to be known before; by each thread before
 * (for narrow heads, or all else) and after; the room of a thread in bytes; a head there and back. */
int tiles_allowed(void);
void tiles_known(void);
void tiles_begin(void);
void tiles_begin_narrow(long d);
void tiles_end(void);
long tiles_room(long n, long m, long d);
void tiles_there(const struct head *h, char *room, long d);
void tiles_back(const struct head *h, char *room, long d);

/* In wide.c, the same of wide heads. */
long wide_room(long n, long m, long d);
void wide_there(const struct head *h, char *room, long d);
void wide_back(const struct head *h, char *room, long d);
#endif
