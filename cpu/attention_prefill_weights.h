// Scores to weights with AVX-512 BF16, shared by attention_prefill_{avx512bf16,amx}.cpp and
// included by nobody else; everything in it has internal linkage (see cpu/isa.h).
//
// Scores come in units of 1/128 octave. 32 of a row, two vectors of 16 keys, become one vector of
// bf16 weights in the order of packusdw, which is the order of a V tile's rows (cpu/stage.h).
// A reference is a whole number of octaves: raising it is an exact multiplication by a power of
// two.
#pragma once

#include "cpu/exp2.h"
#include "cpu/intrinsics.h"

namespace tiercel::cpu::prefill {
namespace {

constexpr float kNothing = -__builtin_inff();  // reference of a row that has seen no key

__m512 dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// 2^x in fp32. NaN stays NaN: max returns its second operand.
__m512 exp2_polynomial(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(kExp2Min), x);
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(kExp2C[5]);
#pragma GCC unroll 8
  for (int i = 4; i >= 0; --i) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kExp2C[i]));
  return _mm512_scalef_ps(p, n);
}

// 32 weights, packed as packusdw does, from two vectors of scores. Made from what prepared() makes
// of a row's reference.
struct Lookup {
  static constexpr bool kNone = false;  // true: makes no weights, to see what they cost

  __m512 shift;  // magic - reference
  __m512i table = _mm512_load_si512(kLookupTable);

  static float prepared(float reference) { return kRoundMagic - reference; }
  explicit Lookup(float prepared) : shift(_mm512_set1_ps(prepared)) {}
  // A weight that no word can hold becomes NaN or a word of 0x8000 and more, or, where its score is a
  // negative NaN, 0: who calls has to know.
  __m512i operator()(__m512 a, __m512 b) const {
    const __m512i bias = _mm512_set1_epi32(kLookupBias);
    const __m512i x = _mm512_sub_epi32(_mm512_castps_si512(_mm512_add_ps(a, shift)), bias);
    const __m512i y = _mm512_sub_epi32(_mm512_castps_si512(_mm512_add_ps(b, shift)), bias);
    const __m512i word = _mm512_packus_epi32(x, y);
    const __m512i correction =
        _mm512_maskz_permutexvar_epi8(0x5555555555555555ull, _mm512_srli_epi16(word, 1), table);
    return _mm512_sub_epi16(word, correction);
  }
};

struct Polynomial {
  static constexpr bool kNone = false;

  __m512 reference;

  static float prepared(float r) { return r; }
  explicit Polynomial(float r) : reference(_mm512_set1_ps(r)) {}
  __m512i operator()(__m512 a, __m512 b) const {
    const __m512 unit = _mm512_set1_ps(1.0f / kUnitsPerOctave);
    const __m512 x = exp2_polynomial(_mm512_mul_ps(_mm512_sub_ps(a, reference), unit));
    const __m512 y = exp2_polynomial(_mm512_mul_ps(_mm512_sub_ps(b, reference), unit));
    // vcvtne2ps2bf16 leaves a's words below b's; packusdw's order takes four of each in turn.
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm512_permutexvar_epi64(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(y, x)));
  }
};

__m512 load_scores(const float* s, int key, int begin, int end, bool masked) {
  const __m512 x = _mm512_load_ps(s + key);
  if (!masked) return x;
  const __m512i index =
      _mm512_add_epi32(_mm512_set1_epi32(key),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  const __mmask16 seen = _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(begin)) &
                         _mm512_cmplt_epi32_mask(index, _mm512_set1_epi32(end));
  return _mm512_mask_mov_ps(_mm512_set1_ps(kNothing), seen, x);
}

// The whole octave at or above a score.
float octave_above(float score) {
  const __m512 octaves = _mm512_set1_ps(score / kUnitsPerOctave);
  return kUnitsPerOctave *
         _mm512_cvtss_f32(_mm512_roundscale_ps(octaves, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC));
}

// Moves n values (a multiple of 16) from one reference to a higher one.
void rescale(float* values, int n, float from, float to) {
  const __m512 factor =
      _mm512_scalef_ps(_mm512_set1_ps(1.0f), _mm512_set1_ps((from - to) / kUnitsPerOctave));
  for (int i = 0; i < n; i += 16) {
    _mm512_store_ps(values + i, _mm512_mul_ps(_mm512_load_ps(values + i), factor));
  }
}

}  // namespace
}  // namespace tiercel::cpu::prefill
