// bf16 to fp32 and back with AVX-512 alone. Internal linkage, because files with different compiler
// flags include it (cpu/isa.h).
#pragma once

#include <cstdint>

#include "cpu/intrinsics.h"

namespace tiercel::cpu {
namespace {

// Of `left` elements the first 16.
inline __mmask16 mask_of(int64_t left) {
  return static_cast<__mmask16>(left >= 16 ? 0xffffu : left <= 0 ? 0u : (1u << left) - 1u);
}

// Of the row at `even` and the one behind it, pairs of what lies in the same column.
inline __m512i pairs_of_rows(const uint16_t* even, int64_t row_stride, __mmask16 columns) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns, even));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns, even + row_stride));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// The even and the odd elements of 16 pairs.
inline __m512 low_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline __m512 high_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
}

inline __m512 widen(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Rounds to nearest even; NaN stays NaN, denormals stay what they are.
inline __m256i narrow(__m512 value) {
  const __m512i u = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

}  // namespace
}  // namespace tiercel::cpu
