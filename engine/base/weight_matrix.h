// A matrix of weights: as bf16, or as codes of 8 or 4 bits with a scale and a zero for every group of
// neighbouring columns (what GPTQ and AWQ make, and what --weight-codec makes).
//
// A coded matrix is a bf16 one, decoded where it is used: value = bf16((code - zero) * scale), rounded once.
// What multiplies it gives the bits that the decoded matrix gives, but on a GPU for few rows and codes of four
// bits, whose products are added up in another order.
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
// A param is an fp32 scale in whose lowest nine bits the zero lies. f16 and bf16 scales have none there; others
// are rounded to fifteen bits.
#pragma once

#include <bit>
#include <cstdint>

#include "engine/base/dtype.h"

namespace tiercel {

inline constexpr int64_t kCodedColumns = 128;  // of coded rows, or a multiple

struct WeightCodec {
  int32_t bits = 16;  // 16: bf16; 8, 4: codes
  int32_t group = 0;  // of codes: columns that share a param: 32, 64 or 128

  bool is_coded() const { return bits < 16; }
  // Whether there is such a codec, and rows of k elements can be in it.
  bool is_for(int64_t k) const {
    return !is_coded() || (k % kCodedColumns == 0 && (bits == 4 || bits == 8) &&
                           (group == 32 || group == 64 || group == 128));
  }
  // Of a row of k elements.
  int64_t code_bytes(int64_t k) const { return k * bits / 8; }
  int64_t row_bytes(int64_t k) const {
    if (!is_coded()) return 2 * k;
    return (code_bytes(k) + k / group * 4 + 63) / 64 * 64;
  }
  friend bool operator==(WeightCodec, WeightCodec) = default;
};

inline constexpr int32_t kUnitWords = 32, kUnitBytes = 64;

inline constexpr uint32_t kZeroMask = 0x1ff;
constexpr uint32_t weight_param(float scale, int32_t zero) {
  const uint32_t rounded = std::bit_cast<uint32_t>(scale) + (kZeroMask + 1) / 2;
  return (rounded & ~kZeroMask) | static_cast<uint32_t>(zero);
}
constexpr float scale_of(uint32_t param) { return std::bit_cast<float>(param & ~kZeroMask); }
constexpr int32_t zero_of(uint32_t param) { return static_cast<int32_t>(param & kZeroMask); }

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
