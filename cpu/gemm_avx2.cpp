// Panel products with AVX2 and FMA: 6 rows x 16 columns in 12 accumulators, four such strips per
// panel. bf16 is widened in registers by a shift (even elements) or a mask (odd ones).
#include "cpu/gemm.h"
#include "cpu/intrinsics.h"

namespace tiercel::cpu {
namespace {

constexpr int kMaxRows = 6;
constexpr int kVectors = 2;

__m256 low_of(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
__m256 high_of(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
}
__m256i load_pairs(const uint16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
__m256i broadcast_pair(const uint16_t* p) {
  int pair;
  __builtin_memcpy(&pair, p, 4);
  return _mm256_set1_epi32(pair);
}

float widen(uint16_t bits) {
  const uint32_t u = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &u, 4);
  return value;
}
// Rounds to nearest even; NaN stays NaN.
uint16_t narrow(float value) {
  uint32_t u;
  __builtin_memcpy(&u, &value, 4);
  if (value != value) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
__m128i narrow(__m256 value) {
  const __m256i u = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

// Adds what is to be added to eight sums, and writes them. The last columns go one by one.
void finish(const PanelProduct& p, int64_t row, int64_t column, __m256 value) {
  const int64_t left = p.n_columns - column;
  const int64_t place = row * p.out_stride + column;
  float* out_f32 = static_cast<float*>(p.out) + place;
  uint16_t* out = static_cast<uint16_t*>(p.out) + place;
  if (left >= 8) {
    if (p.bias != nullptr) value = _mm256_add_ps(value, _mm256_loadu_ps(p.bias + column));
    if (p.out_f32) {
      if (p.accumulate) value = _mm256_add_ps(value, _mm256_loadu_ps(out_f32));
      _mm256_storeu_ps(out_f32, value);
      return;
    }
    __m128i* target = reinterpret_cast<__m128i*>(out);
    if (p.accumulate) {
      const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(target));
      value = _mm256_add_ps(value, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
    }
    _mm_storeu_si128(target, narrow(value));
    return;
  }
  alignas(32) float sums[8];
  _mm256_store_ps(sums, value);
  for (int64_t c = 0; c < left; ++c) {
    float sum = sums[c];
    if (p.bias != nullptr) sum += p.bias[column + c];
    if (p.out_f32) {
      out_f32[c] = p.accumulate ? sum + out_f32[c] : sum;
    } else {
      out[c] = narrow(p.accumulate ? sum + widen(out[c]) : sum);
    }
  }
}

__m256 load_start(const PanelProduct& p, int64_t row, int64_t column) {
  const float* start = p.start + row * p.start_stride + column;
  const int64_t left = p.n_columns - column;
  if (left >= 8) return _mm256_loadu_ps(start);
  alignas(32) float values[8] = {};
  for (int64_t c = 0; c < left; ++c) values[c] = start[c];
  return _mm256_load_ps(values);
}

// kRows x 16 columns from first_column on.
template <int kRows>
void tile(const PanelProduct& p, int64_t row, int64_t first_column) {
  __m256 sums[kRows][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] =
          p.start != nullptr ? load_start(p, row + r, first_column + v * 8) : _mm256_setzero_ps();
    }
  }

  // sums[r][v] += a[r][pair] * panel[pair][v]
  const uint16_t* a = p.a + row * p.row_stride;
  const uint16_t* b = p.panel + 2 * first_column;
  for (int64_t pair = 0; pair < p.n_pairs; ++pair) {
    const __m256i pairs0 = load_pairs(b), pairs1 = load_pairs(b + 16);
    const __m256 low0 = low_of(pairs0), low1 = low_of(pairs1);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 x = low_of(broadcast_pair(a + r * p.row_stride));
      sums[r][0] = _mm256_fmadd_ps(low0, x, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(low1, x, sums[r][1]);
    }
    const __m256 high0 = high_of(pairs0), high1 = high_of(pairs1);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 x = high_of(broadcast_pair(a + r * p.row_stride));
      sums[r][0] = _mm256_fmadd_ps(high0, x, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(high1, x, sums[r][1]);
    }
    a += p.pair_stride;
    b += 2 * kPanelColumns;
  }

#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) finish(p, row + r, first_column + v * 8, sums[r][v]);
  }
}

// Transposes 8 x 8 dwords.
void transpose(__m256i rows[8]) {
  __m256i t[8];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m256i a = _mm256_unpacklo_epi32(rows[4 * i], rows[4 * i + 1]);
    const __m256i b = _mm256_unpackhi_epi32(rows[4 * i], rows[4 * i + 1]);
    const __m256i c = _mm256_unpacklo_epi32(rows[4 * i + 2], rows[4 * i + 3]);
    const __m256i d = _mm256_unpackhi_epi32(rows[4 * i + 2], rows[4 * i + 3]);
    t[4 * i] = _mm256_unpacklo_epi64(a, c);
    t[4 * i + 1] = _mm256_unpackhi_epi64(a, c);
    t[4 * i + 2] = _mm256_unpacklo_epi64(b, d);
    t[4 * i + 3] = _mm256_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    rows[j] = _mm256_permute2x128_si256(t[j], t[4 + j], 0x20);
    rows[4 + j] = _mm256_permute2x128_si256(t[j], t[4 + j], 0x31);
  }
}

}  // namespace

void multiply_avx2(const PanelProduct& p) {
  for (int64_t row = 0; row < p.n_rows;) {
    const int64_t left = p.n_rows - row;
    const int64_t n = left < kMaxRows ? left : kMaxRows;
    for (int64_t column = 0; column < p.n_columns; column += 8 * kVectors) {
      switch (n) {
        case 1: tile<1>(p, row, column); break;
        case 2: tile<2>(p, row, column); break;
        case 3: tile<3>(p, row, column); break;
        case 4: tile<4>(p, row, column); break;
        case 5: tile<5>(p, row, column); break;
        default: tile<6>(p, row, column); break;
      }
    }
    row += n;
  }
}

void pack_rows_avx2(const uint16_t* source, int64_t row_stride, int64_t n_columns, int64_t k,
                    uint16_t* panel) {
  const int64_t whole = k / 16 * 16;
  for (int64_t group = 0; group < kPanelColumns; group += 8) {
    for (int64_t i = 0; i < whole; i += 16) {
      __m256i block[8];
#pragma GCC unroll 8
      for (int64_t r = 0; r < 8; ++r) {
        block[r] = group + r < n_columns ? load_pairs(source + (group + r) * row_stride + i)
                                         : _mm256_setzero_si256();
      }
      transpose(block);
      uint16_t* target = panel + i * kPanelColumns + 2 * group;
#pragma GCC unroll 8
      for (int64_t r = 0; r < 8; ++r) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + r * 2 * kPanelColumns), block[r]);
      }
    }
  }
  if (whole < k) {
    pack_rows_portable(source + whole, row_stride, n_columns, k - whole,
                       panel + whole * kPanelColumns);
  }
}

}  // namespace tiercel::cpu
