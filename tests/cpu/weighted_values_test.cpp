// Weights times values at every level that this machine runs: after key_weights they are decode
// attention of the same list.
#include "cpu/weighted_values.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/attention_decode.h"
#include "cpu/codec.h"
#include "cpu/key_weights.h"
#include "engine/base/partial.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/codec.h"
#include "tests/oracle/key_weights.h"

namespace tiercel::cpu {
namespace {

using test::ListShape;

template <typename T>
using Memory = std::vector<T>;
using Listed = test::Listed<Memory>;

struct Partial {
  std::vector<float> max, sum, out;
  Partial(int64_t n_heads, int64_t d) : max(n_heads, 3.0f), sum(max), out(n_heads * d, 3.0f) {}
  PartialView view() { return {max.data(), sum.data(), out.data()}; }
  friend bool operator==(const Partial&, const Partial&) = default;
};

// Values as codes, and the plane that those decode to.
struct Coded {
  Coded(Queue& queue, const Listed& list, RowCodec codec)
      : size(row_bytes(codec, list.shape.d)), plane(list.values.size()) {
    const int64_t d = list.shape.d, n_tokens = list.plane() / d;
    head_stride = (n_tokens * size + 15) / 16 * 16;
    memory.resize(static_cast<size_t>(list.shape.n_kv_heads * head_stride / 16));
    EncodeParams p;
    p.rows = list.values.data();
    p.head_stride = list.plane();
    p.n_tokens = n_tokens;
    p.n_kv_heads = list.shape.n_kv_heads;
    p.width = d;
    p.codec = codec;
    p.codes = codes();
    p.code_head_stride = head_stride;
    encode_rows(queue, p);
    for (int64_t j = 0; j < list.shape.n_kv_heads; ++j) {
      for (int64_t t = 0; t < n_tokens; ++t) {
        const auto row = test::decoded_row(codes() + j * head_stride + t * size, codec, d);
        std::transform(row.begin(), row.end(), plane.begin() + j * list.plane() + t * d,
                       [](float x) { return bf16(x); });
      }
    }
  }
  std::byte* codes() { return reinterpret_cast<std::byte*>(memory.data()); }

  struct alignas(16) Unit {
    std::byte bytes[16];
  };
  int64_t size, head_stride = 0;
  std::vector<Unit> memory;
  std::vector<bf16> plane;
};

class WeightedValuesTest : public testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  std::mt19937_64 rng_{test::seed()};

  Partial multiply(Queue& queue, WeightedValuesParams p) {
    Partial result(p.n_heads, p.head_dim);
    std::vector<float> workspace(weighted_values_workspace_floats(p.n_heads, p.head_dim), NAN);
    p.out = result.view();
    p.workspace = workspace.data();
    weighted_values(queue, p);
    return result;
  }
};

TEST_P(WeightedValuesTest, AfterKeyWeightsTheyAreDecodeAttention) {
  const auto check = [&](const ListShape& shape) {
    Listed list(rng_, shape, 2.0f);
    key_weights(queue_, list.params());
    Partial result = multiply(queue_, list.value_params());
    const KvSource source = list.source();
    DecodeAttendParams p = list.attend_params(source);
    ASSERT_NO_FATAL_FAILURE(test::expect_attends(p, result.view()));

    Partial attended(p.n_heads, p.head_dim);
    std::vector<float> workspace(decode_workspace_floats(p.n_heads, p.head_dim));
    p.out = attended.view();
    p.workspace = workspace.data();
    attend_decode(queue_, p);
    for (int32_t h = 0; h < p.n_heads; ++h) {
      // The same scores, but for their order of bias and scale.
      if (attended.sum[h] == 0.0f) continue;
      EXPECT_NEAR(result.max[h], attended.max[h],
                  4 * test::kUnit * (std::abs(attended.max[h]) + 10));
      EXPECT_NEAR(result.sum[h], attended.sum[h],
                  attended.sum[h] * (1.01 * test::kWeightUnit + 0x1p-15));
    }
  };
  ASSERT_NO_FATAL_FAILURE(test::for_list_shapes(check));
  // Several ranges of threads, in several heads.
  ASSERT_NO_FATAL_FAILURE(check({2, 4, 128, 8, {400, 130}, test::Bias::kOfNamedChunks, -1.0f}));
  ASSERT_NO_FATAL_FAILURE(check({2, 8, 64, 1, {3000, 0}}));
  ASSERT_NO_FATAL_FAILURE(check({1, 1, 256, 16, {100}, test::Bias::kOfKeys}));
  ASSERT_NO_FATAL_FAILURE(
      check({1, 2, 64, 64, {600}}));  // ranges of more than the least number of tokens
}

// To the bit what a plane of the decoded values gives.
TEST_P(WeightedValuesTest, CodedValuesAreWhatTheyDecodeTo) {
  int32_t group = 0;
  for (const RowCodec codec : {RowCodec::kInt8, RowCodec::kInt4}) {
    for (const int32_t d : {32, 64, 96, 128, 256}) {
      for (const int32_t chunk : {1, 5, 8, 16, 64}) {
        group = group % 8 + 1;
        const int32_t n = 200 / chunk + 1;
        Listed list(rng_, {3, group, d, chunk, {n, 0, 3 * n}});
        key_weights(queue_, list.params());
        Coded coded(queue_, list, codec);
        WeightedValuesParams p = list.value_params();
        p.values = coded.plane.data();
        const Partial expected = multiply(queue_, p);
        p.values = nullptr;
        p.codec = codec;
        p.codes = coded.codes();
        p.code_head_stride = coded.head_stride;
        ASSERT_TRUE(multiply(queue_, p) == expected)
            << d << " channels, chunks of " << chunk << ", groups of " << group;
      }
    }
  }
}

TEST_P(WeightedValuesTest, AnyNumberOfThreadsMakesTheSameBits) {
  for (const int32_t n : {3, 130, 1000}) {
    Listed list(rng_, {3, 4, 128, 8, {n, 2, n / 2}});
    key_weights(queue_, list.params());
    Coded coded(queue_, list, RowCodec::kInt8);
    for (const bool is_coded : {false, true}) {
      WeightedValuesParams p = list.value_params();
      if (is_coded) {
        p.codec = RowCodec::kInt8;
        p.codes = coded.codes();
        p.code_head_stride = coded.head_stride;
      }
      const Partial reference = multiply(queue_, p);
      for (const int n_threads : {1, 3, 5}) {
        Queue queue({.n_threads = n_threads, .isa = GetParam()});
        EXPECT_TRUE(multiply(queue, p) == reference) << n_threads << " threads";
      }
    }
  }
}

// Maxima that differ by more than fp32 can weigh, in either order: the least ranges vanish.
TEST_P(WeightedValuesTest, MaximaFarApart) {
  for (const float step : {200.0f, -200.0f, 20.0f}) {
    Listed list(rng_, {1, 2, 64, 64, {20}});
    for (bf16& x : list.weights) x = bf16(1.0f);
    for (int32_t h = 0; h < 2; ++h) {
      for (int64_t range = 0; range < 20; ++range) {
        list.maxima[static_cast<size_t>(h * list.maximum_stride + range)] =
            step * static_cast<float>(range);
      }
    }
    Partial result = multiply(queue_, list.value_params());
    const int64_t top = step > 0 ? 19 : 0;
    const double above = std::exp2(-std::abs(double{step}));
    for (int32_t h = 0; h < 2; ++h) {
      EXPECT_EQ(result.max[h], step * static_cast<float>(top));
      EXPECT_NEAR(double{result.sum[h]}, 64 / (1 - above), 64 * 0x1p-20);
      for (int32_t i = 0; i < 64; ++i) {
        double sum = 0, size = 0;
        for (int64_t t = 0; t < 64; ++t) {
          const double v = static_cast<float>(
              list.values[static_cast<size_t>((list.ids[top] * 64 + t) * 64 + i)]);
          sum += v;
          size += std::abs(v);
        }
        // The next range adds as much as `above` of its own values, of at most 64 times 6.
        EXPECT_NEAR(double{result.out[h * 64 + i]}, sum, size * 64 * test::kUnit + 400 * above);
      }
    }
  }
}

// Where keys were NaN or infinite, sum and out are what attention makes of them.
TEST_P(WeightedValuesTest, NanAndInfinityStayWithTheirHead) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), inf, -inf}) {
    for (const int64_t at : {0, 40, 699}) {
      Listed list(rng_, {2, 2, 64, 4, {175, 175}});
      for (bf16& x : list.q) x = bf16(std::abs(static_cast<float>(x)) + 0.1f);
      for (size_t i = 0; i < list.ids.size(); ++i) list.ids[i] = static_cast<int32_t>(i % 175);
      list.keys[static_cast<size_t>(list.plane() + at * 64 + 5)] = bf16(poison);
      key_weights(queue_, list.params());
      const Partial result = multiply(queue_, list.value_params());
      for (int32_t h = 0; h < 4; ++h) {
        const bool nan = h >= 2 && poison != -inf;
        EXPECT_EQ(std::isnan(result.sum[h]), nan) << poison << " at " << at;
        for (int32_t i = 0; i < 64; ++i) ASSERT_EQ(std::isnan(result.out[h * 64 + i]), nan) << i;
      }
    }
  }
  Listed list(rng_, {1, 2, 64, 4, {5}});  // nothing but -inf is the neutral element
  list.shape.source_bias = -inf;
  key_weights(queue_, list.params());
  const Partial result = multiply(queue_, list.value_params());
  for (int32_t h = 0; h < 2; ++h) {
    EXPECT_EQ(result.max[h], kEmptyMax);
  }
}

INSTANTIATE_TEST_SUITE_P(EveryLevel, WeightedValuesTest, testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace tiercel::cpu
