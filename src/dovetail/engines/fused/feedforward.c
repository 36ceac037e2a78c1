/* Gated feed-forward layers on a CPU with tiles (AMX), there and back: nothing of their inner width is written to memory.
 *
 * y = (value gelu(gate)) out^T, value and gate the halves of x into^T (Shazeer 2020, eq. 6). 32 rows go through both products, a
 * block of 32 inner numbers at a time: its sums are gated as they leave their tiles, and are a left tile of the next product. The
 * way back finds them again. There, rows go in parts that depend on their number alone: the same sums on any machine. */

#include <math.h>
#include <stdlib.h>

#include "tiles.h"

#if defined(__AVX512BF16__) && defined(__AMX_BF16__)
#define WIDEST 4096 /* numbers of a row */
#define EDGE 4.5f /* from here on a gate is open or shut, to 5e-6 */
#define SIZES (31 / EDGE) /* a gate's sizes for a number */
#define WIDE __attribute__((aligned(64)))
#define SLAB 16384 /* numbers of a matrix */
#define PANEL 8 /* blocks of rows whose products are added up at once */
#define PARTS 8 /* of all rows, at most */

struct layer {
    const bf16 *x;
    const void *into, *out; /* (2 inner, width), (width, inner) */
    const float *first; /* (2 inner) */
    long rows, width, inner;
    int single; /* weights are float32 */
};

static const char none[2 * WIDEST] WIDE = {0}; /* a row of zeros */

static inline void those_rows(const void *at, long bytes, long first, long count, const char *row[32]) {
    for (long i = 0; i < 32; i++) row[i] = first + i < count ? (const char *)at + (first + i) * bytes : none;
}

/* 32 rows of a matrix as right tiles, `step` tiles' pairs from block to block: they are columns, or the inner side (`across`). */
static void packed(const void *at, long row, long columns, int single, int across, bf16 *to, long step) {
    long each = single ? 4 : 2;
    const char *rows[32];
    those_rows(at, columns * each, row, row + 32, rows);
    for (long j = 0; j < columns / 32; j++)
        if (across) columns_right(rows, 32 * j * each, ~0u, single, to + j * step * PAIR);
        else rows_right(rows, 32 * j * each, ~0u, single, to + j * step * PAIR);
}

/* 32 rows times 32 columns, `steps` blocks of the inner side; from zero, from a bias, or onto what is there (`step` 64). */
static inline __attribute__((always_inline)) void times(const bf16 *left, const bf16 *right, long steps, float *to,
                                                        const float *from, long step) {
    if (from && !step) {
        READ(0, from, 0);
        READ(1, from + 16, 0);
        READ(2, from, 0);
        READ(3, from + 16, 0);
    } else sums_begin(from, !from);
    for (long k = 0; k < steps; k++, left += PAIR, right += PAIR) sums_added(left, left + 512, right, right + 512);
    sums_end(to);
}

/* Two functions of a gate's size up to `EDGE`, by a parabola each for 32 sizes (coefficients by their power): the normal
 * distribution below it, less a half, error 6e-6, and the slope of what it lets through, less a half, 4e-5. */
static float below[3][32] WIDE, sloped[3][32] WIDE;

static double below_at(double x) { return .5 * erf(x / sqrt(2)); }
static double sloped_at(double x) { return .5 * erf(x / sqrt(2)) + x * exp(-x * x / 2) / sqrt(8 * atan(1)); }

/* Of parabolas through a function's values where Chebyshev's polynomial of each size's range is zero. */
static void parabolas(double (*of)(double), float to[3][32]) {
    for (int k = 0; k < 31; k++) {
        double x[3], y[3];
        for (int i = 0; i < 3; i++) {
            x[i] = (k + (i - 1) * sqrt(.1875)) / SIZES;
            y[i] = x[i] < 0 ? -of(-x[i]) : of(x[i]);
        }
        double one = (y[1] - y[0]) / (x[1] - x[0]), other = (y[2] - y[1]) / (x[2] - x[1]), second = (other - one) / (x[2] - x[0]);
        to[2][k] = (float)second, to[1][k] = (float)(one - second * (x[0] + x[1]));
        to[0][k] = (float)(y[0] - one * x[0] + second * x[0] * x[1]);
    }
    to[0][31] = .5f, to[1][31] = to[2][31] = 0;
}

static void functions(void) {
    static int known = 0;
    if (!known) parabolas(below_at, below), parabolas(sloped_at, sloped);
    known = 1;
}

static inline floats parabola(const float of[3][32], __m512i at, floats size) {
    floats by[3];
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++) by[i] = _mm512_permutex2var_ps(_mm512_load_ps(of[i]), at, _mm512_load_ps(of[i] + 16));
    return _mm512_fmadd_ps(_mm512_fmadd_ps(by[2], size, by[1]), size, by[0]);
}

static inline floats sized(floats gate) { return _mm512_range_ps(gate, _mm512_set1_ps(EDGE), 10); } /* at most */
static inline __m512i place(floats size) { /* in the last five bits */
    return _mm512_castps_si512(_mm512_fmadd_ps(size, _mm512_set1_ps(SIZES), _mm512_set1_ps(12582912.f)));
}
static inline floats let_through(floats gate, __m512i at, floats size) {
    return _mm512_fmadd_ps(_mm512_abs_ps(gate), parabola(below, at, size), _mm512_mul_ps(gate, _mm512_set1_ps(.5f)));
}
static inline floats slope(floats gate, __m512i at, floats size) {
    floats seen = _mm512_or_ps(parabola(sloped, at, size), _mm512_and_ps(gate, _mm512_set1_ps(-0.f)));
    return _mm512_add_ps(seen, _mm512_set1_ps(.5f));
}

static inline const float *row_at(const float *sums, long i) { return sums + i / 16 * 512 + i % 16 * 16; }

/* Half of a block, sums of values and gates (2, 1024), as a left tile. */
static void gate(float (*sums)[1024], long half, bf16 *to) {
    for (long i = 16 * half; i < 16 * half + 16; i++) {
        const float *v = row_at(sums[0], i), *g = row_at(sums[1], i);
        floats found[2];
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            floats u = _mm512_load_ps(g + 256 * half), size = sized(u);
            found[half] = _mm512_mul_ps(_mm512_load_ps(v + 256 * half), let_through(u, place(size), size));
        }
        _mm512_store_si512(to + 32 * i, (__m512i)_mm512_cvtne2ps_pbh(found[1], found[0]));
    }
}

struct slopes { /* where a block's gradients go: rows of left tiles, pairs of rows as right ones; sums over rows */
    bf16 *value_left, *gate_left, *value_right, *gate_right, *inner_right;
    float *value_sums, *gate_sums;
};

static inline void both(const __m512i rows[2], bf16 *left, bf16 *right, long i) {
    if (left) {
        _mm512_store_si512(left + 64 * i, rows[0]);
        _mm512_store_si512(left + 64 * i + 32, rows[1]);
    }
    _mm512_store_si512(right + 32 * i, _mm512_unpacklo_epi16(rows[0], rows[1]));
    _mm512_store_si512(right + 512 + 32 * i, _mm512_unpackhi_epi16(rows[0], rows[1]));
}

/* A quarter of a block: sums of values, gates and what is up (3, 1024). */
static void gate_back(float (*sums)[1024], long quarter, const struct slopes *to) {
    floats by_value[2], by_gate[2];
    for (int half = 0; half < 2; half++) {
        by_value[half] = _mm512_load_ps(to->value_sums + 16 * half);
        by_gate[half] = _mm512_load_ps(to->gate_sums + 16 * half);
    }
    for (long i = 4 * quarter; i < 4 * quarter + 4; i++) {
        __m512i values[2], gates[2], inner[2];
#pragma GCC unroll 2
        for (int row = 0; row < 2; row++) {
            long place_of = row_at(sums[0], 2 * i + row) - sums[0];
            floats to_value[2], to_gate[2], found[2];
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                long at = place_of + 256 * half;
                floats v = _mm512_load_ps(sums[0] + at), g = _mm512_load_ps(sums[1] + at), d = _mm512_load_ps(sums[2] + at);
                floats size = sized(g);
                __m512i which = place(size);
                floats open = let_through(g, which, size);
                found[half] = _mm512_mul_ps(v, open);
                to_value[half] = _mm512_mul_ps(d, open);
                to_gate[half] = _mm512_mul_ps(_mm512_mul_ps(d, v), slope(g, which, size));
                by_value[half] = _mm512_add_ps(by_value[half], to_value[half]);
                by_gate[half] = _mm512_add_ps(by_gate[half], to_gate[half]);
            }
            values[row] = (__m512i)_mm512_cvtne2ps_pbh(to_value[1], to_value[0]);
            gates[row] = (__m512i)_mm512_cvtne2ps_pbh(to_gate[1], to_gate[0]);
            inner[row] = (__m512i)_mm512_cvtne2ps_pbh(found[1], found[0]);
        }
        both(values, to->value_left, to->value_right, i);
        both(gates, to->gate_left, to->gate_right, i);
        both(inner, 0, to->inner_right, i);
    }
    for (int half = 0; half < 2; half++) {
        _mm512_store_ps(to->value_sums + 16 * half, by_value[half]);
        _mm512_store_ps(to->gate_sums + 16 * half, by_gate[half]);
    }
}

/* A block of sums as rows of bf16 numbers, with what is `beside`. */
static inline void rows_written(const float *sums, const bf16 *beside, bf16 *to, long step, long count) {
    for (long i = 0; i < 32 && i < count; i++) {
        floats low = _mm512_load_ps(row_at(sums, i)), high = _mm512_load_ps(row_at(sums, i) + 256);
        if (beside) {
            low = _mm512_add_ps(low, widened(_mm256_loadu_si256((const __m256i *)(beside + i * step))));
            high = _mm512_add_ps(high, widened(_mm256_loadu_si256((const __m256i *)(beside + i * step + 16))));
        }
        _mm512_storeu_si512(to + i * step, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

static bf16 *room_for(long numbers) { return aligned_alloc(64, (2 * numbers + 63) / 64 * 64); }

/* Weights as right tiles, shared by all threads: `wide` (inner / 32, value or gate, width / 32), `narrow` (inner / 32, width / 32)
 * or, on the way there, the other way round; `back` (width / 32, inner / 32, value or gate). */
struct weights {
    bf16 *wide, *narrow, *back;
};

static bf16 *room_for_weights(const struct layer *l, struct weights *w) {
    long count = l->width * l->inner;
    bf16 *room = room_for(5 * count);
    w->wide = room, w->narrow = room + 2 * count, w->back = room + 3 * count;
    return room;
}

/* By all threads of a team. */
static void weights_packed(const struct layer *l, const struct weights *w, int back) {
    long steps = l->width / 32, deep = l->inner / 32;
#pragma omp for schedule(static) nowait
    for (long i = 0; i < 2 * deep; i++) {
        long at = i % deep * 2 + i / deep;
        packed(l->into, 32 * i, l->width, l->single, 0, w->wide + at * steps * PAIR, 1);
        if (back) packed(l->into, 32 * i, l->width, l->single, 1, w->back + at * PAIR, 2 * deep);
    }
#pragma omp for schedule(static)
    for (long k = 0; k < steps; k++)
        packed(l->out, 32 * k, l->inner, l->single, back, w->narrow + k * (back ? 1 : deep) * PAIR, back ? steps : 1);
}

/* y (rows, width) of x (rows, width), plus `last` (width) and what is `beside`. */
void tile_gated(const bf16 *x, const void *into, const float *first, const void *out, const float *last, const bf16 *beside,
                bf16 *y, long rows, long width, long inner, int single) {
    struct layer l = {x, into, out, first, rows, width, inner, single};
    struct weights by;
    bf16 *room = room_for_weights(&l, &by);
    long blocks = (rows + 31) / 32, steps = width / 32, deep = inner / 32;
    functions();
#pragma omp parallel if (rows * width * inner > 65536)
    {
        bf16 lefts[32 * width] WIDE, gated[32 * inner] WIDE;
        float sums[2][2][1024] WIDE;
        const char *row[32];
        weights_packed(&l, &by, 0);
        tiles_begin();
#pragma omp for schedule(static)
        for (long block = 0; block < blocks; block++) {
            those_rows(x, 2 * width, 32 * block, rows, row);
            for (long k = 0; k < steps; k++) rows_left(row, 64 * k, ~0u, 0, lefts + k * PAIR);
            for (long j = 0; j <= deep; j++) { /* while these are multiplied, those before are gated */
                const bf16 *right = by.wide + 2 * j * steps * PAIR;
                if (j < deep) times(lefts, right, steps, sums[j % 2][0], first + 32 * j, 0);
                if (j) gate(sums[1 - j % 2], 0, gated + (j - 1) * PAIR);
                if (j < deep) times(lefts, right + steps * PAIR, steps, sums[j % 2][1], first + inner + 32 * j, 0);
                if (j) gate(sums[1 - j % 2], 1, gated + (j - 1) * PAIR);
            }
            for (long k = 0; k < steps; k++) {
                long at = 32 * block * width + 32 * k;
                times(gated, by.narrow + k * deep * PAIR, deep, sums[k % 2][0], last + 32 * k, 0);
                rows_written(sums[k % 2][0], beside ? beside + at : 0, y + at, width, rows - 32 * block);
            }
        }
        tiles_end();
    }
    free(room);
}

struct way_back { /* what a thread has at hand */
    const struct layer *of;
    const struct weights *by;
    const bf16 *dy;
    bf16 *dx;
    bf16 *lefts, *ups, *slopes; /* a block's rows as left tiles: x, dy, gradients of values and gates of a slab */
    bf16 *x_over, *dy_over, *slopes_over; /* a panel's rows as the inner side of products; the last of values, gates and inner */
    float *to_x; /* of a part, as blocks of sums */
    float *sums; /* of a part: (inner / 32, values, gates and inner, width / 32, 1024), then (2 inner) of rows */
    long slab; /* blocks of inner numbers that are worked off for all of a part's rows, so that the cache holds what they take */
};

/* Parts of so many blocks of rows: of 16, or two where there are fewer. */
static long parts_of(long blocks) { return blocks < 4 ? 1 : blocks < 32 ? 2 : blocks < 16 * PARTS ? blocks / 16 : PARTS; }

static long sums_of(const struct layer *l) { return 3 * l->width * l->inner + 2 * l->inner; }

static bf16 *room_to_go_back(struct way_back *w, long most) {
    long width = w->of->width, panel = 32 * PANEL;
    bf16 *room = room_for(64 * width + 64 * 32 * w->slab + panel * (2 * width + 96 * w->slab) + 2 * 32 * most * width);
    w->lefts = room, w->ups = w->lefts + 32 * width, w->slopes = w->ups + 32 * width;
    w->x_over = w->slopes + 64 * 32 * w->slab, w->dy_over = w->x_over + panel * width;
    w->slopes_over = w->dy_over + panel * width, w->to_x = (float *)(w->slopes_over + panel * 96 * w->slab);
    return room;
}

/* Inner numbers `from` to `until` of 32 rows, the `at`-th of a panel: what the panel's products want of them. */
static void block_back(const struct way_back *w, long block, long at, long from, long until) {
    const struct layer *l = w->of;
    long steps = l->width / 32, many = PANEL * PAIR;
    float sums[2][3][1024] WIDE, *by = w->sums + 3 * l->width * l->inner;
    const char *x[32], *dy[32];
    those_rows(l->x, 2 * l->width, 32 * block, l->rows, x);
    those_rows(w->dy, 2 * l->width, 32 * block, l->rows, dy);
    for (long k = 0; k < steps; k++) {
        rows_left(x, 64 * k, ~0u, 0, w->lefts + k * PAIR);
        rows_left(dy, 64 * k, ~0u, 0, w->ups + k * PAIR);
        columns_left(x, 64 * k, ~0u, 0, w->x_over + k * many + at * PAIR);
        columns_left(dy, 64 * k, ~0u, 0, w->dy_over + k * many + at * PAIR);
    }
    for (long j = from; j <= until; j++) { /* while these are multiplied, those before are gated */
        float (*now)[1024] = sums[j % 2], (*before)[1024] = sums[1 - j % 2];
        const bf16 *right = w->by->wide + 2 * j * steps * PAIR;
        long gone = j > from ? j - 1 : from;
        bf16 *left = w->slopes + 2 * (gone - from) * PAIR, *over = w->slopes_over + 3 * (gone - from) * many + at * PAIR;
        struct slopes to = {left, left + PAIR, over, over + many, over + 2 * many, by + 32 * gone, by + l->inner + 32 * gone};
        if (j < until) times(w->lefts, right, steps, now[0], l->first + 32 * j, 0);
        if (j > from) gate_back(before, 0, &to);
        if (j < until) times(w->lefts, right + steps * PAIR, steps, now[1], l->first + l->inner + 32 * j, 0);
        if (j > from) gate_back(before, 1, &to), gate_back(before, 2, &to);
        if (j < until) times(w->ups, w->by->narrow + j * steps * PAIR, steps, now[2], 0, 0);
        if (j > from) gate_back(before, 3, &to);
    }
}

/* What they add to dx; `place` is the block's in its part. */
static void block_x(const struct way_back *w, long block, long place, long from, long until) {
    const struct layer *l = w->of;
    long steps = l->width / 32, deep = l->inner / 32;
    for (long k = 0; k < steps; k++) {
        float *sums = w->to_x + (place * steps + k) * 1024;
        times(w->slopes, w->by->back + 2 * (k * deep + from) * PAIR, 2 * (until - from), sums, from ? sums : 0, 64);
        if (until == deep) rows_written(sums, 0, w->dx + 32 * (block * l->width + k), l->width, l->rows - 32 * block);
    }
}

/* A panel's products onto a part's sums, or as the first of them. */
static void panel_added(const struct way_back *w, long count, long from, long until, int begin) {
    long steps = w->of->width / 32, many = PANEL * PAIR;
    float *to = w->sums + 3 * from * steps * 1024;
    for (long j = 0; j < 3 * (until - from); j++)
        for (long k = 0; k < steps; k++, to += 1024)
            times((j % 3 == 2 ? w->dy_over : w->x_over) + k * many, w->slopes_over + j * many, count, to, begin ? 0 : to, 64);
}

static void part_back(const struct way_back *w, long first, long last) {
    long deep = w->of->inner / 32;
    memset(w->sums + 3 * w->of->width * w->of->inner, 0, 2 * w->of->inner * sizeof(float));
    for (long from = 0; from < deep; from += w->slab) {
        long until = deep - from < w->slab ? deep : from + w->slab;
        for (long block = first; block < last; block += PANEL) {
            long count = last - block < PANEL ? last - block : PANEL;
            for (long at = 0; at < count; at++) {
                block_back(w, block + at, at, from, until);
                block_x(w, block + at, block + at - first, from, until);
            }
            panel_added(w, count, from, until, block == first);
        }
    }
}

/* All parts' sums as gradients: block `k`, `j` of those of weights. */
static void together(const struct layer *l, float *sums, long parts, long j, long k, void *to_into, void *to_out, int single) {
    long all = sums_of(l), row = 32 * (j / 3) + (j % 3 == 1 ? l->inner : 0);
    const __m512i apart = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0); /* numbers in their order, see `unpacked` */
    sums += (j * (l->width / 32) + k) * 1024;
    for (long part = 1; part < parts; part++)
        for (long i = 0; i < 1024; i += 16)
            _mm512_store_ps(sums + i, _mm512_add_ps(_mm512_load_ps(sums + i), _mm512_load_ps(sums + part * all + i)));
    for (long i = 0; j % 3 == 2 && i < 32; i++) {
        const float *at = row_at(sums, i);
        __m512i found = (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(at + 256), _mm512_load_ps(at));
        put(to_out, (32 * k + i) * l->inner + row, ~0u, _mm512_permutexvar_epi64(apart, found), single);
    }
    for (int high = 0; j % 3 < 2 && high < 2; high++) {
        __m512i found[16];
        turned_rows(sums, high, _mm512_set1_ps(1.f), found);
        for (long i = 0; i < 16; i++) put(to_into, (row + unpacked(high, i)) * l->width + 32 * k, ~0u, found[i], single);
    }
}

/* Of dy (rows, width): dx, and the gradients of `into`, of `first` (float32) and of `out`; as float32 if `wanted`. */
void tile_gated_back(const bf16 *dy, const bf16 *x, const void *into, const float *first, const void *out, bf16 *dx,
                     void *to_into, float *to_first, void *to_out, long rows, long width, long inner, int single, int wanted) {
    struct layer l = {x, into, out, first, rows, width, inner, single};
    struct weights by;
    if (!rows) {
        memset(to_into, 0, 2 * inner * width * (wanted ? 4 : 2));
        memset(to_out, 0, inner * width * (wanted ? 4 : 2));
        memset(to_first, 0, 2 * inner * sizeof(float));
        return;
    }
    bf16 *weights = room_for_weights(&l, &by);
    long steps = width / 32, deep = inner / 32, blocks = (rows + 31) / 32, parts = parts_of(blocks), all = sums_of(&l);
    long slab = SLAB / width / 32;
    slab = slab < 4 ? 4 : slab > deep ? deep : slab;
    float *sums = aligned_alloc(64, parts * all * sizeof(float));
    functions();
#pragma omp parallel if (rows * width * inner > 65536)
    {
        struct way_back w = {.of = &l, .by = &by, .dy = dy, .dx = dx, .slab = slab};
        bf16 *room = room_to_go_back(&w, (blocks + parts - 1) / parts);
        weights_packed(&l, &by, 1);
        tiles_begin();
#pragma omp for schedule(static)
        for (long part = 0; part < parts; part++) {
            w.sums = sums + part * all;
            part_back(&w, blocks * part / parts, blocks * (part + 1) / parts);
        }
        tiles_end();
        free(room);
#pragma omp for schedule(static)
        for (long at = 0; at < 3 * deep * steps; at++)
            together(&l, sums, parts, at / steps, at % steps, to_into, to_out, wanted);
#pragma omp for schedule(static)
        for (long i = 0; i < 2 * inner; i++) {
            to_first[i] = 0;
            for (long part = 0; part < parts; part++) to_first[i] += sums[part * all + 3 * width * inner + i];
        }
    }
    free(sums);
    free(weights);
}
#endif
