/* The norms of gradients, and a step of AdamW with its averages in one walk through memory; float32, gradients may be bf16.
 *
 * Work is cut into chunks of a tensor each; sums over them are taken in one order, however many threads there are. */

#pragma GCC optimize("fp-contract=off") /* the same rounding for the last numbers of a tensor, for either type of gradients */

#include <math.h>
#include <stdint.h>

#define CHUNK 16384

struct place { /* of a chunk */
    long tensor, from, size;
};

static long chunks_of(long size) { return (size + CHUNK - 1) / CHUNK; }

/* Of chunk number `chunk`; `at` and `before` are where the search stands, for chunks that come in order. */
static struct place place_of(long chunk, const long *sizes, long *at, long *before) {
    while (chunk - *before >= chunks_of(sizes[*at])) *before += chunks_of(sizes[(*at)++]);
    long from = (chunk - *before) * CHUNK, left = sizes[*at] - from;
    return (struct place){*at, from, left < CHUNK ? left : CHUNK};
}

static inline float number(const void *x, long i, int half) {
    if (!half) return ((const float *)x)[i];
    union { uint32_t bits; float number; } at = {.bits = (uint32_t)((const uint16_t *)x)[i] << 16};
    return at.number;
}

#define LANES 16 /* whose sums are kept apart: the same bits for either type, whatever the compiler makes of it */

static inline __attribute__((always_inline)) double squares(const void *x, long from, long size, int half) {
    double all = 0;
    for (long at = from; at < from + size; at += 512) {
        float sums[LANES] = {0}, sum = 0;
        long last = at + 512 < from + size ? at + 512 : from + size, i = at;
        for (; i + LANES <= last; i += LANES)
#pragma omp simd
            for (long lane = 0; lane < LANES; lane++) sums[lane] += number(x, i + lane, half) * number(x, i + lane, half);
        for (long lane = 0; i + lane < last; lane++) sums[lane] += number(x, i + lane, half) * number(x, i + lane, half);
        for (long lane = 0; lane < LANES; lane++) sum += sums[lane];
        all += sum;
    }
    return all;
}

/* The norm of each of `count` tensors; `room` is for a number a chunk of each. */
void norms(const void **tensors, const long *sizes, double *room, float *out, long count, int half) {
    long chunks = 0;
    for (long n = 0; n < count; n++) chunks += chunks_of(sizes[n]);
#pragma omp parallel if (chunks > 1)
    {
        long at = 0, before = 0;
#pragma omp for schedule(static, 4)
        for (long chunk = 0; chunk < chunks; chunk++) {
            struct place here = place_of(chunk, sizes, &at, &before);
            const void *x = tensors[here.tensor];
            room[chunk] = half ? squares(x, here.from, here.size, 1) : squares(x, here.from, here.size, 0);
        }
    }
    for (long n = 0, chunk = 0; n < count; n++) {
        double all = 0;
        for (long i = 0; i < chunks_of(sizes[n]); i++) all += room[chunk++];
        out[n] = (float)sqrt(all);
    }
}

struct rule {
    float kept, rate, root, fresh, spread, old, eps, factor;
};

static inline __attribute__((always_inline)) void step(float *p, const void *g, float *m, float *v, struct rule how, long from,
                                                       long size, int half) {
#pragma omp simd
    for (long i = from; i < from + size; i++) {
        float d = number(g, i, half) * how.factor;
        m[i] += (d - m[i]) * how.fresh;
        v[i] = v[i] * how.old + d * d * how.spread;
        p[i] = p[i] * how.kept - how.rate * m[i] / (sqrtf(v[i]) / how.root + how.eps);
    }
}

static inline uint16_t half_of(float x) { /* bf16, the nearest, ties to even; a NaN stays one */
    union { float number; uint32_t bits; } at = {.number = x};
    return x != x ? 0x7fc0 : (uint16_t)((at.bits + 0x7fff + ((at.bits >> 16) & 1)) >> 16);
}

/* AdamW (Loshchilov and Hutter 2019, algorithm 2) of `count` weights whose gradients are scaled by `factor`, and their averages
 * moved towards them by `share`; each counts its own steps. Without gradients only the averages move; where there is no average,
 * none does. `copies` are bf16 ones of the weights, where there are any. */
void adamw(float **weights, const void **gradients, float **first, float **second, float **steps, float **averages,
           uint16_t **copies, const long *sizes, long count, float rate, float decay, double beta1, double beta2, float eps, float factor,
           float share, int half) {
    long chunks = 0;
    for (long n = 0; n < count; n++) {
        chunks += chunks_of(sizes[n]);
        if (gradients) *steps[n] += 1;
    }
#pragma omp parallel if (chunks > 1)
    {
        long at = 0, before = 0;
#pragma omp for schedule(static, 4)
        for (long chunk = 0; chunk < chunks; chunk++) {
            struct place here = place_of(chunk, sizes, &at, &before);
            long n = here.tensor;
            float *p = weights[n];
            if (gradients) {
                struct rule how = {
                    .kept = (float)(1 - rate * decay), .rate = (float)(rate / (1 - pow(beta1, *steps[n]))),
                    .root = (float)sqrt(1 - pow(beta2, *steps[n])), .fresh = (float)(1 - beta1), .spread = (float)(1 - beta2),
                    .old = (float)beta2, .eps = eps, .factor = factor,
                };
                if (half) step(p, gradients[n], first[n], second[n], how, here.from, here.size, 1);
                else step(p, gradients[n], first[n], second[n], how, here.from, here.size, 0);
                if (copies && copies[n]) {
                    uint16_t *copy = copies[n];
#pragma omp simd
                    for (long i = here.from; i < here.from + here.size; i++) copy[i] = half_of(p[i]);
                }
            }
            if (averages) {
                float *a = averages[n];
#pragma omp simd
                for (long i = here.from; i < here.from + here.size; i++) a[i] += (p[i] - a[i]) * share;
            }
        }
    }
}
