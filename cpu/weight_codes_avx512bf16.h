// Rounding with AVX-512 BF16, for cpu/weight_codes_avx512.h. Denormals become 0, which they are in products.
#pragma once

#include "cpu/weight_codes_avx512.h"

namespace tiercel::cpu {
namespace {

struct RoundAvx512Bf16 {
  static __m512i both(__m512 first, __m512 last) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(last, first));
  }
  static __m512i twice(__m512 values) { return both(values, values); }
};

}  // namespace
}  // namespace tiercel::cpu
