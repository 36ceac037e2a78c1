/* Pictures laid out for convolutions of 3 x 3 places by tiles: what 16 places see is one tile, whatever the tap, and nine copies need
 * not be made. */

#include "sides.h"

#if defined(__AVX512BF16__) && defined(__AMX_BF16__)
/* Rows of pictures that are laid out so that what 16 places see is one tile, whatever the tap. Where a row has 16 places, or several
 * pictures' have that are woven together, they lie once, with a place of zeros between rows; else thrice, a column apart. */
struct laid {
    long base, places; /* the first row, counted with one of zeros before each picture and after the last; places of all */
    long woven;        /* pictures; none if the rows lie thrice */
};

/* Which rows of pictures the places `first` to `last` see, as they are laid out. */
static struct laid rows_seen(const struct side *s, long first, long last, long woven) {
    long width = s->columns * (woven ? woven : 1), whole = s->rows * width, all = s->height + 1;
    long from = first / whole * all + first % whole / width, count = (last - 1) / whole * all + (last - 1) % whole / width + 3 - from;
    return (struct laid){from, woven ? (count * (s->columns + 1) + 1) * woven : count * s->columns, woven};
}

static long laid_at(const struct side *s, const struct laid *l, long place) { /* where a place is among them */
    long width = s->columns * (l->woven ? l->woven : 1), whole = s->rows * width, rest = place % whole;
    long row = place / whole * (s->height + 1) + 1 - l->base + rest / width;
    return l->woven ? (row * (s->columns + 1) + 1) * l->woven + rest % width : row * width + rest % width;
}

static const bf16 *laid_row(const struct side *s, long row) { /* of pictures; null of zeros */
    long n = row / (s->height + 1), i = row % (s->height + 1);
    return i ? (const bf16 *)s->at + (n * s->height + i - 1) * s->width * s->step : 0;
}

/* (32 channels each, places, 32): rows of left tiles. */
static void weave(const struct side *s, const struct laid *l, long channel, long channels, bf16 *to) {
    const __m512i none = _mm512_setzero_si512();
    long woven = l->woven, row_of = (s->columns + 1) * woven, all = s->height + 1;
    for (long k = channel; k < channel + channels; k += 32) {
        __mmask32 there = first_of(s->c - k);
        for (long row = l->base; row < l->base + l->places / row_of; row++, to += row_of * 32) {
            for (long i = 0; i < woven; i++) {
                const bf16 *from = row % all ? laid_row(s, (row / all * woven + i) * all + row % all) : 0;
                _mm512_store_si512(to + i * 32, none);
                for (long j = 0; j < s->columns; j++)
                    _mm512_store_si512(to + ((j + 1) * woven + i) * 32,
                                       from ? _mm512_maskz_loadu_epi16(there, from + j * s->step + k) : none);
            }
        }
        for (long i = 0; i < woven; i++, to += 32) _mm512_store_si512(to, none);
    }
}

/* The same of pairs of pictures: (32 channels each, half of the channels, places, 16 pairs of numbers), rows of right tiles. */
static void weave_pairs(const struct side *s, const struct laid *l, long channel, long channels, bf16 *to) {
    const __m512i none = _mm512_setzero_si512();
    long woven = l->woven, row_of = (s->columns + 1) * woven, all = s->height + 1, half = l->places * 32;
    for (long k = channel; k < channel + channels; k += 32, to += half) {
        __mmask32 there = first_of(s->c - k);
        for (long row = l->base; row < l->base + l->places / row_of; row++, to += row_of * 32)
            for (long i = 0; i < woven; i++) {
                const bf16 *from = row % all ? laid_row(s, 2 * (row / all * woven + i) * all + row % all) : 0;
                const bf16 *other = from ? from + s->height * s->width * s->step : 0;
                bf16 *at = to + i * 32;
                _mm512_store_si512(at, none);
                _mm512_store_si512(at + half, none);
                for (long j = 0; j < s->columns; j++) {
                    __m512i low = none, high = none;
                    at += woven * 32;
                    if (from)
                        pair_up(_mm512_maskz_loadu_epi16(there, from + j * s->step + k),
                                _mm512_maskz_loadu_epi16(there, other + j * s->step + k), &low, &high);
                    _mm512_store_si512(at, low);
                    _mm512_store_si512(at + half, high);
                }
            }
        for (long i = 0; i < woven; i++, to += 32) {
            _mm512_store_si512(to, none);
            _mm512_store_si512(to + half, none);
        }
    }
}

/* (32 channels each, tap's column, places, 32): rows of left tiles. */
static void lay_out(const struct side *s, const struct laid *l, long channel, long channels, bf16 *to) {
    const __m512i none = _mm512_setzero_si512();
    long width = s->width;
    for (long k = channel; k < channel + channels; k += 32, to += 3 * l->places * 32) {
        __mmask32 all = first_of(s->c - k);
        for (long row = 0; row < l->places / width; row++) {
            bf16 *left = to + row * width * 32, *middle = left + l->places * 32, *right = middle + l->places * 32;
            const bf16 *from = laid_row(s, l->base + row);
            for (long j = 0; j < width; j++) {
                __m512i x = from ? _mm512_maskz_loadu_epi16(all, from + j * s->step + k) : none;
                if (j + 1 < width) _mm512_store_si512(left + (j + 1) * 32, x);
                _mm512_store_si512(middle + j * 32, x);
                if (j) _mm512_store_si512(right + (j - 1) * 32, x);
            }
            _mm512_store_si512(left, none);
            _mm512_store_si512(right + (width - 1) * 32, none);
        }
    }
}

/* How far from where a place is what it sees lies, for each step: (tap, 32 channels each). */
static void offsets_of(const struct side *s, const struct laid *l, long channels, long *to) {
    for (long tap = 0; tap < TAPS; tap++)
        for (long k = 0; k < channels; k += 32) {
            long down = tap / 3 - 1, right = tap % 3 - 1, at = k / 32 * l->places;
            *to++ = 32 * (l->woven ? at + (down * (s->columns + 1) + right) * l->woven
                                   : 3 * at + (right + 1) * l->places + down * s->width);
        }
}

/* (32 channels each, tap's column, half of the channels, pairs of places, 16 pairs of numbers): rows of right tiles. */
static void lay_out_pairs(const struct side *s, const struct laid *l, long channel, long channels, bf16 *to) {
    long width = s->width, half = l->places * 16;
    for (long k = channel; k < channel + channels; k += 32, to += 6 * half) {
        __mmask32 all = first_of(s->c - k);
        for (long row = 0; row < l->places / width; row++) {
            const bf16 *from = laid_row(s, l->base + row);
            for (int shift = -1; shift < 2; shift++)
                for (long j = 0; j < width; j += 2) {
                    __m512i low, high, x[2];
                    for (int i = 0; i < 2; i++) {
                        int there = from && j + i + shift >= 0 && j + i + shift < width;
                        x[i] = _mm512_maskz_loadu_epi16(there ? all : 0, from + (j + i + shift) * s->step + k);
                    }
                    pair_up(x[0], x[1], &low, &high);
                    bf16 *at = to + (shift + 1) * 2 * half + (row * width + j) * 16;
                    _mm512_store_si512(at, low);
                    _mm512_store_si512(at + half, high);
                }
        }
    }
}

/* Whether what places see can be laid out for tiles of `count` places. */
static int lies_well(const struct side *s, long count) {
    return s->stride == 1 && s->spread == 1 && s->rows * s->columns % count == 0 && s->columns % 2 == 0;
}

/* How many pictures are woven together for tiles of 16 places; none if they lie thrice, less if they cannot be laid out. */
static long weaves(const struct side *s) {
    if (s->kind != SEEN || s->stride != 1 || s->spread != 1) return -1;
    if (s->columns % 16 == 0) return 1;
    if (16 % s->columns == 0 && s->outer / (s->rows * s->columns) % (16 / s->columns) == 0) return 16 / s->columns;
    return lies_well(s, 16) ? 0 : -1;
}

/* How many pairs of pictures are woven together where their places are the inner side; none if they cannot be. */
static long pairs_to_weave(const struct side *s, long pictures) {
    long each = s->columns % 16 == 0 ? 1 : 16 % s->columns == 0 ? 16 / s->columns : 0;
    return s->stride == 1 && each && pictures % (2 * each) == 0 ? each : 0;
}
#endif
