// The row kernels with AVX-512 (F, BW, DQ, VL): 16 channels at a time, tails by mask. Also used on
// the levels above: vcvtneps2bf16 would flush denormals, and these kernels wait for memory anyway.
#include "cpu/elementwise_levels.h"
#include "cpu/intrinsics.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kLanes = 16;

__mmask16 mask_of(int64_t left) {
  return left >= kLanes ? static_cast<__mmask16>(0xffff)
                        : static_cast<__mmask16>((1u << left) - 1u);
}

__m512 load(const uint16_t* p, __mmask16 mask) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// Rounds to nearest even in the upper half of each dword; NaN stays NaN.
__m512i round_high(__m512 value) {
  const __m512i u = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
}

void store(uint16_t* p, __mmask16 mask, __m512 value) {
  const __m512i high = _mm512_srli_epi32(round_high(value), 16);
  _mm256_mask_storeu_epi16(p, mask, _mm512_cvtepi32_epi16(high));
}

// exp by Cody-Waite reduction and a degree-6 polynomial: 1 ulp; scalef saturates to 0 and inf.
__m512 exp(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.9875691500e-4f);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
  y = _mm512_add_ps(_mm512_fmadd_ps(y, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, n);
}

float norm_scale(const uint16_t* x, int64_t width, float eps) {
  __m512 sum0 = _mm512_setzero_ps(), sum1 = sum0;
  for (int64_t i = 0; i < width; i += 2 * kLanes) {
    const __m512 a = load(x + i, mask_of(width - i));
    sum0 = _mm512_fmadd_ps(a, a, sum0);
    if (i + kLanes >= width) break;
    const __m512 b = load(x + i + kLanes, mask_of(width - i - kLanes));
    sum1 = _mm512_fmadd_ps(b, b, sum1);
  }
  const float mean = _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1)) / static_cast<float>(width);
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + eps)));
}

void norm(const uint16_t* x, const uint16_t* weight, const uint16_t* added, uint16_t* out,
          int64_t width, float eps) {
  const __m512 scale = _mm512_set1_ps(norm_scale(x, width, eps));
  for (int64_t i = 0; i < width; i += kLanes) {
    const __mmask16 mask = mask_of(width - i);
    const __m512 scaled = _mm512_mul_ps(load(x + i, mask), scale);
    __m512 normed = _mm512_mul_ps(scaled, load(weight + i, mask));
    if (added != nullptr) normed = _mm512_add_ps(load(added + i, mask), normed);
    store(out + i, mask, normed);
  }
}

void swiglu(const uint16_t* gate, const uint16_t* up, uint16_t* out, int64_t n) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 mask = mask_of(n - i);
    const __m512 g = load(gate + i, mask);
    const __m512 denominator = _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), g)));
    store(out + i, mask, _mm512_mul_ps(_mm512_div_ps(g, denominator), load(up + i, mask)));
  }
}

void add_angles(const float* ac, const float* as, const float* bc, const float* bs, int64_t half,
                float* out_cos, float* out_sin) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const __mmask16 m = mask_of(half - i);
    const __m512 vac = _mm512_maskz_loadu_ps(m, ac + i), vas = _mm512_maskz_loadu_ps(m, as + i);
    const __m512 vbc = _mm512_maskz_loadu_ps(m, bc + i), vbs = _mm512_maskz_loadu_ps(m, bs + i);
    const __m512 c = _mm512_fnmadd_ps(vas, vbs, _mm512_mul_ps(vac, vbc));
    const __m512 s = _mm512_fmadd_ps(vas, vbc, _mm512_mul_ps(vac, vbs));
    _mm512_mask_storeu_ps(out_cos + i, m, c);
    _mm512_mask_storeu_ps(out_sin + i, m, s);
  }
}

struct Turned {
  __m512 low, high;
};
Turned turn(__m512 low, __m512 high, __m512 c, __m512 s) {
  return {_mm512_fnmadd_ps(high, s, _mm512_mul_ps(low, c)),
          _mm512_fmadd_ps(low, s, _mm512_mul_ps(high, c))};
}

void rotate(const uint16_t* in, const uint16_t* weight, float eps, const float* cosines,
            const float* sines, int64_t half, uint16_t* out) {
  const __m512 scale = _mm512_set1_ps(weight != nullptr ? norm_scale(in, 2 * half, eps) : 1.0f);
  for (int64_t i = 0; i < half; i += kLanes) {
    const __mmask16 m = mask_of(half - i);
    __m512 low = load(in + i, m), high = load(in + half + i, m);
    if (weight != nullptr) {
      low = _mm512_mul_ps(_mm512_mul_ps(low, scale), load(weight + i, m));
      high = _mm512_mul_ps(_mm512_mul_ps(high, scale), load(weight + half + i, m));
    }
    const Turned t =
        turn(low, high, _mm512_maskz_loadu_ps(m, cosines + i), _mm512_maskz_loadu_ps(m, sines + i));
    store(out + i, m, t.low);
    store(out + half + i, m, t.high);
  }
}

void rotate_f32(const float* in, const float* cosines, const float* sines, int64_t half,
                uint16_t* out) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const __mmask16 m = mask_of(half - i);
    const Turned t =
        turn(_mm512_maskz_loadu_ps(m, in + i), _mm512_maskz_loadu_ps(m, in + half + i),
             _mm512_maskz_loadu_ps(m, cosines + i), _mm512_maskz_loadu_ps(m, sines + i));
    store(out + i, m, t.low);
    store(out + half + i, m, t.high);
  }
}

void unrotate(const uint16_t* in, const float* cosines, const float* sines, const float* shift,
              int64_t half, float* out) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const __mmask16 m = mask_of(half - i);
    const __m512 minus_s = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_maskz_loadu_ps(m, sines + i));
    const Turned t = turn(load(in + i, m), load(in + half + i, m),
                          _mm512_maskz_loadu_ps(m, cosines + i), minus_s);
    const __m512 low_shift = _mm512_maskz_loadu_ps(m, shift + i);
    const __m512 high_shift = _mm512_maskz_loadu_ps(m, shift + half + i);
    _mm512_mask_storeu_ps(out + i, m, _mm512_sub_ps(t.low, low_shift));
    _mm512_mask_storeu_ps(out + half + i, m, _mm512_sub_ps(t.high, high_shift));
  }
}

void pair_rows(const float* even, const float* odd, int64_t n, uint16_t* pairs, float* sums) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 m = mask_of(n - i);
    const __m512 a = _mm512_maskz_loadu_ps(m, even + i), b = _mm512_maskz_loadu_ps(m, odd + i);
    const __m512i low = _mm512_srli_epi32(round_high(a), 16);
    const __m512i high = _mm512_and_si512(round_high(b), _mm512_set1_epi32(-65536));
    _mm512_mask_storeu_epi32(pairs + 2 * i, m, _mm512_or_si512(low, high));
    const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(m, sums + i), _mm512_add_ps(a, b));
    _mm512_mask_storeu_ps(sums + i, m, sum);
  }
}

void round_row(const float* in, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 m = mask_of(n - i);
    store(out + i, m, _mm512_maskz_loadu_ps(m, in + i));
  }
}

float maximum(const float* x, int64_t n) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 max = lowest, nan = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += kLanes) {
    const __m512 v = _mm512_mask_loadu_ps(lowest, mask_of(n - i), x + i);
    max = _mm512_max_ps(v, max);
    nan = _mm512_mask_mov_ps(nan, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
  }
  if (_mm512_cmp_ps_mask(nan, nan, _CMP_UNORD_Q) != 0) return __builtin_nanf("");
  return _mm512_reduce_max_ps(max);
}

double sum_exp(const float* x, int64_t n, float max) {
  const __m512 shift = _mm512_set1_ps(max);
  __m512d sum0 = _mm512_setzero_pd(), sum1 = sum0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 m = mask_of(n - i);
    const __m512 e = exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), shift));
    const __m512 kept = _mm512_maskz_mov_ps(m, e);
    sum0 = _mm512_add_pd(sum0, _mm512_cvtps_pd(_mm512_castps512_ps256(kept)));
    sum1 = _mm512_add_pd(sum1, _mm512_cvtps_pd(_mm512_extractf32x8_ps(kept, 1)));
  }
  return _mm512_reduce_add_pd(_mm512_add_pd(sum0, sum1));
}

}  // namespace

const ElementwiseLevel kElementwiseAvx512 = {norm,     swiglu,    add_angles, rotate,  rotate_f32,
                                             unrotate, pair_rows, round_row,  maximum, sum_exp};

}  // namespace tiercel::cpu
