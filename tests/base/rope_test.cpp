#include "engine/base/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/oracle/elementwise.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

// The product of both tables, as the kernels form it.
std::pair<float, float> from_tables(const RopeView& view, int64_t position, int64_t i) {
  const int64_t a = position / kRopeFine * view.half + i, b = position % kRopeFine * view.half + i;
  const float ca = view.coarse_cos[a], sa = view.coarse_sin[a];
  const float cb = view.fine_cos[b], sb = view.fine_sin[b];
  return {ca * cb - sa * sb, sa * cb + ca * sb};
}

// Entries are rounded to 2^-25; the sum of two products of values below 1 takes four such errors,
// at most 2 sqrt(2) in total because cos^2 + sin^2 = 1, and three roundings of its own.
constexpr double kTolerance = (2 * 1.4143 + 3) * 0x1p-25 + 1e-9;

void expect_close(const RopeView& view, const std::vector<double>& inv_freq, int64_t position) {
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const auto [c, s] = test::turn_oracle(position, inv_freq[i]);
    const auto [got_c, got_s] = from_tables(view, position, static_cast<int64_t>(i));
    ASSERT_NEAR(static_cast<double>(got_c), static_cast<double>(c), kTolerance)
        << "position " << position << " channel " << i;
    ASSERT_NEAR(static_cast<double>(got_s), static_cast<double>(s), kTolerance)
        << "position " << position << " channel " << i;
  }
}

TEST(Rope, TablesAreExactUpToTheirEnd) {
  const std::vector<double> inv_freq = test::rope_frequencies(32, 1e7);
  const int64_t n = (int64_t{1} << 22) + 5;
  const RopeTable table(inv_freq, n);
  EXPECT_EQ(table.view().n_coarse, 4097);
  EXPECT_EQ(table.bytes(), RopeTable::bytes(32, n));
  std::mt19937_64 random(test::seed());
  for (int64_t position : {int64_t{0}, int64_t{1}, int64_t{1023}, int64_t{1024}, n - 1}) {
    expect_close(table.view(), inv_freq, position);
  }
  for (int i = 0; i < 2000; ++i) {
    expect_close(table.view(), inv_freq, static_cast<int64_t>(random() % static_cast<uint64_t>(n)));
  }
}

// The fastest frequency at the furthest position is the hardest case.
TEST(Rope, PositionsOfMoreThan32Bits) {
  const std::vector<double> inv_freq = {1.0};
  const int64_t n = int64_t{1} << 33;
  const RopeTable table(inv_freq, n);
  std::mt19937_64 random(test::seed());
  expect_close(table.view(), inv_freq, n - 1);
  for (int i = 0; i < 5000; ++i) {
    expect_close(table.view(), inv_freq, static_cast<int64_t>(random() % static_cast<uint64_t>(n)));
  }
}

TEST(Rope, AnglesOfAnyFrequency) {
  std::mt19937_64 random(test::seed());
  std::uniform_real_distribution<double> frequency(0.0, 1.0);
  for (int i = 0; i < 20000; ++i) {
    const int64_t position = static_cast<int64_t>(random() >> 31);
    const double inv_freq = frequency(random);
    const auto [c, s] = test::turn_oracle(position, inv_freq);
    const Turn turn = rope_turn(position, inv_freq);
    ASSERT_NEAR(turn.cos, static_cast<double>(c), 1e-9) << position << " * " << inv_freq;
    ASSERT_NEAR(turn.sin, static_cast<double>(s), 1e-9) << position << " * " << inv_freq;
  }
}

TEST(Rope, ATurnKeepsLengths) {
  const std::vector<double> inv_freq = test::rope_frequencies(64, 5e5);
  const RopeTable table(inv_freq, 1 << 20);
  for (int64_t position = 0; position < 1 << 20; position += 9973) {
    for (int64_t i = 0; i < 64; ++i) {
      const auto [c, s] = from_tables(table.view(), position, i);
      ASSERT_NEAR(static_cast<double>(c * c + s * s), 1.0, 4 * kTolerance);
    }
  }
}

}  // namespace
}  // namespace tiercel
