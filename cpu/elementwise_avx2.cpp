// The row kernels with AVX2 and FMA: 8 channels at a time. The last channels of a row whose width
// is not a multiple of 8 go through a small buffer.
#include "cpu/elementwise_levels.h"
#include "cpu/intrinsics.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kLanes = 8;

// left: elements from p to the end of the row; the missing ones read as zero.
__m256 load(const uint16_t* p, int64_t left) {
  alignas(16) uint16_t tail[kLanes] = {};
  if (left < kLanes) {
    for (int64_t i = 0; i < left; ++i) tail[i] = p[i];
    p = tail;
  }
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

__m256i mask_of(int64_t left) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int limit = left < kLanes ? static_cast<int>(left) : static_cast<int>(kLanes);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), lane);
}
__m256 load(const float* p, int64_t left) {
  return left >= kLanes ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, mask_of(left));
}
void store(float* p, int64_t left, __m256 value) {
  if (left >= kLanes) {
    _mm256_storeu_ps(p, value);
  } else {
    _mm256_maskstore_ps(p, mask_of(left), value);
  }
}

// Rounds to nearest even in the upper half of each dword; NaN stays NaN.
__m256i round_high(__m256 value) {
  const __m256i u = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  return _mm256_blendv_epi8(rounded, quiet, nan);
}

void store(uint16_t* p, int64_t left, __m256 value) {
  const __m256i high = _mm256_srli_epi32(round_high(value), 16);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  if (left >= kLanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
    return;
  }
  alignas(16) uint16_t tail[kLanes];
  _mm_store_si128(reinterpret_cast<__m128i*>(tail), packed);
  for (int64_t i = 0; i < left; ++i) p[i] = tail[i];
}

float reduce_add(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

// exp by Cody-Waite reduction and a degree-6 polynomial: 1 ulp between the clamps, which stand
// where the result would leave the normal numbers. The argument order of min and max keeps NaN.
__m256 exp(__m256 x) {
  x = _mm256_min_ps(_mm256_set1_ps(88.3f), _mm256_max_ps(_mm256_set1_ps(-87.3f), x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 y = _mm256_set1_ps(1.9875691500e-4f);
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.3981999507e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(8.3334519073e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(4.1665795894e-2f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.6666665459e-1f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(5.0000001201e-1f));
  y = _mm256_add_ps(_mm256_fmadd_ps(y, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), exponent));
}

float norm_scale(const uint16_t* x, int64_t width, float eps) {
  __m256 sum0 = _mm256_setzero_ps(), sum1 = sum0;
  for (int64_t i = 0; i < width; i += 2 * kLanes) {
    const __m256 a = load(x + i, width - i);
    sum0 = _mm256_fmadd_ps(a, a, sum0);
    if (i + kLanes >= width) break;
    const __m256 b = load(x + i + kLanes, width - i - kLanes);
    sum1 = _mm256_fmadd_ps(b, b, sum1);
  }
  const float mean = reduce_add(_mm256_add_ps(sum0, sum1)) / static_cast<float>(width);
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + eps)));
}

void norm(const uint16_t* x, const uint16_t* weight, const uint16_t* added, uint16_t* out,
          int64_t width, float eps) {
  const __m256 scale = _mm256_set1_ps(norm_scale(x, width, eps));
  for (int64_t i = 0; i < width; i += kLanes) {
    const __m256 scaled = _mm256_mul_ps(load(x + i, width - i), scale);
    __m256 normed = _mm256_mul_ps(scaled, load(weight + i, width - i));
    if (added != nullptr) normed = _mm256_add_ps(load(added + i, width - i), normed);
    store(out + i, width - i, normed);
  }
}

void swiglu(const uint16_t* gate, const uint16_t* up, uint16_t* out, int64_t n) {
  const __m256 one = _mm256_set1_ps(1.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const __m256 g = load(gate + i, n - i);
    const __m256 denominator = _mm256_add_ps(one, exp(_mm256_sub_ps(_mm256_setzero_ps(), g)));
    store(out + i, n - i, _mm256_mul_ps(_mm256_div_ps(g, denominator), load(up + i, n - i)));
  }
}

void add_angles(const float* ac, const float* as, const float* bc, const float* bs, int64_t half,
                float* out_cos, float* out_sin) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t left = half - i;
    const __m256 vac = load(ac + i, left), vas = load(as + i, left);
    const __m256 vbc = load(bc + i, left), vbs = load(bs + i, left);
    store(out_cos + i, left, _mm256_fnmadd_ps(vas, vbs, _mm256_mul_ps(vac, vbc)));
    store(out_sin + i, left, _mm256_fmadd_ps(vas, vbc, _mm256_mul_ps(vac, vbs)));
  }
}

struct Turned {
  __m256 low, high;
};
Turned turn(__m256 low, __m256 high, __m256 c, __m256 s) {
  return {_mm256_fnmadd_ps(high, s, _mm256_mul_ps(low, c)),
          _mm256_fmadd_ps(low, s, _mm256_mul_ps(high, c))};
}

void rotate(const uint16_t* in, const uint16_t* weight, float eps, const float* cosines,
            const float* sines, int64_t half, uint16_t* out) {
  const __m256 scale = _mm256_set1_ps(weight != nullptr ? norm_scale(in, 2 * half, eps) : 1.0f);
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t left = half - i;
    __m256 low = load(in + i, left), high = load(in + half + i, left);
    if (weight != nullptr) {
      low = _mm256_mul_ps(_mm256_mul_ps(low, scale), load(weight + i, left));
      high = _mm256_mul_ps(_mm256_mul_ps(high, scale), load(weight + half + i, left));
    }
    const Turned t = turn(low, high, load(cosines + i, left), load(sines + i, left));
    store(out + i, left, t.low);
    store(out + half + i, left, t.high);
  }
}

void rotate_f32(const float* in, const float* cosines, const float* sines, int64_t half,
                uint16_t* out) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t left = half - i;
    const Turned t = turn(load(in + i, left), load(in + half + i, left), load(cosines + i, left),
                          load(sines + i, left));
    store(out + i, left, t.low);
    store(out + half + i, left, t.high);
  }
}

void unrotate(const uint16_t* in, const float* cosines, const float* sines, const float* shift,
              int64_t half, float* out) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t left = half - i;
    const __m256 minus_s = _mm256_sub_ps(_mm256_setzero_ps(), load(sines + i, left));
    const Turned t =
        turn(load(in + i, left), load(in + half + i, left), load(cosines + i, left), minus_s);
    store(out + i, left, _mm256_sub_ps(t.low, load(shift + i, left)));
    store(out + half + i, left, _mm256_sub_ps(t.high, load(shift + half + i, left)));
  }
}

void pair_rows(const float* even, const float* odd, int64_t n, uint16_t* pairs, float* sums) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t left = n - i;
    const __m256 a = load(even + i, left), b = load(odd + i, left);
    const __m256i low = _mm256_srli_epi32(round_high(a), 16);
    const __m256i high = _mm256_and_si256(round_high(b), _mm256_set1_epi32(-65536));
    const __m256 both = _mm256_castsi256_ps(_mm256_or_si256(low, high));
    store(reinterpret_cast<float*>(pairs + 2 * i), left, both);
    store(sums + i, left, _mm256_add_ps(load(sums + i, left), _mm256_add_ps(a, b)));
  }
}

void round_row(const float* in, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, n - i, load(in + i, n - i));
}

float maximum(const float* x, int64_t n) {
  float best = -__builtin_inff();
  __m256 max = _mm256_set1_ps(best), nan = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const __m256 v = _mm256_loadu_ps(x + i);
    max = _mm256_max_ps(v, max);
    nan = _mm256_or_ps(nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }
  if (_mm256_movemask_ps(nan) != 0) return __builtin_nanf("");
  alignas(32) float lanes[kLanes];
  _mm256_store_ps(lanes, max);
  for (float lane : lanes) best = lane > best ? lane : best;
  for (; i < n; ++i) {
    if (x[i] != x[i]) return x[i];
    best = x[i] > best ? x[i] : best;
  }
  return best;
}

double sum_exp(const float* x, int64_t n, float max) {
  const __m256 shift = _mm256_set1_ps(max);
  __m256d sum0 = _mm256_setzero_pd(), sum1 = sum0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t left = n - i;
    __m256 e = exp(_mm256_sub_ps(load(x + i, left), shift));
    if (left < kLanes) e = _mm256_and_ps(e, _mm256_castsi256_ps(mask_of(left)));
    sum0 = _mm256_add_pd(sum0, _mm256_cvtps_pd(_mm256_castps256_ps128(e)));
    sum1 = _mm256_add_pd(sum1, _mm256_cvtps_pd(_mm256_extractf128_ps(e, 1)));
  }
  alignas(32) double lanes[4];
  _mm256_store_pd(lanes, _mm256_add_pd(sum0, sum1));
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

}  // namespace

const ElementwiseLevel kElementwiseAvx2 = {norm,     swiglu,    add_angles, rotate,  rotate_f32,
                                           unrotate, pair_rows, round_row,  maximum, sum_exp};

}  // namespace tiercel::cpu
