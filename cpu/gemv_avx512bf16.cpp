// Skinny products with vdpbf16ps: lanes run along k, so that weight rows are read as they lie in
// memory and nothing is packed. A block is 8 weight rows x 1 or 2 rows of x, or 4 x up to 6: 8 to
// 24 independent chains.
#include "cpu/skinny_finish.h"

namespace tiercel::cpu {
namespace {

constexpr int kMaxGroup = 6;

__m512bh load_pairs(const uint16_t* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
__m512bh load_pairs(const uint16_t* p, __mmask32 mask) {
  return reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, p));
}
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

// sums[r][0 .. kColumns) = x[r] . w[0 .. kColumns) for kRows rows; sums is kSkinnyRange wide.
template <int kRows, int kColumns>
void block(const uint16_t* x, const uint16_t* w, int64_t k, int64_t ahead, float* sums) {
  // One or two products per line run at the speed of the hardware prefetcher, and software prefetch
  // costs a quarter of it (Zen 5); with more, loads stall behind arithmetic without it.
  constexpr bool kPrefetch = kRows > 2;
  __m512 acc[kRows][kColumns];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) acc[r][c] = _mm512_setzero_ps();
  }
  const int64_t whole = k / 32 * 32;
  for (int64_t i = 0; i < whole; i += 32) {
    // Beyond the end of a row comes the same row of the next block, not the next row of this one.
    const int64_t jump = i + ahead < k ? ahead : ahead + (kColumns - 1) * k;
    __m512bh weights[kColumns];
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      weights[c] = load_pairs(w + c * k + i);
      if constexpr (kPrefetch) {
        _mm_prefetch(reinterpret_cast<const char*>(w + c * k + i + jump), _MM_HINT_T0);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m512bh values = load_pairs(x + r * k + i);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) {
        acc[r][c] = _mm512_dpbf16_ps(acc[r][c], weights[c], values);
      }
    }
  }
  if (whole < k) {
    const __mmask32 mask = static_cast<__mmask32>((1u << (k - whole)) - 1u);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m512bh values = load_pairs(x + r * k + whole, mask);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) {
        acc[r][c] = _mm512_dpbf16_ps(acc[r][c], load_pairs(w + c * k + whole, mask), values);
      }
    }
  }
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
template <int kColumns>
void columns(int64_t n_rows, const uint16_t* x, const uint16_t* w, int64_t k, int64_t ahead,
             float* sums) {
  const int64_t n_groups = (n_rows + kMaxGroup - 1) / kMaxGroup;
  for (int64_t group = 0, row = 0; group < n_groups; ++group) {
    const int64_t n = (n_rows - row) / (n_groups - group);
    const uint16_t* rows = x + row * k;
    float* target = sums + row * kSkinnyRange;
    switch (n) {
      case 1: block<1, kColumns>(rows, w, k, ahead, target); break;
      case 2: block<2, kColumns>(rows, w, k, ahead, target); break;
      case 3: block<3, kColumns>(rows, w, k, ahead, target); break;
      case 4: block<4, kColumns>(rows, w, k, ahead, target); break;
      case 5: block<5, kColumns>(rows, w, k, ahead, target); break;
      default: block<6, kColumns>(rows, w, k, ahead, target); break;
    }
    row += n;
  }
}

}  // namespace

void multiply_skinny_avx512bf16(const SkinnyProduct& p) {
  // Short rows: fetch the next block; long ones: 2 KiB further along the same row.
  const int64_t ahead = p.k < 1024 ? p.k : 1024;
  float* sums = p.scratch;
  int64_t n = p.first;
  if (p.n_rows <= 2) {
    for (; n + 8 <= p.end; n += 8) {
      float* target = sums + (n - p.first);
      if (p.n_rows == 1) {
        block<1, 8>(p.x, p.weight + n * p.k, p.k, ahead, target);
      } else {
        block<2, 8>(p.x, p.weight + n * p.k, p.k, ahead, target);
      }
    }
  }
  for (; n + 4 <= p.end; n += 4) {
    columns<4>(p.n_rows, p.x, p.weight + n * p.k, p.k, ahead, sums + (n - p.first));
  }
  for (; n < p.end; ++n) {
    columns<1>(p.n_rows, p.x, p.weight + n * p.k, p.k, ahead, sums + (n - p.first));
  }
  for (int64_t row = 0; row < p.n_rows; ++row) finish(p, row, sums + row * kSkinnyRange);
}

}  // namespace tiercel::cpu
