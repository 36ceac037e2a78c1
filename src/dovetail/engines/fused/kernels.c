/* What a U-Net does between its matrix products, on a CPU, there and back: bf16 numbers in memory, float32 arithmetic.
 *
 * Pictures lie as (b, places, channels), "channels last", tokens as (rows, width). Sums are taken in parts that do not depend
 * on the number of threads, and in one order: the same numbers give the same bits. A NaN stays one. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

static inline float wide(bf16 x) {
    union { uint32_t bits; float number; } at = {.bits = (uint32_t)x << 16};
    return at.number;
}

static inline bf16 narrow(float x) { /* to the nearest, ties to even */
    union { float number; uint32_t bits; } at = {.number = x};
    return (bf16)((at.bits + 0x7fff + ((at.bits >> 16) & 1)) >> 16);
}

static inline float exponential(float x) { /* 2^n times a polynomial in the rest; relative error 1e-6 */
    x = x > 80.f ? 80.f : x;
    x = x < -80.f ? -80.f : x;
    union { float number; uint32_t bits; } sum = {.number = x * 1.44269504f + 12582912.f}, seen; /* its last bits are n */
    float rest = x * 1.44269504f - (sum.number - 12582912.f);
    seen.number = 1.32764713e-3f;
    seen.number = seen.number * rest + 9.67554189e-3f;
    seen.number = seen.number * rest + 5.55071309e-2f;
    seen.number = seen.number * rest + 2.40221202e-1f;
    seen.number = seen.number * rest + 6.93146944e-1f;
    seen.number = seen.number * rest + 1.00000012f;
    seen.bits += sum.bits << 23;
    return seen.number;
}

static inline float reciprocal(float x) { /* of a positive number; Newton's steps from a guess, the first adjusted; error 2e-6 */
    union { float number; uint32_t bits; } seen = {.number = x};
    seen.bits = 0x7ef198f6 - seen.bits;
    seen.number *= 2.0184264f - 1.0172168f * x * seen.number;
    return seen.number * (2.f - x * seen.number);
}

static inline float sigmoid(float x) { return reciprocal(1.f + exponential(-x)); }

static inline float silu_slope(float x) {
    float share = sigmoid(x);
    return share * (1.f + x * (1.f - share));
}

/* The normal distribution below x; `bell` is exp(-x^2 / 2) (Abramowitz and Stegun, 7.1.26; error 1e-6). */
static inline float below(float x, float bell) {
    float size = x < 0.f ? -x : x, t = reciprocal(1.f + 0.23164190f * size);
    float tail = 0.5f * bell * t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    return x < 0.f ? tail : 1.f - tail;
}

/* How many parts the channels of a picture are worked off in: each has whole groups and at least a cache line. */
static long parts_of(long b, long c, long groups) {
    long parts = 1;
    while (b * parts < 16 && groups % (2 * parts) == 0 && c / (2 * parts) >= 32) parts *= 2;
    return parts;
}

/* Sums over the rows of (count, c), in their order. */
static void add_up(const float *rows, float *out, long count, long c) {
#pragma omp simd
    for (long i = 0; i < c; i++) out[i] = 0;
    for (long row = 0; row < count; row++)
#pragma omp simd
        for (long i = 0; i < c; i++) out[i] += rows[row * c + i];
}

/* Sums over the rows of (count, c) as float32 numbers, for who asks from without. */
void sum_numbers(const float *rows, float *out, long count, long c) { add_up(rows, out, count, c); }

/* y = x sigmoid(x), and the way back. */
void silu(const bf16 *x, bf16 *y, long count) {
#pragma omp simd
    for (long i = 0; i < count; i++) {
        float u = wide(x[i]);
        y[i] = narrow(u * sigmoid(u));
    }
}

void silu_back(const bf16 *dy, const bf16 *x, bf16 *dx, long count) {
#pragma omp simd
    for (long i = 0; i < count; i++) dx[i] = narrow(wide(dy[i]) * silu_slope(wide(x[i])));
}

#define ROWS 64 /* whose sums are float32 before they are added up in double */

/* y = [silu]((x + shift - mean) rstd gamma + beta), mean and rstd those of a group: Wu and He 2018, eq. 1. */
void group_norm(const bf16 *x, const bf16 *shift, const float *gamma, const float *beta, bf16 *y, float *mean, float *rstd,
                long b, long places, long c, long groups, float eps, int silu) {
    long parts = parts_of(b, c, groups), width = c / parts, per = c / groups, here = groups / parts;
#pragma omp parallel for schedule(static) if (b * places * c > 8192)
    for (long unit = 0; unit < b * parts; unit++) {
        long n = unit / parts, first = unit % parts * width;
        const bf16 *from = x + n * places * c + first;
        bf16 *to = y + n * places * c + first;
        float add[width], scale[width], some[width], squares[width], middle[width];
        double sum[width], square[width];
#pragma omp simd
        for (long i = 0; i < width; i++) { /* the first row's numbers are taken off, so that no mean is large beside what varies */
            add[i] = shift ? wide(shift[n * c + first + i]) : 0.f;
            middle[i] = wide(from[i]);
            sum[i] = square[i] = 0;
        }
        for (long block = 0; block < places; block += ROWS) {
            long last = block + ROWS < places ? block + ROWS : places;
#pragma omp simd
            for (long i = 0; i < width; i++) some[i] = squares[i] = 0;
            for (long row = block; row < last; row++)
#pragma omp simd
                for (long i = 0; i < width; i++) {
                    float off = wide(from[row * c + i]) - middle[i];
                    some[i] += off;
                    squares[i] += off * off;
                }
#pragma omp simd
            for (long i = 0; i < width; i++) sum[i] += some[i], square[i] += squares[i];
        }
        for (long group = 0; group < here; group++) {
            double total = 0, around = 0, count = (double)places * per;
            long at = n * groups + first / per + group;
#pragma omp simd reduction(+ : total)
            for (long i = group * per; i < (group + 1) * per; i++) total += sum[i] + places * ((double)middle[i] + add[i]);
            total /= count;
#pragma omp simd reduction(+ : around)
            for (long i = group * per; i < (group + 1) * per; i++) {
                double off = (double)middle[i] + add[i] - total;
                around += square[i] + off * (2 * sum[i] + places * off);
            }
            mean[at] = (float)total;
            rstd[at] = (float)(1 / sqrt((around > 0 ? around : around < 0 ? 0 : around) / count + eps));
            for (long i = group * per; i < (group + 1) * per; i++) {
                scale[i] = rstd[at] * gamma[first + i];
                add[i] = (float)(add[i] - total) * scale[i] + beta[first + i];
            }
        }
        for (long row = 0; row < places; row++) {
            const bf16 *at = from + row * c;
            bf16 *out = to + row * c;
            if (silu)
#pragma omp simd
                for (long i = 0; i < width; i++) {
                    float u = wide(at[i]) * scale[i] + add[i];
                    out[i] = narrow(u * sigmoid(u));
                }
            else
                for (long i = 0; i < width; i++) out[i] = narrow(wide(at[i]) * scale[i] + add[i]);
        }
    }
}

#define FEW_NUMBERS (1 << 18) /* that the cache holds */

struct slopes { /* what the way back of a group norm reads and writes; `width` channels of a picture are worked off at once */
    const bf16 *dy, *x, *shift, *extra;
    const float *gamma, *beta, *mean, *rstd;
    bf16 *dx;
    float *sums, *to_shift;
    long b, places, c, groups, width;
};

/* The channels of a picture from `first` on. What is up is `kept` as it is after SiLU, if there is room for it. Whether there is,
 * and `silu`, are known where this is called, so that no loop asks for them. */
static inline __attribute__((always_inline)) void group_norm_part(const struct slopes *s, long n, long first, int silu,
                                                                  float *kept) {
    long c = s->c, width = s->width, places = s->places, per = c / s->groups, here = width / per;
    const bf16 *up = s->dy + n * places * c + first, *from = s->x + n * places * c + first;
    const bf16 *more = s->extra ? s->extra + n * places * c + first : 0;
    bf16 *to = s->dx + n * places * c + first;
    float times[width], add[width], weight[width], lift[width], some[width], other[width], inner[width], outer[width];
    double first_sum[width], second_sum[width];
    for (long i = 0; i < width; i++) { /* (x + shift - mean) rstd = x times + add */
        long at = n * s->groups + (first + i) / per;
        times[i] = s->rstd[at];
        add[i] = ((s->shift ? wide(s->shift[n * c + first + i]) : 0.f) - s->mean[at]) * s->rstd[at];
        weight[i] = s->gamma[first + i];
        lift[i] = s->beta[first + i];
        first_sum[i] = second_sum[i] = 0;
    }
    for (long block = 0; block < places; block += ROWS) {
        long last = block + ROWS < places ? block + ROWS : places;
#pragma omp simd
        for (long i = 0; i < width; i++) some[i] = other[i] = 0;
        for (long row = block; row < last; row++) {
            const bf16 *at = from + row * c, *g = up + row * c;
#pragma omp simd
            for (long i = 0; i < width; i++) {
                float normal = wide(at[i]) * times[i] + add[i], d = wide(g[i]);
                if (silu) d *= silu_slope(normal * weight[i] + lift[i]);
                if (kept) kept[row * width + i] = d;
                some[i] += d;
                other[i] += d * normal;
            }
        }
#pragma omp simd
        for (long i = 0; i < width; i++) {
            first_sum[i] += some[i];
            second_sum[i] += other[i];
        }
    }
    for (long group = 0; group < here; group++) {
        double plain = 0, along = 0;
        for (long i = group * per; i < (group + 1) * per; i++) {
            plain += weight[i] * first_sum[i];
            along += weight[i] * second_sum[i];
        }
        for (long i = group * per; i < (group + 1) * per; i++) {
            inner[i] = (float)(plain / ((double)places * per));
            outer[i] = (float)(along / ((double)places * per));
        }
    }
#pragma omp simd
    for (long i = 0; i < width; i++) {
        s->sums[n * c + first + i] = (float)first_sum[i];
        s->sums[(s->b + n) * c + first + i] = (float)second_sum[i];
        some[i] = 0;
    }
    for (long row = 0; row < places; row++) {
        const bf16 *at = from + row * c, *g = up + row * c, *beside = more ? more + row * c : g;
        bf16 *out = to + row * c;
#pragma omp simd
        for (long i = 0; i < width; i++) {
            float normal = wide(at[i]) * times[i] + add[i], d = kept ? kept[row * width + i] : wide(g[i]);
            if (silu && !kept) d *= silu_slope(normal * weight[i] + lift[i]);
            float found = times[i] * (d * weight[i] - inner[i] - normal * outer[i]);
            some[i] += found;
            out[i] = narrow(more ? found + wide(beside[i]) : found);
        }
    }
    if (s->to_shift) memcpy(s->to_shift + n * c + first, some, width * sizeof(float));
}

/* dx (+ extra), and the gradients of shift (b, c), gamma and beta (c); `sums` is room for (2, b, c). */
void group_norm_back(const bf16 *dy, const bf16 *x, const bf16 *shift, const float *gamma, const float *beta, const float *mean,
                     const float *rstd, const bf16 *extra, bf16 *dx, float *sums, float *to_shift, float *to_gamma,
                     float *to_beta, long b, long places, long c, long groups, int silu) {
    long parts = parts_of(b, c, groups);
    struct slopes told = {dy, x, shift, extra, gamma, beta, mean, rstd, dx, sums, to_shift, b, places, c, groups, c / parts};
#pragma omp parallel for schedule(static) if (b * places * c > 8192)
    for (long unit = 0; unit < b * parts; unit++) {
        long n = unit / parts, first = unit % parts * told.width;
        float *kept = silu && places * told.width <= FEW_NUMBERS ? malloc(places * told.width * sizeof(float)) : 0;
        if (kept) group_norm_part(&told, n, first, 1, kept);
        else if (silu) group_norm_part(&told, n, first, 1, 0);
        else group_norm_part(&told, n, first, 0, 0);
        free(kept);
    }
    add_up(sums, to_beta, b, c);
    add_up(sums + b * c, to_gamma, b, c);
}

#define FEW 8 /* rows */

/* y = ((x + delta) - mean) rstd gamma + beta, mean and rstd those of a row (Ba et al. 2016, eq. 4); `whole` is x + delta. */
void layer_norm(const bf16 *x, const bf16 *delta, bf16 *whole, const float *gamma, const float *beta, bf16 *y, float *mean,
                float *rstd, long rows, long c, float eps) {
#pragma omp parallel for schedule(static) if (rows * c > 8192)
    for (long first = 0; first < rows; first += FEW) { /* a few at a time: what one waits for, another is added up */
        long last = first + FEW < rows ? first + FEW : rows;
        float sum[FEW], squares[FEW];
        for (long row = first; row < last; row++) {
            const bf16 *at = x + row * c;
            float found = 0;
            if (delta) {
#pragma omp simd reduction(+ : found)
                for (long i = 0; i < c; i++) {
                    bf16 both = narrow(wide(at[i]) + wide(delta[row * c + i]));
                    whole[row * c + i] = both;
                    found += wide(both);
                }
            } else
#pragma omp simd reduction(+ : found)
                for (long i = 0; i < c; i++) found += wide(at[i]);
            sum[row - first] = found / c;
        }
        const bf16 *from = delta ? whole : x;
        for (long row = first; row < last; row++) {
            float middle = sum[row - first], found = 0;
#pragma omp simd reduction(+ : found)
            for (long i = 0; i < c; i++) {
                float off = wide(from[row * c + i]) - middle;
                found += off * off;
            }
            squares[row - first] = 1 / sqrtf(found / c + eps);
        }
        for (long row = first; row < last; row++) {
            float middle = mean[row] = sum[row - first], scale = rstd[row] = squares[row - first];
#pragma omp simd
            for (long i = 0; i < c; i++) y[row * c + i] = narrow((wide(from[row * c + i]) - middle) * scale * gamma[i] + beta[i]);
        }
    }
}

#define SHARES 16 /* parts of all rows, each with its own sums over rows */

/* dx (+ extra), and the gradients of gamma and beta (c); `sums` is room for (2, SHARES, c). */
void layer_norm_back(const bf16 *dy, const bf16 *x, const float *gamma, const float *mean, const float *rstd, const bf16 *extra,
                     bf16 *dx, float *sums, float *to_gamma, float *to_beta, long rows, long c) {
#pragma omp parallel for schedule(static) if (rows * c > 8192)
    for (long share = 0; share < SHARES; share++) {
        float *first = sums + share * c, *second = sums + (SHARES + share) * c;
#pragma omp simd
        for (long i = 0; i < c; i++) first[i] = second[i] = 0;
        for (long row = rows * share / SHARES; row < rows * (share + 1) / SHARES; row++) {
            const bf16 *at = x + row * c, *g = dy + row * c, *more = extra ? extra + row * c : g;
            float middle = mean[row], scale = rstd[row], plain = 0, along = 0;
#pragma omp simd reduction(+ : plain, along)
            for (long i = 0; i < c; i++) {
                float normal = (wide(at[i]) - middle) * scale, d = wide(g[i]);
                first[i] += d;
                second[i] += d * normal;
                plain += d * gamma[i];
                along += d * gamma[i] * normal;
            }
            plain /= c;
            along /= c;
#pragma omp simd
            for (long i = 0; i < c; i++) {
                float normal = (wide(at[i]) - middle) * scale;
                float found = scale * (wide(g[i]) * gamma[i] - plain - normal * along);
                dx[row * c + i] = narrow(extra ? found + wide(more[i]) : found);
            }
        }
    }
    add_up(sums, to_beta, SHARES, c);
    add_up(sums + SHARES * c, to_gamma, SHARES, c);
}

/* y = value gelu(gate), the halves of x (rows, 2 c): Shazeer 2020, eq. 6. */
void gated(const bf16 *x, bf16 *y, long rows, long c) {
#pragma omp parallel for schedule(static) if (rows * c > 4096)
    for (long row = 0; row < rows; row++) {
        const bf16 *value = x + row * 2 * c, *gate = value + c;
        bf16 *out = y + row * c;
#pragma omp simd
        for (long i = 0; i < c; i++) {
            float u = wide(gate[i]);
            out[i] = narrow(wide(value[i]) * u * below(u, exponential(-0.5f * u * u)));
        }
    }
}

/* dx (rows, 2 c) of dy (rows, c), and once more y: it need not have been kept. */
void gated_back(const bf16 *dy, const bf16 *x, bf16 *dx, bf16 *y, long rows, long c) {
#pragma omp parallel for schedule(static) if (rows * c > 4096)
    for (long row = 0; row < rows; row++) {
        const bf16 *value = x + row * 2 * c, *gate = value + c, *g = dy + row * c;
        bf16 *to_value = dx + row * 2 * c, *to_gate = to_value + c, *out = y + row * c;
#pragma omp simd
        for (long i = 0; i < c; i++) {
            float u = wide(gate[i]), v = wide(value[i]), d = wide(g[i]);
            float bell = exponential(-0.5f * u * u), share = below(u, bell);
            out[i] = narrow(v * u * share);
            to_value[i] = narrow(d * u * share);
            to_gate[i] = narrow(d * v * (share + u * bell * 0.39894228f));
        }
    }
}

/* Sums over the rows of x (rows, c); `sums` is room for (SHARES, c). */
void sum_rows(const bf16 *x, float *sums, float *out, long rows, long c) {
#pragma omp parallel for schedule(static) if (rows * c > 16384)
    for (long share = 0; share < SHARES; share++) {
        float *mine = sums + share * c;
#pragma omp simd
        for (long i = 0; i < c; i++) mine[i] = 0;
        for (long row = rows * share / SHARES; row < rows * (share + 1) / SHARES; row++)
#pragma omp simd
            for (long i = 0; i < c; i++) mine[i] += wide(x[row * c + i]);
    }
    add_up(sums, out, SHARES, c);
}

/* Weights of a convolution (out, in, k): from float32 and plain to bf16 and channels last; and their gradients back, bf16 too
 * if they shall be `half`. */
void to_last(const float *w, bf16 *last, long out, long in, long k) {
#pragma omp parallel for schedule(static) if (out * in * k > 16384)
    for (long o = 0; o < out; o++)
        for (long at = 0; at < k; at++)
#pragma omp simd
            for (long i = 0; i < in; i++) last[(o * k + at) * in + i] = narrow(w[(o * in + i) * k + at]);
}

void from_last(const bf16 *last, void *w, long out, long in, long k, int half) {
#pragma omp parallel for schedule(static) if (out * in * k > 16384)
    for (long o = 0; o < out; o++)
        for (long i = 0; i < in; i++)
            for (long at = 0; at < k; at++) {
                bf16 x = last[(o * k + at) * in + i];
                if (half) ((bf16 *)w)[(o * in + i) * k + at] = x;
                else ((float *)w)[(o * in + i) * k + at] = wide(x);
            }
}

/* What each place of a convolution of 3 x 3 places sees: (b, height, width, c) to (b, places, 3, 3, c), zeros around. */
void unfold(const bf16 *x, bf16 *y, long b, long height, long width, long c, long stride) {
    long rows = (height + stride - 1) / stride, columns = (width + stride - 1) / stride;
#pragma omp parallel for schedule(static) if (b * rows * columns * c > 4096)
    for (long row = 0; row < b * rows; row++)
        for (long column = 0; column < columns; column++)
            for (long i = 0; i < 3; i++) {
                long top = row % rows * stride + i - 1, left = column * stride - 1;
                bf16 *to = y + ((row * columns + column) * 3 + i) * 3 * c;
                if (top < 0 || top >= height) {
                    memset(to, 0, 3 * c * sizeof(bf16));
                    continue;
                }
                long first = left < 0, last = left + 3 > width ? width - left : 3;
                if (first) memset(to, 0, c * sizeof(bf16));
                memcpy(to + first * c, x + ((row / rows * height + top) * width + left + first) * c,
                       (last - first) * c * sizeof(bf16));
                if (last < 3) memset(to + last * c, 0, (3 - last) * c * sizeof(bf16));
            }
}

/* The same as (b, places, c, 3, 3), as weights lie that are plain; and the way back from there, sums over what saw a place. */
void unfold_plain(const bf16 *x, bf16 *y, long b, long height, long width, long c, long stride) {
    long rows = (height + stride - 1) / stride, columns = (width + stride - 1) / stride;
#pragma omp parallel for schedule(static) if (b * rows * columns * c > 1024)
    for (long place = 0; place < b * rows * columns; place++) {
        long n = place / columns / rows, top = place / columns % rows * stride - 1, left = place % columns * stride - 1;
        const bf16 *from[9];
        bf16 none[c], *to = y + place * 9 * c;
        memset(none, 0, sizeof none);
        for (long at = 0; at < 9; at++) {
            long i = top + at / 3, j = left + at % 3;
            int there = i >= 0 && i < height && j >= 0 && j < width;
            from[at] = there ? x + ((n * height + i) * width + j) * c : none;
        }
        for (long i = 0; i < c; i++)
            for (long at = 0; at < 9; at++) to[i * 9 + at] = from[at][i];
    }
}

void fold_plain(const bf16 *y, bf16 *x, long b, long height, long width, long c, long stride) {
    long rows = (height + stride - 1) / stride, columns = (width + stride - 1) / stride;
#pragma omp parallel for schedule(static) if (b * height * width * c > 1024)
    for (long place = 0; place < b * height * width; place++) {
        long n = place / width / height, row = place / width % height, column = place % width;
        float sum[c];
        memset(sum, 0, sizeof sum);
        for (long at = 0; at < 9; at++) {
            long i = row + 1 - at / 3, j = column + 1 - at % 3;
            if (i < 0 || j < 0 || i % stride || j % stride || i / stride >= rows || j / stride >= columns) continue;
            const bf16 *from = y + ((n * rows + i / stride) * columns + j / stride) * 9 * c + at;
            for (long k = 0; k < c; k++) sum[k] += wide(from[9 * k]);
        }
        for (long k = 0; k < c; k++) x[place * c + k] = narrow(sum[k]);
    }
}

/* Weights (out, 3, 3, in) of a convolution as (3, 3, out, in), both sides turned round: those of its way back. */
void turn(const bf16 *w, bf16 *turned, long out, long in) {
#pragma omp parallel for schedule(static) if (out * in > 4096)
    for (long o = 0; o < out; o++)
        for (long at = 0; at < 9; at++) memcpy(turned + ((8 - at) * out + o) * in, w + (o * 9 + at) * in, in * sizeof(bf16));
}

/* Tokens (b, rows, parts, heads, d) to heads (parts, b, heads, rows, d), or `back`. */
void move_heads(const bf16 *from, bf16 *to, long b, long rows, long parts, long heads, long d, int back) {
#pragma omp parallel for schedule(static) if (b * rows * parts * heads * d > 16384)
    for (long n = 0; n < b; n++)
        for (long part = 0; part < parts; part++)
            for (long head = 0; head < heads; head++)
                for (long row = 0; row < rows; row++) {
                    long token = (((n * rows + row) * parts + part) * heads + head) * d;
                    long apart = (((part * b + n) * heads + head) * rows + row) * d;
                    memcpy(to + (back ? token : apart), from + (back ? apart : token), d * sizeof(bf16));
                }
}

/* sum += x, numbers of float32 and of bf16. */
void add_to(float *sum, const bf16 *x, long count) {
#pragma omp parallel for simd schedule(static) if (count > 16384)
    for (long i = 0; i < count; i++) sum[i] += wide(x[i]);
}

/* y (rows, width) = one + other, whose rows are so many numbers apart. */
void add_rows(const bf16 *one, const bf16 *other, bf16 *y, long rows, long width, long one_step, long other_step) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++)
#pragma omp simd
        for (long i = 0; i < width; i++)
            y[row * width + i] = narrow(wide(one[row * one_step + i]) + wide(other[row * other_step + i]));
}

/* Rows of `width` numbers, so many apart here and there. */
void copy_rows(const bf16 *from, bf16 *to, long rows, long width, long from_step, long to_step) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++) memcpy(to + row * to_step, from + row * from_step, width * sizeof(bf16));
}

/* float32 numbers as bf16. */
void halve(const float *x, bf16 *y, long count) {
#pragma omp parallel for simd schedule(static) if (count > 16384)
    for (long i = 0; i < count; i++) y[i] = narrow(x[i]);
}

/* Each place of (b, height, width, c) four times: (b, 2 height, 2 width, c); and the way back. */
void enlarge(const bf16 *x, bf16 *y, long b, long height, long width, long c) {
#pragma omp parallel for schedule(static) if (b * height * width * c > 8192)
    for (long row = 0; row < b * height; row++) {
        bf16 *to = y + row * 4 * width * c;
        for (long j = 0; j < width; j++)
            for (long twice = 0; twice < 2; twice++)
                memcpy(to + (2 * j + twice) * c, x + (row * width + j) * c, c * sizeof(bf16));
        memcpy(to + 2 * width * c, to, 2 * width * c * sizeof(bf16));
    }
}

void enlarge_back(const bf16 *dy, bf16 *dx, long b, long height, long width, long c) {
#pragma omp parallel for schedule(static) if (b * height * width * c > 8192)
    for (long row = 0; row < b * height; row++)
        for (long j = 0; j < width; j++) {
            const bf16 *one = dy + (row * 4 * width + 2 * j) * c, *two = one + 2 * width * c;
#pragma omp simd
            for (long i = 0; i < c; i++)
                dx[(row * width + j) * c + i] = narrow(wide(one[i]) + wide(one[c + i]) + wide(two[i]) + wide(two[c + i]));
        }
}
