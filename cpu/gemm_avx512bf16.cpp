// Panel products with vdpbf16ps: 6 rows x 64 columns in 24 accumulators. Two multiply-adds of
// 512 bits start per cycle and each takes 6, so 12 chains are the least that keeps them busy; six
// rows of four vectors need 10 loads per 24 products.
#include "cpu/intrinsics.h"

#include "cpu/gemm.h"

namespace tiercel::cpu {
namespace {

constexpr int kMaxRows = 6;

__m512bh load_pairs(const uint16_t* p) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
}
__m512bh broadcast_pair(const uint16_t* p) {
  int pair;
  __builtin_memcpy(&pair, p, 4);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
}

__m512 widen(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Adds what is to be added to one vector of sums, and writes it.
void finish(const PanelProduct& p, int64_t row, int64_t column, __m512 value) {
  const int64_t left = p.n_columns - column;
  if (left <= 0) return;
  const __mmask16 mask = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1u);
  if (p.bias != nullptr) {
    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, p.bias + column));
  }
  const int64_t place = row * p.out_stride + column;
  if (p.out_f32) {
    float* out = static_cast<float*>(p.out) + place;
    if (p.accumulate) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, out));
    _mm512_mask_storeu_ps(out, mask, value);
  } else {
    uint16_t* out = static_cast<uint16_t*>(p.out) + place;
    if (p.accumulate) value = _mm512_add_ps(value, widen(_mm256_maskz_loadu_epi16(mask, out)));
    const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
    _mm256_mask_storeu_epi16(out, mask, rounded);
  }
}

template <int kRows, int kVectors>
void tile(const PanelProduct& p, int64_t row) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  if (p.start != nullptr) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        const int64_t left = p.n_columns - v * 16;
        const __mmask16 mask = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1u);
        sums[r][v] =
            _mm512_maskz_loadu_ps(mask, p.start + (row + r) * p.start_stride + v * 16);
      }
    }
  }

  // sums[r][v] += a[r][pair] * panel[pair][v]
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

#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) finish(p, row + r, v * 16, sums[r][v]);
  }
}

template <int kVectors>
void rows(const PanelProduct& p) {
  for (int64_t row = 0; row < p.n_rows;) {
    // 7..11 rows are halved: two even tiles beat a full one and a thin one that waits for itself.
    const int64_t left = p.n_rows - row;
    const int64_t n = left >= 2 * kMaxRows || left <= kMaxRows ? (left < kMaxRows ? left : kMaxRows)
                                                               : (left + 1) / 2;
    switch (n) {
      case 1: tile<1, kVectors>(p, row); break;
      case 2: tile<2, kVectors>(p, row); break;
      case 3: tile<3, kVectors>(p, row); break;
      case 4: tile<4, kVectors>(p, row); break;
      case 5: tile<5, kVectors>(p, row); break;
      default: tile<6, kVectors>(p, row); break;
    }
    row += n;
  }
}

}  // namespace

void multiply_avx512bf16(const PanelProduct& p) {
  switch ((p.n_columns + 15) / 16) {
    case 1: rows<1>(p); break;
    case 2: rows<2>(p); break;
    case 3: rows<3>(p); break;
    default: rows<4>(p); break;
  }
}

}  // namespace tiercel::cpu
