// The inner loops of coded rows (RowCodec in engine/base/ops/codes.h), as plain loops, but for one
// table, that become the instructions of whatever level includes this file. Encoding is made of
// operations that IEEE 754 defines to the bit, and decoding of one fused multiply-add: all levels
// agree.
//
//   | codes: width * bits / 8 bytes | step, least of group 0 | step, least of group 1 | ..   (bf16)
//
// A zero is always +0 in a header and a group that is NaN has codes of 0: the same bytes wherever
// a row was made.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include "cpu/intrinsics.h"
#endif

namespace tiercel::cpu {

// n_rows coded rows, one after the other.
struct CodedRows {
  int64_t n_rows, width;
  int32_t bits;   // 8 or 4
  int32_t group;  // 64 or 32, divides width
};

struct RowCodecKernel {
  void (*encode_rows)(const uint16_t* rows, const CodedRows& shape, uint8_t* codes);
  void (*encode_rows_f32)(const float* rows, const CodedRows& shape, uint8_t* codes);
  void (*decode_rows)(const uint8_t* codes, const CodedRows& shape, uint16_t* rows);
  // rows = shift [width] + x, in fp32.
  void (*decode_rows_f32)(const uint8_t* codes, const CodedRows& shape, const float* shift,
                          float* rows);
};
extern const RowCodecKernel kRowCodecPortable, kRowCodecAvx2, kRowCodecAvx512;

namespace {

// Anywhere in memory, as anything.
typedef uint16_t LooseHalf __attribute__((may_alias, aligned(1)));
typedef uint32_t LooseWord __attribute__((may_alias, aligned(1)));

inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The step and the least value of a group.
struct GroupScale {
  float step, least;
};

inline void store_scale(uint8_t* p, GroupScale s) {
  *reinterpret_cast<LooseWord*>(p) = bits_of(s.step) >> 16 | (bits_of(s.least) & 0xffff0000u);
}
inline GroupScale load_scale(const uint8_t* p) {
  const uint32_t both = *reinterpret_cast<const LooseWord*>(p);
  return {float_of(both << 16), float_of(both & 0xffff0000u)};
}

// ---- encode -------------------------------------------------------------------------------------

// The largest bf16 that is not above x, and the smallest that is not below x >= 0.
inline float bf16_below(float x) {
  const uint32_t u = bits_of(x);
  const float below = float_of(((u >> 31) != 0 ? u + 0xffffu : u) & 0xffff0000u);
  return below + 0.0f;  // -0 becomes +0
}
inline float bf16_above(float x) { return float_of((bits_of(x) + 0xffffu) & 0xffff0000u); }

// NaN for both where a group has no finite range.
template <int kBits, int kGroup>
GroupScale scale_of(const float* x) {
  // As integers in the order of floats, NaNs outside the infinities: a reduction that compilers
  // vectorise.
  int32_t low = 0x7fffffff, high = -0x7fffffff - 1;
  for (int i = 0; i < kGroup; ++i) {
    const int32_t u = static_cast<int32_t>(bits_of(x[i]));
    const int32_t order = u ^ (u >> 31 & 0x7fffffff);
    low = order < low ? order : low;
    high = order > high ? order : high;
  }
  constexpr int32_t kInfinityOrder = 0x7f800000;
  const float nan = __builtin_nanf("");
  if (low <= ~kInfinityOrder || high >= kInfinityOrder) return {nan, nan};
  const auto value = [](int32_t order) {
    return float_of(static_cast<uint32_t>(order ^ (order >> 31 & 0x7fffffff)));
  };
  const float least = bf16_below(value(low));
  const float range = value(high) - least + 0.0f;  // of zeros: +0
  if (!(range < __builtin_inff())) return {nan, nan};
  return {bf16_above(range / static_cast<float>((1 << kBits) - 1)), least};
}

template <int kBits, int kGroup>
void encode_group(const float* x, uint8_t* codes, uint8_t* header) {
  const GroupScale s = scale_of<kBits, kGroup>(x);
  store_scale(header, s);
  if (!(s.step > 0.0f)) {
    __builtin_memset(codes, 0, kGroup * kBits / 8);
    return;
  }
  constexpr float kMost = (1 << kBits) - 1;
  int32_t code[kGroup];
  for (int i = 0; i < kGroup; ++i) {
    const float c = __builtin_rintf((x[i] - s.least) / s.step);
    code[i] = static_cast<int32_t>(c < kMost ? c : kMost);
  }
  if constexpr (kBits == 8) {
    for (int i = 0; i < kGroup; ++i) codes[i] = static_cast<uint8_t>(code[i]);
  } else {
    for (int i = 0; i < kGroup / 2; ++i) {
      codes[i] = static_cast<uint8_t>(code[2 * i] | code[2 * i + 1] << 4);
    }
  }
}

template <int kBits, int kGroup>
void encode_rows_f32(const float* rows, const CodedRows& shape, uint8_t* codes) {
  for (int64_t r = 0; r < shape.n_rows; ++r, rows += shape.width) {
    uint8_t* headers = codes + shape.width * kBits / 8;
    for (int64_t i = 0; i < shape.width; i += kGroup, headers += 4) {
      encode_group<kBits, kGroup>(rows + i, codes + i * kBits / 8, headers);
    }
    codes = headers;
  }
}

template <int kBits, int kGroup>
void encode_rows_bf16(const uint16_t* rows, const CodedRows& shape, uint8_t* codes) {
  for (int64_t r = 0; r < shape.n_rows; ++r, rows += shape.width) {
    uint8_t* headers = codes + shape.width * kBits / 8;
    for (int64_t i = 0; i < shape.width; i += kGroup, headers += 4) {
      alignas(64) float x[kGroup];
      for (int l = 0; l < kGroup; ++l) x[l] = float_of(uint32_t{rows[i + l]} << 16);
      encode_group<kBits, kGroup>(x, codes + i * kBits / 8, headers);
    }
    codes = headers;
  }
}

// ---- decode -------------------------------------------------------------------------------------

// fmaf(step, code, least). step has 8 bits and code has 8: without the instruction the product
// is exact anyway, unless it overflows, and then both operands bear halving.
inline float decode(GroupScale s, uint32_t code) {
  const float c = static_cast<float>(static_cast<int32_t>(code));
#if defined(__FMA__)
  return __builtin_fmaf(s.step, c, s.least);
#else
  return s.step * c + s.least;
#endif
}
inline bool may_overflow(GroupScale s) {
#if defined(__FMA__)
  static_cast<void>(s);
  return false;
#else
  return s.step >= 0x1p119f;
#endif
}

// To nearest, ties to even, in the upper half. A NaN that comes of bf16 ones stays one.
inline uint32_t round_high(float x) {
  const uint32_t u = bits_of(x);
  return u + 0x7fffu + (u >> 16 & 1u);
}

#if defined(__AVX2__)
// Elements 2i and 2i + 1 are values[] of the lower and the upper half of codes[i]: a third of the
// instructions that computing each would take.
template <int kGroup>
void look_up(const uint16_t* __restrict values, const uint8_t* __restrict codes,
             uint16_t* __restrict out) {
#if defined(__AVX512BW__)
  // Twice the same 16: of an index five bits count, the fifth is the next code's.
  const __m512i table =
      _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
  for (int i = 0; i < kGroup; i += 32) {
    const __m512i pairs =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i / 2)));
    const __m512i index = _mm512_or_si512(pairs, _mm512_slli_epi32(pairs, 12));
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(index, table));
  }
#else
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  const __m256i mask = _mm256_set1_epi16(0xff), nibble = _mm256_set1_epi8(15);
  const auto in_both = [](__m256i words) {  // 16 words, as bytes
    const __m128i packed =
        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    return _mm256_broadcastsi128_si256(packed);
  };
  const __m256i low = in_both(_mm256_and_si256(bytes, mask)),
                high = in_both(_mm256_srli_epi16(bytes, 8));
  for (int i = 0; i < kGroup; i += 32) {
    const __m256i pairs =
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i / 2)));
    const __m256i index =
        _mm256_and_si256(_mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)), nibble);
    const __m256i lows = _mm256_shuffle_epi8(low, index), highs = _mm256_shuffle_epi8(high, index);
    const __m256i a = _mm256_unpacklo_epi8(lows, highs), b = _mm256_unpackhi_epi8(lows, highs);
    auto* stored = reinterpret_cast<__m256i*>(out + i);
    _mm256_storeu_si256(stored, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256(stored + 1, _mm256_permute2x128_si256(a, b, 0x31));
  }
#endif
}
#endif

// Two elements at a time, whose codes are neighbours in memory: no shuffle.
template <int kBits, int kGroup>
void decode_group(const uint8_t* __restrict codes, GroupScale s, uint16_t* __restrict out) {
#if defined(__AVX2__)
  if constexpr (kBits == 4) {
    uint16_t values[16];
    for (uint32_t code = 0; code < 16; ++code) {
      values[code] = static_cast<uint16_t>(round_high(decode(s, code)) >> 16);
    }
    return look_up<kGroup>(values, codes, out);
  }
#endif
  LooseWord* words = reinterpret_cast<LooseWord*>(out);
  if (may_overflow(s)) {
    const GroupScale half = {s.step * 0.5f, s.least * 0.5f};
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t code = kBits == 8 ? codes[i] : codes[i / 2] >> i % 2 * 4 & 15u;
      out[i] = static_cast<uint16_t>(round_high(2.0f * decode(half, code)) >> 16);
    }
    return;
  }
  for (int i = 0; i < kGroup / 2; ++i) {
    const uint32_t pair =
        kBits == 8 ? uint32_t{reinterpret_cast<const LooseHalf*>(codes)[i]} : uint32_t{codes[i]};
    const uint32_t even = round_high(decode(s, pair & ((1u << kBits) - 1)));
    const uint32_t odd = round_high(decode(s, pair >> kBits));
    words[i] = even >> 16 | (odd & 0xffff0000u);
  }
}

template <int kBits, int kGroup>
void decode_rows_bf16(const uint8_t* codes, const CodedRows& shape, uint16_t* rows) {
  for (int64_t r = 0; r < shape.n_rows; ++r, rows += shape.width) {
    const uint8_t* headers = codes + shape.width * kBits / 8;
    for (int64_t i = 0; i < shape.width; i += kGroup, headers += 4) {
      decode_group<kBits, kGroup>(codes + i * kBits / 8, load_scale(headers), rows + i);
    }
    codes = headers;
  }
}

template <int kBits, int kGroup>
void decode_group_f32(const uint8_t* __restrict codes, GroupScale s, const float* __restrict shift,
                      float* __restrict out) {
  float scale = 1.0f;
  if (may_overflow(s)) {
    s = {s.step * 0.5f, s.least * 0.5f};
    scale = 2.0f;
  }
  for (int i = 0; i < kGroup * kBits / 8; ++i) {
    if constexpr (kBits == 8) {
      out[i] = scale * decode(s, codes[i]) + shift[i];
    } else {
      out[2 * i] = scale * decode(s, codes[i] & 15u) + shift[2 * i];
      out[2 * i + 1] = scale * decode(s, codes[i] >> 4u) + shift[2 * i + 1];
    }
  }
}

template <int kBits, int kGroup>
void decode_rows_f32(const uint8_t* codes, const CodedRows& shape, const float* shift,
                     float* rows) {
  for (int64_t r = 0; r < shape.n_rows; ++r, rows += shape.width) {
    const uint8_t* headers = codes + shape.width * kBits / 8;
    for (int64_t i = 0; i < shape.width; i += kGroup, headers += 4) {
      decode_group_f32<kBits, kGroup>(codes + i * kBits / 8, load_scale(headers), shift + i,
                                      rows + i);
    }
    codes = headers;
  }
}

// ---- dispatch -----------------------------------------------------------------------------------

// Calls call<bits, group>().
template <typename Call>
void for_shape(const CodedRows& shape, Call call) {
  if (shape.bits == 8 && shape.group == 64) return call.template operator()<8, 64>();
  if (shape.bits == 8) return call.template operator()<8, 32>();
  if (shape.group == 64) return call.template operator()<4, 64>();
  call.template operator()<4, 32>();
}

inline void encode_any(const uint16_t* rows, const CodedRows& shape, uint8_t* codes) {
  for_shape(shape,
            [&]<int kBits, int kGroup>() { encode_rows_bf16<kBits, kGroup>(rows, shape, codes); });
}
inline void encode_any_f32(const float* rows, const CodedRows& shape, uint8_t* codes) {
  for_shape(shape,
            [&]<int kBits, int kGroup>() { encode_rows_f32<kBits, kGroup>(rows, shape, codes); });
}
inline void decode_any(const uint8_t* codes, const CodedRows& shape, uint16_t* rows) {
  for_shape(shape,
            [&]<int kBits, int kGroup>() { decode_rows_bf16<kBits, kGroup>(codes, shape, rows); });
}
inline void decode_any_f32(const uint8_t* codes, const CodedRows& shape, const float* shift,
                           float* rows) {
  for_shape(shape, [&]<int kBits, int kGroup>() {
    decode_rows_f32<kBits, kGroup>(codes, shape, shift, rows);
  });
}

}  // namespace
}  // namespace tiercel::cpu
