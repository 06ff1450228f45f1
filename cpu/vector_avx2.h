// Eight fp32 lanes with AVX2 and FMA: the Vector of the avx2 level (see vector_portable.h).
#pragma once

#include <cstdint>

#include "cpu/exp2_poly.h"
#include "cpu/intrinsics.h"
#include "cpu/vector_pairs.h"

namespace tiercel::cpu {
namespace {

struct Avx2Lanes {
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  static constexpr bool kBf16Query = false;
  using F = __m256;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static uint32_t greater(F a, F b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
  }
  static F where_greater(F a, F b, F x, F y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
  }
  static F keep_below(F v, int32_t row, const int32_t* limit) {
    const __m256i l = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(limit));
    const __m256i below = _mm256_cmpgt_epi32(l, _mm256_set1_epi32(row));
    return _mm256_blendv_ps(set1(-__builtin_inff()), v, _mm256_castsi256_ps(below));
  }

  static F exp2(F x) {
    const F magic = set1(12582912.0f);
    const F y = max(set1(-126.0f), x);
    const F shifted = add(y, magic);
    const F f = sub(y, sub(shifted, magic));
    F p = set1(TIERCEL_EXP2_C6);
    p = fma(p, f, set1(TIERCEL_EXP2_C5));
    p = fma(p, f, set1(TIERCEL_EXP2_C4));
    p = fma(p, f, set1(TIERCEL_EXP2_C3));
    p = fma(p, f, set1(TIERCEL_EXP2_C2));
    p = fma(p, f, set1(TIERCEL_EXP2_C1));
    p = fma(p, f, set1(1.0f));
    const __m256i exponent = _mm256_slli_epi32(
        _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127)), 23);
    const F small = _mm256_cmp_ps(x, set1(-126.0f), _CMP_LT_OQ);
    return _mm256_andnot_ps(small, mul(p, _mm256_castsi256_ps(exponent)));
  }

  static float sum(F v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float maximum(F v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }
  static F reduce(const F* a) {
    const F t0 = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    const F t1 = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
    return add(_mm256_permute2f128_ps(t0, t1, 0x20), _mm256_permute2f128_ps(t0, t1, 0x31));
  }

  static void split(__m256i pairs, F& even, F& odd) {
    even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    odd = _mm256_castsi256_ps(
        _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))));
  }
  static void load_pairs(const uint16_t* p, F& even, F& odd) {
    split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), even, odd);
  }
  static void load_pairs(const uint16_t* p, int n, F& even, F& odd) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i live = _mm256_cmpgt_epi32(_mm256_set1_epi32(n / 2), lane);
    split(_mm256_maskload_epi32(reinterpret_cast<const int*>(p), live), even, odd);
  }
  static void broadcast_pair(const uint16_t* p, F& even, F& odd) {
    int32_t u;
    __builtin_memcpy(&u, p, sizeof u);
    split(_mm256_set1_epi32(u), even, odd);
  }
  static void prefetch(const void* p) { __builtin_prefetch(p); }

  using I = __m256i;
  static I zero_sums() { return _mm256_setzero_si256(); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I subtract(I a, int32_t x) { return _mm256_sub_epi32(a, _mm256_set1_epi32(x)); }
  static F to_float(I sums) { return _mm256_cvtepi32_ps(sums); }
  static I load_blocks(const int8_t* const* rows, int64_t i) {
    const __m128i r0 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[0] + i));
    const __m128i r4 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[4] + i));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(r0), r4, 1);
  }
  static void transpose(I* x) {
    const I a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpackhi_epi32(x[0], x[1]);
    const I c = _mm256_unpacklo_epi32(x[2], x[3]), d = _mm256_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm256_unpacklo_epi64(a, c);
    x[1] = _mm256_unpackhi_epi64(a, c);
    x[2] = _mm256_unpacklo_epi64(b, d);
    x[3] = _mm256_unpackhi_epi64(b, d);
  }
  static constexpr bool kByteQuery = false;
  static I first_codes(I codes) { return _mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 8); }
  static I second_codes(I codes) { return _mm256_srai_epi16(codes, 8); }
  static I dot_codes(I acc, I codes, const char* query) {
    int32_t q;
    __builtin_memcpy(&q, query, sizeof q);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(codes, _mm256_set1_epi32(q)));
  }
  static I join_sums(I first, I second) { return _mm256_add_epi32(first, second); }
};

using Vector = WithPairs<Avx2Lanes>;

}  // namespace
}  // namespace tiercel::cpu
