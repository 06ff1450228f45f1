// The end of a skinny product on the AVX-512 levels: bias, accumulation, rounding. Internal
// linkage, because files with different compiler flags include it (cpu/isa.h).
#pragma once

#include "cpu/bf16_avx512.h"
#include "cpu/gemm.h"

namespace tiercel::cpu {
namespace {

struct KeepDenormals {
  static __m256i narrow(__m512 value) { return cpu::narrow(value); }
};

// sums[0 .. end - first) of one row go to out[first .. end).
template <class Round = KeepDenormals>
void finish(const SkinnyProduct& p, int64_t row, const float* sums) {
  for (int64_t n = p.first; n < p.end; n += 16) {
    const __mmask16 mask = mask_of(p.end - n);
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
      _mm256_mask_storeu_epi16(out, mask, Round::narrow(value));
    }
  }
}

}  // namespace
}  // namespace tiercel::cpu
