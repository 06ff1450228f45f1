// Packing and making coded rows, element by element.
#include "engine/weight_codes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tests/oracle/coded_matrix.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

struct Row {
  std::vector<std::byte> bytes;
  WeightCodec codec;
  int64_t k;

  int32_t code(int64_t i) const {
    const test::CodePlace at = test::place_of_code(i, codec.bits());
    return (std::to_integer<int32_t>(bytes[static_cast<size_t>(at.byte)]) >> at.shift) & ((1 << codec.bits()) - 1);
  }
  uint32_t param(int64_t i) const {
    uint32_t param;
    std::memcpy(&param, bytes.data() + codec.code_bytes(k) + i / codec.group * 4, sizeof param);
    return param;
  }
  double value(int64_t i) const { return (code(i) - zero_of(param(i))) * double{scale_of(param(i))}; }
};

Row quantised(const std::vector<bf16>& values, WeightCodec codec) {
  const auto k = std::ssize(values);
  Row row{std::vector<std::byte>(static_cast<size_t>(codec.row_bytes(k)), std::byte{0x5a}), codec, k};
  quantise_row(values, codec, row.bytes.data());
  return row;
}

TEST(WeightCodes, PackedCodesLieWhereTheFormatSays) {
  std::mt19937 random(static_cast<std::mt19937::result_type>(test::seed()));
  for (const WeightCodec codec : test::kCodecs) {
    for (const int64_t k : {128, 384, 1280}) {
      std::vector<uint8_t> codes(static_cast<size_t>(k));
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random() >> (32 - codec.bits()));
      std::vector<uint32_t> params(static_cast<size_t>(k / codec.group));
      for (uint32_t& param : params) param = static_cast<uint32_t>(random());
      Row row{std::vector<std::byte>(static_cast<size_t>(codec.row_bytes(k)), std::byte{0x5a}), codec, k};
      pack_row(codes, params, codec, row.bytes.data());
      for (int64_t i = 0; i < k; ++i) {
        ASSERT_EQ(row.code(i), codes[static_cast<size_t>(i)]) << name_of(codec.code) << ", at " << i;
        ASSERT_EQ(row.param(i), params[static_cast<size_t>(i / codec.group)]);
      }
      EXPECT_EQ(codec.row_bytes(k) % 64, 0);
      for (size_t at = static_cast<size_t>(codec.code_bytes(k)) + 4 * params.size(); at < row.bytes.size(); ++at) {
        EXPECT_EQ(row.bytes[at], std::byte{0});
      }
    }
  }
}

// Within half a step of the group's range; in four bits narrower ranges are taken where they are better on the whole.
TEST(WeightCodes, RoundsToTheNearestCode) {
  std::mt19937 random(static_cast<std::mt19937::result_type>(test::seed()));
  std::normal_distribution<float> normal;
  for (const WeightCodec codec : {kInt8Weights, kInt4Weights, WeightCodec{WeightCode::kInt4, 128}, WeightCodec{WeightCode::kInt8, 32}}) {
    const int64_t k = 2560;
    std::vector<bf16> values;
    for (int64_t i = 0; i < k; ++i) values.emplace_back(normal(random) * (i / codec.group % 3 == 0 ? 30.0f : 0.01f));
    const Row row = quantised(values, codec);
    for (int64_t first = 0; first < k; first += codec.group) {
      double low = 0, high = 0, error = 0, plain_error = 0;
      for (int64_t i = first; i < first + codec.group; ++i) {
        const double value = static_cast<double>(static_cast<float>(values[static_cast<size_t>(i)]));
        low = std::min(low, value);
        high = std::max(high, value);
      }
      const double last = (1 << codec.bits()) - 1;
      const double step = codec.code == WeightCode::kInt8 ? std::max(-low, high) / 127 : (high - low) / last;
      const double zero = codec.code == WeightCode::kInt8 ? 128 : std::nearbyint(-low / step);
      for (int64_t i = first; i < first + codec.group; ++i) {
        const double value = static_cast<double>(static_cast<float>(values[static_cast<size_t>(i)]));
        const double plain = (std::clamp(std::nearbyint(value / step) + zero, 0.0, last) - zero) * step - value;
        error += std::pow(row.value(i) - value, 2);
        plain_error += plain * plain;
        if (codec.code == WeightCode::kInt8) {
          EXPECT_LE(std::abs(row.value(i) - value), step * 0.502) << i;
        }
      }
      EXPECT_LE(error, plain_error * 1.01 + 1e-30);
      EXPECT_GT(error, 0);
    }
  }
}

TEST(WeightCodes, OneValueAndNone) {
  for (const WeightCodec codec : {kInt8Weights, kInt4Weights}) {
    for (const float only : {0.0f, 1.0f, -3.0f, 1e30f, 1e-38f}) {
      const std::vector<bf16> values(128, bf16(only));
      const Row row = quantised(values, codec);
      const double want = static_cast<double>(static_cast<float>(bf16(only)));
      for (int64_t i = 0; i < 128; ++i) {
        EXPECT_NEAR(row.value(i), want, std::abs(want) * 1e-4 + 1e-34) << name_of(codec.code) << " of " << only;
      }
    }
  }
}

}  // namespace
}  // namespace tiercel
