// Scores of answers, and distances between next-token distributions.
#include "tools/eval/score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tests/seed.h"

namespace tiercel::test {
namespace {

TEST(Score, ShareOfTheExpectedStrings) {
  const EvalQuestion question{"?", {"4821", "Abc", "77"}, Scoring::kShare, {}};
  EXPECT_EQ(score_answer(question, ""), 0);
  EXPECT_DOUBLE_EQ(score_answer(question, "it is 4821."), 1.0 / 3);
  EXPECT_DOUBLE_EQ(score_answer(question, "aBC and\n4821"), 2.0 / 3);
  EXPECT_EQ(score_answer(question, "77 4821 ABC"), 1);
  EXPECT_TRUE(is_settled(question, "77 4821 ABC"));
  EXPECT_FALSE(is_settled(question, "77 4821\nAB"));
  EXPECT_EQ(score_answer({"?", {}, Scoring::kShare, {}}, "x"), 0);
}

TEST(Score, FirstLineMustBeExact) {
  const EvalQuestion question{"?", {"4821"}, Scoring::kFirstLine, {}};
  EXPECT_EQ(score_answer(question, " 4821\nmore"), 1);
  EXPECT_EQ(score_answer(question, " 4821 "), 1);
  EXPECT_EQ(score_answer(question, " 48217\n"), 0);
  EXPECT_EQ(score_answer(question, "\n4821"), 0);
  EXPECT_FALSE(is_settled(question, " 4821"));
  EXPECT_TRUE(is_settled(question, " 48\n"));
}

TEST(Score, MostLikelyTakesTheLowestOfTies) {
  EXPECT_EQ(most_likely(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(most_likely(std::vector<float>{NAN, -INFINITY}), 1);
  EXPECT_EQ(most_likely(std::vector<float>{NAN, NAN}), -1);
}

// The definition, term by term, in long double.
double kl_oracle(const std::vector<float>& p, const std::vector<float>& q) {
  long double p_sum = 0, q_sum = 0, kl = 0;
  for (const float v : p) p_sum += std::exp(static_cast<long double>(v));
  for (const float v : q) q_sum += std::exp(static_cast<long double>(v));
  for (size_t i = 0; i < p.size(); ++i) {
    const long double a = std::exp(static_cast<long double>(p[i])) / p_sum;
    const long double b = std::exp(static_cast<long double>(q[i])) / q_sum;
    kl += a * std::log(a / b);
  }
  return static_cast<double>(kl);
}

TEST(Score, DivergenceIsItsDefinition) {
  std::mt19937_64 random(seed());
  std::normal_distribution<float> normal(0, 4);
  for (const size_t n : {1u, 2u, 37u, 2048u}) {
    for (int i = 0; i < 20; ++i) {
      std::vector<float> p(n), q(n);
      for (float& v : p) v = normal(random);
      for (float& v : q) v = normal(random);
      // n terms, each with a few roundings of fp64, of numbers up to about 40 nats.
      const double bound = 40 * (static_cast<double>(n) + 8) * 2.3e-16;
      EXPECT_NEAR(kl_divergence(p, q), kl_oracle(p, q), bound);
      EXPECT_GE(kl_divergence(p, q), 0);
      EXPECT_EQ(kl_divergence(p, p), 0);
      // Softmax does not see a shift; of powers of two, neither does the rounding of the logits.
      std::vector<float> shifted = p;
      for (float& v : shifted) v = v * 0.0f + std::round(v * 16) / 16 + 64;
      std::vector<float> rounded = p;
      for (float& v : rounded) v = std::round(v * 16) / 16;
      EXPECT_NEAR(kl_divergence(shifted, rounded), 0, bound);
    }
  }
}

TEST(Score, DivergenceOfWhatIsNoDistributionIsNoNumber) {
  EXPECT_TRUE(std::isnan(kl_divergence(std::vector<float>{0, NAN}, std::vector<float>{0, 0})));
  EXPECT_TRUE(std::isnan(kl_divergence(std::vector<float>{0, 0}, std::vector<float>{0, NAN})));
  EXPECT_TRUE(std::isnan(kl_divergence(std::vector<float>{0, INFINITY}, std::vector<float>{0, 0})));
  Fidelity fidelity;
  fidelity.add(std::vector<float>{0, 1}, std::vector<float>{0, 1});
  fidelity.add(std::vector<float>{0, 1}, std::vector<float>{NAN, 1});
  EXPECT_TRUE(std::isnan(fidelity.kl()));
  EXPECT_TRUE(std::isnan(fidelity.kl_max));
}

TEST(Score, FidelityAddsUp) {
  const std::vector<float> a = {0, 1, 2}, b = {0, 1, 3}, c = {5, 1, 2};
  Fidelity first, second;
  first.add(a, b);
  second.add(a, c);
  first.merge(second);
  EXPECT_EQ(first.steps, 2);
  EXPECT_EQ(first.agreed, 1);
  EXPECT_DOUBLE_EQ(first.kl(), (kl_divergence(a, b) + kl_divergence(a, c)) / 2);
  EXPECT_DOUBLE_EQ(first.kl_max, kl_divergence(a, c));
  EXPECT_TRUE(std::isnan(Fidelity{}.kl()));
}

}  // namespace
}  // namespace tiercel::test
