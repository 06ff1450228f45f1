// Whether a selection stays for another step: thresholds, counts, and what is remembered.
#include "cpu/reuse.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/seed.h"

namespace tiercel {
namespace {

struct Reuse {
  std::vector<bf16> q, previous;
  int32_t state[2] = {0, 0};
  int64_t totals[2] = {0, 0};
  ReuseParams p;

  explicit Reuse(int64_t n, uint64_t seed = test::seed()) : q(n), previous(n) {
    std::mt19937_64 rng(seed);
    std::normal_distribution<float> normal;
    for (bf16& x : q) x = bf16(normal(rng));
    for (bf16& x : previous) x = bf16(std::numeric_limits<float>::quiet_NaN());
  }
  bool decide() {
    cpu::Queue queue({.n_threads = 1});
    p.q = q.data();
    p.previous = previous.data();
    p.n = static_cast<int64_t>(q.size());
    p.state = state;
    p.totals = totals;
    cpu::decide_reuse(queue, p);
    return state[0] == 1;
  }
  bool remembers(const std::vector<bf16>& other) const {
    for (size_t i = 0; i < other.size(); ++i) {
      if (previous[i].bits != other[i].bits) return false;
    }
    return true;
  }
  double cosine() const {
    long double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < q.size(); ++i) {
      const long double a = static_cast<float>(q[i]), b = static_cast<float>(previous[i]);
      ab += a * b;
      aa += a * a;
      bb += b * b;
    }
    return static_cast<double>(ab / std::sqrt(aa * bb));
  }
};

TEST(Reuse, FirstStepSelects) {
  Reuse r(100);
  for (const float min_cosine : {-1.0f, 0.5f}) {
    r.state[0] = r.state[1] = 0;
    r.p.min_cosine = min_cosine;
    EXPECT_FALSE(r.decide());
    EXPECT_EQ(r.state[1], 1);
    EXPECT_TRUE(r.remembers(r.q));
  }
  EXPECT_EQ(r.totals[0], 2);
  EXPECT_EQ(r.totals[1], 0);
}

TEST(Reuse, EqualQueriesHaveCosineOne) {
  for (const int64_t n : {1, 7, 64, 1000, 4096}) {
    Reuse r(n, test::seed() + static_cast<uint64_t>(n));
    r.p.min_cosine = 1;
    EXPECT_FALSE(r.decide());
    for (int32_t step = 2; step < 6; ++step) {
      EXPECT_TRUE(r.decide()) << n;
      EXPECT_EQ(r.state[1], step);
    }
    EXPECT_EQ(r.totals[0], 5);
    EXPECT_EQ(r.totals[1], 4);
  }
}

TEST(Reuse, ServesEverySteps) {
  Reuse r(64);
  r.p.every = 3;
  for (int i = 0; i < 9; ++i) EXPECT_EQ(r.decide(), i % 3 != 0) << i;
  Reuse one(64);
  one.p.every = 1;
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(one.decide());
}

// On either side of the cosine, and the query of record stays while the selection does.
TEST(Reuse, TheCosineDecides) {
  std::mt19937_64 rng(test::seed());
  std::normal_distribution<float> normal;
  for (int i = 0; i < 50; ++i) {
    Reuse r(1 + static_cast<int64_t>(rng() % 3000), rng());
    r.decide();
    const auto first = r.q;
    for (bf16& x : r.q) x = bf16(static_cast<float>(x) + 0.3f * normal(rng));
    const double cosine = r.cosine();
    r.p.min_cosine = static_cast<float>(cosine) - 1e-6f;
    EXPECT_TRUE(r.decide()) << cosine;
    EXPECT_TRUE(r.remembers(first));
    r.p.min_cosine = static_cast<float>(cosine) + 1e-6f;
    EXPECT_FALSE(r.decide()) << cosine;
    EXPECT_EQ(r.state[1], 1);
    EXPECT_TRUE(r.remembers(r.q));
  }
}

// Without a threshold even a NaN keeps; with any other it does not. So does a query of zeros.
TEST(Reuse, NanKeepsNothing) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), 0.0f}) {
    Reuse r(64);
    if (bad == 0) std::fill(r.q.begin(), r.q.end(), bf16(0.0f));
    r.q[3] = bf16(bad);
    r.p.min_cosine = -0.999f;
    EXPECT_FALSE(r.decide());
    EXPECT_FALSE(r.decide());
    r.p.min_cosine = -1;
    EXPECT_TRUE(r.decide());
  }
}

TEST(Reuse, TotalsAreOptional) {
  cpu::Queue queue({.n_threads = 1});
  Reuse r(64);
  r.decide();
  r.p.totals = nullptr;
  cpu::decide_reuse(queue, r.p);
  EXPECT_EQ(r.state[0], 1);
  EXPECT_EQ(r.totals[0], 1);
}

}  // namespace
}  // namespace tiercel
