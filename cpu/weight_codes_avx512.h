// Coded weights (engine/base/weight_matrix.h) to bf16 on the AVX-512 levels, 128 neighbours at a time.
// Internal linkage, because files with different compiler flags include it (cpu/isa.h).
//
// Four bits: the sixteen values of a group are computed once and looked up; a lookup heeds five bits of its
// index, so the table is there twice; or it is that of five bits, which have a byte each. E4M3 is a half-precision float but for a smaller exponent. Of each sixteen a
// scale: the codes less 128 are multiplied by the one or the other.
#pragma once

#include "cpu/bf16_avx512.h"
#include "cpu/gemm.h"

namespace tiercel::cpu {
namespace {

// Rounds by itself. Another one may have an instruction for it.
struct RoundAvx512 {
  // The first and the last sixteen of 32.
  static __m512i both(__m512 first, __m512 last) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(narrow(first)), narrow(last), 1);
  }
  static __m512i twice(__m512 values) { return _mm512_broadcast_i64x4(narrow(values)); }
};

// What sixteen groups make of a code: value = code * scale - shift. All products of integers are exact: a scale has
// 15 bits, code and zero have nine; with minima a scale has 19, a code five. E4M3 has no shift, nor have sixteens.
struct GroupScales {
  // params: 64-byte aligned; what follows a row's last one is in its padding.
  template <WeightCode kCode>
  void load(const uint32_t* params) {
    const __m512i bits = _mm512_load_si512(params), mask = _mm512_set1_epi32(0x1ff);
    if constexpr (kCode == WeightCode::kE4M3) {
      // Read as halves, codes are 2^-8 of what they are.
      _mm512_store_ps(scales, _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(256)));
      return;
    }
    if constexpr (has_minima(kCode) || kCode == WeightCode::kInt8x16) {
      const __m512 factors = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
      if constexpr (has_minima(kCode)) {
        const __m512i byte = _mm512_set1_epi32(0xff);
        const __m512 scale = _mm512_cvtepi32_ps(_mm512_and_si512(bits, byte));
        const __m512 minimum = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(bits, 8), byte));
        _mm512_store_ps(scales, _mm512_mul_ps(_mm512_moveldup_ps(factors), scale));
        _mm512_store_ps(shifts, _mm512_mul_ps(_mm512_movehdup_ps(factors), minimum));
      } else {
        const __m512i first = _mm512_srai_epi32(_mm512_slli_epi32(bits, 24), 24);
        const __m512i second = _mm512_srai_epi32(_mm512_slli_epi32(bits, 16), 24);
        _mm512_store_ps(scales, _mm512_mul_ps(factors, _mm512_cvtepi32_ps(first)));
        _mm512_store_ps(second_scales(), _mm512_mul_ps(factors, _mm512_cvtepi32_ps(second)));
      }
      return;
    }
    const __m512 scale = _mm512_castsi512_ps(_mm512_andnot_si512(mask, bits));
    _mm512_store_ps(scales, scale);
    _mm512_store_ps(shifts, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_and_si512(mask, bits)), scale));
  }
  __m512 value(__m512 codes, int64_t group) const {
    return _mm512_fmsub_ps(codes, _mm512_set1_ps(scales[group]), _mm512_set1_ps(shifts[group]));
  }
  float* second_scales() { return shifts; }
  // Codes less 128, of the first or the second sixteen of a group.
  __m512 value_of_sixteen(__m512 codes, int64_t group, bool second) const {
    return _mm512_mul_ps(codes, _mm512_set1_ps((second ? shifts : scales)[group]));
  }
  alignas(64) float scales[16];
  alignas(64) float shifts[16];  // or the second sixteens' scales
};
constexpr int64_t kGroupsAtOnce = 16;

// Elements 32 i .. 32 i + 31 of 128 to runs[i]; the first one's group is `group`, of 2^shift columns each.
template <class Round>
[[gnu::always_inline]] inline void decode_4(const uint8_t* codes, const GroupScales& scales, int64_t group, int shift,
                                            __m512i (&runs)[4]) {
  const __m512 all = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const auto table_of = [&](int64_t of_group) { return Round::twice(scales.value(all, of_group)); };
  const __m512i unit = _mm512_loadu_si512(codes);
  __m512i table = table_of(group);
  runs[0] = _mm512_permutexvar_epi16(unit, table);
  if (shift == 5) table = table_of(group + 1);
  runs[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(unit, 4), table);
  if (shift < 7) table = table_of(group + (64 >> shift));
  runs[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(unit, 8), table);
  if (shift == 5) table = table_of(group + 3);
  runs[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(unit, 12), table);
}

// Codes below 32, in eight bits: of what a lookup does not heed, the neighbour's code.
template <class Round>
[[gnu::always_inline]] inline void decode_5(const uint8_t* codes, const GroupScales& scales, int64_t group,
                                            __m512i (&runs)[4]) {
  const __m512 first = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512 second = _mm512_add_ps(first, _mm512_set1_ps(16));
#pragma GCC unroll 4
  for (int run = 0; run < 4; ++run) {
    const __m512i words = _mm512_loadu_si512(codes + run / 2 * 64);
    const __m512i table = Round::both(scales.value(first, group + run), scales.value(second, group + run));
    runs[run] = _mm512_permutexvar_epi16(run % 2 == 0 ? words : _mm512_srli_epi16(words, 8), table);
  }
}

template <class Round>
[[gnu::always_inline]] inline void decode_8(const uint8_t* codes, const GroupScales& scales, int64_t group, int shift,
                                            __m512i (&runs)[4]) {
#pragma GCC unroll 4
  for (int run = 0; run < 4; ++run) {
    __m512i words = _mm512_loadu_si512(codes + run / 2 * 64);
    words = run % 2 == 0 ? _mm512_and_si512(words, _mm512_set1_epi16(0xff)) : _mm512_srli_epi16(words, 8);
    const auto values = [&](__m256i half) {
      return scales.value(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(half)), group + (32 * run >> shift));
    };
    runs[run] = Round::both(values(_mm512_castsi512_si256(words)), values(_mm512_extracti64x4_epi64(words, 1)));
  }
}

template <class Round>
[[gnu::always_inline]] inline void decode_e4m3(const uint8_t* codes, const GroupScales& scales, int64_t group,
                                               int shift, __m512i (&runs)[4]) {
#pragma GCC unroll 4
  for (int run = 0; run < 4; ++run) {
    __m512i words = _mm512_loadu_si512(codes + run / 2 * 64);
    if (run % 2 == 0) words = _mm512_slli_epi16(words, 8);
    // Sign, a bit of exponent that is 0, then the code's seven.
    words = _mm512_and_si512(_mm512_srai_epi16(words, 1), _mm512_set1_epi16(static_cast<int16_t>(0xbf80)));
    const __m512 scale = _mm512_set1_ps(scales.scales[group + (32 * run >> shift)]);
    const auto values = [&](__m256i half) { return _mm512_mul_ps(_mm512_cvtph_ps(half), scale); };
    runs[run] = Round::both(values(_mm512_castsi512_si256(words)), values(_mm512_extracti64x4_epi64(words, 1)));
  }
}

template <class Round>
[[gnu::always_inline]] inline void decode_8x16(const uint8_t* codes, const GroupScales& scales, int64_t group,
                                               __m512i (&runs)[4]) {
#pragma GCC unroll 4
  for (int run = 0; run < 4; ++run) {
    __m512i words = _mm512_loadu_si512(codes + run / 2 * 64);
    words = run % 2 == 0 ? _mm512_and_si512(words, _mm512_set1_epi16(0xff)) : _mm512_srli_epi16(words, 8);
    words = _mm512_sub_epi16(words, _mm512_set1_epi16(128));
    const auto values = [&](__m256i half, bool second) {
      return scales.value_of_sixteen(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(half)), group + run, second);
    };
    runs[run] = Round::both(values(_mm512_castsi512_si256(words), false),
                            values(_mm512_extracti64x4_epi64(words, 1), true));
  }
}

template <class Round, WeightCode kCode>
[[gnu::always_inline]] inline void decode_128(const uint8_t* codes, const GroupScales& scales, int64_t group,
                                              int shift, __m512i (&runs)[4]) {
  if constexpr (bits_of(kCode) == 4) {
    decode_4<Round>(codes, scales, group, shift, runs);
  } else if constexpr (kCode == WeightCode::kInt8Min) {
    decode_5<Round>(codes, scales, group, runs);
  } else if constexpr (kCode == WeightCode::kInt8) {
    decode_8<Round>(codes, scales, group, shift, runs);
  } else if constexpr (kCode == WeightCode::kInt8x16) {
    decode_8x16<Round>(codes, scales, group, runs);
  } else {
    decode_e4m3<Round>(codes, scales, group, shift, runs);
  }
}

// Rows of codes are too short for the hardware's prefetcher: the same place some rows on.
inline void prefetch_row_ahead(const void* at, int64_t row_bytes) {
  constexpr int64_t kRows = 4;
  _mm_prefetch(static_cast<const char*>(at) + kRows * row_bytes, _MM_HINT_T1);
}

template <class Round, WeightCode kCode>
void decode_rows_of(const DecodeWeights& p) {
  constexpr int kBits = bits_of(kCode);
  const int shift = __builtin_ctz(static_cast<unsigned>(p.group));
  GroupScales scales;
  for (int64_t row = 0; row < p.n_rows; ++row) {
    const uint8_t* codes = p.codes + row * p.row_bytes;
    // Sixteen at a time from a multiple of sixteen on.
    const uint32_t* params = p.params + row * p.row_bytes / 4;
    const auto first = static_cast<int64_t>(reinterpret_cast<uintptr_t>(params) / sizeof(uint32_t) % kGroupsAtOnce);
    uint16_t* out = p.out + row * p.out_stride;
    for (int64_t column = 0; column < p.n_columns; column += 128) {
      const int64_t group = first + (column >> shift), in_scales = group % kGroupsAtOnce;
      if (column == 0 || in_scales == 0) {
        scales.load<kCode>(params - first + (group - in_scales));
        prefetch_row_ahead(params + (column >> shift), p.row_bytes);
      }
      const uint8_t* at = codes + column * kBits / 8;
      prefetch_row_ahead(at, p.row_bytes);
      if constexpr (kBits == 8) prefetch_row_ahead(at + 64, p.row_bytes);
      __m512i runs[4];
      decode_128<Round, kCode>(at, scales, in_scales, shift, runs);
      for (int i = 0; i < 4; ++i) _mm512_storeu_si512(out + column + 32 * i, runs[i]);
    }
  }
}

template <class Round>
void decode_rows(const DecodeWeights& p) {
  switch (p.code) {
    case WeightCode::kInt4: return decode_rows_of<Round, WeightCode::kInt4>(p);
    case WeightCode::kE4M3: return decode_rows_of<Round, WeightCode::kE4M3>(p);
    case WeightCode::kInt4Min: return decode_rows_of<Round, WeightCode::kInt4Min>(p);
    case WeightCode::kInt8Min: return decode_rows_of<Round, WeightCode::kInt8Min>(p);
    case WeightCode::kInt8x16: return decode_rows_of<Round, WeightCode::kInt8x16>(p);
    case WeightCode::kInt8:
    case WeightCode::kBf16: break;
  }
  decode_rows_of<Round, WeightCode::kInt8>(p);
}

}  // namespace
}  // namespace tiercel::cpu
