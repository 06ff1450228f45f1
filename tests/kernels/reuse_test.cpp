// Whether a selection may stay: against fp64, and its state over many steps.
#include "kernels/reuse.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/kernels/device_vector.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

template <typename T>
using Memory = test::DeviceVector<T>;

struct Reuse {
  Memory<bf16> q, previous;
  Memory<int32_t> state = Memory<int32_t>(2, 0);
  Memory<int64_t> totals = Memory<int64_t>(2, 0);
  ReuseParams p;
  int64_t offset = 0;  // elements before the query of record, which shift its alignment

  explicit Reuse(int64_t n, int64_t shift = 0) : q(n), previous(n + shift), offset(shift) {
    p.n = n;
    p.state = state.data();
    p.totals = totals.data();
  }
  void run() {
    p.q = q.data();
    p.previous = previous.data() + offset;
    cuda::decide_reuse(test::stream(), p);
    test::stream().finish();
  }
  double cosine() const {
    double ab = 0, aa = 0, bb = 0;
    for (int64_t i = 0; i < p.n; ++i) {
      const double a = static_cast<float>(q[i]), b = static_cast<float>(previous[offset + i]);
      ab += a * b;
      aa += a * a;
      bb += b * b;
    }
    return ab / std::sqrt(aa * bb);
  }
  bool previous_is_q() const {
    return std::equal(q.begin(), q.end(), previous.begin() + offset,
                      [](bf16 a, bf16 b) { return a.bits == b.bits; });
  }
};

class CudaReuse : public testing::Test {
 protected:
  std::mt19937_64 rng_{test::seed()};
  std::normal_distribution<float> normal_;
  void fill(Memory<bf16>& rows) {
    for (bf16& x : rows) x = bf16(normal_(rng_));
  }
};

// The limit just below, and just above, the cosine: products are exact, sums of n terms are within
// n ulp of fp64.
TEST_F(CudaReuse, ComparesTheCosine) {
  for (const int64_t n : {1, 2, 64, 511, 4096, 16384}) {
    for (const int64_t shift : {0, 1, 2}) {
      Reuse r(n, shift);
      fill(r.previous);
      for (int64_t i = 0; i < n; ++i) {
        r.q[i] = bf16(static_cast<float>(r.previous[shift + i]) + 0.4f * normal_(rng_));
      }
      const double cosine = r.cosine();
      const float below = std::nextafter(static_cast<float>(cosine), -2.0f) - 1e-6f;
      const auto previous = r.previous;
      if (below > -1) {
        r.state = {0, 3};
        r.p.min_cosine = below;
        r.run();
        ASSERT_EQ(r.state, Memory<int32_t>({1, 4})) << n << " " << cosine;
        ASSERT_TRUE(std::equal(previous.begin(), previous.end(), r.previous.begin(),
                               [](bf16 a, bf16 b) { return a.bits == b.bits; }));
      }
      r.state = {1, 3};
      r.p.min_cosine = static_cast<float>(cosine) + 2e-6f;
      r.run();
      ASSERT_EQ(r.state, Memory<int32_t>({0, 1})) << n << " " << cosine;
      ASSERT_TRUE(r.previous_is_q());
      r.p.min_cosine = 1.0f;  // the same query: exactly 1
      r.run();
      ASSERT_EQ(r.state, Memory<int32_t>({1, 2}));
      ASSERT_EQ(r.totals, Memory<int64_t>({below > -1 ? 3 : 2, below > -1 ? 2 : 1}));
    }
  }
}

TEST_F(CudaReuse, ServesSoManySteps) {
  for (const int32_t every : {0, 1, 2, 5}) {
    Reuse r(256);
    fill(r.q);
    r.p.every = every;
    r.p.min_cosine = -1;
    for (int step = 0; step < 12; ++step) {
      for (bf16& x : r.q) x = bf16(-static_cast<float>(x));  // any cosine will do
      r.run();
      const int served = every == 0 ? step : step % every;
      ASSERT_EQ(r.state, Memory<int32_t>({served == 0 ? 0 : 1, served + 1}))
          << every << " " << step;
      if (served == 0) {
        ASSERT_TRUE(r.previous_is_q());
      }
    }
    ASSERT_EQ(r.totals[0], 12);
    ASSERT_EQ(r.totals[1], every == 0 ? 11 : 12 - (12 + every - 1) / every);
  }
}

TEST_F(CudaReuse, NanKeepsNothing) {
  for (const int kind : {0, 1, 2}) {
    Reuse r(128);
    fill(r.q);
    r.previous = r.q;
    if (kind == 0) r.q[77] = bf16(std::numeric_limits<float>::quiet_NaN());
    if (kind == 1) r.previous[3] = bf16(std::numeric_limits<float>::infinity());
    if (kind == 2) std::fill(r.q.begin(), r.q.end(), bf16(0.0f));
    r.p.min_cosine = -0.999f;
    r.state = {1, 1};
    r.run();
    EXPECT_EQ(r.state, Memory<int32_t>({0, 1})) << kind;
    EXPECT_TRUE(r.previous_is_q());
    r.p.min_cosine = -1;  // not even looked at
    r.run();
    EXPECT_EQ(r.state, Memory<int32_t>({1, 2}));
  }
}

TEST_F(CudaReuse, TotalsMayBeMissing) {
  Reuse r(2);
  r.p.totals = nullptr;
  r.run();
  EXPECT_EQ(r.state, Memory<int32_t>({0, 1}));
}

}  // namespace
}  // namespace tiercel
