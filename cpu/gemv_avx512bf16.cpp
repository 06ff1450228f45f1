// Skinny products with vdpbf16ps.
#include "cpu/skinny_avx512.h"
#include "cpu/weight_codes_avx512bf16.h"

namespace tiercel::cpu {
namespace {

struct Avx512Bf16 {
  using Element = uint16_t;
  using Round = RoundAvx512Bf16;
  static int64_t stride(int64_t k) { return k; }
  static __m512bh load_pairs(const uint16_t* p) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
  }
  static __m512bh load_pairs(const uint16_t* p, __mmask32 mask) {
    return reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, p));
  }

  static void add_run(__m512& acc, __m512i weights, const uint16_t* x) {
    acc = _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(weights), load_pairs(x));
  }

  template <int kRows, int kColumns>
  static void add_products(const SkinnyBlock<Avx512Bf16>& b, __m512 (&acc)[kRows][kColumns]) {
    const int64_t k = b.k, whole = k / 32 * 32;
    for (int64_t i = 0; i < whole; i += 32) {
      const int64_t jump = b.jump(i, kColumns);
      __m512bh weights[kColumns];
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) {
        weights[c] = load_pairs(b.w + c * k + i);
        if constexpr (kPrefetches<kRows>) {
          _mm_prefetch(reinterpret_cast<const char*>(b.w + c * k + i + jump), _MM_HINT_T1);
        }
      }
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const __m512bh values = load_pairs(b.x + r * k + i);
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) {
          acc[r][c] = _mm512_dpbf16_ps(acc[r][c], weights[c], values);
        }
      }
    }
    if (whole == k) return;
    const __mmask32 mask = static_cast<__mmask32>((1u << (k - whole)) - 1u);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m512bh values = load_pairs(b.x + r * k + whole, mask);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) {
        acc[r][c] = _mm512_dpbf16_ps(acc[r][c], load_pairs(b.w + c * k + whole, mask), values);
      }
    }
  }
};

}  // namespace

void multiply_skinny_avx512bf16(const SkinnyProduct& p) { multiply_skinny<Avx512Bf16>(p, p.x); }

}  // namespace tiercel::cpu
