#include "cpu/pick.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "tests/seed.h"

namespace tiercel {
namespace {

using cpu::Queue;

struct Case {
  int32_t n_kv_heads;
  int64_t first, end, n;
  bool greatest;
};

// By a full sort: mass, then the lower chunk; NaN above everything.
std::vector<int32_t> expected_ids(const float* mass, const Case& c) {
  std::vector<int32_t> order(c.end - c.first);
  std::iota(order.begin(), order.end(), 0);
  const auto less = [&](int32_t a, int32_t b) {  // mass[a] < mass[b]
    if (std::isnan(mass[a]) || std::isnan(mass[b])) return !std::isnan(mass[a]);
    return mass[a] < mass[b];
  };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    if (std::isnan(mass[a]) && std::isnan(mass[b])) return false;
    return c.greatest ? less(b, a) : less(a, b);
  });
  order.resize(c.n);
  std::sort(order.begin(), order.end());
  for (int32_t& id : order) id += static_cast<int32_t>(c.first);
  return order;
}

void expect_picked(const Case& c, const std::vector<float>& mass, int64_t stride,
                   std::mt19937_64& rng) {
  const int64_t words = (c.end + 63) / 64 + 1;
  std::vector<uint64_t> before(c.n_kv_heads * words);
  for (uint64_t& word : before) word = rng() & rng();
  for (const bool with_ids : {true, false}) {
    for (const int threads : {1, 2, 3, 5}) {
      std::vector<uint64_t> excluded = before, want = before;
      std::vector<int32_t> ids(c.n_kv_heads * c.n, -7), want_ids;
      Queue queue({.n_threads = threads});
      PickParams p;
      p.mass = mass.data();
      p.mass_stride = stride;
      p.first_chunk = c.first;
      p.end_chunk = c.end;
      p.n = c.n;
      p.greatest = c.greatest;
      p.n_kv_heads = c.n_kv_heads;
      p.ids = with_ids ? ids.data() : nullptr;
      p.excluded = excluded.data();
      p.excluded_stride = words;
      cpu::pick_chunks(queue, p);
      for (int64_t j = 0; j < c.n_kv_heads; ++j) {
        for (const int32_t id : expected_ids(mass.data() + j * stride, c)) {
          want_ids.push_back(id);
          want[j * words + id / 64] |= uint64_t{1} << id % 64;
        }
      }
      if (with_ids) {
        ASSERT_EQ(ids, want_ids);
      }
      ASSERT_EQ(excluded, want);
    }
  }
}

TEST(Pick, TheGreatestOrTheLowest) {
  std::mt19937_64 rng(test::seed());
  std::exponential_distribution<float> mass_of(1.0f);
  for (const int64_t n_chunks : {0, 1, 2, 63, 64, 65, 1000}) {
    for (const int64_t first : {0, 3, 64}) {
      for (const bool greatest : {true, false}) {
        for (const int64_t n : {int64_t{0}, int64_t{1}, n_chunks / 3, n_chunks}) {
          const int64_t stride = n_chunks + 4;
          std::vector<float> mass(3 * stride);
          for (float& x : mass) x = mass_of(rng);
          const Case c{3, first, first + n_chunks, std::min(n, n_chunks), greatest};
          expect_picked(c, mass, stride, rng);
          for (float& x : mass) x = std::floor(2 * x);  // ties
          expect_picked(c, mass, stride, rng);
        }
      }
    }
  }
}

TEST(Pick, AnyFloats) {
  std::mt19937_64 rng(test::seed());
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float odd[] = {0.0f, -0.0f, inf, -inf, nan, -nan, 1e-45f, -1e-45f, 3e38f, -3e38f};
  for (int round = 0; round < 60; ++round) {
    std::vector<float> mass(2 * 200);
    for (float& x : mass) {
      x = rng() % 2 == 0 ? odd[rng() % 10] : std::bit_cast<float>(static_cast<uint32_t>(rng()));
    }
    const Case c{2, 10, 210, static_cast<int64_t>(rng() % 201), round % 2 == 0};
    expect_picked(c, mass, 200, rng);
  }
}

TEST(Pick, AllAlike) {
  std::mt19937_64 rng(test::seed());
  for (const float x : {0.0f, 1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    const std::vector<float> mass(100, x);
    for (const bool greatest : {true, false}) {
      expect_picked({1, 5, 105, 30, greatest}, mass, 100, rng);  // 5 .. 34
    }
  }
}

}  // namespace
}  // namespace tiercel
