// Random coded matrices (engine/base/weight_matrix.h) beside what they decode to: packed and decoded element by
// element, as the format is described.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "engine/base/weight_matrix.h"

namespace tiercel::test {

// Where element i of a row lies in its codes.
struct CodePlace {
  int64_t byte;
  int shift;
};
inline CodePlace place_of_code(int64_t i, int bits) {
  const int64_t in_unit = 512 / bits, unit = i / in_unit, word = i % in_unit % 32;
  const auto bit = static_cast<int>(i % in_unit / 32) * bits;
  return {unit * 64 + word * 2 + bit / 8, bit % 8};
}

// [n][k]. Memory<T>: a vector that the backend reads.
template <template <typename> typename Memory>
struct CodedMatrix {
  CodedMatrix(std::mt19937& random, int64_t n_rows, int64_t n_columns, WeightCodec codec_of_rows)
      : codec(codec_of_rows), n(n_rows), k(n_columns) {
    const int64_t row_bytes = codec.row_bytes(k);
    rows.resize(static_cast<size_t>(n * row_bytes / 2) + kAlignment);
    decoded.resize(static_cast<size_t>(n * k));
    std::vector<uint8_t> row(static_cast<size_t>(row_bytes), 0xab);
    for (int64_t r = 0; r < n; ++r) {
      std::memset(row.data(), 0, static_cast<size_t>(codec.code_bytes(k)));
      for (int64_t i = 0; i < k; ++i) {
        if (i % codec.group == 0) next_param(random, row, i);
        const int32_t code = next_code(random);
        const CodePlace at = place_of_code(i, codec.bits());
        row[static_cast<size_t>(at.byte)] |= static_cast<uint8_t>(code << at.shift);
        decoded[static_cast<size_t>(r * k + i)] = value_of(code, i);
      }
      std::memcpy(static_cast<void*>(aligned() + r * row_bytes / 2), row.data(), row.size());
    }
  }
  WeightMatrix matrix() { return {aligned(), codec}; }
  WeightMatrix plain() { return decoded.data(); }

  WeightCodec codec;
  int64_t n, k;
  Memory<bf16> decoded;

 private:
  static constexpr size_t kAlignment = 32;  // elements of 64 bytes
  bf16* aligned() {
    return reinterpret_cast<bf16*>((reinterpret_cast<uintptr_t>(rows.data()) + 63) / 64 * 64);
  }
  int32_t next_code(std::mt19937& random) const {
    const auto code = static_cast<int32_t>(random() >> (32 - codec.bits()));
    const bool is_nan = codec.code == WeightCode::kE4M3 && (code & 0x7f) == 0x7f;
    if (codec.code == WeightCode::kInt8Min) return code & 31;
    return is_nan ? code - 1 : code;
  }
  bf16 value_of(int32_t code, int64_t i) const {
    // Integers are exact in fp64: 9 bits times 15; times 8 and a factor of 11.
    if (has_minima(codec.code)) {
      return bf16(static_cast<float>(code * double{factor[0]} * first - double{factor[1]} * second));
    }
    if (codec.code == WeightCode::kInt8x16) {
      const int scale_of_sixteen = static_cast<int8_t>(i % 32 < 16 ? first : second);
      return bf16(static_cast<float>((code - 128) * double{factor[0]} * scale_of_sixteen));
    }
    if (codec.code != WeightCode::kE4M3) return bf16(static_cast<float>((code - zero) * double{scale}));
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double size = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    return bf16(static_cast<float>((code < 128 ? size : -size) * double{scale}));
  }
  void next_param(std::mt19937& random, std::vector<uint8_t>& row, int64_t i) {
    // One scale in sixteen is 0 (a group of zeros), one tiny.
    const uint32_t kind = random() % 16;
    if (has_minima(codec.code) || codec.code == WeightCode::kInt8x16) return next_factors(random, row, i, kind);
    const float size = kind == 0 ? 0.0f : kind == 1 ? 0x1p-20f : 0x1p-6f;
    scale = size * (1 + 0x1p-32f * static_cast<float>(random()));
    if (codec.code == WeightCode::kE4M3 && kind == 2) scale = -scale;
    uint32_t param = std::bit_cast<uint32_t>(scale);
    if (codec.code != WeightCode::kE4M3) {
      zero = static_cast<int32_t>(random() % ((1u << codec.bits()) + 1));
      param = weight_param(scale, zero);
      scale = scale_of(param);
    }
    std::memcpy(row.data() + codec.code_bytes(k) + i / codec.group * 4, &param, sizeof param);
  }

  // Of a group; of two groups with minima the first one draws what they share.
  void next_factors(std::mt19937& random, std::vector<uint8_t>& row, int64_t i, uint32_t kind) {
    const int64_t group = i / codec.group;
    const int which = has_minima(codec.code) ? static_cast<int>(group % 2) : 0;
    if (which == 0) {
      for (int f = 0; f < 2; ++f) {
        // Below 2^-14 an f16 is subnormal.
        const uint32_t exponent = kind == 1 ? 0 : 4 + random() % 8;
        halves[f] = static_cast<uint16_t>(kind == 0 ? 0 : exponent << 10 | (random() & 0x3ff));
        if (kind == 2) halves[f] |= 0x8000;
        factor[f] = f16_to_float(halves[f]);
      }
    }
    first = static_cast<uint8_t>(random());
    second = static_cast<uint8_t>(random());
    const uint32_t param = first | uint32_t{second} << 8 | uint32_t{halves[which]} << 16;
    std::memcpy(row.data() + codec.code_bytes(k) + group * 4, &param, sizeof param);
  }

  Memory<bf16> rows;
  float scale = 0;
  int32_t zero = 0;
  uint16_t halves[2] = {};
  float factor[2] = {};
  uint8_t first = 0, second = 0;
};

inline constexpr WeightCodec kCodecs[] = {
    {WeightCode::kInt4, 32}, {WeightCode::kInt4, 64}, {WeightCode::kInt4, 128},
    {WeightCode::kInt8, 32}, {WeightCode::kInt8, 64}, {WeightCode::kInt8, 128},
    {WeightCode::kE4M3, 32}, {WeightCode::kE4M3, 64}, {WeightCode::kE4M3, 128},
    {WeightCode::kInt4Min, 32}, {WeightCode::kInt8Min, 32}, {WeightCode::kInt8x16, 32}};

}  // namespace tiercel::test
