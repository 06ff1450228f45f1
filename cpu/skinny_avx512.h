// Skinny products on the AVX-512 levels: how rows and columns are cut into blocks, and what becomes
// of a block's sums. What multiplies is the level's. Internal linkage, because files with different
// compiler flags include it (cpu/isa.h).
//
// Lanes run along k, so that weight rows are read as they lie in memory and nothing is packed. A
// block is 8 weight rows x 1 or 2 rows of x, or 4 x up to 6: 8 to 24 independent chains. Coded weights are
// decoded in registers, 128 of a row at a time, and multiplied in the same order.
#pragma once

#include "cpu/skinny_finish.h"
#include "cpu/weight_codes_avx512.h"

namespace tiercel::cpu {
namespace {

// Sums of four vectors, in order.
__m128 reduce4(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 lanes =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 halves =
      _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

// x: rows of the level's elements, stride(k) apart. w_stride: elements from a weight row to the next.
// ahead: how far to prefetch, see multiply_skinny.
template <class Level>
struct SkinnyBlock {
  const typename Level::Element* x;
  const uint16_t* w;
  int64_t k, ahead, w_stride;
  int64_t code_bytes = 0;  // of coded rows
  int32_t group = 0;

  // From element i of a row. Beyond its end comes the same row of the next block, not the next row
  // of this one.
  int64_t jump(int64_t i, int n_columns) const {
    return i + ahead < k ? ahead : ahead + (n_columns - 1) * k;
  }
};

// One or two products per line run at the speed of the hardware prefetcher, and software prefetch
// costs a quarter of it (Zen 5); with more, loads stall behind arithmetic without it.
template <int kRows>
inline constexpr bool kPrefetches = kRows > 2;

// Of coded weights; Level::add_run(acc, run, x) adds the products of 32 elements.
template <class Level, WeightCode kCode>
struct CodedLevel {
  static constexpr int kBits = bits_of(kCode);
  using Element = typename Level::Element;
  static int64_t stride(int64_t k) { return Level::stride(k); }

  template <int kRows, int kColumns>
  static void add_products(const SkinnyBlock<CodedLevel>& b, __m512 (&acc)[kRows][kColumns]) {
    const auto* rows = reinterpret_cast<const uint8_t*>(b.w);
    const int64_t row_bytes = 2 * b.w_stride;
    const int shift = __builtin_ctz(static_cast<unsigned>(b.group));
    GroupScales scales[kColumns];
    for (int64_t i = 0; i < b.k; i += 128) {
      const int64_t group = (i >> shift) % kGroupsAtOnce;
      if (group == 0) {
        for (int c = 0; c < kColumns; ++c) {
          const auto* params = reinterpret_cast<const uint32_t*>(rows + c * row_bytes + b.code_bytes) + (i >> shift);
          _mm_prefetch(reinterpret_cast<const char*>(params) + kColumns * row_bytes, _MM_HINT_T1);
          scales[c].template load<kCode>(params);
        }
      }
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) {
        const uint8_t* codes = rows + c * row_bytes;
        // Rows of codes are too short for the hardware's prefetcher: the same place of the next block.
        const auto* next = reinterpret_cast<const char*>(codes + kColumns * row_bytes) + i * kBits / 8;
        _mm_prefetch(next, _MM_HINT_T1);
        if constexpr (kBits == 8) _mm_prefetch(next + 64, _MM_HINT_T1);
        __m512i runs[4];
        decode_128<typename Level::Round, kCode>(codes + i * kBits / 8, scales[c], group, shift, runs);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const Element* x = b.x + r * stride(b.k) + i;
#pragma GCC unroll 4
          for (int run = 0; run < 4; ++run) Level::add_run(acc[r][c], runs[run], x + 32 * run);
        }
      }
    }
  }
};

// sums[r][0 .. kColumns) = x[r] . w[0 .. kColumns) for kRows rows; sums is kSkinnyRange wide.
// Level::add_products(b, acc): acc[r][c] += lanes of x[r] * w[c].
template <class Level, int kRows, int kColumns>
void block(const SkinnyBlock<Level>& b, float* sums) {
  __m512 acc[kRows][kColumns];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) acc[r][c] = _mm512_setzero_ps();
  }
  Level::add_products(b, acc);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    float* target = sums + r * kSkinnyRange;
    if constexpr (kColumns == 1) {
      const __m512 zero = _mm512_setzero_ps();
      target[0] = _mm_cvtss_f32(reduce4(acc[r][0], zero, zero, zero));
    } else {
#pragma GCC unroll 2
      for (int c = 0; c < kColumns; c += 4) {
        _mm_storeu_ps(target + c, reduce4(acc[r][c], acc[r][c + 1], acc[r][c + 2], acc[r][c + 3]));
      }
    }
  }
}

// All rows of x against kColumns weight rows: row groups of about equal size, so that none is thin.
template <class Level, int kColumns>
void columns(int64_t n_rows, const SkinnyBlock<Level>& all, float* sums) {
  constexpr int kMaxGroup = 6;
  const int64_t n_groups = (n_rows + kMaxGroup - 1) / kMaxGroup;
  for (int64_t group = 0, row = 0; group < n_groups; ++group) {
    const int64_t n = (n_rows - row) / (n_groups - group);
    SkinnyBlock<Level> b = all;
    b.x += row * Level::stride(b.k);
    float* target = sums + row * kSkinnyRange;
    switch (n) {
      case 1: block<Level, 1, kColumns>(b, target); break;
      case 2: block<Level, 2, kColumns>(b, target); break;
      case 3: block<Level, 3, kColumns>(b, target); break;
      case 4: block<Level, 4, kColumns>(b, target); break;
      case 5: block<Level, 5, kColumns>(b, target); break;
      default: block<Level, 6, kColumns>(b, target); break;
    }
    row += n;
  }
}

template <class Level>
void multiply_blocks(const SkinnyProduct& p, const typename Level::Element* x) {
  // Short rows: fetch the next block; long ones: 2 KiB further along the same row.
  const int64_t ahead = p.k < 1024 ? p.k : 1024;
  const int64_t w_stride = p.code != WeightCode::kBf16 ? p.row_bytes / 2 : p.k;
  const auto at = [&](int64_t n) {
    return SkinnyBlock<Level>{x, p.weight + n * w_stride, p.k, ahead, w_stride, p.code_bytes, p.group};
  };
  float* sums = p.scratch;
  int64_t n = p.first;
  if (p.n_rows <= 2) {
    for (; n + 8 <= p.end; n += 8) {
      float* target = sums + (n - p.first);
      if (p.n_rows == 1) {
        block<Level, 1, 8>(at(n), target);
      } else {
        block<Level, 2, 8>(at(n), target);
      }
    }
  }
  for (; n + 4 <= p.end; n += 4) columns<Level, 4>(p.n_rows, at(n), sums + (n - p.first));
  for (; n < p.end; ++n) columns<Level, 1>(p.n_rows, at(n), sums + (n - p.first));
  for (int64_t row = 0; row < p.n_rows; ++row) finish(p, row, sums + row * kSkinnyRange);
}

template <class Level>
void multiply_skinny(const SkinnyProduct& p, const typename Level::Element* x) {
  switch (p.code) {
    case WeightCode::kInt4: return multiply_blocks<CodedLevel<Level, WeightCode::kInt4>>(p, x);
    case WeightCode::kInt8: return multiply_blocks<CodedLevel<Level, WeightCode::kInt8>>(p, x);
    case WeightCode::kE4M3: return multiply_blocks<CodedLevel<Level, WeightCode::kE4M3>>(p, x);
    case WeightCode::kInt4Min: return multiply_blocks<CodedLevel<Level, WeightCode::kInt4Min>>(p, x);
    case WeightCode::kInt8Min: return multiply_blocks<CodedLevel<Level, WeightCode::kInt8Min>>(p, x);
    case WeightCode::kInt8x16: return multiply_blocks<CodedLevel<Level, WeightCode::kInt8x16>>(p, x);
    case WeightCode::kBf16: break;
  }
  multiply_blocks<Level>(p, x);
}

}  // namespace
}  // namespace tiercel::cpu
