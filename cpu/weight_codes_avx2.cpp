// Coded weights to bf16 with AVX2. Four bits: the sixteen values of a group are computed once; their lower
// and their upper bytes are looked up apart. E4M3 is a half-precision float but for a smaller exponent.
#include "cpu/gemm.h"
#include "cpu/intrinsics.h"

namespace tiercel::cpu {
namespace {

// Rounds to nearest even. Products of codes and finite scales are no NaN.
__m256i rounded(__m256 value) {
  const __m256i u = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
}

// Two times eight bf16, each in a dword, to sixteen.
__m256i in_order(__m256i first, __m256i second) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(first, second), 0xd8);
}

float factor_of(uint32_t param) { return _cvtsh_ss(static_cast<uint16_t>(param >> 16)); }

// Of integers: value = (code - zero) * scale - minimum. Products are exact, but where the minimum is 0.
struct Param {
  static Param of(uint32_t param) {
    return {__builtin_bit_cast(float, param & ~0x1ffu), static_cast<int32_t>(param & 0x1ffu), 0};
  }
  static Param with_minimum(const uint32_t* params, int64_t group) {
    const uint32_t param = params[group];
    return {factor_of(params[group & ~int64_t{1}]) * static_cast<float>(param & 0xff), 0,
            factor_of(params[group | 1]) * static_cast<float>(param >> 8 & 0xff)};
  }
  static Param of_sixteen(uint32_t param, int which) {
    return {factor_of(param) * static_cast<float>(static_cast<int8_t>(param >> (8 * which))), 128, 0};
  }
  Param(float scale_of_all, int32_t zero_of_all, float minimum_of_all)
      : scale(_mm256_set1_ps(scale_of_all)),
        minimum(_mm256_set1_ps(minimum_of_all)),
        zero(_mm256_set1_epi32(zero_of_all)) {}
  // Eight codes to bf16, each in a dword.
  __m256i value(__m256i codes) const {
    return rounded(_mm256_fmsub_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(codes, zero)), scale, minimum));
  }
  // Sixteen codes in dwords, in order, to sixteen bf16.
  __m256i values(__m256i first, __m256i second) const { return in_order(value(first), value(second)); }
  __m256 scale, minimum;
  __m256i zero;
};

// Of a group that a code has.
Param param_of(WeightCode code, const uint32_t* params, int64_t group) {
  return has_minima(code) ? Param::with_minimum(params, group) : Param::of(params[group]);
}

struct Table {
  explicit Table(const Param& param) {
    const __m256i all = param.values(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                            _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
    const __m256i bytes = _mm256_set1_epi16(0xff);
    const __m256i lower = _mm256_permute4x64_epi64(
        _mm256_packus_epi16(_mm256_and_si256(all, bytes), _mm256_srli_epi16(all, 8)), 0xd8);
    low = _mm256_permute2x128_si256(lower, lower, 0x00);
    high = _mm256_permute2x128_si256(lower, lower, 0x11);
  }
  // Words whose lowest four bits are codes.
  __m256i look_up(__m256i words) const {
    const __m256i code = _mm256_and_si256(words, _mm256_set1_epi16(0xf));
    const __m256i of_low = _mm256_or_si256(code, _mm256_set1_epi16(static_cast<int16_t>(0x8000)));
    const __m256i of_high = _mm256_or_si256(_mm256_slli_epi16(code, 8), _mm256_set1_epi16(0x80));
    return _mm256_or_si256(_mm256_shuffle_epi8(low, of_low), _mm256_shuffle_epi8(high, of_high));
  }
  __m256i low, high;
};

__m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
void store(uint16_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }

void decode_4(const uint8_t* codes, WeightCode code, const uint32_t* params, int32_t group, uint16_t* out) {
  const __m256i first = load(codes), second = load(codes + 32);
#pragma GCC unroll 4
  for (int run = 0; run < 4; ++run) {
    const Table table(param_of(code, params, run * 32 / group));
    store(out + 32 * run, table.look_up(_mm256_srli_epi16(first, 4 * run)));
    store(out + 32 * run + 16, table.look_up(_mm256_srli_epi16(second, 4 * run)));
  }
}

void decode_8(const uint8_t* codes, WeightCode code, const uint32_t* params, int32_t group, uint16_t* out) {
#pragma GCC unroll 4
  for (int run = 0; run < 4; ++run) {
    const int64_t of_run = run * 32 / group;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Param param =
          code == WeightCode::kInt8x16 ? Param::of_sixteen(params[of_run], half) : param_of(code, params, of_run);
      __m256i words = load(codes + run / 2 * 64 + 32 * half);
      words = run % 2 == 0 ? _mm256_and_si256(words, _mm256_set1_epi16(0xff)) : _mm256_srli_epi16(words, 8);
      store(out + 32 * run + 16 * half,
            param.values(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(words)),
                         _mm256_cvtepu16_epi32(_mm256_extracti128_si256(words, 1))));
    }
  }
}

void decode_e4m3(const uint8_t* codes, const uint32_t* params, int32_t group, uint16_t* out) {
#pragma GCC unroll 4
  for (int run = 0; run < 4; ++run) {
    // Read as halves, codes are 2^-8 of what they are.
    const __m256 scale = _mm256_set1_ps(__builtin_bit_cast(float, params[run * 32 / group]) * 256);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256i words = load(codes + run / 2 * 64 + 32 * half);
      if (run % 2 == 0) words = _mm256_slli_epi16(words, 8);
      // Sign, a bit of exponent that is 0, then the code's seven.
      words = _mm256_and_si256(_mm256_srai_epi16(words, 1), _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
      const auto value = [&](__m128i eight) { return rounded(_mm256_mul_ps(_mm256_cvtph_ps(eight), scale)); };
      store(out + 32 * run + 16 * half,
            in_order(value(_mm256_castsi256_si128(words)), value(_mm256_extracti128_si256(words, 1))));
    }
  }
}

}  // namespace

void decode_weights_avx2(const DecodeWeights& p) {
  const int bits = bits_of(p.code), group = p.group;
  for (int64_t row = 0; row < p.n_rows; ++row) {
    const uint8_t* codes = p.codes + row * p.row_bytes;
    const uint32_t* params = p.params + row * p.row_bytes / 4;
    uint16_t* out = p.out + row * p.out_stride;
    for (int64_t column = 0; column < p.n_columns; column += 128) {
      // Rows of codes are too short for the hardware's prefetcher: the same place four rows on.
      const auto* ahead = reinterpret_cast<const char*>(codes + 4 * p.row_bytes);
      _mm_prefetch(ahead + column * bits / 8, _MM_HINT_T0);
      if (bits == 8) _mm_prefetch(ahead + column + 64, _MM_HINT_T0);
      if (column / group % 16 == 0) {
        _mm_prefetch(reinterpret_cast<const char*>(params + column / group) + 4 * p.row_bytes, _MM_HINT_T0);
      }
      const uint32_t* of_columns = params + column / group;
      if (p.code == WeightCode::kE4M3) {
        decode_e4m3(codes + column, of_columns, group, out + column);
      } else if (bits == 4) {
        decode_4(codes + column / 2, p.code, of_columns, group, out + column);
      } else {
        decode_8(codes + column, p.code, of_columns, group, out + column);
      }
    }
  }
}

}  // namespace tiercel::cpu
