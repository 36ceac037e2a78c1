/* Matrix products of bf16 numbers on a CPU with tiles (AMX), float32 sums.
 *
 * Both sides of a product are packed into tiles as they are read, as much as the cache holds at a time (Goto and van de Geijn
 * 2008), so that they may lie in memory as they are: weights in float32, rows or columns of a matrix, or what the places of a
 * convolution of 3 x 3 places see of a picture. A number is summed in one order, however many threads there are. */

#include <stdlib.h>

#include "pictures.h"

#if defined(__AVX512BF16__) && defined(__AMX_BF16__)
#define DEPTH 1280 /* numbers of the inner side that are packed at a time; */
#define ACROSS_DEPTH 256 /* of one that is turned over; */
#define CHANNELS 64 /* of a convolution's, nine times each */
#define TALL 1024 /* rows that a thread takes at most at a time, of places half as many */
#define BROAD 256 /* columns */
#define PARTS 4   /* of a long inner side that is turned over, at most, */
#define LONG 1024 /* numbers of each at least */
#define SHARED (1 << 25) /* bytes of weights that are packed once for all blocks of rows */

#ifdef _OPENMP
int omp_get_max_threads(void);
#else
static int omp_get_max_threads(void) { return 1; }
#endif

struct result {
    void *at;
    const float *bias;
    const bf16 *beside;
    long step;
    int kernel, turned, single; /* weights (rows, c, 3, 3) of (rows, 32 channels' nine together); columns as rows; float32 */
    long woven, height, width;  /* pictures, if a row's places come in turn from several, and their sides */
};

/* Where 32 rows of sums go, from `row` on. */
static inline void rows_to(const struct result *r, long row, long to[32]) {
    if (r->woven < 2) {
        for (long i = 0; i < 32; i++) to[i] = row + i;
        return;
    }
    for (long half = 0; half < 32; half += 16, row += 16) { /* 16 places are a row of so many pictures */
        long top = row / (r->height * 16) * r->woven * r->height + row / 16 % r->height;
        for (long i = 0; i < 16; i++) to[half + i] = (top + i % r->woven * r->height) * r->width + i / r->woven;
    }
}

/* A block of sums, rows from `row` and columns from `column` on, as they are wanted. */
static inline void written(const struct result *r, const float *sums, long row, long column, long rows, long columns) {
    __mmask32 all = first_of(columns - column);
    __mmask16 low = (__mmask16)all, high = (__mmask16)(all >> 16);
    long to[32];
    rows_to(r, row, to);
    if (!r->bias && !r->beside && !r->single && all == ~0u) {
        for (long i = 0; i < 32 && row + i < rows; i++) {
            const float *at = sums + i / 16 * 512 + i % 16 * 16;
            _mm512_storeu_si512((bf16 *)r->at + to[i] * r->step + column,
                                (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(at + 256), _mm512_load_ps(at)));
        }
        return;
    }
    floats one = _mm512_setzero_ps(), other = one;
    if (r->bias) one = _mm512_maskz_loadu_ps(low, r->bias + column), other = _mm512_maskz_loadu_ps(high, r->bias + column + 16);
    for (long i = 0; i < 32 && row + i < rows; i++) {
        const float *at = sums + i / 16 * 512 + i % 16 * 16;
        floats first = _mm512_add_ps(_mm512_load_ps(at), one), second = _mm512_add_ps(_mm512_load_ps(at + 256), other);
        if (r->beside) {
            const bf16 *more = r->beside + to[i] * r->step + column;
            first = _mm512_add_ps(first, widened(_mm256_maskz_loadu_epi16(low, more)));
            second = _mm512_add_ps(second, widened(_mm256_maskz_loadu_epi16(high, more + 16)));
        }
        put(r->at, to[i] * r->step + column, all, (__m512i)_mm512_cvtne2ps_pbh(second, first), r->single);
    }
}

static void written_turned(const struct result *r, const float *sums, long row, long column, long rows, long columns) {
    for (int part = 0; part < 2; part++) {
        __m512i found[16];
        turned_rows(sums, part, _mm512_set1_ps(1.f), found);
        for (long i = 0; i < 16 && column + part * 16 + i < columns; i++)
            put(r->at, (column + part * 16 + i) * r->step + row, first_of(rows - row), found[i], r->single);
    }
}

/* Nine blocks of sums, one a tap, of 32 channels from `channel` on. */
static void written_kernel(const struct result *r, const float *sums, long row, long channel, long rows) {
    for (long i = 0; i < 32 && row + i < rows; i++) {
        __m512i from[TAPS + 1], to[TAPS];
        for (int tap = 0; tap < TAPS; tap++) {
            const float *at = sums + tap * 1024 + i / 16 * 512 + i % 16 * 16;
            from[tap] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(at + 256), _mm512_load_ps(at));
        }
        from[TAPS] = _mm512_setzero_si512();
        moved(from, to, gather_words, gather_masks);
        for (int tap = 0; tap < TAPS; tap++)
            put(r->at, (row + i) * r->step + channel * TAPS + tap * 32, first_of(r->step - channel * TAPS - tap * 32), to[tap],
                r->single);
    }
}

/* A thread's room: a block of left tiles, the right ones of `BROAD` columns or more, sums. */
static char *room_of(long bytes) {
    static __thread char *room;
    static __thread long size;
    if (bytes > size) {
        free(room);
        room = aligned_alloc(64, (bytes + 63) / 64 * 64);
        size = room ? bytes : 0;
    }
    return room;
}

/* Have the rows that come next brought nearer, while others are multiplied. */
static void expected(const struct side *s, long first, long from, long last) {
    if (s->kind == SEEN) {
        if (s->stride != 1 || s->spread != 1) return;
        from /= TAPS, last /= TAPS, first += s->columns + 1;
    }
    for (long i = first; i < first + 32 && i < s->outer; i++)
        for (long k = from; k < last; k += 32) _mm_prefetch((const bf16 *)s->at + i * s->step + k, _MM_HINT_T0);
}

/* `steps` left tiles that are so far from two places, and right ones after each other. */
static inline void seen_multiplied(const bf16 *one, const bf16 *other, const long *offsets, const bf16 *right, long steps,
                                   float *sums, int begin) {
    sums_begin(sums, begin);
    for (long k = 0; k < steps; k++, right += PAIR) sums_added(one + offsets[k], other + offsets[k], right, right + 512);
    sums_end(sums);
}

struct block { /* of a product: what one thread works on */
    const struct side *left, *right;
    const struct result *result;
    long row, rows, column, columns, depth; /* where it begins and ends; numbers of the inner side at a time */
    long begin, end; /* of the inner side */
    float *sums;     /* where they stay, if it is one of several parts of the inner side */
    const bf16 *packed; /* the right side's tiles, if they are there for all that work */
};

/* The right tiles of the inner side from `from` to `last`, each block's one after the other. */
static void rights_of(const struct block *b, long from, long last, bf16 *room, struct tiles *tiles) {
    const struct side *s = b->right;
    long steps = (last - from + 31) / 32, blocks = (b->columns - b->column + 31) / 32;
    if (s->woven) {
        struct laid l = rows_seen(s, from / 2, last / 2, s->woven);
        weave_pairs(s, &l, b->column / TAPS, blocks / TAPS * 32, room);
        for (long k = 0; k < steps; k++)
            for (long j = 0; j < blocks; j++) {
                long tap = j % TAPS, half = l.places * 32, down = (tap / 3 - 1) * (s->columns + 1), right = tap % 3 - 1;
                const bf16 *at = room + j / TAPS * 2 * half + (laid_at(s, &l, from / 2 + 16 * k) + (down + right) * s->woven) * 32;
                tiles[j * steps + k] = (struct tiles){at, at + half};
            }
        return;
    }
    if (s->kind == SEEN_ACROSS && lies_well(s, 32)) {
        struct laid l = rows_seen(s, from, last, 0);
        lay_out_pairs(s, &l, b->column / TAPS, blocks / TAPS * 32, room);
        for (long k = 0; k < steps; k++)
            for (long j = 0; j < blocks; j++) {
                long tap = j % TAPS, half = l.places * 16, pair = laid_at(s, &l, from + 32 * k) + (tap / 3 - 1) * s->width;
                const bf16 *at = room + (j / TAPS * 3 + tap % 3) * 2 * half + pair * 16;
                tiles[j * steps + k] = (struct tiles){at, at + half};
            }
        return;
    }
    const bf16 *at = b->packed ? b->packed + from / 32 * rounded(s->outer) * 32 + b->column * steps * 32 : room;
    if (!b->packed) packed_right(s, b->column, b->columns, from, last, room);
    for (long i = 0; i < blocks * steps; i++, at += PAIR) tiles[i] = (struct tiles){at, at + 512};
}

/* Weights as right tiles (inner / depth, columns / 32, depth / 32, PAIR), if several blocks of rows want them. */
static bf16 *packed_once(const struct side *s, long down) {
    long bytes = rounded(s->inner) * rounded(s->outer) * 2;
    return down > 1 && bytes <= SHARED && (s->kind == KERNEL || s->kind == KERNEL_BACK) ? aligned_alloc(64, bytes) : 0;
}

/* The left ones of 32 rows from `row` on. */
static void lefts_of(const struct block *b, long row, long from, long last, bf16 *room, struct tiles *tiles) {
    const struct side *s = b->left;
    if (s->kind == ACROSS) room += (row - b->row) * ((last - from + 31) / 32) * 32;
    else packed_left(s, row, from, last, room);
    for (long k = from; k < last; k += 32, room += PAIR) *tiles++ = (struct tiles){room, room + 512};
}

static void done(const struct block *b, const float *sums, long row, long column) {
    if (b->result->turned) written_turned(b->result, sums, row, column, b->rows, b->columns);
    else written(b->result, sums, row, column, b->rows, b->columns);
}

/* Of pictures that are laid out: one column's tiles after the other, which stay near while the places go by. */
static void job_of_pictures(const struct block *b, long woven) {
    const struct side *s = b->left;
    long blocks = (b->columns - b->column + 31) / 32, tall = (b->rows - b->row + 31) / 32, inner = b->end, depth = b->depth;
    struct laid l = rows_seen(s, b->row, b->rows, woven);
    long several = inner > depth, left = depth / TAPS * (woven ? 1 : 3) * l.places, right = b->packed ? 0 : depth * 32 * blocks;
    long sum = several ? tall * blocks * 1024 : 2048, most = (depth + 31) / 32;
    bf16 *room = (bf16 *)room_of(2 * (left + right) + 4 * sum + sizeof(struct tiles) * most * blocks + sizeof(long) * most);
    float *sums = (float *)(room + left + right), *before = 0;
    struct tiles *rights = (struct tiles *)(sums + sum);
    long *offsets = (long *)(rights + blocks * most), row_before = 0, column_before = 0;
    for (long from = 0; from < inner; from += depth) {
        long last = from + depth < inner ? from + depth : inner, steps = (last - from + 31) / 32;
        rights_of(b, from, last, room + left, rights);
        if (woven) weave(s, &l, from / TAPS, (last - from) / TAPS, room);
        else lay_out(s, &l, from / TAPS, (last - from) / TAPS, room);
        offsets_of(s, &l, (last - from) / TAPS, offsets);
        for (long at = 0; at < blocks * tall; at++) {
            long row = b->row + at % tall * 32, column = b->column + at / tall * 32;
            long one = laid_at(s, &l, row), other = row + 16 < b->rows ? laid_at(s, &l, row + 16) : one;
            float *here = sums + (several ? at : at % 2) * 1024;
            seen_multiplied(room + one * 32, room + other * 32, offsets, rights[at / tall * steps].one, steps, here, !from);
            if (last < inner) continue;
            if (before) written(b->result, before, row_before, column_before, b->rows, b->columns); /* while those are multiplied */
            before = here, row_before = row, column_before = column;
        }
    }
    written(b->result, before, row_before, column_before, b->rows, b->columns);
}

static void job(const struct block *b) {
    long blocks = (b->columns - b->column + 31) / 32, tall = (b->rows - b->row + 31) / 32, woven = weaves(b->left);
    if (woven >= 0) {
        job_of_pictures(b, woven);
        return;
    }
    long inner = b->end, depth = b->depth, stays = b->sums != 0;
    long several = inner - b->begin > depth || b->result->kernel || stays, each = several ? blocks * 1024 : 0, most = (depth + 31) / 32;
    int across = b->right->kind == SEEN_ACROSS && lies_well(b->right, 32), turned = b->left->kind == ACROSS;
    long some = depth < inner ? depth : inner, pairs = b->right->woven;
    struct laid seen = {0, 0, 0};
    if (across || pairs) seen = rows_seen(b->right, 0, pairs ? some / 2 : some, pairs);
    long left = depth * 32 * (turned ? tall : 1), right = b->packed ? 0 : depth * 32 * blocks;
    if (across) right = blocks / TAPS * 96 * (seen.places + 3 * b->right->width); /* more, should others begin within a row */
    if (pairs) right = blocks / TAPS * 64 * (seen.places + 3 * (b->right->width + 1) * pairs);
    long sum = stays ? 0 : several ? tall * each : 2048, bytes = 2 * (left + right) + 4 * sum + sizeof(struct tiles) * most * (blocks + 1);
    bf16 *room = (bf16 *)room_of(bytes);
    float *sums = (float *)(room + left + right), *before = 0;
    struct tiles *rights = (struct tiles *)(sums + sum), *lefts = rights + blocks * most;
    long row_before = 0, column_before = 0;
    if (stays) sums = b->sums;
    for (long from = b->begin; from < inner; from += depth) {
        long last = from + depth < inner ? from + depth : inner, steps = (last - from + 31) / 32;
        rights_of(b, from, last, room + left, rights);
        if (turned) packed_across(b->left, b->row, b->rows, from, last, room);
        for (long i = 0; i < tall; i++) {
            long row = b->row + i * 32;
            lefts_of(b, row, from, last, room, lefts);
            if (!turned && i + 1 < tall) expected(b->left, row + 32, from, last);
            for (long j = 0; j < blocks; j++) {
                float *here = several ? sums + i * each + j * 1024 : sums + (i * blocks + j) % 2 * 1024;
                multiplied(lefts, rights + j * steps, steps, here, from == b->begin);
                if (last < inner || b->result->kernel || stays) continue;
                if (before) done(b, before, row_before, column_before); /* while those are multiplied */
                before = here, row_before = row, column_before = b->column + j * 32;
            }
            if (last == inner && b->result->kernel && !stays)
                for (long j = 0; j < blocks; j += TAPS)
                    written_kernel(b->result, sums + i * each + j * 1024, row, b->column / TAPS + j / TAPS * 32, b->rows);
        }
    }
    if (before) done(b, before, row_before, column_before);
}

static long split(long count, long most, long unit, long threads, int share) { /* how many go together */
    long parts = (count + most - 1) / most;
    if (share) parts = (parts + threads - 1) / threads * threads;
    long each = (count + parts - 1) / parts;
    return (each + unit - 1) / unit * unit;
}

/* Rows and columns of one of `down` times `across` blocks. */
static struct block part_of(const struct side *left, const struct side *right, const struct result *r, int by_rows, long one,
                            long tall, long broad, long across, long down) {
    long row = (by_rows ? one / across : one % down) * tall, column = (by_rows ? one % across : one / down) * broad;
    return (struct block){.left = left,
                          .right = right,
                          .result = r,
                          .row = row,
                          .rows = row + tall < left->outer ? row + tall : left->outer,
                          .column = column,
                          .columns = column + broad < right->outer ? column + broad : right->outer};
}

/* A block's sums in several parts, `step` numbers apart, as one; row `i` of blocks of 32, as wanted. */
static void together(const struct block *b, long parts, long step, long i) {
    long blocks = (b->columns - b->column + 31) / 32, row = b->row + i * 32;
    float *sums = b->sums + i * blocks * 1024;
    for (long part = 1; part < parts; part++)
        for (long k = 0; k < blocks * 1024; k += 16)
            _mm512_store_ps(sums + k, _mm512_add_ps(_mm512_load_ps(sums + k), _mm512_load_ps(sums + part * step + k)));
    if (b->result->kernel)
        for (long j = 0; j < blocks; j += TAPS)
            written_kernel(b->result, sums + j * 1024, row, b->column / TAPS + j / TAPS * 32, b->rows);
    else
        for (long j = 0; j < blocks; j++) done(b, sums + j * 1024, row, b->column + j * 32);
}

static void multiply(const struct side *left, const struct side *right, const struct result *r) {
    long rows = left->outer, columns = right->outer, inner = left->inner, threads = omp_get_max_threads();
    if (!rows || !columns) return;
    long unit = r->kernel ? 32 * TAPS : 32, most = r->kernel ? 2 * unit : BROAD, most_rows = TALL, depth = DEPTH, parts = 1;
    static const int lefts[] = {1, 4, 1, 0, 0, 0}, rights[] = {4, 1, 0, 1, 10, 10}; /* what it takes to pack them, by kind */
    int by_rows = rows * lefts[left->kind] >= columns * rights[right->kind];
    if (left->kind == SEEN) depth = TAPS * CHANNELS, most_rows = TALL / 2;
    if (left->kind == ACROSS) {
        depth = ACROSS_DEPTH;
        while (parts < PARTS && inner >= 2 * parts * LONG) parts *= 2; /* by nothing else: the same sums on any machine */
    }
    if (depth > inner) depth = (inner + 31) / 32 * 32;
    long tall = split(rows, most_rows, 32, threads, by_rows && parts == 1);
    if (parts > 1) most *= 2;
    long broad = split(columns, most, unit, threads, !by_rows && parts == 1);
    long down = (rows + tall - 1) / tall, across = (columns + broad - 1) / broad, units = down * across;
    long some = ((inner + parts - 1) / parts + depth - 1) / depth * depth, high = tall / 32, each = high * (broad / 32) * 1024;
    float *sums = parts > 1 ? aligned_alloc(64, parts * units * each * sizeof(float)) : 0;
    bf16 *packed = packed_once(right, down);
    if (!sums) parts = 1, some = inner;
    words();
#pragma omp parallel if (rows * columns * inner > 65536)
    {
        if (packed)
#pragma omp for schedule(static) collapse(2)
            for (long from = 0; from < inner; from += depth)
                for (long column = 0; column < columns; column += 32) {
                    long last = from + depth < inner ? from + depth : inner;
                    packed_right(right, column, column + 32, from, last,
                                 packed + from / 32 * rounded(columns) * 32 + column * ((last - from + 31) / 32) * 32);
                }
        tiles_begin();
#pragma omp for schedule(static)
        for (long one = 0; one < parts * units; one++) { /* a thread has the same rows as in what is done before and after */
            struct block b = part_of(left, right, r, by_rows, one % units, tall, broad, across, down);
            b.depth = depth, b.begin = one / units * some, b.end = b.begin + some < inner ? b.begin + some : inner;
            if (sums) b.sums = sums + one * each;
            b.packed = packed;
            job(&b);
        }
        tiles_end();
        if (sums)
#pragma omp for schedule(static)
            for (long one = 0; one < units * high; one++) {
                struct block b = part_of(left, right, r, by_rows, one / high, tall, broad, across, down);
                b.sums = sums + one / high * each;
                if (b.row + one % high * 32 < b.rows) together(&b, parts, units * each, one % high);
            }
    }
    free(sums);
    free(packed);
}

/* y (rows, out) = x (rows, in) w^T (out, in) + bias + beside; w may be `single`, float32, here and below. */
void tile_linear(const bf16 *x, const void *w, const float *bias, const bf16 *beside, bf16 *y, long rows, long in, long out,
                 int single) {
    struct side left = {.at = x, .kind = ALONG, .step = in, .outer = rows, .inner = in};
    struct side right = {.at = w, .kind = ALONG, .step = in, .outer = out, .inner = in, .single = single};
    struct result r = {.at = y, .bias = bias, .beside = beside, .step = out};
    multiply(&left, &right, &r);
}

/* x (rows, in) = y (rows, out) w (out, in). */
void tile_back(const bf16 *y, const void *w, bf16 *x, long rows, long in, long out, int single) {
    struct side left = {.at = y, .kind = ALONG, .step = out, .outer = rows, .inner = out};
    struct side right = {.at = w, .kind = ACROSS, .step = in, .outer = in, .inner = out, .single = single};
    struct result r = {.at = x, .step = in};
    multiply(&left, &right, &r);
}

/* w (out, in) = y^T (out, rows) x (rows, in); as float32 if `single`. The narrower side is the left one, which takes longer. */
void tile_outer(const bf16 *y, const bf16 *x, void *w, long rows, long in, long out, int single) {
    struct side one = {.at = y, .kind = ACROSS, .step = out, .outer = out, .inner = rows};
    struct side other = {.at = x, .kind = ACROSS, .step = in, .outer = in, .inner = rows};
    struct result r = {.at = w, .step = in, .turned = out > in, .single = single};
    multiply(r.turned ? &other : &one, r.turned ? &one : &other, &r);
}

static struct side picture(const bf16 *x, long b, long height, long width, long c, long stride) {
    long rows = (height + stride - 1) / stride, columns = (width + stride - 1) / stride;
    return (struct side){.at = x,
                         .kind = SEEN,
                         .step = c,
                         .outer = b * rows * columns,
                         .inner = TAPS * rounded(c),
                         .c = c,
                         .height = height,
                         .width = width,
                         .rows = rows,
                         .columns = columns,
                         .stride = stride,
                         .spread = 1};
}

/* y (b, rows, columns, out) of x (b, height, width, in) and w (out, in, 3, 3), zeros around. */
void tile_conv(const bf16 *x, const void *w, const float *bias, const bf16 *beside, bf16 *y, long b, long height, long width,
               long in, long out, long stride, int single) {
    struct side left = picture(x, b, height, width, in, stride);
    struct side right = {
        .at = w, .kind = KERNEL, .step = TAPS * in, .outer = out, .inner = left.inner, .c = in, .rows = out, .single = single};
    struct result r = {
        .at = y, .bias = bias, .beside = beside, .step = out, .woven = weaves(&left), .height = left.rows, .width = left.columns};
    multiply(&left, &right, &r);
}

/* x of y and w, the sizes those of `tile_conv`. */
void tile_conv_back(const bf16 *y, const void *w, bf16 *x, long b, long height, long width, long in, long out, long stride,
                    int single) {
    struct side left = {.at = y,
                        .kind = SEEN,
                        .step = out,
                        .outer = b * height * width,
                        .inner = TAPS * rounded(out),
                        .c = out,
                        .height = (height + stride - 1) / stride,
                        .width = (width + stride - 1) / stride,
                        .rows = height,
                        .columns = width,
                        .stride = 1,
                        .spread = stride};
    struct side right = {.at = w,
                         .kind = KERNEL_BACK,
                         .step = TAPS * in,
                         .outer = in,
                         .inner = left.inner,
                         .c = in,
                         .rows = out,
                         .single = single};
    struct result r = {.at = x, .step = in, .woven = weaves(&left), .height = left.rows, .width = left.columns};
    multiply(&left, &right, &r);
}

/* w of y and x; as float32 if `single`. */
void tile_conv_outer(const bf16 *y, const bf16 *x, void *w, long b, long height, long width, long in, long out, long stride,
                     int single) {
    struct side right = picture(x, b, height, width, in, stride);
    long woven = pairs_to_weave(&right, b);
    struct side left = {.at = y,
                        .kind = ACROSS,
                        .step = out,
                        .outer = out,
                        .inner = right.outer,
                        .rows = right.rows,
                        .columns = right.columns,
                        .woven = woven};
    right.woven = woven, right.kind = SEEN_ACROSS, right.inner = right.outer, right.outer = TAPS * rounded(in);
    struct result r = {.at = w, .step = TAPS * in, .kernel = 1, .single = single};
    multiply(&left, &right, &r);
}
#endif
