// Attention masses of chunks on the device (or its emulator), against fp64.
#include "kernels/mass.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/kernels/device_vector.h"
#include "tests/oracle/mass.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

template <typename T>
using Memory = test::DeviceVector<T>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Mass {
  int32_t n_kv_heads, group, d;
  int64_t n_tokens, first, end;
  Memory<bf16> q, landmarks;
  Memory<float> mass, workspace;
  MassParams p;  // of the last run

  Mass(std::mt19937_64& rng, int32_t kv_heads, int32_t heads_of_group, int32_t head_dim,
       int64_t tokens, int64_t first_chunk, int64_t end_chunk)
      : n_kv_heads(kv_heads),
        group(heads_of_group),
        d(head_dim),
        n_tokens(tokens),
        first(first_chunk),
        end(end_chunk) {
    std::normal_distribution<float> normal;
    q.resize(static_cast<size_t>(n_tokens * n_heads() * d));
    landmarks.resize(static_cast<size_t>(n_kv_heads * (end + 2) * d));
    for (bf16& x : q) x = bf16(2 * normal(rng));
    for (bf16& x : landmarks) x = bf16(normal(rng));
    // What lies outside is not read.
    for (int64_t j = 0; j < n_kv_heads; ++j) {
      for (int64_t c = 0; c < end + 2; ++c) {
        if (c >= first && c < end) continue;
        for (int64_t i = 0; i < d; ++i) landmark(j, c)[i] = bf16(kNan);
      }
    }
  }
  int32_t n_heads() const { return n_kv_heads * group; }
  int64_t n() const { return std::max<int64_t>(end - first, 0); }
  int64_t stride() const { return n() + 3; }
  bf16* landmark(int64_t j, int64_t c) { return landmarks.data() + (j * (end + 2) + c) * d; }

  void run(bf16* queries = nullptr) {
    mass.assign(static_cast<size_t>(n_kv_heads * stride()), -7.0f);
    workspace.assign(static_cast<size_t>(mass_workspace_floats(n_heads(), n())), kNan);
    p = {};
    p.q = queries != nullptr ? queries : q.data();
    p.landmarks = landmarks.data();
    p.landmark_head_stride = (end + 2) * d;
    p.n_tokens = n_tokens;
    p.first_chunk = first;
    p.end_chunk = end;
    p.n_heads = n_heads();
    p.n_kv_heads = n_kv_heads;
    p.head_dim = d;
    p.scale = 1.0f / std::sqrt(static_cast<float>(d));
    p.mass = mass.data();
    p.mass_stride = stride();
    p.workspace = workspace.data();
    cuda::accumulate_mass(test::stream(), p);
    test::stream().finish();
    for (int64_t j = 0; j < n_kv_heads; ++j) {  // nothing besides
      for (int64_t i = n(); i < stride(); ++i) {
        ASSERT_EQ(mass[static_cast<size_t>(j * stride() + i)], -7.0f);
      }
    }
  }
  void expect_near_oracle() {
    for (int32_t j = 0; j < n_kv_heads; ++j) {
      const test::ExpectedMass e = test::expected_mass(p, j);
      for (size_t i = 0; i < e.mass.size(); ++i) {
        const double got = mass[static_cast<size_t>(j * stride()) + i];
        ASSERT_NEAR(got, e.mass[i], e.tolerance[i]) << "head " << j << " chunk " << i;
      }
    }
  }
};

TEST(CudaMass, SoftmaxSummedOverQueries) {
  std::mt19937_64 rng(test::seed());
  struct Case {
    int32_t kv_heads, group, d;
    int64_t n_tokens, first, end;
  };
  for (const Case& c : std::vector<Case>{{2, 4, 128, 64, 3, 200},
                                         {2, 1, 64, 64, 0, 65},
                                         {1, 7, 96, 33, 17, 18},
                                         {3, 3, 34, 5, 2, 150},
                                         {1, 16, 256, 9, 0, 130},
                                         {2, 5, 16, 1, 8, 700},
                                         {1, 1, 2, 3, 0, 64},
                                         {2, 2, 80, 64, 1, 2300},  // shares of several tiles
                                         {2, 4, 64, 0, 3, 90},     // no queries
                                         {2, 4, 64, 7, 30, 30}}) {
    SCOPED_TRACE(testing::Message()
                 << c.kv_heads << " x " << c.group << " heads of " << c.d << ", " << c.n_tokens
                 << " queries, chunks " << c.first << " to " << c.end);
    Mass m(rng, c.kv_heads, c.group, c.d, c.n_tokens, c.first, c.end);
    ASSERT_NO_FATAL_FAILURE(m.run());
    ASSERT_NO_FATAL_FAILURE(m.expect_near_oracle());
  }
}

TEST(CudaMass, QueriesAtAnyAddress) {
  std::mt19937_64 rng(test::seed());
  Mass m(rng, 2, 3, 64, 11, 4, 100);
  m.run();
  const Memory<float> before = m.mass;
  Memory<bf16> shifted(1);
  shifted.insert(shifted.end(), m.q.begin(), m.q.end());
  m.run(shifted.data() + 1);
  EXPECT_TRUE(m.mass == before);
}

// A landmark that is NaN scores lowest; a query that is, everywhere alike.
TEST(CudaMass, NanCountsAsTheLowestScore) {
  std::mt19937_64 rng(test::seed());
  Mass m(rng, 2, 2, 64, 3, 4, 100);
  m.landmark(1, 50)[3] = bf16(kNan);
  m.run();
  ASSERT_NO_FATAL_FAILURE(m.expect_near_oracle());
  EXPECT_EQ(m.mass[static_cast<size_t>(m.stride() + 46)], 0.0f);
  for (bf16& x : m.q) x = bf16(kNan);
  m.run();
  for (int64_t i = 0; i < m.n(); ++i) {
    EXPECT_NEAR(m.mass[static_cast<size_t>(i)], 6.0 / 96, 1e-6);
  }
}

TEST(CudaMass, SameQueriesSameBits) {
  std::mt19937_64 rng(test::seed());
  Mass m(rng, 2, 4, 128, 20, 0, 300);
  m.run();
  const Memory<float> before = m.mass;
  m.run();
  EXPECT_TRUE(m.mass == before);
}

}  // namespace
}  // namespace tiercel
