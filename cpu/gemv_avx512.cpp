// Skinny products with AVX-512 without BF16. As with vdpbf16ps, lanes run along k; x is widened to
// fp32 once per range, its even elements apart from its odd ones, because that is how weights come
// out of their registers: the lower halves by a shift, the upper ones by a mask.
#include "cpu/skinny_finish.h"

namespace tiercel::cpu {
namespace {

constexpr int kMaxGroup = 6;

__m512 low_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
__m512 high_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
}
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
void block(const float* x, const uint16_t* w, int64_t k, int64_t ahead, float* sums) {
  const int64_t x_stride = (k + 31) / 32 * 32;
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
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      const __m512i pairs = _mm512_loadu_si512(w + c * k + i);
      if constexpr (kPrefetch) {
        _mm_prefetch(reinterpret_cast<const char*>(w + c * k + i + jump), _MM_HINT_T0);
      }
      const __m512 low = low_of(pairs), high = high_of(pairs);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const float* values = x + r * x_stride + i;
        acc[r][c] = _mm512_fmadd_ps(low, _mm512_load_ps(values), acc[r][c]);
        acc[r][c] = _mm512_fmadd_ps(high, _mm512_load_ps(values + 16), acc[r][c]);
      }
    }
  }
  if (whole < k) {
    for (int c = 0; c < kColumns; ++c) {
      const __m512i pairs = _mm512_maskz_loadu_epi16(tail_mask(k), w + c * k + whole);
      for (int r = 0; r < kRows; ++r) {
        const float* values = x + r * x_stride + whole;
        acc[r][c] = _mm512_fmadd_ps(low_of(pairs), _mm512_load_ps(values), acc[r][c]);
        acc[r][c] = _mm512_fmadd_ps(high_of(pairs), _mm512_load_ps(values + 16), acc[r][c]);
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

template <int kColumns>
void columns(int64_t n_rows, const float* x, const uint16_t* w, int64_t k, int64_t ahead,
             float* sums) {
  // Row groups of about equal size, so that none is thin.
  const int64_t n_groups = (n_rows + kMaxGroup - 1) / kMaxGroup;
  for (int64_t group = 0, row = 0; group < n_groups; ++group) {
    const int64_t n = (n_rows - row) / (n_groups - group);
    const float* rows = x + row * ((k + 31) / 32 * 32);
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

void multiply_skinny_avx512(const SkinnyProduct& p) {
  // Short rows: fetch the next block; long ones: 2 KiB further along the same row.
  const int64_t ahead = p.k < 1024 ? p.k : 1024;
  float* sums = p.scratch;
  float* x = sums + p.n_rows * kSkinnyRange;
  widen_rows(p.x, p.n_rows, p.k, x);
  int64_t n = p.first;
  if (p.n_rows <= 2) {
    for (; n + 8 <= p.end; n += 8) {
      float* target = sums + (n - p.first);
      if (p.n_rows == 1) {
        block<1, 8>(x, p.weight + n * p.k, p.k, ahead, target);
      } else {
        block<2, 8>(x, p.weight + n * p.k, p.k, ahead, target);
      }
    }
  }
  for (; n + 4 <= p.end; n += 4) {
    columns<4>(p.n_rows, x, p.weight + n * p.k, p.k, ahead, sums + (n - p.first));
  }
  for (; n < p.end; ++n) {
    columns<1>(p.n_rows, x, p.weight + n * p.k, p.k, ahead, sums + (n - p.first));
  }
  for (int64_t row = 0; row < p.n_rows; ++row) finish(p, row, sums + row * kSkinnyRange);
}

}  // namespace tiercel::cpu
