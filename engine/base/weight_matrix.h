// A matrix of weights: as bf16, or as codes for every group of neighbouring columns of which there is a scale:
//
//   integers of 8 or 4 bits    with a zero beside the scale: what GPTQ and AWQ make, and what --weight-codec makes
//   floats of 8 bits (E4M3)    what FP8 checkpoints have
//   integers with minima       GGUF's Q4_K and Q5_K (five bits, in eight): value = scale * code - minimum
//   integers by sixteens       GGUF's Q6_K, Q3_K and IQ4_XS, in eight bits: a scale for each sixteen columns
//
// A coded matrix is a bf16 one, decoded where it is used: value = bf16((code - zero) * scale), what is no integer being
// rounded to fp32 first. What multiplies it gives the bits that the decoded matrix gives, but on a GPU for few rows and
// codes of four bits, whose products are added up in another order.
//
// A row, 64-byte aligned:
//
//   | codes: units of 64 bytes                   | params: one uint32 for each group | up to 64 bytes |
//     a unit is 32 words of 16 bits; code s of
//     word j (bits s * bits ..) is element s * 32 + j of the unit's 64 or 128
//
// so that 32 neighbouring elements come out of one shift of a unit: a CPU looks them up at once, and four
// lanes of a GPU each have the eight elements that a matrix instruction wants of them.
//
// A param of integers is an fp32 scale in whose lowest nine bits the zero lies. f16 and bf16 scales have none there;
// others are rounded to fifteen bits. A param of floats is an fp32 scale. Those of GGUF's are, in groups of 32 columns,
//
//                       bits 0-7               8-15                    16-31, an f16
//   with minima         the group's scale      its minimum (uint8)     of even groups a factor of both groups' scales,
//                       (uint8)                                        of the odd ones behind them of both's minima
//   by sixteens         the first scale        the second (int8)       a factor of both
//                       (int8)
//
// so that the products, which fp32 holds, are the scales and minima; zeros are 0 and 128.
#pragma once

#include <bit>
#include <cstdint>
#include <initializer_list>

#include "engine/base/dtype.h"
#include "engine/base/weight_code.h"

namespace tiercel {

inline constexpr int64_t kCodedColumns = 128;  // of coded rows, or a multiple

constexpr const char* name_of(WeightCode code) {
  switch (code) {
    case WeightCode::kBf16: return "bf16";
    case WeightCode::kInt8: return "int8";
    case WeightCode::kInt4: return "int4";
    case WeightCode::kE4M3: return "fp8";
    case WeightCode::kInt4Min: return "int4 with minima";
    case WeightCode::kInt8Min: return "int8 with minima";
    case WeightCode::kInt8x16: break;
  }
  return "int8 by sixteens";
}

struct WeightCodec {
  WeightCode code = WeightCode::kBf16;
  int32_t group = 0;  // of codes: columns that share a param: 32, 64 or 128

  bool is_coded() const { return code != WeightCode::kBf16; }
  int32_t bits() const { return bits_of(code); }
  // Whether rows of k elements can be in it.
  bool is_for(int64_t k) const {
    if (!is_coded()) return true;
    const bool wide = code == WeightCode::kInt8 || code == WeightCode::kInt4 || code == WeightCode::kE4M3;
    return k % kCodedColumns == 0 && (group == 32 || (wide && (group == 64 || group == 128)));
  }
  // Of a row of k elements.
  int64_t code_bytes(int64_t k) const { return k * bits() / 8; }
  int64_t row_bytes(int64_t k) const {
    if (!is_coded()) return 2 * k;
    return (code_bytes(k) + k / group * 4 + 63) / 64 * 64;
  }
  friend bool operator==(WeightCodec, WeightCodec) = default;
};

// How rows of k elements are kept of which `group` neighbours share a scale: in the largest groups that divide those;
// as bf16 where there are none.
constexpr WeightCodec codec_in_groups(WeightCode code, int64_t group, int64_t k) {
  for (const int32_t kept : {128, 64, 32}) {
    const WeightCodec codec{code, kept};
    if (group % kept == 0 && codec.is_for(k)) return codec;
  }
  return {};
}

inline constexpr int32_t kUnitWords = 32, kUnitBytes = 64;

inline constexpr uint32_t kZeroMask = 0x1ff;
constexpr uint32_t weight_param(float scale, int32_t zero) {
  const uint32_t rounded = std::bit_cast<uint32_t>(scale) + (kZeroMask + 1) / 2;
  return (rounded & ~kZeroMask) | static_cast<uint32_t>(zero);
}
constexpr float scale_of(uint32_t param) { return std::bit_cast<float>(param & ~kZeroMask); }
constexpr int32_t zero_of(uint32_t param) { return static_cast<int32_t>(param & kZeroMask); }


constexpr uint32_t factor_param(uint8_t first, uint8_t second, uint16_t factor) {
  return uint32_t{first} | uint32_t{second} << 8 | uint32_t{factor} << 16;
}
inline float factor_of(uint32_t param) { return f16_to_float(static_cast<uint16_t>(param >> 16)); }

// What the code of a column is decoded to. params: of its row.
inline bf16 value_of_code(WeightCodec codec, int32_t code, const uint32_t* params, int64_t column) {
  const int64_t group = column / codec.group;
  const uint32_t param = params[group];
  switch (codec.code) {
    case WeightCode::kE4M3:
      return bf16(f8_e4m3_to_float(static_cast<uint8_t>(code)) * std::bit_cast<float>(param));
    case WeightCode::kInt4Min:
    case WeightCode::kInt8Min: {
      const float scale = factor_of(params[group & ~int64_t{1}]) * static_cast<float>(param & 0xff);
      const float minimum = factor_of(params[group | 1]) * static_cast<float>(param >> 8 & 0xff);
      return bf16(scale * static_cast<float>(code) - minimum);
    }
    case WeightCode::kInt8x16: {
      const auto of_sixteen = static_cast<int8_t>(column % 32 < 16 ? param : param >> 8);
      return bf16(static_cast<float>(code - 128) * (factor_of(param) * static_cast<float>(of_sixteen)));
    }
    case WeightCode::kInt8:
    case WeightCode::kInt4:
    case WeightCode::kBf16: break;
  }
  return bf16(static_cast<float>(code - zero_of(param)) * scale_of(param));
}

struct WeightMatrix {
  const bf16* values = nullptr;  // [n][k], as Hugging Face stores it; coded: its rows of codes
  WeightCodec codec = {};

  constexpr WeightMatrix() = default;
  constexpr WeightMatrix(const bf16* matrix) : values(matrix) {}  // a bf16 matrix is one
  constexpr WeightMatrix(const bf16* rows, WeightCodec codec_of_rows) : values(rows), codec(codec_of_rows) {}

  explicit operator bool() const { return values != nullptr; }
  // From row n on, of a matrix of k columns.
  WeightMatrix from_row(int64_t n, int64_t k) const {
    return {values + n * codec.row_bytes(k) / static_cast<int64_t>(sizeof(bf16)), codec};
  }
};

}  // namespace tiercel
