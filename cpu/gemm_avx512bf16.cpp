// Panel products with vdpbf16ps. Two multiply-adds of 512 bits start per cycle and each takes 6, so
// 12 chains are the least that keeps them busy; six rows of four vectors need 10 loads per 24
// products.
#include "cpu/panel_avx512.h"

namespace tiercel::cpu {
namespace {

struct Avx512Bf16 {
  static __m512bh load_pairs(const uint16_t* p) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
  }
  static __m512bh broadcast_pair(const uint16_t* p) {
    int pair;
    __builtin_memcpy(&pair, p, 4);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
  }
  static __m256i narrow(__m512 value) {
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
  }

  template <int kRows, int kVectors>
  static void add_products(const PanelProduct& p, int64_t row, __m512 (&sums)[kRows][kVectors]) {
    const uint16_t* a = p.a + row * p.row_stride;
    const uint16_t* b = p.panel;
    for (int64_t pair = 0; pair < p.n_pairs; ++pair) {
      __m512bh columns[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) columns[v] = load_pairs(b + v * 32);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const __m512bh x = broadcast_pair(a + r * p.row_stride);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          sums[r][v] = _mm512_dpbf16_ps(sums[r][v], columns[v], x);
        }
      }
      a += p.pair_stride;
      b += 2 * kPanelColumns;
    }
  }
};

}  // namespace

void multiply_avx512bf16(const PanelProduct& p) { multiply<Avx512Bf16>(p); }

}  // namespace tiercel::cpu
