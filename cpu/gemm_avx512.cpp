// Panel products with AVX-512 without BF16, and the packing of panels for all AVX-512 levels.
//
// bf16 is widened to fp32: columns in registers, their upper halves by a mask and the lower ones by
// a shift, which keeps one panel format for every level; rows once per tile, in the first-level
// cache, from where they are broadcast for nothing.
#include "cpu/panel_avx512.h"
#include "cpu/transpose_avx512.h"

namespace tiercel::cpu {
namespace {

struct Avx512 {
  static constexpr int kWidened = 64;  // elements of a row at a time

  static __m256i narrow(__m512 value) { return cpu::narrow(value); }

  static void widen_apart(const uint16_t* pairs, int64_t stride, int64_t n, float* out) {
    for (int64_t i = 0; i < n; i += 2, pairs += stride) {
      uint32_t pair;
      __builtin_memcpy(&pair, pairs, 4);
      const uint32_t bits[2] = {pair << 16, pair & 0xffff0000u};
      __builtin_memcpy(out + i, bits, 8);
    }
  }

  // The n elements of pairs that lie stride apart, as fp32.
  __attribute__((always_inline)) static void widen_pairs(const uint16_t* pairs, int64_t stride,
                                                         int64_t n, float* out) {
    if (stride != 2) return widen_apart(pairs, stride, n, out);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const auto* halves = reinterpret_cast<const __m256i*>(pairs + i);
      _mm512_store_ps(out + i, widen(_mm256_loadu_si256(halves)));
    }
    if (i == n) return;
    const __mmask16 mask = static_cast<__mmask16>((1u << (n - i)) - 1u);
    _mm512_store_ps(out + i, widen(_mm256_maskz_loadu_epi16(mask, pairs + i)));
  }

  template <int kRows, int kVectors>
  static void add_products(const PanelProduct& p, int64_t row, __m512 (&sums)[kRows][kVectors]) {
    alignas(64) float x[kRows][kWidened];
    const uint16_t* a = p.a + row * p.row_stride;
    const uint16_t* b = p.panel;
    for (int64_t first = 0; first < p.n_pairs; first += kWidened / 2) {
      const int64_t left = p.n_pairs - first, n = 2 * (left < kWidened / 2 ? left : kWidened / 2);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        widen_pairs(a + r * p.row_stride + first * p.pair_stride, p.pair_stride, n, x[r]);
      }
      for (int64_t i = 0; i < n; i += 2, b += 2 * kPanelColumns) {
        __m512 columns[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) columns[v] = low_of(_mm512_loadu_si512(b + v * 32));
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const __m512 element = _mm512_set1_ps(x[r][i]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            sums[r][v] = _mm512_fmadd_ps(columns[v], element, sums[r][v]);
          }
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) columns[v] = high_of(_mm512_loadu_si512(b + v * 32));
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const __m512 element = _mm512_set1_ps(x[r][i + 1]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            sums[r][v] = _mm512_fmadd_ps(columns[v], element, sums[r][v]);
          }
        }
      }
    }
  }
};

}  // namespace

void pack_rows_avx512(const uint16_t* source, int64_t row_stride, int64_t n_columns, int64_t k,
                      uint16_t* panel) {
  for (int64_t group = 0; group < kPanelColumns; group += 16) {
    const int64_t n = n_columns - group < 16 ? n_columns - group : 16;
    for (int64_t pair = 0; pair < k / 2; pair += 16) {
      const int64_t n_pairs = k / 2 - pair < 16 ? k / 2 - pair : 16;
      const __mmask16 mask = static_cast<__mmask16>((1u << n_pairs) - 1u);
      __m512i block[16];
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i) {
        block[i] =
            i < n ? _mm512_maskz_loadu_epi32(mask, source + (group + i) * row_stride + 2 * pair)
                  : _mm512_setzero_si512();
      }
      transpose(block);
      uint16_t* target = panel + 2 * (pair * kPanelColumns + group);
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i) {
        if (i < n_pairs) _mm512_storeu_si512(target + i * 2 * kPanelColumns, block[i]);
      }
    }
  }
}

void pack_columns_avx512(const uint16_t* matrix, int64_t row_stride, int64_t n_columns, int64_t k,
                         uint16_t* panel) {
  for (int64_t pair = 0; pair < k / 2; ++pair) {
    const uint16_t* even = matrix + 2 * pair * row_stride;
    for (int64_t c = 0; c < kPanelColumns; c += 16) {
      _mm512_storeu_si512(panel + 2 * (pair * kPanelColumns + c),
                          pairs_of_rows(even + c, row_stride, mask_of(n_columns - c)));
    }
  }
}

void multiply_avx512(const PanelProduct& p) { multiply<Avx512>(p); }

}  // namespace tiercel::cpu
