/* What is done with tiles (AMX), in products and in attention: numbers become tiles, and tiles are multiplied.
 *
 * A tile has 16 rows of 64 bytes. A left one has 32 bf16 numbers in each, a right one 16 pairs that are multiplied with a left
 * row's pairs; 16 x 16 sums are float32. Left tiles come in twos below each other, right ones in twos side by side. */

#include "attention.h"

#if defined(__AVX512BF16__) && defined(__AMX_BF16__)
#define BLOCK 32 /* rows or columns of four tiles of sums, and numbers of a tile's row */
#define PAIR 1024 /* numbers of two tiles, those of a block for 32 numbers of the inner side */

/* A tile is read from `at`, rows `step` bytes from each other. (Some compilers' own does not say that it reads memory.) */
#define READ(tile, at, step)                                                                                                   \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"((const void *)(at)), "r"((long)(step)) : "memory")

struct tiles {
    const bf16 *one, *other;
}; /* two, side by side or below each other */

static inline __mmask32 first_of(long count) { return count >= 32 ? ~0u : count <= 0 ? 0 : (1u << count) - 1; }

/* 32 numbers as bf16, or as many as there are. */
static inline __m512i numbers(const char *at, __mmask32 all, int single) {
    if (!single) return _mm512_maskz_loadu_epi16(all, at);
    __m512 low = _mm512_maskz_loadu_ps((__mmask16)all, at), high = _mm512_maskz_loadu_ps((__mmask16)(all >> 16), at + 64);
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

static inline void turn_over(__m512i r[16]) { /* 16 x 16 pairs */
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2)
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88), t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88), r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88), r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Two rows' numbers as pairs, 16 in each of two registers. */
static inline void pair_up(__m512i one, __m512i other, __m512i *low, __m512i *high) {
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                           36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    *low = _mm512_permutex2var_epi16(one, first, other);
    *high = _mm512_permutex2var_epi16(one, _mm512_add_epi16(first, _mm512_set1_epi16(16)), other);
}

/* Which of 32 numbers is the `i`-th pair of the low or high ones when two rows are unpacked, which costs half of `pair_up`. */
static inline long unpacked(int high, long i) { return i / 4 * 8 + high * 4 + i % 4; }

static inline void stored(bf16 *to, const __m512i rows[16]) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) _mm512_store_si512(to + 32 * i, rows[i]);
}

/* 32 rows of 32 numbers at `row[i] + at`: as rows of two left tiles, as columns of two right ones, .. */
static inline void rows_left(const char *const row[32], long at, __mmask32 all, int single, bf16 *to) {
#pragma GCC unroll 32
    for (int i = 0; i < 32; i++) _mm512_store_si512(to + 32 * i, numbers(row[i] + at, all, single));
}

static inline void rows_right(const char *const row[32], long at, __mmask32 all, int single, bf16 *to) {
    for (int part = 0; part < 2; part++) {
        __m512i r[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) r[i] = numbers(row[16 * part + i] + at, all, single);
        turn_over(r);
        stored(to + part * 512, r);
    }
}

/* .. and 32 rows that are the inner side, of 32 columns: as two right tiles, as two left ones. */
static inline void columns_right(const char *const row[32], long at, __mmask32 all, int single, bf16 *to) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        __m512i one = numbers(row[2 * i] + at, all, single), other = numbers(row[2 * i + 1] + at, all, single), low, high;
        pair_up(one, other, &low, &high);
        _mm512_store_si512(to + 32 * i, low);
        _mm512_store_si512(to + 512 + 32 * i, high);
    }
}

static inline void columns_left(const char *const row[32], long at, __mmask32 all, int single, bf16 *to) {
    __m512i r[2][16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        __m512i one = numbers(row[2 * i] + at, all, single), other = numbers(row[2 * i + 1] + at, all, single);
        r[0][i] = _mm512_unpacklo_epi16(one, other), r[1][i] = _mm512_unpackhi_epi16(one, other);
    }
    for (int high = 0; high < 2; high++) {
        turn_over(r[high]);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) _mm512_store_si512(to + 32 * unpacked(high, i), r[high][i]);
    }
}

/* Tiles 0 to 3, 32 x 32 sums: from zero, or on from what is there; and back. */
static inline void sums_begin(const float *sums, int begin) {
    if (begin) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        READ(0, sums, 64);
        READ(1, sums + 256, 64);
        READ(2, sums + 512, 64);
        READ(3, sums + 768, 64);
    }
}

static inline void sums_end(float *sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
}

/* Two left and two right tiles are multiplied and added to them. */
static inline void sums_added(const bf16 *left, const bf16 *below, const bf16 *right, const bf16 *beside) {
    READ(4, left, 64);
    READ(6, right, 64);
    READ(7, beside, 64);
    READ(5, below, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

/* `steps` left and right tiles, wherever they are. */
static inline void multiplied(const struct tiles *left, const struct tiles *right, long steps, float *sums, int begin) {
    sums_begin(sums, begin);
    for (long k = 0; k < steps; k++) sums_added(left[k].one, left[k].other, right[k].one, right[k].other);
    sums_end(sums);
}

static inline floats widened(__m256i x) { return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); }

/* 32 bf16 numbers to where they are wanted, as float32 if `single`. */
static inline void put(void *to, long at, __mmask32 all, __m512i numbers, int single) {
    if (!single) {
        _mm512_mask_storeu_epi16((bf16 *)to + at, all, numbers);
        return;
    }
    _mm512_mask_storeu_ps((float *)to + at, (__mmask16)all, widened(_mm512_castsi512_si256(numbers)));
    _mm512_mask_storeu_ps((float *)to + at + 16, (__mmask16)(all >> 16), widened(_mm512_extracti64x4_epi64(numbers, 1)));
}

/* 16 of the columns of a block of sums, times factors of theirs, as rows of 32 bf16 numbers. */
static inline void turned_rows(const float *sums, int part, floats factor, __m512i rows[16]) {
    __m512i other[16];
    for (int i = 0; i < 16; i++) {
        rows[i] = (__m512i)_mm512_mul_ps(_mm512_load_ps(sums + part * 256 + i * 16), factor);
        other[i] = (__m512i)_mm512_mul_ps(_mm512_load_ps(sums + 512 + part * 256 + i * 16), factor);
    }
    turn_over(rows);
    turn_over(other);
    for (int i = 0; i < 16; i++) rows[i] = (__m512i)_mm512_cvtne2ps_pbh((floats)other[i], (floats)rows[i]);
}
#endif
