// The attention mass of chunks at every level that this machine runs, against fp64.
#include "cpu/mass.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/cpu/tested_isas.h"
#include "tests/oracle/mass.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using cpu::Isa;
using cpu::Queue;

constexpr float kPoison = -123.0f;

struct Case {
  Case(std::mt19937_64& rng, int64_t tokens, int32_t kv_heads, int32_t group, int32_t d,
       int64_t first_chunk, int64_t end_chunk, float spread = 1.0f)
      : n(std::max<int64_t>(end_chunk - first_chunk, 0)) {
    std::normal_distribution<float> normal(0.0f, spread);
    q.resize(tokens * kv_heads * group * d);
    landmarks.resize(kv_heads * (end_chunk + 3) * d);
    for (bf16& x : q) x = bf16(normal(rng));
    for (bf16& x : landmarks) x = bf16(normal(rng));
    p.q = q.data();
    p.landmarks = landmarks.data();
    p.landmark_head_stride = (end_chunk + 3) * d;
    p.n_tokens = tokens;
    p.first_chunk = first_chunk;
    p.end_chunk = end_chunk;
    p.n_heads = kv_heads * group;
    p.n_kv_heads = kv_heads;
    p.head_dim = d;
    p.scale = 1.0f / std::sqrt(static_cast<float>(d));
    p.mass_stride = n + 5;
  }
  // [n_kv_heads][n]; what is behind must stay, also behind the workspace.
  std::vector<float> run(Queue& queue) {
    const int64_t size = mass_workspace_floats(p.n_heads, n);
    std::vector<float> mass(p.n_kv_heads * p.mass_stride, kPoison), out;
    std::vector<float> workspace(size + 16, std::numeric_limits<float>::quiet_NaN());
    std::fill(workspace.begin() + size, workspace.end(), kPoison);
    p.mass = mass.data();
    p.workspace = workspace.data();
    cpu::accumulate_mass(queue, p);
    for (int64_t i = size; i < size + 16; ++i) EXPECT_EQ(workspace[i], kPoison);
    for (int64_t j = 0; j < p.n_kv_heads; ++j) {
      for (int64_t i = 0; i < p.mass_stride; ++i) {
        const float x = mass[j * p.mass_stride + i];
        if (i < n) {
          out.push_back(x);
        } else {
          EXPECT_EQ(x, kPoison);
        }
      }
    }
    return out;
  }
  int64_t n;
  std::vector<bf16> q, landmarks;
  MassParams p;
};

class MassTest : public testing::TestWithParam<Isa> {
 protected:
  Queue queue_{{.n_threads = 2, .isa = GetParam()}};
  std::mt19937_64 rng_{test::seed()};

  void expect_near_oracle(Case& c) {
    const std::vector<float> mass = c.run(queue_);
    for (int32_t j = 0; j < c.p.n_kv_heads; ++j) {
      const auto e = test::expected_mass(c.p, j);
      for (int64_t i = 0; i < c.n; ++i) {
        ASSERT_NEAR(double{mass[j * c.n + i]}, e.mass[i], e.tolerance[i])
            << "KV head " << j << " chunk " << c.p.first_chunk + i;
      }
    }
  }
};

TEST_P(MassTest, ShapesMatchTheOracle) {
  for (const int32_t d : {16, 32, 64, 80, 96, 128, 256}) {
    for (const int32_t group : {1, 2, 3, 4, 7, 8}) {
      for (const int64_t n : {0, 1, 5, 63, 64, 300}) {
        SCOPED_TRACE(testing::Message() << "d " << d << " group " << group << " chunks " << n);
        const int64_t tokens = n == 300 ? 3 : 5, first = n % 2 * 11;
        Case c(rng_, tokens, 2, group, d, first, first + n, 1.5f);
        expect_near_oracle(c);
      }
    }
  }
}

// More than one range of landmarks; as many queries as there may be, in more than one batch.
TEST_P(MassTest, ManyChunksAndManyQueries) {
  Case chunks(rng_, 2, 2, 2, 64, 17, 9000);
  expect_near_oracle(chunks);
  Case queries(rng_, kMaxMassTokens, 1, 20, 64, 1, 400, 2.0f);
  expect_near_oracle(queries);
}

TEST_P(MassTest, EveryQueryGivesOne) {
  Case c(rng_, 40, 3, 4, 128, 8, 5000, 2.0f);
  const std::vector<float> mass = c.run(queue_);
  for (int64_t j = 0; j < 3; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < c.n; ++i) sum += double{mass[j * c.n + i]};
    EXPECT_NEAR(sum, 160, 160 * (static_cast<double>(c.n) + 500) * test::kUnit);
  }
}

TEST_P(MassTest, NoQueriesNoMass) {
  Case c(rng_, 0, 2, 4, 64, 0, 5000);
  for (const float x : c.run(queue_)) ASSERT_EQ(x, 0.0f);
}

// Infinite scores are clamped, a NaN counts as the lowest.
TEST_P(MassTest, NanAndInfinity) {
  const float inf = std::numeric_limits<float>::infinity();
  Case c(rng_, 2, 2, 2, 64, 3, 103);
  for (bf16& x : c.q) x = bf16(std::abs(static_cast<float>(x)) + 0.1f);
  const auto landmark = [&](int64_t j, int64_t chunk) {
    return c.landmarks.data() + j * c.p.landmark_head_stride + chunk * 64;
  };
  landmark(0, 50)[3] = bf16(std::numeric_limits<float>::quiet_NaN());
  landmark(0, 60)[3] = bf16(-inf);
  landmark(1, 70)[5] = bf16(inf);
  landmark(1, 71)[5] = bf16(inf);
  const std::vector<float> mass = c.run(queue_);
  EXPECT_EQ(mass[50 - 3], 0.0f);
  EXPECT_EQ(mass[60 - 3], 0.0f);
  for (int64_t i = 0; i < 100; ++i) {
    EXPECT_TRUE(i == 47 || i == 57 || mass[i] > 0);
    // Two clamped scores: log2 of their sum is 2^126 + 1, rounded.
    EXPECT_EQ(mass[100 + i], i == 67 || i == 68 ? 4.0f : 0.0f);
  }
}

TEST_P(MassTest, BitsDoNotDependOnThreads) {
  Case c(rng_, 20, 3, 5, 96, 2, 13000);
  const std::vector<float> first = c.run(queue_);
  for (const int threads : {1, 3, 5}) {
    Queue queue({.n_threads = threads, .isa = GetParam()});
    EXPECT_EQ(first, c.run(queue)) << threads;
  }
}

INSTANTIATE_TEST_SUITE_P(EveryLevel, MassTest, testing::ValuesIn(test::tested_isas()),
                         [](const auto& info) { return std::string(cpu::name_of(info.param)); });

}  // namespace
}  // namespace tiercel
