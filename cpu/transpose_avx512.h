// Pairs of bf16 from rows to the order in which products take them. Internal linkage, because files
// with different compiler flags include it (cpu/isa.h).
#pragma once

#include "cpu/bf16_avx512.h"
#include "cpu/intrinsics.h"

namespace tiercel::cpu {
namespace {

// Transposes 16 x 16 dwords: row i of in becomes column i of out. Inline, so that rows which nobody
// reads are not made.
[[gnu::always_inline]] inline void transpose(__m512i rows[16]) {
  __m512i t[16];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // 4x4 blocks within each 128-bit lane of rows 4i .. 4i+3
    const __m512i a = _mm512_unpacklo_epi32(rows[4 * i], rows[4 * i + 1]);
    const __m512i b = _mm512_unpackhi_epi32(rows[4 * i], rows[4 * i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(rows[4 * i + 2], rows[4 * i + 3]);
    const __m512i d = _mm512_unpackhi_epi32(rows[4 * i + 2], rows[4 * i + 3]);
    t[4 * i] = _mm512_unpacklo_epi64(a, c);
    t[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
    t[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
    t[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // t[4i+j] lane l = column 4l+j of rows 4i..4i+3
    const __m512i a = _mm512_shuffle_i32x4(t[j], t[4 + j], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(t[j], t[4 + j], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0x44);
    const __m512i d = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0xee);
    rows[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    rows[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    rows[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}

// Up to 16 rows of up to 16 pairs, as a B tile [16 pairs][16 rows][2], with zeros where they end.
[[gnu::always_inline]] inline void pack_tile(const uint16_t* rows, int64_t row_stride,
                                             int64_t n_rows, int64_t n_pairs, void* out) {
  const __mmask16 pairs = mask_of(n_pairs);
  __m512i tile[16];
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) {
    tile[i] = i < n_rows ? _mm512_maskz_loadu_epi32(pairs, rows + i * row_stride)
                         : _mm512_setzero_si512();
  }
  transpose(tile);
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) _mm512_storeu_si512(static_cast<char*>(out) + 64 * i, tile[i]);
}

}  // namespace
}  // namespace tiercel::cpu
