// Skinny products with AVX-512 without BF16. As with vdpbf16ps, lanes run along k; x is widened to
// fp32 once per range, its even elements apart from its odd ones, because that is how weights come
// out of their registers: the lower halves by a shift, the upper ones by a mask.
#include "cpu/intrinsics.h"

#include "cpu/gemm.h"

namespace tiercel::cpu {
namespace {

constexpr int kMaxGroup = 6;

__m512 low_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
__m512 high_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
}
__m512 widen(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Rounds to nearest even; NaN stays NaN.
__m256i narrow(__m512 value) {
  const __m512i u = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

__mmask32 tail_mask(int64_t k) { return static_cast<__mmask32>((1u << (k % 32)) - 1u); }

// x [n_rows][k] bf16 -> [n_rows][k rounded up to 32]: per 32 elements the 16 even, then the 16 odd.
void widen_rows(const uint16_t* x, int64_t n_rows, int64_t k, float* out) {
  for (int64_t row = 0; row < n_rows; ++row, x += k) {
    for (int64_t i = 0; i < k; i += 32, out += 32) {
      const __m512i pairs = i + 32 <= k ? _mm512_loadu_si512(x + i)
                                        : _mm512_maskz_loadu_epi16(tail_mask(k), x + i);
      _mm512_store_ps(out, low_of(pairs));
      _mm512_store_ps(out + 16, high_of(pairs));
    }
  }
}

// Sums of four vectors, in order.
__m128 reduce4(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 lanes = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 halves =
      _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

// sums[r][0 .. kColumns) = x[r] . w[0 .. kColumns) for kRows rows; sums is kSkinnyRange wide.
template <int kRows, int kColumns>
void block(const float* x, const uint16_t* w, int64_t k, int64_t ahead, float* sums) {
  const int64_t x_stride = (k + 31) / 32 * 32;
  __m512 acc[kRows][kColumns];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) acc[r][c] = _mm512_setzero_ps();
  }
  const int64_t whole = k / 32 * 32;
  for (int64_t i = 0; i < whole; i += 32) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      const __m512i pairs = _mm512_loadu_si512(w + c * k + i);
      _mm_prefetch(reinterpret_cast<const char*>(w + c * k + i + ahead), _MM_HINT_T0);
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
        _mm_storeu_ps(target + c,
                      reduce4(acc[r][c], acc[r][c + 1], acc[r][c + 2], acc[r][c + 3]));
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

// Bias, accumulation, rounding: sums[0 .. n) of one row into out[first ..).
void finish(const SkinnyProduct& p, int64_t row, const float* sums) {
  for (int64_t n = p.first; n < p.end; n += 16) {
    const __mmask16 mask =
        static_cast<__mmask16>(p.end - n >= 16 ? 0xffffu : (1u << (p.end - n)) - 1u);
    __m512 value = _mm512_maskz_loadu_ps(mask, sums + (n - p.first));
    if (p.bias != nullptr) {
      value = _mm512_add_ps(value, widen(_mm256_maskz_loadu_epi16(mask, p.bias + n)));
    }
    if (p.out_f32) {
      float* out = static_cast<float*>(p.out) + row * p.n + n;
      if (p.accumulate) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, out));
      _mm512_mask_storeu_ps(out, mask, value);
    } else {
      uint16_t* out = static_cast<uint16_t*>(p.out) + row * p.n + n;
      if (p.accumulate) value = _mm512_add_ps(value, widen(_mm256_maskz_loadu_epi16(mask, out)));
      _mm256_mask_storeu_epi16(out, mask, narrow(value));
    }
  }
}

}  // namespace

void multiply_skinny_avx512(const SkinnyProduct& p) {
  // Short rows: fetch the block after next; long ones: 2 KiB further along the same row.
  const int64_t ahead = p.k <= 1024 ? 16 * p.k : 1024;
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
