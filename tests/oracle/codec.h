// Coded rows by their definition (RowCodec in engine/base/ops/codes.h), one group at a time, and how far
// a decoded element may be from what was coded.
//
// The bound. With u = 2^-24: x - least and the quotient by step are rounded once each, so the code
// is within 1/2 + 2u q of the exact quotient q, q <= 2^bits - 1; decoding rounds once more. So
//   |decoded - x| <= step / 2 + 3u (x - least) + u |decoded| + 2^-149 (denormals),
// and where the range is so small that its step underflows to 0, the whole range.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/base/ops.h"

namespace tiercel::test {

// The neighbours of a finite bf16 value among all of them.
inline float next_bf16(float x, bool up) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if (x == 0) return std::bit_cast<float>(up ? 0x00010000u : 0x80010000u);
  return std::bit_cast<float>(up == (x > 0) ? u + 0x10000u : u - 0x10000u);
}
inline bool is_bf16(float x) { return (std::bit_cast<uint32_t>(x) & 0xffffu) == 0; }

struct CodedGroup {
  float step = 0, least = 0;
  std::vector<int> codes;
};

// Group g of a coded row.
inline CodedGroup read_group(const std::byte* row, RowCodec codec, int64_t width, int64_t g) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(row);
  const int64_t bits = code_bits(codec), size = code_group(width);
  const auto bf16_at = [&](int64_t at) {
    return static_cast<float>(
        bf16::from_bits(static_cast<uint16_t>(bytes[at] | bytes[at + 1] << 8)));
  };
  CodedGroup group{bf16_at(width * bits / 8 + g * 4), bf16_at(width * bits / 8 + g * 4 + 2), {}};
  for (int64_t i = g * size; i < (g + 1) * size; ++i) {
    group.codes.push_back(bits == 8 ? bytes[i] : bytes[i / 2] >> i % 2 * 4 & 15);
  }
  return group;
}

// Every element of a coded row, in fp32.
inline std::vector<float> decoded_row(const std::byte* row, RowCodec codec, int64_t width) {
  std::vector<float> x;
  for (int64_t g = 0; g < width / code_group(width); ++g) {
    const CodedGroup group = read_group(row, codec, width, g);
    for (const int code : group.codes) {
      x.push_back(std::fma(group.step, static_cast<float>(code), group.least));
    }
  }
  return x;
}

inline double coding_error(const CodedGroup& g, double x, double decoded) {
  constexpr double kUnit = 0x1p-24;
  const double least = static_cast<double>(g.least), step = static_cast<double>(g.step);
  return step / 2 + 3 * kUnit * (x - least) + kUnit * std::abs(decoded) + 0x1p-149 +
         (step == 0 ? 0x1p-149 * 256 : 0);
}

// What is wrong with a row as the code of x. Empty string: nothing.
inline std::string wrong_code(const float* x, const std::byte* row, RowCodec codec, int64_t width) {
  const int64_t size = code_group(width);
  const int most = (1 << code_bits(codec)) - 1;
  for (int64_t g = 0; g < width / size; ++g, x += size) {
    const CodedGroup group = read_group(row, codec, width, g);
    bool finite = true;
    float min = x[0], max = x[0];
    for (int64_t i = 0; i < size; ++i) {
      finite = finite && std::isfinite(x[i]);
      min = std::min(min, x[i]);
      max = std::max(max, x[i]);
    }
    // The largest bf16 that is not above min: truncated, and one step down if that went up.
    float least = std::bit_cast<float>(std::bit_cast<uint32_t>(min) & 0xffff0000u);
    if (finite && least > min) least = next_bf16(least, false);
    finite = finite && std::isfinite(least) && std::isfinite(max - least);
    if (!finite) {
      if (!std::isnan(group.step) || !std::isnan(group.least)) return "no NaN";
      for (const int code : group.codes) {
        if (code != 0) return "a code beside NaN";
      }
      continue;
    }
    if (group.least != least) return "least";
    if (std::signbit(group.least) && group.least == 0) return "a negative zero";
    const float quotient = (max - least) / static_cast<float>(most);
    if (std::signbit(group.step) || !(group.step >= quotient)) return "step too small";
    if (group.step > 0 && next_bf16(group.step, false) >= quotient) return "step too large";
    for (int64_t i = 0; i < size; ++i) {
      const int code = group.codes[static_cast<size_t>(i)];
      const float q = group.step == 0 ? 0 : std::nearbyint((x[i] - group.least) / group.step);
      if (code != std::min(static_cast<int>(q), most)) return "code";
      const double decoded =
          std::fma(static_cast<double>(group.step), code, static_cast<double>(group.least));
      const double error = std::abs(decoded - static_cast<double>(x[i]));
      if (error > coding_error(group, static_cast<double>(x[i]), decoded)) return "error";
    }
  }
  return "";
}

}  // namespace tiercel::test
