/* The sides of matrix products by tiles, packed as they are read: rows or columns of a matrix, weights of 3 x 3 places in float32 or
 * bf16 as they lie, or what the places of a convolution see of a picture. */

#include "tiles.h"

#if defined(__AVX512BF16__) && defined(__AMX_BF16__)
#define WIDEST (1 << 18) /* bytes of a row */
#define TAPS 9
#define SOON 8 /* rows of weights that are brought nearer before their turn */

enum kind {
    ALONG, /* (outer, inner): the inner side lies together */
    ACROSS, /* (inner, outer) */
    SEEN, /* what places see of a picture: outer are places, inner 9 x c */
    SEEN_ACROSS, /* the same turned over: outer are 9 x c, 32 channels' nine together, inner are places */
    KERNEL, /* weights (outer, c, 3, 3), inner 9 x c */
    KERNEL_BACK /* weights (outer of the way there, outer, 3, 3), turned round, inner 9 x the former */
};

struct side {
    const void *at;
    enum kind kind;
    long step, outer, inner; /* numbers from row to row; how many of them, 32 for what is left of a tap's */
    long c; /* channels of a picture, or of weights (.., c, 3, 3) */
    /* a picture's, of the places that see it (or how many rows weights have), and how far apart they are */
    long height, width, rows, columns, stride, spread;
    long woven; /* pairs of pictures whose places are the inner side in turn, if any */
    int single; /* float32 */
};

static __m512i spread_words[TAPS][5], gather_words[TAPS][5]; /* see `words` */
static __mmask32 spread_masks[TAPS][5], gather_masks[TAPS][5];

/* 32 channels' nine weights, 288 numbers: from nine together for a channel to a channel's after each other (`spread`), and back. */
static void words(void) {
    static int known = 0;
    if (known) return;
    for (int to = 0; to < TAPS; to++)
        for (int pair = 0; pair < 5; pair++) {
            uint16_t apart[32], together[32];
            __mmask32 first = 0, second = 0;
            for (int lane = 0; lane < 32; lane++) {
                int word = lane * TAPS + to, place = to * 32 + lane, from = place % TAPS * 32 + place / TAPS;
                apart[lane] = word % 64, together[lane] = from % 64;
                if (word / 64 == pair) first |= 1u << lane;
                if (from / 64 == pair) second |= 1u << lane;
            }
            spread_words[to][pair] = _mm512_loadu_si512(apart), gather_words[to][pair] = _mm512_loadu_si512(together);
            spread_masks[to][pair] = first, gather_masks[to][pair] = second;
        }
    known = 1;
}

static inline void moved(const __m512i from[TAPS + 1], __m512i to[TAPS], const __m512i table[TAPS][5],
                         const __mmask32 masks[TAPS][5]) {
#pragma GCC unroll 9
    for (int tap = 0; tap < TAPS; tap++) {
        __m512i found = _mm512_setzero_si512();
#pragma GCC unroll 5
        for (int pair = 0; pair < 5; pair++) {
            __m512i some = _mm512_permutex2var_epi16(from[2 * pair], table[tap][pair], from[2 * pair + 1]);
            found = _mm512_mask_mov_epi16(found, masks[tap][pair], some);
        }
        to[tap] = found;
    }
}

static long rounded(long c) { return (c + 31) / 32 * 32; }

static const char nothing[WIDEST] __attribute__((aligned(64))) = {0}; /* a row of zeros */

/* Where 32 rows of a matrix begin. */
static inline void rows_of(const struct side *s, long first, long count, const char *row[32]) {
    long step = s->step * (s->single ? 4 : 2);
    const char *at = (const char *)s->at + first * step;
    for (long i = 0; i < 32; i++) row[i] = i < count ? at + i * step : nothing;
}

/* The same where they are places of woven pairs of pictures: two pictures' place by place. */
static inline void rows_woven(const struct side *s, long first, const char *row[32]) {
    long width = s->columns * s->woven, whole = s->rows * width, group = first / 2 / whole, rest = first / 2 % whole;
    for (long i = 0; i < 16; i++) {
        long at = rest % width + i, picture = 2 * (group * s->woven + at % s->woven);
        long place = (picture * s->rows + rest / width) * s->columns + at / s->woven;
        row[2 * i] = (const char *)s->at + 2 * place * s->step;
        row[2 * i + 1] = row[2 * i] + 2 * s->rows * s->columns * s->step;
    }
}

/* Have 32 rows that come next brought nearer. */
static inline void soon(const struct side *s, long first, long at) {
    long each = s->single ? 4 : 2;
    for (long i = first; i < first + 32 && i < (s->kind == ACROSS ? s->inner : s->outer); i++)
        _mm_prefetch((const char *)s->at + (i * s->step + at) * each, _MM_HINT_T0);
}

struct places { /* 32 of a convolution: which picture, row and column */
    int32_t n[32], i[32], j[32];
};

static inline void places_of(const struct side *s, long first, long count, struct places *p) {
    int n = (int)(first / (s->rows * s->columns)), rest = (int)(first % (s->rows * s->columns));
    int i = rest / (int)s->columns, j = rest % (int)s->columns;
    for (int at = 0; at < 32; at++) {
        p->n[at] = n, p->i[at] = at < count ? i * (int)s->stride : -9, p->j[at] = j * (int)s->stride;
        if (++j == s->columns) {
            j = 0;
            if (++i == s->rows) i = 0, n++;
        }
    }
}

/* Where the places find what they see through `tap`. */
static inline void seen_by(const struct side *s, const struct places *p, int tap, const char *row[32]) {
    __m512i height = _mm512_set1_epi32((int)s->height), width = _mm512_set1_epi32((int)s->width);
    for (int half = 0; half < 32; half += 16) {
        __m512i i = _mm512_add_epi32(_mm512_loadu_si512(p->i + half), _mm512_set1_epi32(tap / 3 - 1));
        __m512i j = _mm512_add_epi32(_mm512_loadu_si512(p->j + half), _mm512_set1_epi32(tap % 3 - 1));
        __mmask16 there = 0xffff;
        if (s->spread == 2) {
            there = _mm512_testn_epi32_mask(_mm512_or_si512(i, j), _mm512_set1_epi32(1));
            i = _mm512_srai_epi32(i, 1), j = _mm512_srai_epi32(j, 1);
        }
        there &= _mm512_cmplt_epu32_mask(i, height) & _mm512_cmplt_epu32_mask(j, width);
        __m512i place = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_loadu_si512(p->n + half), height), i);
        place = _mm512_add_epi32(_mm512_mullo_epi32(place, width), j);
        for (int part = 0; part < 2; part++) {
            __m512i at = _mm512_cvtepi32_epi64(part ? _mm512_extracti64x4_epi64(place, 1) : _mm512_castsi512_si256(place));
            at = _mm512_add_epi64(_mm512_mullo_epi64(at, _mm512_set1_epi64(2 * s->step)), _mm512_set1_epi64((long long)s->at));
            at = _mm512_mask_mov_epi64(_mm512_set1_epi64((long long)nothing), (__mmask8)(there >> 8 * part), at);
            _mm512_storeu_si512(row + half + 8 * part, at);
        }
    }
}

/* Weights of 32 channels: nine tiles' rows of (outer) row `o`. */
static inline void taps_of(const struct side *s, long o, long channel, __m512i to[TAPS]) {
    __m512i from[TAPS + 1];
    int each = s->single ? 4 : 2;
    long there = o < s->rows ? (s->c - channel) * TAPS : 0;
    const char *at = (const char *)s->at + (o * s->step + channel * TAPS) * each;
    for (int i = 0; i < TAPS; i++) from[i] = numbers(at + 32 * i * each, first_of(there - 32 * i), s->single);
    from[TAPS] = _mm512_setzero_si512();
    moved(from, to, spread_words, spread_masks);
}

/* Have those of another row brought nearer. */
static inline void taps_soon(const struct side *s, long o, long channel) {
    int each = s->single ? 4 : 2;
    const char *at = (const char *)s->at + (o * s->step + channel * TAPS) * each;
    for (long i = 0; o < s->rows && i < 32 * TAPS * each; i += 64) _mm_prefetch(at + i, _MM_HINT_T0);
}

/* All nine taps' right tiles for 32 numbers of the inner side; from a tap's to the next one's are `to_tap` numbers. */
static void kernel_right(const struct side *s, long first, long channel, long to_tap, bf16 *to) {
    __m512i kept[TAPS][16];
    for (int part = 0; part < 2; part++) {
        for (long i = 0; i < 16; i++) {
            __m512i taps[TAPS];
            taps_soon(s, first + part * 16 + i + SOON, channel);
            taps_of(s, first + part * 16 + i, channel, taps);
            for (int tap = 0; tap < TAPS; tap++) kept[tap][i] = taps[tap];
        }
        for (int tap = 0; tap < TAPS; tap++) {
            turn_over(kept[tap]);
            stored(to + tap * to_tap + part * 512, kept[tap]);
        }
    }
}

static void kernel_back_right(const struct side *s, long first, long from, long to_tap, bf16 *to) {
    for (long i = 0; i < 16; i++) {
        __m512i one[TAPS], other[TAPS];
        taps_soon(s, from + 2 * i + SOON, first);
        taps_soon(s, from + 2 * i + SOON + 1, first);
        taps_of(s, from + 2 * i, first, one);
        taps_of(s, from + 2 * i + 1, first, other);
        for (int tap = 0; tap < TAPS; tap++) {
            bf16 *at = to + (TAPS - 1 - tap) * to_tap + 32 * i;
            __m512i low, high;
            pair_up(one[tap], other[tap], &low, &high);
            _mm512_store_si512(at, low);
            _mm512_store_si512(at + 512, high);
        }
    }
}

/* The inner side from `from` to `last`, packed: as left tiles of 32 rows from `first` on (inner / 32, 2 tiles), .. */
static void packed_left(const struct side *s, long first, long from, long last, bf16 *to) {
    const char *row[32];
    if (s->kind == ALONG) {
        rows_of(s, first, s->outer - first, row);
        for (long k = from; k < last; k += 32, to += PAIR) rows_left(row, 2 * k, first_of(last - k), 0, to);
    } else {
        struct places p;
        places_of(s, first, s->outer - first, &p);
        for (int tap = 0; tap < TAPS; tap++) {
            seen_by(s, &p, tap, row);
            for (long k = from / TAPS; k < last / TAPS; k += 32, to += PAIR) rows_left(row, 2 * k, first_of(s->c - k), 0, to);
        }
    }
}

/* .. of all rows from `first` to `end` (block of 32 rows, inner / 32, 2 tiles), .. */
static void packed_across(const struct side *s, long first, long end, long from, long last, bf16 *to) {
    long steps = (last - from + 31) / 32;
    const char *row[32];
    for (long k = from; k < last; k += 32, to += PAIR) {
        if (s->woven) rows_woven(s, k, row);
        else rows_of(s, k, last - k, row);
        for (long i = first; i < end; i += 32) {
            if (!s->woven) soon(s, k + 32, i);
            columns_left(row, 2 * i, first_of(s->outer - i), 0, to + (i - first) / 32 * steps * PAIR);
        }
    }
}

/* .. and as right tiles of columns `first` to `end` (block of 32 columns, inner / 32, 2 tiles). */
static void packed_right(const struct side *s, long first, long end, long from, long last, bf16 *to) {
    long steps = (last - from + 31) / 32, each = s->single ? 4 : 2;
    const char *row[32];
    if (s->kind == SEEN_ACROSS) {
        for (long k = from; k < last; k += 32, to += PAIR) {
            struct places p;
            places_of(s, k, last - k, &p);
            for (int tap = 0; tap < TAPS; tap++) {
                seen_by(s, &p, tap, row);
                for (long block = first / 32 + tap; block < end / 32; block += TAPS)
                    columns_right(row, 2 * (block / TAPS * 32), first_of(s->c - block / TAPS * 32), 0,
                                  to + (block - first / 32) * steps * PAIR);
            }
        }
        return;
    }
    if (s->kind == ACROSS) {
        for (long k = from; k < last; k += 32, to += PAIR) {
            rows_of(s, k, last - k, row);
            for (long column = first; column < end; column += BLOCK) {
                soon(s, k + 32, column);
                columns_right(row, each * column, first_of(s->outer - column), s->single,
                              to + (column - first) / 32 * steps * PAIR);
            }
        }
        return;
    }
    for (long column = first; column < end; column += BLOCK) {
        if (s->kind == ALONG) {
            rows_of(s, column, s->outer - column, row);
            for (long k = from; k < last; k += 32, to += PAIR) rows_right(row, each * k, first_of(last - k), s->single, to);
        } else {
            long count = (last - from) / TAPS, tap = count / 32 * PAIR;
            for (long k = 0; k < count; k += 32, to += PAIR)
                if (s->kind == KERNEL) kernel_right(s, column, from / TAPS + k, tap, to);
                else kernel_back_right(s, column, from / TAPS + k, tap, to);
            to += (TAPS - 1) * tap;
        }
    }
}
#endif
