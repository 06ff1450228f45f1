// Elementwise ops against fp64: one body for every backend.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <random>
#include <vector>

#include "engine/base/ops.h"
#include "tests/oracle/coded_matrix.h"
#include "tests/oracle/elementwise.h"
#include "tests/oracle/linear.h"
#include "tests/oracle/random_rows.h"
#include "tests/seed.h"

namespace tiercel::test {

struct RopeShape {
  int64_t n_tokens, first_position;
  int32_t n_heads, n_kv_heads, head_dim;
  bool norm;
  int32_t n_still = 0;  // pairs that do not turn; a query's are multiplied by kStillScale
  QuerySpans spans = {};
  int32_t first_span = 0, n_views = 0;
};
inline constexpr float kStillScale = 0.7f;

// Projections to turn and append. Memory<T>: a vector that the backend reads and writes; Rope: its
// rotary table, view() of which it reads.
template <template <typename> typename Memory, typename Rope>
struct RopeProblem {
  RopeProblem(const RopeShape& c, std::mt19937& random)
      : shape(c),
        inv_freq(frequencies(c)),
        table(inv_freq, c.first_position + c.n_tokens, kStillScale),
        stride((c.n_tokens + 3) * c.head_dim + 16) {
    std::normal_distribution<float> normal(0, 4);
    const auto fill = [&](Memory<bf16>& values, int64_t n) {
      values.resize(static_cast<size_t>(n));
      for (bf16& value : values) value = bf16(normal(random));
    };
    const int64_t d = c.head_dim;
    fill(q, c.n_tokens * c.n_heads * d);
    fill(k, c.n_tokens * c.n_kv_heads * d);
    fill(v, c.n_tokens * c.n_kv_heads * d);
    fill(q_norm, d);
    fill(k_norm, d);
    turned = q;
    view_stride = c.n_tokens * c.n_heads * d + 8;
    views.assign(static_cast<size_t>(view_stride * c.n_views), kUntouched);
    keys.assign(static_cast<size_t>(stride * c.n_kv_heads), kUntouched);
    values = keys;
  }
  static std::vector<double> frequencies(const RopeShape& c) {
    std::vector<double> result = rope_frequencies(c.head_dim / 2, 1e4);
    std::fill_n(result.rbegin(), c.n_still, 0.0);
    return result;
  }
  RopeAppendParams params() {
    return {.q = turned.data(),
            .k = k.data(),
            .v = v.data(),
            .q_norm = shape.norm ? q_norm.data() : nullptr,
            .k_norm = shape.norm ? k_norm.data() : nullptr,
            .keys = keys.data(),
            .values = values.data(),
            .head_stride = stride,
            .first_row = 2,
            .first_position = shape.first_position,
            .n_tokens = shape.n_tokens,
            .n_heads = shape.n_heads,
            .n_kv_heads = shape.n_kv_heads,
            .head_dim = shape.head_dim,
            .eps = 1e-6f,
            .rope = table.view(),
            .spans = shape.spans,
            .first_span = shape.first_span,
            .n_views = shape.n_views,
            .views = views.data(),
            .view_stride = view_stride};
  }
  // Angles are good to 2e-7 (rope_test.cpp); norm, two products and a sum: some fp32 roundings.
  void expect_head(const bf16* got, const bf16* in, const bf16* norm, int64_t position,
                   double still_scale) const {
    std::vector<double> want =
        rotate_oracle(in, norm, 1e-6, shape.head_dim, position, inv_freq);
    for (size_t i = 0; i < want.size(); ++i) {
      if (inv_freq[i % inv_freq.size()] == 0) want[i] *= still_scale;
    }
    for (size_t i = 0; i < want.size(); ++i) {
      const size_t pair = (i + want.size() / 2) % want.size();
      const double size = std::abs(want[i]) + std::abs(want[pair]);
      ASSERT_NEAR(value_of(got[i]), want[i], kBf16Unit * std::abs(want[i]) + 1.5e-6 * size)
          << "d " << shape.head_dim << " position " << position << " channel " << i;
    }
  }

  // Of every token and head, and nothing beside them.
  void expect_right() const {
    const int64_t d = shape.head_dim;
    const bf16* q_weight = shape.norm ? q_norm.data() : nullptr;
    const bf16* k_weight = shape.norm ? k_norm.data() : nullptr;
    for (int64_t t = 0; t < shape.n_tokens; ++t) {
      const int64_t position = shape.first_position + t;
      for (int64_t h = 0; h < shape.n_heads; ++h) {
        const int64_t at = (t * shape.n_heads + h) * d;
        if (shape.n_views == 0) {
          expect_head(turned.data() + at, q.data() + at, q_weight, position, kStillScale);
          continue;
        }
        EXPECT_TRUE(std::equal(q.begin() + at, q.begin() + at + d, turned.begin() + at));
        for (int64_t i = 0; i < shape.n_views; ++i) {
          const int64_t limit = (shape.first_span + i + 1) * shape.spans.tokens + shape.spans.local;
          expect_head(views.data() + i * view_stride + at, q.data() + at, q_weight,
                      std::min(position, limit), kStillScale);
        }
      }
      for (int64_t j = 0; j < shape.n_kv_heads; ++j) {
        const int64_t at = (t * shape.n_kv_heads + j) * d, row = j * stride + (2 + t) * d;
        expect_head(keys.data() + row, k.data() + at, k_weight, position, 1);
        EXPECT_TRUE(std::equal(v.begin() + at, v.begin() + at + d, values.begin() + row));
      }
    }
    for (const Memory<bf16>* plane : {&keys, &values}) {
      EXPECT_EQ((*plane)[static_cast<size_t>(2 * d - 1)], kUntouched);
      EXPECT_EQ((*plane)[static_cast<size_t>((2 + shape.n_tokens) * d)], kUntouched);
    }
  }

  static inline const bf16 kUntouched{123.0f};
  RopeShape shape;
  std::vector<double> inv_freq;
  Rope table;
  int64_t stride, view_stride = 0;
  Memory<bf16> q, k, v, q_norm, k_norm, turned, views, keys, values;
};

template <template <typename> typename Memory>
struct ElementwiseUnderTest {
  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  static constexpr float kInf = std::numeric_limits<float>::infinity();

  // All wait.
  std::function<void(const EmbedParams&)> embed;
  std::function<void(const NormParams&)> rms_norm;
  std::function<void(const SwigluParams&)> swiglu;
  std::function<void(const LogprobParams&)> token_logprobs;

  static Memory<bf16> poisoned(int64_t n) {
    return Memory<bf16>(static_cast<size_t>(n), bf16(kNan));
  }
  static std::mt19937 engine() {
    return std::mt19937(static_cast<std::mt19937::result_type>(seed()));
  }

  // A token that there is none of gets NaN.
  void expect_embed(std::initializer_list<int64_t> widths, const Memory<int32_t>& ids) const {
    std::mt19937 random = engine();
    for (const int64_t width : widths) {
      for (int64_t offset : {0, 1}) {  // a table that is not aligned to 16 bytes
        const int64_t vocab = 37;
        const Memory<bf16> table = random_rows<Memory>(random, vocab * width + offset);
        const auto n_tokens = static_cast<int64_t>(ids.size());
        Memory<bf16> out(static_cast<size_t>(n_tokens * width), bf16(5.0f));
        embed({.ids = ids.data(),
               .table = table.data() + offset,
               .out = out.data(),
               .n_tokens = n_tokens,
               .vocab = vocab,
               .width = width});
        for (int64_t t = 0; t < n_tokens; ++t) {
          const int64_t id = ids[static_cast<size_t>(t)];
          for (int64_t i = 0; i < width; ++i) {
            const bf16 got = out[static_cast<size_t>(t * width + i)];
            if (id < 0 || id >= vocab) {
              EXPECT_TRUE(std::isnan(value_of(got))) << "token " << t;
            } else {
              EXPECT_EQ(got, table[static_cast<size_t>(id * width + i + offset)]);
            }
          }
        }
      }
    }
  }

  // Rows of codes are decoded.
  void expect_coded_embed() const {
    std::mt19937 random = engine();
    for (const WeightCodec codec : kCodecs) {
      for (const int64_t width : {128, 1408}) {
        const int64_t vocab = 21;
        CodedMatrix<Memory> table(random, vocab, width, codec);
        const Memory<int32_t> ids = {0, 20, 7, 7, 13};
        const auto n_tokens = static_cast<int64_t>(ids.size());
        Memory<bf16> out = poisoned(n_tokens * width);
        embed({.ids = ids.data(),
               .table = table.matrix(),
               .out = out.data(),
               .n_tokens = n_tokens,
               .vocab = vocab,
               .width = width});
        for (int64_t t = 0; t < n_tokens; ++t) {
          for (int64_t i = 0; i < width; ++i) {
            const auto want = static_cast<size_t>(ids[static_cast<size_t>(t)] * width + i);
            ASSERT_EQ(static_cast<float>(out[static_cast<size_t>(t * width + i)]),
                      static_cast<float>(table.decoded[want]))
                << name_of(codec.code) << ", groups of " << codec.group << ", token " << t << " at " << i;
          }
        }
      }
    }
  }

  // fp32 inside: the sum of squares of `width` terms and four roundings, then one of bf16.
  void expect_rms_norm(std::initializer_list<int64_t> widths) const {
    std::mt19937 random = engine();
    for (const int64_t width : widths) {
      const int64_t n_rows = 2000 / width + 2;
      Memory<bf16> x = random_rows<Memory>(random, n_rows * width, 3);
      Memory<bf16> out = poisoned(n_rows * width);
      const Memory<bf16> weight = random_rows<Memory>(random, width);
      const NormParams p{.x = x.data(),
                         .weight = weight.data(),
                         .out = out.data(),
                         .n_rows = n_rows,
                         .width = width,
                         .eps = 1e-5f};
      rms_norm(p);
      const double tolerance = kBf16Unit + (std::sqrt(static_cast<double>(width)) + 8) * 0x1p-23;
      std::vector<double> normed;
      for (int64_t row = 0; row < n_rows; ++row) {
        const double scale = norm_scale(x.data() + row * width, width, 1e-5f);
        for (int64_t i = 0; i < width; ++i) {
          const auto at = static_cast<size_t>(row * width + i);
          normed.push_back(value_of(x[at]) * scale * value_of(weight[static_cast<size_t>(i)]));
        }
      }
      for (size_t at = 0; at < normed.size(); ++at) {
        const double want = normed[at];
        ASSERT_NEAR(value_of(out[at]), want, tolerance * std::abs(want) + 1e-38) << width;
      }
      // Added to what is there: one rounding, of the sum.
      const Memory<bf16> before = random_rows<Memory>(random, n_rows * width, 3);
      Memory<bf16> sum = before;
      NormParams adding = p;
      adding.out = sum.data();
      adding.added = sum.data();
      rms_norm(adding);
      for (size_t at = 0; at < normed.size(); ++at) {
        const double want = value_of(before[at]) + normed[at];
        ASSERT_NEAR(value_of(sum[at]), want,
                    (kBf16Unit + 0x1p-22) * std::abs(want) +
                        (tolerance - kBf16Unit) * std::abs(normed[at]) + 1e-38)
            << width;
      }
      NormParams in_place = p;
      in_place.out = x.data();
      rms_norm(in_place);
      EXPECT_EQ(x, out) << width;
    }
  }

  void expect_nan_stays_in_its_row(std::initializer_list<int64_t> widths) const {
    std::mt19937 random = engine();
    for (const int64_t width : widths) {
      Memory<bf16> x = random_rows<Memory>(random, 3 * width);
      Memory<bf16> out(x.size());
      const Memory<bf16> weight = random_rows<Memory>(random, width);
      x[static_cast<size_t>(2 * width - 1)] = bf16(kNan);
      rms_norm({.x = x.data(),
                .weight = weight.data(),
                .out = out.data(),
                .n_rows = 3,
                .width = width,
                .eps = 1e-6f});
      for (size_t i = 0; i < out.size(); ++i) {
        EXPECT_EQ(std::isnan(value_of(out[i])), static_cast<int64_t>(i) / width == 1) << i;
      }
    }
  }

  // The exponential is good to 2 ulp and the rounding of its argument is made good, quotient and
  // product to an ulp each; where exp(-g) leaves the normal numbers the result may be 0.
  void expect_swiglu(int64_t largest) const {
    std::mt19937 random = engine();
    for (const int64_t n :
         {int64_t{1}, int64_t{15}, int64_t{16}, int64_t{17}, int64_t{1000}, largest}) {
      for (int64_t offset : {0, 3}) {
        Memory<bf16> gate = random_rows<Memory>(random, n + offset, 20);
        Memory<bf16> out = poisoned(n);
        const Memory<bf16> up = random_rows<Memory>(random, n);
        bf16* gate_data = gate.data() + offset;
        gate_data[0] = bf16(n % 2 == 0 ? -300.0f : 300.0f);
        swiglu({.gate = gate_data, .up = up.data(), .out = out.data(), .n = n});
        for (int64_t i = 0; i < n; ++i) {
          const auto at = static_cast<size_t>(i);
          const double want = silu(value_of(gate_data[i])) * value_of(up[at]);
          ASSERT_NEAR(value_of(out[at]), want, (kBf16Unit + 0x1p-20) * std::abs(want) + 4e-36)
              << value_of(gate_data[i]);
        }
        swiglu({.gate = gate_data, .up = up.data(), .out = gate_data, .n = n});
        for (int64_t i = 0; i < n; ++i) EXPECT_EQ(gate_data[i], out[static_cast<size_t>(i)]);
      }
    }
  }

  void expect_swiglu_of_special_values() const {
    const Memory<bf16> gate = {bf16(kNan),   bf16(1.0f),  bf16(kInf),  bf16(0.0f),
                               bf16(-90.0f), bf16(88.5f), bf16(-87.5f)};
    const Memory<bf16> up = {bf16(1.0f), bf16(kNan), bf16(2.0f), bf16(3.0f),
                             bf16(1.0f), bf16(1.0f), bf16(1.0f)};
    Memory<bf16> out = poisoned(7);
    swiglu({.gate = gate.data(), .up = up.data(), .out = out.data(), .n = 7});
    EXPECT_TRUE(std::isnan(value_of(out[0])) && std::isnan(value_of(out[1])));
    EXPECT_EQ(value_of(out[2]), static_cast<double>(kInf));
    EXPECT_EQ(value_of(out[3]), 0.0);
    EXPECT_LE(std::abs(value_of(out[4])), 1e-35);
    EXPECT_EQ(value_of(out[5]), 88.5);
    EXPECT_LE(std::abs(value_of(out[6])), 1e-35);
  }

  // fp32 exponentials of 2 ulp in an fp64 sum: 3e-7 of the logarithm, absolute, and the rounding of
  // x - max.
  void expect_token_logprobs() const {
    std::mt19937 random = engine();
    std::normal_distribution<float> normal(0, 4);
    for (int64_t vocab : {1, 5, 16, 31, 2048, 4099, 151936}) {
      const int64_t n_rows = vocab > 10000 ? 2 : 9;
      Memory<float> logits(static_cast<size_t>(n_rows * vocab));
      for (float& x : logits) x = normal(random);
      if (vocab == 31) logits[3] = -kInf;
      if (vocab == 2048) std::fill_n(logits.begin(), 2000, -kInf);
      Memory<int32_t> targets;
      for (int64_t row = 0; row < n_rows; ++row) {
        targets.push_back(static_cast<int32_t>((row * 7919 + 2040) % vocab));
      }
      Memory<double> got(static_cast<size_t>(n_rows), -1.0), again = got;
      LogprobParams p{.logits = logits.data(),
                      .targets = targets.data(),
                      .logprobs = got.data(),
                      .n_rows = n_rows,
                      .vocab = vocab};
      token_logprobs(p);
      p.logprobs = again.data();
      token_logprobs(p);
      EXPECT_EQ(got, again);
      for (int64_t row = 0; row < n_rows; ++row) {
        const auto at = static_cast<size_t>(row);
        const double want = logprob_oracle(logits.data() + row * vocab, vocab, targets[at]);
        EXPECT_NEAR(got[at], want, 1e-6) << vocab;
      }
    }
  }
};

}  // namespace tiercel::test
