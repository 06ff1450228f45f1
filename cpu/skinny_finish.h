// The end of a skinny product on the AVX-512 levels: bias, accumulation, rounding. Internal
// linkage, because files with different compiler flags include it (cpu/isa.h).
#pragma once

#include "cpu/gemm.h"
#include "cpu/intrinsics.h"

namespace tiercel::cpu {
namespace {

__m512 widen(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Rounds to nearest even; NaN stays NaN, denormals stay what they are.
__m256i narrow(__m512 value) {
  const __m512i u = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

// sums[0 .. end - first) of one row go to out[first .. end).
void finish(const SkinnyProduct& p, int64_t row, const float* sums) {
  for (int64_t n = p.first; n < p.end; n += 16) {
    const __mmask16 mask =
        static_cast<__mmask16>(p.end - n >= 16 ? 0xffffu : (1u << (p.end - n)) - 1u);
    __m512 value = _mm512_maskz_loadu_ps(mask, sums + (n - p.first));
    if (p.bias != nullptr) {
      value = _mm512_add_ps(value, widen(_mm256_maskz_loadu_epi16(mask, p.bias + n)));
    }
    if (p.out_f32) {
      float* out = static_cast<float*>(p.out) + row * p.n + n;
      if (p.accumulate) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, out));
      _mm512_mask_storeu_ps(out, mask, value);
    } else {
      uint16_t* out = static_cast<uint16_t*>(p.out) + row * p.n + n;
      if (p.accumulate) value = _mm512_add_ps(value, widen(_mm256_maskz_loadu_epi16(mask, out)));
      _mm256_mask_storeu_epi16(out, mask, narrow(value));
    }
  }
}

}  // namespace
}  // namespace tiercel::cpu
