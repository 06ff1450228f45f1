// Skinny products with AVX2 and FMA: 8 lanes along k. x is widened to fp32 once per range, its even
// elements apart from its odd ones, because that is how weights come out of their registers: the
// lower halves by a shift, the upper ones by a mask.
#include "cpu/gemm.h"
#include "cpu/intrinsics.h"

namespace tiercel::cpu {
namespace {

constexpr int kMaxGroup = 3;

__m256 low_of(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
__m256 high_of(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
}
__m256i load_pairs(const uint16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
// The last left < 16 elements of a row, then zeros.
__m256i load_tail(const uint16_t* p, int64_t left) {
  alignas(32) uint16_t values[16] = {};
  for (int64_t i = 0; i < left; ++i) values[i] = p[i];
  return load_pairs(values);
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

constexpr int64_t padded(int64_t k) { return (k + 15) / 16 * 16; }

// x [n_rows][k] bf16 -> [n_rows][padded(k)]: per 16 elements the 8 even, then the 8 odd.
void widen_rows(const uint16_t* x, int64_t n_rows, int64_t k, float* out) {
  for (int64_t row = 0; row < n_rows; ++row, x += k) {
    for (int64_t i = 0; i < k; i += 16, out += 16) {
      const __m256i pairs = i + 16 <= k ? load_pairs(x + i) : load_tail(x + i, k - i);
      _mm256_store_ps(out, low_of(pairs));
      _mm256_store_ps(out + 8, high_of(pairs));
    }
  }
}

// Sums of four vectors, in order.
__m128 reduce4(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 lanes = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
}

// sums[r][0 .. kColumns) = x[r] . w[0 .. kColumns) for kRows rows; sums is kSkinnyRange wide.
template <int kRows, int kColumns>
void block(const float* x, const uint16_t* w, int64_t k, int64_t ahead, float* sums) {
  // One or two products per line run at the speed of the hardware prefetcher; with more, loads
  // stall behind arithmetic without software prefetch.
  constexpr bool kPrefetch = kRows > 2;
  __m256 acc[kRows][kColumns];
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) acc[r][c] = _mm256_setzero_ps();
  }
  const int64_t whole = k / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16) {
    // Beyond the end of a row comes the same row of the next block, not the next row of this one.
    const int64_t jump = i + ahead < k ? ahead : ahead + (kColumns - 1) * k;
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      const __m256i pairs = load_pairs(w + c * k + i);
      // Two loads share a line: one of them asks for the line ahead.
      if (kPrefetch && (i & 16) == 0) {
        _mm_prefetch(reinterpret_cast<const char*>(w + c * k + i + jump), _MM_HINT_T0);
      }
      const __m256 low = low_of(pairs), high = high_of(pairs);
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) {
        const float* values = x + r * padded(k) + i;
        acc[r][c] = _mm256_fmadd_ps(low, _mm256_load_ps(values), acc[r][c]);
        acc[r][c] = _mm256_fmadd_ps(high, _mm256_load_ps(values + 8), acc[r][c]);
      }
    }
  }
  if (whole < k) {
    for (int c = 0; c < kColumns; ++c) {
      const __m256i pairs = load_tail(w + c * k + whole, k - whole);
      for (int r = 0; r < kRows; ++r) {
        const float* values = x + r * padded(k) + whole;
        acc[r][c] = _mm256_fmadd_ps(low_of(pairs), _mm256_load_ps(values), acc[r][c]);
        acc[r][c] = _mm256_fmadd_ps(high_of(pairs), _mm256_load_ps(values + 8), acc[r][c]);
      }
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r) {
    float* target = sums + r * kSkinnyRange;
    if constexpr (kColumns == 1) {
      const __m256 zero = _mm256_setzero_ps();
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
  for (int64_t row = 0; row < n_rows; row += kMaxGroup) {
    const float* rows = x + row * padded(k);
    float* target = sums + row * kSkinnyRange;
    switch (n_rows - row) {
      case 1: block<1, kColumns>(rows, w, k, ahead, target); break;
      case 2: block<2, kColumns>(rows, w, k, ahead, target); break;
      default: block<3, kColumns>(rows, w, k, ahead, target); break;
    }
  }
}

// Bias, accumulation, rounding: sums[0 .. end-first) of one row into out[first ..).
void finish(const SkinnyProduct& p, int64_t row, const float* sums) {
  for (int64_t n = p.first; n < p.end; ++n) {
    float value = sums[n - p.first];
    if (p.bias != nullptr) value += widen(p.bias[n]);
    if (p.out_f32) {
      float& out = static_cast<float*>(p.out)[row * p.n + n];
      out = p.accumulate ? value + out : value;
    } else {
      uint16_t& out = static_cast<uint16_t*>(p.out)[row * p.n + n];
      out = narrow(p.accumulate ? value + widen(out) : value);
    }
  }
}

}  // namespace

void multiply_skinny_avx2(const SkinnyProduct& p) {
  // Short rows: fetch the next block; long ones: 2 KiB further along the same row.
  const int64_t ahead = p.k < 1024 ? p.k : 1024;
  float* sums = p.scratch;
  float* x = sums + p.n_rows * kSkinnyRange;
  widen_rows(p.x, p.n_rows, p.k, x);
  int64_t n = p.first;
  if (p.n_rows == 1) {
    for (; n + 8 <= p.end; n += 8) {
      block<1, 8>(x, p.weight + n * p.k, p.k, ahead, sums + (n - p.first));
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
