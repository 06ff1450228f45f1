// Panel products on the AVX-512 levels: tiles of up to 6 rows x 64 columns in 24 accumulators,
// their beginning and their end. What multiplies is the level's. Internal linkage, because files
// with different compiler flags include it (cpu/isa.h).
#pragma once

#include "cpu/bf16_avx512.h"
#include "cpu/gemm.h"

namespace tiercel::cpu {
namespace {

constexpr int kMaxRows = 6;

__mmask16 columns_from(const PanelProduct& p, int64_t column) {
  return mask_of(p.n_columns - column);
}

// Adds what is to be added to the sums of a tile, and writes them. The common case, whole vectors
// of bf16, goes without masks: 24 masked stores take as long as a sixth of a tile of 256 channels.
template <class Level, int kRows, int kVectors>
inline void finish(const PanelProduct& p, int64_t row, __m512 (&sums)[kRows][kVectors]) {
  __mmask16 mask[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) mask[v] = columns_from(p, v * 16);
  if (p.bias != nullptr) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512 bias = _mm512_maskz_loadu_ps(mask[v], p.bias + v * 16);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) sums[r][v] = _mm512_add_ps(sums[r][v], bias);
    }
  }
  if (p.out_f32) {
    float* out = static_cast<float*>(p.out) + row * p.out_stride;
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r, out += p.out_stride) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        __m512 value = sums[r][v];
        if (p.accumulate) {
          value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask[v], out + v * 16));
        }
        _mm512_mask_storeu_ps(out + v * 16, mask[v], value);
      }
    }
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(p.out) + row * p.out_stride;
  const bool whole = p.n_columns == kVectors * 16;
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r, out += p.out_stride) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      __m512 value = sums[r][v];
      uint16_t* place = out + v * 16;
      if (whole) {
        __m256i* target = reinterpret_cast<__m256i*>(place);
        if (p.accumulate) value = _mm512_add_ps(value, widen(_mm256_loadu_si256(target)));
        _mm256_storeu_si256(target, Level::narrow(value));
      } else {
        if (p.accumulate) {
          value = _mm512_add_ps(value, widen(_mm256_maskz_loadu_epi16(mask[v], place)));
        }
        _mm256_mask_storeu_epi16(place, mask[v], Level::narrow(value));
      }
    }
  }
}

// Level::add_products(p, row, sums): sums[r][v] += a[row + r][pair] * panel[pair][v] over all
// pairs.
template <class Level, int kRows, int kVectors>
void tile(const PanelProduct& p, int64_t row) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  if (p.start != nullptr) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const float* start = p.start + (row + r) * p.start_stride + v * 16;
        sums[r][v] = _mm512_maskz_loadu_ps(columns_from(p, v * 16), start);
      }
    }
  }
  Level::add_products(p, row, sums);
  finish<Level>(p, row, sums);
}

template <class Level, int kVectors>
void rows(const PanelProduct& p) {
  for (int64_t row = 0; row < p.n_rows;) {
    // 7..11 rows are halved: two even tiles beat a full one and a thin one that waits for itself.
    const int64_t left = p.n_rows - row;
    const int64_t n = left >= 2 * kMaxRows || left <= kMaxRows ? (left < kMaxRows ? left : kMaxRows)
                                                               : (left + 1) / 2;
    switch (n) {
      case 1: tile<Level, 1, kVectors>(p, row); break;
      case 2: tile<Level, 2, kVectors>(p, row); break;
      case 3: tile<Level, 3, kVectors>(p, row); break;
      case 4: tile<Level, 4, kVectors>(p, row); break;
      case 5: tile<Level, 5, kVectors>(p, row); break;
      default: tile<Level, 6, kVectors>(p, row); break;
    }
    row += n;
  }
}

template <class Level>
void multiply(const PanelProduct& p) {
  switch ((p.n_columns + 15) / 16) {
    case 1: rows<Level, 1>(p); break;
    case 2: rows<Level, 2>(p); break;
    case 3: rows<Level, 3>(p); break;
    default: rows<Level, 4>(p); break;
  }
}

}  // namespace
}  // namespace tiercel::cpu
