// Sixteen fp32 lanes with AVX-512: the Vector of the avx512 level (see vector_portable.h); of
// avx512vnni, which multiplies codes four at a time; and of avx512bf16, which multiplies bf16 pairs
// directly. vdpbf16ps takes the query as it is stored, so
// products are exact there too; it flushes denormals.
#pragma once

#include <cstdint>

#include "cpu/exp2_poly.h"
#include "cpu/intrinsics.h"
#include "cpu/vector_pairs.h"

namespace tiercel::cpu {
namespace {

struct Avx512Lanes {
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  static constexpr bool kBf16Query = false;
  using F = __m512;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static uint32_t greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static F where_greater(F a, F b, F x, F y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
  }
  static F keep_below(F v, int32_t row, const int32_t* limit) {
    const __mmask16 below =
        _mm512_cmplt_epi32_mask(_mm512_set1_epi32(row), _mm512_loadu_si512(limit));
    return _mm512_mask_blend_ps(below, set1(-__builtin_inff()), v);
  }

  static F exp2(F x) {
    const F y = max(set1(-126.0f), x);
    const F n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = sub(y, n);
    F p = set1(TIERCEL_EXP2_C6);
    p = fma(p, f, set1(TIERCEL_EXP2_C5));
    p = fma(p, f, set1(TIERCEL_EXP2_C4));
    p = fma(p, f, set1(TIERCEL_EXP2_C3));
    p = fma(p, f, set1(TIERCEL_EXP2_C2));
    p = fma(p, f, set1(TIERCEL_EXP2_C1));
    p = fma(p, f, set1(1.0f));
    const __mmask16 live = _mm512_cmp_ps_mask(x, set1(-126.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(live, p, n);
  }

  static float sum(F v) { return _mm512_reduce_add_ps(v); }
  static float maximum(F v) { return _mm512_reduce_max_ps(v); }
  // Four rounds that halve the number of vectors; 30 shuffles and 15 additions.
  static F reduce(const F* a) {
    F b[8], c[4], d[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      b[i] = add(_mm512_shuffle_f32x4(a[i], a[i + 8], 0x44),
                 _mm512_shuffle_f32x4(a[i], a[i + 8], 0xee));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      c[i] = add(_mm512_shuffle_f32x4(b[i], b[i + 4], 0x88),
                 _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      d[i] = add(_mm512_unpacklo_ps(c[i], c[i + 2]), _mm512_unpackhi_ps(c[i], c[i + 2]));
    }
    const F e = add(_mm512_unpacklo_ps(d[0], d[1]), _mm512_unpackhi_ps(d[0], d[1]));
    return _mm512_shuffle_f32x4(e, e, 0xd8);
  }

  static void split(__m512i pairs, F& even, F& odd) {
    even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    odd = _mm512_castsi512_ps(
        _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
  }
  static __m512i load_first(const uint16_t* p, int n) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << (n / 2)) - 1), p);
  }
  static void load_pairs(const uint16_t* p, F& even, F& odd) {
    split(_mm512_loadu_si512(p), even, odd);
  }
  static void load_pairs(const uint16_t* p, int n, F& even, F& odd) {
    split(load_first(p, n), even, odd);
  }
  static void broadcast_pair(const uint16_t* p, F& even, F& odd) {
    int32_t u;
    __builtin_memcpy(&u, p, sizeof u);
    split(_mm512_set1_epi32(u), even, odd);
  }
  // Into L2: more lines may be on their way there than to L1.
  static void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

  using I = __m512i;
  static I zero_sums() { return _mm512_setzero_si512(); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I subtract(I a, int32_t x) { return _mm512_sub_epi32(a, _mm512_set1_epi32(x)); }
  static F to_float(I sums) { return _mm512_cvtepi32_ps(sums); }
  static I load_blocks(const int8_t* const* rows, int64_t i) {
    const auto block = [&](int r) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + i));
    };
    const I low = _mm512_inserti32x4(_mm512_castsi128_si512(block(0)), block(4), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(low, block(8), 2), block(12), 3);
  }
  static void transpose(I* x) {
    const I a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    const I c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(a, c);
    x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d);
    x[3] = _mm512_unpackhi_epi64(b, d);
  }
  static constexpr bool kByteQuery = false;
  static I first_codes(I codes) { return _mm512_srai_epi16(_mm512_slli_epi16(codes, 8), 8); }
  static I second_codes(I codes) { return _mm512_srai_epi16(codes, 8); }
  static I broadcast4(const char* p) {
    int32_t x;
    __builtin_memcpy(&x, p, sizeof x);
    return _mm512_set1_epi32(x);
  }
  static I dot_codes(I acc, I codes, const char* query) {
    return _mm512_add_epi32(acc, _mm512_madd_epi16(codes, broadcast4(query)));
  }
  static I join_sums(I first, I second) { return _mm512_add_epi32(first, second); }
};

using Avx512 = WithPairs<Avx512Lanes>;

#if defined(__AVX512VNNI__)
struct Avx512Vnni : Avx512 {
  // vpdpbusd multiplies all four codes of a lane, as code + 128, with four bytes of the query: its
  // low ones, then its high ones.
  static constexpr bool kByteQuery = true;
  static I first_codes(I codes) { return _mm512_xor_si512(codes, _mm512_set1_epi8(-128)); }
  static I second_codes(I codes) { return first_codes(codes); }
  static I dot_codes(I acc, I codes, const char* query) {
    return _mm512_dpbusd_epi32(acc, codes, broadcast4(query));
  }
  static I join_sums(I low, I high) { return _mm512_add_epi32(low, _mm512_slli_epi32(high, 8)); }
};
#endif

#if defined(__AVX512BF16__)
struct Avx512Bf16 : Avx512Vnni {
  static constexpr bool kBf16Query = true;

  using Piece = __m512bh;
  static __m512bh pairs(__m512i x) { return (__m512bh)x; }
  static Piece load_piece(const uint16_t* p) { return pairs(_mm512_loadu_si512(p)); }
  static Piece load_piece(const uint16_t* p, int n) { return pairs(load_first(p, n)); }
  static F dot(F acc, Piece row, const char* query, int64_t piece) {
    return _mm512_dpbf16_ps(acc, row, pairs(_mm512_loadu_si512(query + piece * 64)));
  }

  struct BroadcastPair {
    explicit BroadcastPair(const uint16_t* p) {
      int32_t u;
      __builtin_memcpy(&u, p, sizeof u);
      both = pairs(_mm512_set1_epi32(u));
    }
    __m512bh both;
  };
  // Queries are bf16 [head_dim/2][n_queries][2].
  struct QueryPair {
    QueryPair(const void* queries, int32_t n_queries, int32_t i, int32_t first)
        : both(static_cast<const char*>(queries) +
               (int64_t{i / 2} * n_queries + first) * int64_t{sizeof(uint32_t)}) {}
    F dot(int v, const BroadcastPair& x, F acc) const {
      return _mm512_dpbf16_ps(acc, pairs(_mm512_loadu_si512(both + v * 64)), x.both);
    }
    const char* both;
  };
};
#endif

}  // namespace
}  // namespace tiercel::cpu
