#include "engine/weight_codes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "engine/base/check.h"

namespace tiercel {
namespace {

struct Range {
  float low, high;  // low <= 0 <= high
};

struct GroupScale {
  float scale;
  float inverse;
  float zero;
  uint32_t param() const { return weight_param(scale, static_cast<int32_t>(zero)); }
};

// To the nearest integer, ties to even, of less than 2^22: compilers make vectors of it.
float nearest(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

// Rounded as a param holds it. Groups so small that codes would be multiplied by infinity are 0.
GroupScale with_scale(float scale) {
  scale = scale_of(weight_param(scale, 0));
  if (scale < 0x1p-120f) return {0, 0, 0};
  return {scale, 1 / scale, 0};
}

GroupScale symmetric(Range range, int bits) {
  const float levels = static_cast<float>((1 << (bits - 1)) - 1);
  GroupScale group = with_scale(std::max(-range.low, range.high) / levels);
  group.zero = levels + 1;
  return group;
}

GroupScale with_zero(Range range, int bits) {
  const float last = static_cast<float>((1 << bits) - 1);
  GroupScale group = with_scale((range.high - range.low) / last);
  group.zero = std::clamp(nearest(-range.low * group.inverse), 0.0f, last);
  return group;
}

float code_of(float value, const GroupScale& group, float last) {
  return std::min(std::max(nearest(value * group.inverse) + group.zero, 0.0f), last);
}

float squared_error(const float* values, int32_t n, const GroupScale& group, float last) {
  // Eight sums, as additions keep their order.
  float sums[8] = {};
  for (int32_t i = 0; i < n; i += 8) {
    for (int32_t j = 0; j < 8; ++j) {
      const float error = (code_of(values[i + j], group, last) - group.zero) * group.scale - values[i + j];
      sums[j] += error * error;
    }
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

GroupScale best_with_zero(const float* values, int32_t n, Range range, int bits) {
  const float last = static_cast<float>((1 << bits) - 1);
  GroupScale best = with_zero(range, bits);
  float least = squared_error(values, n, best, last);
  for (const float share : {0.95f, 0.9f, 0.85f, 0.8f}) {
    const GroupScale narrowed = with_zero({share * range.low, share * range.high}, bits);
    const float error = squared_error(values, n, narrowed, last);
    if (error >= least) continue;
    least = error;
    best = narrowed;
  }
  return best;
}

}  // namespace

void pack_row(std::span<const uint8_t> codes, std::span<const uint32_t> params, WeightCodec codec, std::byte* out) {
  const auto k = static_cast<int64_t>(codes.size());
  CHECK(k % kCodedColumns == 0 && std::ssize(params) == k / codec.group, "{} columns, {} params", k, params.size());
  const int64_t code_bytes = codec.code_bytes(k), param_bytes = static_cast<int64_t>(params.size_bytes());
  const int per_word = 16 / codec.bits();
  const uint8_t* source = codes.data();
  for (std::byte* unit = out; unit < out + code_bytes; unit += kUnitBytes, source += per_word * kUnitWords) {
    std::array<uint16_t, kUnitWords> words{};
    for (int s = 0; s < per_word; ++s) {
      for (size_t j = 0; j < words.size(); ++j) {
        const uint8_t code = source[static_cast<size_t>(s) * words.size() + j];
        words[j] = static_cast<uint16_t>(words[j] | code << (s * codec.bits()));
      }
    }
    std::memcpy(unit, words.data(), sizeof words);
  }
  std::memcpy(out + code_bytes, params.data(), params.size_bytes());
  const int64_t used = code_bytes + param_bytes;
  std::memset(out + used, 0, static_cast<size_t>(codec.row_bytes(k) - used));
}

void quantise_row(std::span<const bf16> row, WeightCodec codec, std::byte* out) {
  CHECK(codec.code == WeightCode::kInt8 || codec.code == WeightCode::kInt4, "{}", name_of(codec.code));
  const float last = static_cast<float>((1 << codec.bits()) - 1);
  std::vector<uint8_t> codes(row.size());
  std::vector<uint32_t> params;
  std::vector<float> values(static_cast<size_t>(codec.group));
  for (size_t first = 0; first < row.size(); first += values.size()) {
    Range range{0, 0};
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(row[first + i]);
      range.low = std::min(range.low, values[i]);
      range.high = std::max(range.high, values[i]);
    }
    const GroupScale group = codec.code == WeightCode::kInt8 ? symmetric(range, codec.bits())
                                             : best_with_zero(values.data(), codec.group, range, codec.bits());
    params.push_back(group.param());
    for (size_t i = 0; i < values.size(); ++i) {
      codes[first + i] = static_cast<uint8_t>(code_of(values[i], group, last));
    }
  }
  pack_row(codes, params, codec, out);
}

}  // namespace tiercel
