// Skinny products with AVX-512 without BF16. x is widened to fp32 once per range, its even elements
// apart from its odd ones, because that is how weights come out of their registers: the lower
// halves by a shift, the upper ones by a mask.
#include "cpu/skinny_avx512.h"

namespace tiercel::cpu {
namespace {

__mmask32 tail_mask(int64_t k) { return static_cast<__mmask32>((1u << (k % 32)) - 1u); }

// x [n_rows][k] bf16 -> [n_rows][k rounded up to 32]: per 32 elements the 16 even, then the 16 odd.
void widen_rows(const uint16_t* x, int64_t n_rows, int64_t k, float* out) {
  for (int64_t row = 0; row < n_rows; ++row, x += k) {
    for (int64_t i = 0; i < k; i += 32, out += 32) {
      const __m512i pairs =
          i + 32 <= k ? _mm512_loadu_si512(x + i) : _mm512_maskz_loadu_epi16(tail_mask(k), x + i);
      _mm512_store_ps(out, low_of(pairs));
      _mm512_store_ps(out + 16, high_of(pairs));
    }
  }
}

struct Avx512 {
  using Element = float;
  using Round = RoundAvx512;
  static int64_t stride(int64_t k) { return (k + 31) / 32 * 32; }

  static void add_run(__m512& acc, __m512i weights, const float* x) {
    acc = _mm512_fmadd_ps(low_of(weights), _mm512_load_ps(x), acc);
    acc = _mm512_fmadd_ps(high_of(weights), _mm512_load_ps(x + 16), acc);
  }

  template <int kRows, int kColumns>
  static void add_products(const SkinnyBlock<Avx512>& b, __m512 (&acc)[kRows][kColumns]) {
    const int64_t k = b.k, whole = k / 32 * 32;
    for (int64_t i = 0; i < whole; i += 32) {
      const int64_t jump = b.jump(i, kColumns);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) {
        const __m512i pairs = _mm512_loadu_si512(b.w + c * k + i);
        if constexpr (kPrefetches<kRows>) {
          _mm_prefetch(reinterpret_cast<const char*>(b.w + c * k + i + jump), _MM_HINT_T1);
        }
        const __m512 low = low_of(pairs), high = high_of(pairs);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const float* values = b.x + r * stride(k) + i;
          acc[r][c] = _mm512_fmadd_ps(low, _mm512_load_ps(values), acc[r][c]);
          acc[r][c] = _mm512_fmadd_ps(high, _mm512_load_ps(values + 16), acc[r][c]);
        }
      }
    }
    if (whole == k) return;
    for (int c = 0; c < kColumns; ++c) {
      const __m512i pairs = _mm512_maskz_loadu_epi16(tail_mask(k), b.w + c * k + whole);
      for (int r = 0; r < kRows; ++r) {
        const float* values = b.x + r * stride(k) + whole;
        acc[r][c] = _mm512_fmadd_ps(low_of(pairs), _mm512_load_ps(values), acc[r][c]);
        acc[r][c] = _mm512_fmadd_ps(high_of(pairs), _mm512_load_ps(values + 16), acc[r][c]);
      }
    }
  }
};

}  // namespace

void multiply_skinny_avx512(const SkinnyProduct& p) {
  float* x = p.scratch + p.n_rows * kSkinnyRange;
  widen_rows(p.x, p.n_rows, p.k, x);
  multiply_skinny<Avx512>(p, x);
}

}  // namespace tiercel::cpu
