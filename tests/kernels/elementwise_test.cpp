// The GPU's elementwise ops against fp64, and RoPE against the CPU's to the bit.
#include "kernels/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "cpu/elementwise.h"
#include "engine/base/rope.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/elementwise.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::DeviceVector;
using test::value_of;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kBf16Unit = 0x1p-8;  // half an ulp, relative

class KernelElementwise : public ::testing::Test {
 protected:
  DeviceVector<bf16> random_bf16(int64_t n, float sigma = 1) {
    std::normal_distribution<float> normal(0, sigma);
    DeviceVector<bf16> values(static_cast<size_t>(n));
    for (bf16& value : values) value = bf16(normal(random_));
    return values;
  }
  static DeviceVector<bf16> poisoned(int64_t n) {
    return DeviceVector<bf16>(static_cast<size_t>(n), bf16(kNan));
  }
  cuda::Stream& stream_ = test::stream();
  std::mt19937 random_{static_cast<std::mt19937::result_type>(test::seed())};
};

TEST_F(KernelElementwise, EmbedCopiesRows) {
  for (int64_t width : {19, 64, 8, 2056}) {
    for (int64_t offset : {0, 1}) {  // a table that is not aligned to 16 bytes
      const int64_t vocab = 37;
      const DeviceVector<bf16> table = random_bf16(vocab * width + offset);
      const DeviceVector<int32_t> ids = {0, 36, 5, 5, 12, -1, 37};
      const auto n_tokens = static_cast<int64_t>(ids.size());
      DeviceVector<bf16> out(static_cast<size_t>(n_tokens * width), bf16(5.0f));
      cuda::embed(stream_, {.ids = ids.data(),
                            .table = table.data() + offset,
                            .out = out.data(),
                            .n_tokens = n_tokens,
                            .vocab = vocab,
                            .width = width});
      stream_.finish();
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

// fp32 inside: the sum of squares of `width` terms and four roundings, then one of bf16.
TEST_F(KernelElementwise, RmsNorm) {
  for (int64_t width :
       {1, 7, 16, 33, 64, 100, 256, 264, 1000, 1024, 1032, 2048, 2056, 4096, 8192, 8200}) {
    const int64_t n_rows = 2000 / width + 2;
    DeviceVector<bf16> x = random_bf16(n_rows * width, 3);
    DeviceVector<bf16> out = poisoned(n_rows * width);
    const DeviceVector<bf16> weight = random_bf16(width);
    const NormParams p{.x = x.data(),
                       .weight = weight.data(),
                       .out = out.data(),
                       .n_rows = n_rows,
                       .width = width,
                       .eps = 1e-5f};
    cuda::rms_norm(stream_, p);
    stream_.finish();
    const double tolerance = kBf16Unit + (std::sqrt(static_cast<double>(width)) + 8) * 0x1p-23;
    for (int64_t row = 0; row < n_rows; ++row) {
      const double scale = test::norm_scale(x.data() + row * width, width, 1e-5f);
      for (int64_t i = 0; i < width; ++i) {
        const auto at = static_cast<size_t>(row * width + i);
        const double want = value_of(x[at]) * scale * value_of(weight[static_cast<size_t>(i)]);
        ASSERT_NEAR(value_of(out[at]), want, tolerance * std::abs(want) + 1e-38) << width;
      }
    }
    NormParams in_place = p;
    in_place.out = x.data();
    cuda::rms_norm(stream_, in_place);
    stream_.finish();
    EXPECT_EQ(x, out) << width;
  }
}

TEST_F(KernelElementwise, RmsNormKeepsNanInItsRow) {
  for (int64_t width : {40, 41, 2048}) {
    DeviceVector<bf16> x = random_bf16(3 * width);
    DeviceVector<bf16> out(x.size());
    const DeviceVector<bf16> weight = random_bf16(width);
    x[static_cast<size_t>(2 * width - 1)] = bf16(kNan);
    cuda::rms_norm(stream_, {.x = x.data(),
                             .weight = weight.data(),
                             .out = out.data(),
                             .n_rows = 3,
                             .width = width,
                             .eps = 1e-6f});
    stream_.finish();
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(std::isnan(value_of(out[i])), static_cast<int64_t>(i) / width == 1) << i;
    }
  }
}

// The exponential is good to 2 ulp and the rounding of its argument is made good, quotient and
// product to an ulp each; where exp(-g) leaves the normal numbers the result may be 0.
TEST_F(KernelElementwise, Swiglu) {
  for (int64_t n : {1, 15, 16, 17, 1000, 20003}) {
    for (int64_t offset : {0, 3}) {
      DeviceVector<bf16> gate = random_bf16(n + offset, 20);
      DeviceVector<bf16> out = poisoned(n);
      const DeviceVector<bf16> up = random_bf16(n);
      bf16* gate_data = gate.data() + offset;
      gate_data[0] = bf16(n % 2 == 0 ? -300.0f : 300.0f);
      cuda::swiglu(stream_, {.gate = gate_data, .up = up.data(), .out = out.data(), .n = n});
      stream_.finish();
      for (int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(i);
        const double want = test::silu(value_of(gate_data[i])) * value_of(up[at]);
        ASSERT_NEAR(value_of(out[at]), want, (kBf16Unit + 0x1p-20) * std::abs(want) + 4e-36)
            << value_of(gate_data[i]);
      }
      cuda::swiglu(stream_, {.gate = gate_data, .up = up.data(), .out = gate_data, .n = n});
      stream_.finish();
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(gate_data[i], out[static_cast<size_t>(i)]);
    }
  }
}

TEST_F(KernelElementwise, SwigluOfSpecialValues) {
  const DeviceVector<bf16> gate = {bf16(kNan),   bf16(1.0f),  bf16(kInf),  bf16(0.0f),
                                   bf16(-90.0f), bf16(88.5f), bf16(-87.5f)};
  const DeviceVector<bf16> up = {bf16(1.0f), bf16(kNan), bf16(2.0f), bf16(3.0f),
                                 bf16(1.0f), bf16(1.0f), bf16(1.0f)};
  DeviceVector<bf16> out = poisoned(7);
  cuda::swiglu(stream_, {.gate = gate.data(), .up = up.data(), .out = out.data(), .n = 7});
  stream_.finish();
  EXPECT_TRUE(std::isnan(value_of(out[0])) && std::isnan(value_of(out[1])));
  EXPECT_EQ(value_of(out[2]), static_cast<double>(kInf));
  EXPECT_EQ(value_of(out[3]), 0.0);
  EXPECT_LE(std::abs(value_of(out[4])), 1e-35);
  EXPECT_EQ(value_of(out[5]), 88.5);
  EXPECT_LE(std::abs(value_of(out[6])), 1e-35);
}

struct RopeCase {
  int64_t n_tokens, first_position;
  int32_t n_heads, n_kv_heads, head_dim;
  bool norm;
};

struct RopeProblem {
  RopeProblem(const RopeCase& c, std::mt19937& random)
      : shape(c),
        inv_freq(test::rope_frequencies(c.head_dim / 2, 1e4)),
        table(inv_freq, c.first_position + c.n_tokens),
        stride((c.n_tokens + 3) * c.head_dim + 16) {
    std::normal_distribution<float> normal(0, 4);
    const auto fill = [&](DeviceVector<bf16>& values, int64_t n) {
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
    keys.assign(static_cast<size_t>(stride * c.n_kv_heads), kUntouched);
    values = keys;
    const RopeView host = table.view();
    const auto on_device = [&](const float* source, int64_t n_rows, DeviceVector<float>& target) {
      target.assign(source, source + n_rows * host.half);
      return target.data();
    };
    rope = host;
    rope.coarse_cos = on_device(host.coarse_cos, host.n_coarse, tables[0]);
    rope.coarse_sin = on_device(host.coarse_sin, host.n_coarse, tables[1]);
    rope.fine_cos = on_device(host.fine_cos, kRopeFine, tables[2]);
    rope.fine_sin = on_device(host.fine_sin, kRopeFine, tables[3]);
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
            .rope = rope};
  }
  // Angles are good to 2e-7 (rope_test.cpp); norm, two products and a sum: some fp32 roundings.
  void expect_head(const bf16* got, const bf16* in, const bf16* norm, int64_t t) const {
    const std::vector<double> want =
        test::rotate_oracle(in, norm, 1e-6, shape.head_dim, shape.first_position + t, inv_freq);
    for (size_t i = 0; i < want.size(); ++i) {
      const size_t pair = (i + want.size() / 2) % want.size();
      const double size = std::abs(want[i]) + std::abs(want[pair]);
      ASSERT_NEAR(value_of(got[i]), want[i], kBf16Unit * std::abs(want[i]) + 1.5e-6 * size)
          << "d " << shape.head_dim << " token " << t << " channel " << i;
    }
  }

  static inline const bf16 kUntouched{123.0f};
  RopeCase shape;
  std::vector<double> inv_freq;
  RopeTable table;
  int64_t stride;
  RopeView rope;
  DeviceVector<bf16> q, k, v, q_norm, k_norm, turned, keys, values;
  DeviceVector<float> tables[4];
};

const RopeCase kRopeCases[] = {
    {1, 0, 2, 1, 64, false}, {9, 1020, 8, 4, 64, false}, {3, 4000000, 4, 2, 128, true},
    {5, 77, 3, 1, 80, true}, {2, 2047, 2, 2, 10, true},  {40, 500, 7, 1, 96, false},
    {3, 5, 4, 2, 96, true},  {70, 1000, 3, 1, 16, true}, {4, 3000, 2, 1, 256, true},
    {2, 1, 1, 1, 512, true}, {3, 9, 2, 1, 36, false},    {1, 70000, 32, 8, 128, false},
};

TEST_F(KernelElementwise, RopeAppend) {
  for (const RopeCase& c : kRopeCases) {
    RopeProblem problem(c, random_);
    cuda::rope_append(stream_, problem.params());
    stream_.finish();
    const int64_t d = c.head_dim;
    const bf16* q_norm = c.norm ? problem.q_norm.data() : nullptr;
    const bf16* k_norm = c.norm ? problem.k_norm.data() : nullptr;
    for (int64_t t = 0; t < c.n_tokens; ++t) {
      for (int64_t h = 0; h < c.n_heads; ++h) {
        const int64_t at = (t * c.n_heads + h) * d;
        problem.expect_head(problem.turned.data() + at, problem.q.data() + at, q_norm, t);
      }
      for (int64_t j = 0; j < c.n_kv_heads; ++j) {
        const int64_t at = (t * c.n_kv_heads + j) * d, row = j * problem.stride + (2 + t) * d;
        problem.expect_head(problem.keys.data() + row, problem.k.data() + at, k_norm, t);
        EXPECT_TRUE(std::equal(problem.v.begin() + at, problem.v.begin() + at + d,
                               problem.values.begin() + row));
      }
    }
    for (const DeviceVector<bf16>* plane : {&problem.keys, &problem.values}) {
      EXPECT_EQ((*plane)[static_cast<size_t>(2 * d - 1)], RopeProblem::kUntouched);
      EXPECT_EQ((*plane)[static_cast<size_t>((2 + c.n_tokens) * d)], RopeProblem::kUntouched);
    }
  }
}

// The same roundings as the CPU's vector levels, so the same keys on both sides.
TEST_F(KernelElementwise, RopeAppendHasTheBitsOfTheCpu) {
  if (cpu::detected_isa() < cpu::Isa::kAvx2) GTEST_SKIP() << "the portable level has other bits";
  cpu::Queue queue({.n_threads = 1});
  std::vector<RopeCase> cases(std::begin(kRopeCases), std::end(kRopeCases));
  // Of a wrong last bit in fp32 bf16 shows one in 2^16.
  cases.push_back({3000, 0, 2, 1, 128, false});
  for (const RopeCase& c : cases) {
    if (c.norm) continue;  // sums of squares are taken in another order
    RopeProblem problem(c, random_);
    cuda::rope_append(stream_, problem.params());
    stream_.finish();
    const DeviceVector<bf16> turned = problem.turned, keys = problem.keys;
    problem.turned = problem.q;
    cpu::rope_append(queue, problem.params());
    EXPECT_TRUE(turned == problem.turned) << c.head_dim;
    EXPECT_TRUE(keys == problem.keys) << c.head_dim;
  }
}

TEST_F(KernelElementwise, RopeAppendAtAnyAddress) {
  for (bool norm : {false, true}) {
    RopeProblem aligned({5, 1021, 3, 1, 64, norm}, random_), moved = aligned;
    moved.turned.insert(moved.turned.begin(), bf16(0.0f));
    RopeAppendParams p = moved.params();
    p.q = moved.turned.data() + 1;
    p.rope = aligned.rope;
    cuda::rope_append(stream_, p);
    cuda::rope_append(stream_, aligned.params());
    stream_.finish();
    if (!norm) {
      EXPECT_TRUE(
          std::equal(aligned.turned.begin(), aligned.turned.end(), moved.turned.begin() + 1));
    }
    for (int64_t t = 0; t < 5; ++t) {
      const int64_t at = t * 3 * 64;
      moved.expect_head(moved.turned.data() + 1 + at, moved.q.data() + at,
                        norm ? moved.q_norm.data() : nullptr, t);
    }
  }
}

// fp32 exponentials of 2 ulp in an fp64 sum: 3e-7 of the logarithm, absolute, and the rounding of
// x - max.
TEST_F(KernelElementwise, TokenLogprobs) {
  std::normal_distribution<float> normal(0, 4);
  for (int64_t vocab : {1, 5, 16, 31, 2048, 4099, 151936}) {
    const int64_t n_rows = vocab > 10000 ? 2 : 9;
    DeviceVector<float> logits(static_cast<size_t>(n_rows * vocab));
    for (float& x : logits) x = normal(random_);
    if (vocab == 31) logits[3] = -kInf;
    if (vocab == 2048) std::fill_n(logits.begin(), 2000, -kInf);
    DeviceVector<int32_t> targets;
    for (int64_t row = 0; row < n_rows; ++row) {
      targets.push_back(static_cast<int32_t>((row * 7919 + 2040) % vocab));
    }
    DeviceVector<double> got(static_cast<size_t>(n_rows), -1.0), again = got;
    LogprobParams p{.logits = logits.data(),
                    .targets = targets.data(),
                    .logprobs = got.data(),
                    .n_rows = n_rows,
                    .vocab = vocab};
    cuda::token_logprobs(stream_, p);
    p.logprobs = again.data();
    cuda::token_logprobs(stream_, p);
    stream_.finish();
    EXPECT_EQ(got, again);
    for (int64_t row = 0; row < n_rows; ++row) {
      const auto at = static_cast<size_t>(row);
      const double want = test::logprob_oracle(logits.data() + row * vocab, vocab, targets[at]);
      EXPECT_NEAR(got[at], want, 1e-6) << vocab;
    }
  }
}

TEST_F(KernelElementwise, TokenLogprobsOfSpecialValues) {
  const int64_t vocab = 1500;
  DeviceVector<float> logits(static_cast<size_t>(5 * vocab), 1.0f);
  logits[33] = kNan;
  for (int64_t i = vocab; i < 2 * vocab; ++i) logits[static_cast<size_t>(i)] = -kInf;
  logits[static_cast<size_t>(vocab + 7)] = kNan;
  logits[static_cast<size_t>(2 * vocab + 700)] = kInf;
  const DeviceVector<int32_t> targets = {2, 2, 2, 1500, -1};
  DeviceVector<double> got(5, 0.0);
  cuda::token_logprobs(stream_, {.logits = logits.data(),
                                 .targets = targets.data(),
                                 .logprobs = got.data(),
                                 .n_rows = 5,
                                 .vocab = vocab});
  stream_.finish();
  for (double value : got) EXPECT_TRUE(std::isnan(value));
}

}  // namespace
}  // namespace tiercel
