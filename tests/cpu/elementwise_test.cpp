// Elementwise ops against fp64 on every level of this machine.
#include "cpu/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "engine/base/rope.h"
#include "tests/cpu/tested_isas.h"
#include "tests/oracle/elementwise.h"
#include "tests/seed.h"

namespace tiercel::cpu {
namespace {

using test::value_of;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kBf16Unit = 0x1p-8;  // half an ulp, relative

class Elementwise : public ::testing::TestWithParam<Isa> {
 protected:
  std::vector<bf16> random_bf16(int64_t n, float sigma = 1) {
    std::normal_distribution<float> normal(0, sigma);
    std::vector<bf16> values(static_cast<size_t>(n));
    for (bf16& value : values) value = bf16(normal(random_));
    return values;
  }
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  std::mt19937 random_{static_cast<std::mt19937::result_type>(test::seed())};
};
INSTANTIATE_TEST_SUITE_P(Levels, Elementwise, ::testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(Elementwise, EmbedCopiesRows) {
  const int64_t vocab = 37, width = 19;
  const std::vector<bf16> table = random_bf16(vocab * width);
  const std::vector<int32_t> ids = {0, 36, 5, 5, 12};
  std::vector<bf16> out(ids.size() * static_cast<size_t>(width));
  embed(queue_, {.ids = ids.data(),
                 .table = table.data(),
                 .out = out.data(),
                 .n_tokens = static_cast<int64_t>(ids.size()),
                 .vocab = vocab,
                 .width = width});
  for (size_t t = 0; t < ids.size(); ++t) {
    for (size_t i = 0; i < 19; ++i) {
      EXPECT_EQ(out[t * 19 + i], table[static_cast<size_t>(ids[t]) * 19 + i]);
    }
  }
}

// fp32 inside: the sum of squares of `width` terms and four roundings, then one of bf16.
TEST_P(Elementwise, RmsNorm) {
  for (int64_t width : {1, 7, 16, 33, 64, 100, 256, 1000}) {
    const int64_t n_rows = 2000 / width + 1;
    std::vector<bf16> x = random_bf16(n_rows * width, 3), out(x.size());
    const std::vector<bf16> weight = random_bf16(width);
    const NormParams p{.x = x.data(),
                       .weight = weight.data(),
                       .out = out.data(),
                       .n_rows = n_rows,
                       .width = width,
                       .eps = 1e-5f};
    rms_norm(queue_, p);
    const double tolerance = kBf16Unit + (std::sqrt(static_cast<double>(width)) + 8) * 0x1p-23;
    for (int64_t row = 0; row < n_rows; ++row) {
      const double scale = test::norm_scale(x.data() + row * width, width, 1e-5f);
      for (int64_t i = 0; i < width; ++i) {
        const size_t at = static_cast<size_t>(row * width + i);
        const double want = value_of(x[at]) * scale * value_of(weight[static_cast<size_t>(i)]);
        ASSERT_NEAR(value_of(out[at]), want, tolerance * std::abs(want) + 1e-38) << width;
      }
    }
    NormParams in_place = p;
    in_place.out = x.data();
    rms_norm(queue_, in_place);
    EXPECT_EQ(x, out);
  }
}

TEST_P(Elementwise, RmsNormKeepsNanInItsRow) {
  std::vector<bf16> x = random_bf16(3 * 40), out(x.size());
  const std::vector<bf16> weight = random_bf16(40);
  x[40 + 39] = bf16(kNan);
  rms_norm(queue_, {.x = x.data(),
                    .weight = weight.data(),
                    .out = out.data(),
                    .n_rows = 3,
                    .width = 40,
                    .eps = 1e-6f});
  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_EQ(std::isnan(value_of(out[i])), i / 40 == 1) << i;
  }
}

// The exponential is good to 2 ulp, quotient and product to half each; where exp(-g) leaves the
// normal numbers the level may clamp it, which moves the result by less than 1e-36.
TEST_P(Elementwise, Swiglu) {
  for (int64_t n : {1, 15, 16, 17, 1000, 200001}) {
    std::vector<bf16> gate = random_bf16(n, 20), out(gate.size());
    const std::vector<bf16> up = random_bf16(n);
    gate[0] = bf16(n % 2 == 0 ? -300.0f : 300.0f);
    swiglu(queue_, {.gate = gate.data(), .up = up.data(), .out = out.data(), .n = n});
    for (size_t i = 0; i < gate.size(); ++i) {
      const double want = test::silu(value_of(gate[i])) * value_of(up[i]);
      ASSERT_NEAR(value_of(out[i]), want, (kBf16Unit + 0x1p-20) * std::abs(want) + 4e-36)
          << value_of(gate[i]);
    }
    swiglu(queue_, {.gate = gate.data(), .up = up.data(), .out = gate.data(), .n = n});
    EXPECT_EQ(gate, out);
  }
}

TEST_P(Elementwise, SwigluOfSpecialValues) {
  const std::vector<bf16> gate = {bf16(kNan), bf16(1.0f), bf16(kInf), bf16(0.0f), bf16(-90.0f)};
  const std::vector<bf16> up = {bf16(1.0f), bf16(kNan), bf16(2.0f), bf16(3.0f), bf16(1.0f)};
  std::vector<bf16> out(5);
  swiglu(queue_, {.gate = gate.data(), .up = up.data(), .out = out.data(), .n = 5});
  EXPECT_TRUE(std::isnan(value_of(out[0])) && std::isnan(value_of(out[1])));
  EXPECT_EQ(value_of(out[2]), static_cast<double>(kInf));
  EXPECT_EQ(value_of(out[3]), 0.0);
  EXPECT_LE(std::abs(value_of(out[4])), 1e-35);
}

struct RopeCase {
  int64_t n_tokens, first_position;
  int32_t n_heads, n_kv_heads, head_dim;
  bool norm;
};

TEST_P(Elementwise, RopeAppend) {
  for (const RopeCase& c :
       {RopeCase{1, 0, 2, 1, 64, false}, RopeCase{9, 1020, 8, 4, 64, false},
        RopeCase{3, 4000000, 4, 2, 128, true}, RopeCase{5, 77, 3, 1, 80, true},
        RopeCase{2, 2047, 2, 2, 10, true}, RopeCase{40, 500, 7, 1, 96, false}}) {
    const std::vector<double> inv_freq = test::rope_frequencies(c.head_dim / 2, 1e4);
    const RopeTable table(inv_freq, c.first_position + c.n_tokens);
    const int64_t d = c.head_dim, capacity = c.n_tokens + 3, stride = capacity * d + 16;
    const std::vector<bf16> q = random_bf16(c.n_tokens * c.n_heads * d, 4);
    const std::vector<bf16> k = random_bf16(c.n_tokens * c.n_kv_heads * d, 4);
    const std::vector<bf16> v = random_bf16(c.n_tokens * c.n_kv_heads * d);
    const std::vector<bf16> q_norm = random_bf16(d), k_norm = random_bf16(d);
    std::vector<bf16> turned = q;
    const bf16 untouched(123.0f);
    std::vector<bf16> keys(static_cast<size_t>(stride * c.n_kv_heads), untouched), values = keys;
    rope_append(queue_, {.q = turned.data(),
                         .k = k.data(),
                         .v = v.data(),
                         .q_norm = c.norm ? q_norm.data() : nullptr,
                         .k_norm = c.norm ? k_norm.data() : nullptr,
                         .keys = keys.data(),
                         .values = values.data(),
                         .head_stride = stride,
                         .first_row = 2,
                         .first_position = c.first_position,
                         .n_tokens = c.n_tokens,
                         .n_heads = c.n_heads,
                         .n_kv_heads = c.n_kv_heads,
                         .head_dim = c.head_dim,
                         .eps = 1e-6f,
                         .rope = table.view()});
    // Angles are good to 2e-7 (rope_test.cpp); norm, two products and a sum: some fp32 roundings.
    const auto expect_head = [&](const bf16* got, const bf16* in, const bf16* norm, int64_t t) {
      const std::vector<double> want =
          test::rotate_oracle(in, norm, 1e-6, d, c.first_position + t, inv_freq);
      for (size_t i = 0; i < want.size(); ++i) {
        const size_t pair = (i + want.size() / 2) % want.size();
        const double size = std::abs(want[i]) + std::abs(want[pair]);
        ASSERT_NEAR(value_of(got[i]), want[i], kBf16Unit * std::abs(want[i]) + 1.5e-6 * size)
            << "d " << d << " token " << t << " channel " << i;
      }
    };
    for (int64_t t = 0; t < c.n_tokens; ++t) {
      for (int64_t h = 0; h < c.n_heads; ++h) {
        const int64_t at = (t * c.n_heads + h) * d;
        expect_head(turned.data() + at, q.data() + at, c.norm ? q_norm.data() : nullptr, t);
      }
      for (int64_t j = 0; j < c.n_kv_heads; ++j) {
        const int64_t at = (t * c.n_kv_heads + j) * d, row = j * stride + (2 + t) * d;
        expect_head(keys.data() + row, k.data() + at, c.norm ? k_norm.data() : nullptr, t);
        EXPECT_TRUE(std::equal(v.begin() + at, v.begin() + at + d, values.begin() + row));
      }
    }
    EXPECT_EQ(keys[static_cast<size_t>(2 * d - 1)], untouched);
    EXPECT_EQ(keys[static_cast<size_t>((2 + c.n_tokens) * d)], untouched);
    EXPECT_EQ(values[static_cast<size_t>((2 + c.n_tokens) * d)], untouched);
  }
}

// fp32 exponentials of 2 ulp in an fp64 sum: 3e-7 of the logarithm, absolute, and the rounding of
// x - max.
TEST_P(Elementwise, TokenLogprobs) {
  std::normal_distribution<float> normal(0, 4);
  for (int64_t vocab : {1, 5, 16, 31, 2048, 151936}) {
    const int64_t n_rows = vocab > 10000 ? 2 : 9;
    std::vector<float> logits(static_cast<size_t>(n_rows * vocab));
    for (float& x : logits) x = normal(random_);
    if (vocab == 31) logits[3] = -kInf;
    std::vector<int32_t> targets;
    for (int64_t row = 0; row < n_rows; ++row) {
      targets.push_back(static_cast<int32_t>((row * 7919) % vocab));
    }
    std::vector<double> got(static_cast<size_t>(n_rows));
    token_logprobs(queue_, {.logits = logits.data(),
                            .targets = targets.data(),
                            .logprobs = got.data(),
                            .n_rows = n_rows,
                            .vocab = vocab});
    for (int64_t row = 0; row < n_rows; ++row) {
      const size_t at = static_cast<size_t>(row);
      const double want = test::logprob_oracle(logits.data() + row * vocab, vocab, targets[at]);
      EXPECT_NEAR(got[at], want, 1e-6) << vocab;
    }
  }
}

TEST_P(Elementwise, TokenLogprobsOfNan) {
  std::vector<float> logits(40, 1.0f);
  logits[33] = kNan;
  const int32_t target = 2;
  double got = 0;
  token_logprobs(
      queue_,
      {.logits = logits.data(), .targets = &target, .logprobs = &got, .n_rows = 1, .vocab = 40});
  EXPECT_TRUE(std::isnan(got));
}

}  // namespace
}  // namespace tiercel::cpu
