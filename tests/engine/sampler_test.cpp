// The sampler against a plain fp64 oracle: filters by a full sort, frequencies by a chi-square
// test.
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "engine/base/check.h"
#include "tests/random_constraint.h"
#include "tests/sanitized.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Probability of every token, computed the slow way.
std::vector<double> oracle(const std::vector<float>& logits, const SamplingOptions& options,
                           const std::vector<int32_t>& history) {
  const size_t n = logits.size();
  std::vector<double> adjusted(logits.begin(), logits.end());
  const size_t back = std::min(history.size(), static_cast<size_t>(options.repeat_last_n));
  std::vector<bool> seen(n);
  for (size_t i = history.size() - back; i < history.size(); ++i) seen[history[i]] = true;
  for (size_t i = 0; i < n; ++i) {
    const auto penalty = static_cast<float>(options.repeat_penalty);
    if (seen[i]) adjusted[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
  }
  for (const LogitBias& bias : options.logit_bias) adjusted[static_cast<size_t>(bias.token)] += bias.bias;
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return adjusted[a] > adjusted[b]; });
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(n)) order.resize(options.top_k);
  const double best = adjusted[order[0]];
  std::vector<double> p(n, 0.0);
  double total = 0;
  for (const size_t id : order) total += std::exp((adjusted[id] - best) / options.temperature);
  double cumulative = 0;
  for (const size_t id : order) {
    if (cumulative >= options.top_p && id != order[0]) break;
    p[id] = std::exp((adjusted[id] - best) / options.temperature) / total;
    cumulative += p[id];
  }
  for (double& value : p) {
    if (value < options.min_p * p[order[0]]) value = 0;
  }
  const double kept = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= kept;
  return p;
}

std::vector<float> random_logits(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> logits(n);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// Draws many tokens and compares with the oracle: nothing outside its support, and a chi-square
// within five standard deviations of its mean (cells that expect fewer than 5 are pooled).
void expect_distribution(const std::vector<float>& logits, SamplingOptions options,
                         const std::vector<int32_t>& history = {}) {
  options.seed = test::seed();
  const std::vector<double> p = oracle(logits, options, history);
  Sampler sampler(options, static_cast<int64_t>(logits.size()));
  constexpr int kDraws = test::kSanitized ? 10000 : 40000;
  std::vector<int> count(logits.size());
  for (int i = 0; i < kDraws; ++i) ++count[sampler.sample(logits, history)];
  double chi_square = 0, pooled_expected = 0, pooled_count = 0;
  int cells = 0;
  const auto add_cell = [&](double observed, double expected) {
    chi_square += (observed - expected) * (observed - expected) / expected;
    ++cells;
  };
  for (size_t id = 0; id < p.size(); ++id) {
    if (p[id] == 0) {
      ASSERT_EQ(count[id], 0) << "token " << id << " is filtered but was drawn";
    } else if (p[id] * kDraws >= 5) {
      add_cell(count[id], p[id] * kDraws);
    } else {
      pooled_expected += p[id] * kDraws;
      pooled_count += count[id];
    }
  }
  if (pooled_expected >= 5) add_cell(pooled_count, pooled_expected);
  const double freedom = std::max(1, cells - 1);
  EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2 * freedom) + 5) << "degrees " << freedom;
}

TEST(Sampler, GreedyTakesTheFirstOfTies) {
  Sampler sampler({}, 5);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 2, 3, 3}, {}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-1, -3, -2, -1, -3}, {}), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{-kInfinity, -kInfinity, 0, -kInfinity, 0}, {}), 2);
  EXPECT_EQ(sampler.sample(std::vector<float>{0, kInfinity, kInfinity, 0, 0}, {}), 1);
}

TEST(Sampler, MatchesTheOracleUnderEveryFilter) {
  const auto logits = random_logits(300, test::seed() + 1);
  expect_distribution(logits, {.temperature = 1});
  expect_distribution(logits, {.temperature = 0.5});
  expect_distribution(logits, {.temperature = 3});
  expect_distribution(logits, {.temperature = 1, .top_k = 7});
  expect_distribution(logits, {.temperature = 1, .top_p = 0.7});
  expect_distribution(logits, {.temperature = 1, .min_p = 0.05});
  expect_distribution(logits, {.temperature = 1.3, .top_k = 40, .top_p = 0.9, .min_p = 0.02});
  expect_distribution(logits, {.temperature = 1, .repeat_penalty = 1.5, .repeat_last_n = 3},
                      {1, 2, 3, 4, 5});
  expect_distribution(logits, {.temperature = 1, .top_k = 5, .logit_bias = {{7, 3}, {9, -2.5}, {11, 30}}});
  expect_distribution(logits, {.temperature = 1, .logit_bias = {{0, -kInfinity}, {1, -kInfinity}}});
}

// The adjusted logits are those of an oracle that is told what was picked.
TEST(Sampler, PenalisesWhatItHasPicked) {
  std::mt19937_64 random(test::seed() + 5);
  for (const double temperature : {0.0, 1.0}) {
    const SamplingOptions options{.temperature = temperature, .repeat_penalty = 1.2, .repeat_last_n = 2,
                                  .presence_penalty = 0.75, .frequency_penalty = 0.5,
                                  .logit_bias = {{3, 1.5}, {4, -kInfinity}}, .seed = test::seed()};
    Sampler sampler(options, 20), twin(options, 20);
    std::vector<int> count(20);
    std::vector<int32_t> history = {5, 5, 6};
    for (int step = 0; step < 60; ++step) {
      std::vector<float> logits = random_logits(20, random());
      std::vector<float> expected = logits;
      for (size_t i = history.size() - 2; i < history.size(); ++i) {
        const auto id = static_cast<size_t>(history[i]);
        expected[id] = logits[id] > 0 ? logits[id] / 1.2f : logits[id] * 1.2f;
      }
      for (size_t id = 0; id < 20; ++id) {
        const double bias = id == 3 ? 1.5 : id == 4 ? -kInfinity : 0;
        const double penalty = count[id] > 0 ? 0.75 + 0.5 * count[id] : 0;
        expected[id] += static_cast<float>(bias - penalty);
      }
      // A sampler without adjustments that draws with the same generator.
      Sampler plain({.temperature = temperature, .seed = sampler.generator()}, 20);
      const int32_t want = plain.sample(expected, {});
      ASSERT_EQ(sampler.sample(logits, history), want);
      // What others do who are told the adjustments.
      for (const LogitAdjustment& a : twin.adjustments(history)) {
        float& logit = logits[static_cast<size_t>(a.token)];
        logit = (logit > 0 ? logit / a.factor : logit * a.factor) + a.addend;
      }
      EXPECT_EQ(logits, expected);
      twin.picked(want, plain.generator());
      ++count[static_cast<size_t>(want)];
      history.push_back(want);
    }
    EXPECT_EQ(count[4], 0);
    EXPECT_LT(*std::max_element(count.begin(), count.end()), 12) << "nothing is said over and over";
  }
}

TEST(Sampler, TopPOfOneTokenOrOfAll) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.25f), std::log(0.25f)};
  expect_distribution(logits, {.temperature = 1, .top_p = 0});     // always the best
  expect_distribution(logits, {.temperature = 1, .top_p = 0.49});  // the first alone
  expect_distribution(logits, {.temperature = 1, .top_p = 0.6});   // tie: the lower id joins
  expect_distribution(logits, {.temperature = 1, .top_p = 0.99});
  expect_distribution(logits, {.temperature = 1, .top_p = 1});
}

TEST(Sampler, TiesAtAFilterGoToTheLowerId) {
  const std::vector<float> logits(100, 1.5f);
  Sampler sampler({.temperature = 1, .top_k = 3, .seed = test::seed()}, 100);
  std::vector<int> count(100);
  for (int i = 0; i < 300; ++i) ++count[sampler.sample(logits, {})];
  EXPECT_GT(count[0], 0);
  EXPECT_GT(count[1], 0);
  EXPECT_GT(count[2], 0);
  EXPECT_EQ(count[0] + count[1] + count[2], 300);
}

TEST(Sampler, MinPOfOneKeepsOnlyTheBest) {
  Sampler sampler({.temperature = 2, .min_p = 1}, 4);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(sampler.sample(std::vector<float>{1, 2, 2.5f, 2}, {}), 2);
}

TEST(Sampler, TinyTemperatureIsGreedyAndHugeIsUniform) {
  const auto logits = random_logits(50, test::seed() + 2);
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  Sampler cold({.temperature = 1e-300}, 50);
  EXPECT_EQ(cold.sample(logits, {}), best);
  expect_distribution(logits, {.temperature = 1e9});
}

TEST(Sampler, RepeatPenaltyLooksBackAsFarAsItIsTold) {
  const std::vector<float> logits = {2.0f, 1.9f, -1.0f};
  Sampler sampler({.repeat_penalty = 2, .repeat_last_n = 2}, 3);
  EXPECT_EQ(sampler.sample(logits, std::vector<int32_t>{0, 2, 2}), 0);  // 0 is too long ago
  EXPECT_EQ(sampler.sample(logits, std::vector<int32_t>{2, 0, 2}), 1);
  EXPECT_EQ(sampler.sample(logits, {}), 0);  // the marks of earlier calls are gone
}

TEST(Sampler, SameSeedSameTokensOnEveryMachine) {
  std::vector<float> logits(1000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i * 7919 % 1000) / 128;
  const SamplingOptions options{.temperature = 0.9, .top_k = 200, .top_p = 0.95, .seed = 42};
  Sampler a(options, 1000), b(options, 1000);
  std::vector<int32_t> drawn;
  for (int i = 0; i < 8; ++i) {
    drawn.push_back(a.sample(logits, {}));
    EXPECT_EQ(b.sample(logits, {}), drawn.back());
  }
  // Integer weights and own arithmetic: these ids hold for any compiler and C library.
  EXPECT_EQ(drawn, (std::vector<int32_t>{741, 173, 284, 335, 39, 877, 224, 804}));
}

// As if the others had no probability at all, whatever else is asked for.
TEST(Sampler, TakesOnlyWhatIsAllowed) {
  constexpr int64_t kVocab = 301;
  const SamplingOptions kOptions[] = {{.temperature = 0},
                                      {.temperature = 1},
                                      {.temperature = 2, .top_k = 20, .top_p = 0.8, .min_p = 0.01},
                                      {.temperature = 1, .top_k = 250},
                                      {.temperature = 0, .repeat_penalty = 2, .presence_penalty = 1}};
  for (SamplingOptions options : kOptions) {
    options.seed = test::seed();
    Sampler free(options, kVocab);
    const auto constraint = std::make_shared<test::RandomConstraint>(test::seed(), kVocab);
    options.constraint = test::source_of(constraint);
    Sampler held(options, kVocab);
    EXPECT_FALSE(held.is_argmax());
    std::vector<int32_t> history;
    for (int32_t place = 0; place < 40; ++place) {
      const auto logits = random_logits(kVocab, test::seed() + static_cast<uint64_t>(place));
      const int32_t token = held.sample(logits, history);
      ASSERT_TRUE(contains(*constraint->allowed(place), token));
      ASSERT_EQ(token, free.sample(constraint->masked(logits, place), history)) << "place " << place;
      history.push_back(token);
    }
    Sampler copy = held;  // goes on by itself
    const auto logits = random_logits(kVocab, test::seed());
    EXPECT_EQ(copy.sample(logits, history), held.sample(logits, history));
    copy.begin_answer();
    EXPECT_EQ(*copy.allowed(), *constraint->allowed(0));
    EXPECT_EQ(*held.allowed(), *constraint->allowed(41));
    // What somebody else puts there.
    Sampler stepped = copy;
    const auto first = constraint->allowed(0);
    int32_t inside = 0, outside = 0;
    while (!contains(*first, inside)) ++inside;
    while (outside < kVocab && contains(*first, outside)) ++outside;
    stepped.followed(inside);
    EXPECT_EQ(*stepped.allowed(), *constraint->allowed(1));
    if (outside < kVocab) stepped.followed(outside);
    std::vector<float> broken(kVocab, 1.0f);
    broken[0] = broken[kVocab - 1] = kNan;  // whether they are allowed or not
    EXPECT_THROW(held.sample(broken, history), Error);
    EXPECT_THROW(held.sample(std::vector<float>(kVocab, -kInfinity), history), Error);
  }
}

TEST(Sampler, RefusesNanAndNothingToChoose) {
  Sampler sampler({}, 3);
  EXPECT_THROW(sampler.sample(std::vector<float>{1, kNan, 2}, {}), Error);
  EXPECT_THROW(sampler.sample(std::vector<float>{kNan, kNan, kNan}, {}), Error);
  EXPECT_THROW(sampler.sample(std::vector<float>{-kInfinity, -kInfinity, -kInfinity}, {}), Error);
  EXPECT_EQ(sampler.sample(std::vector<float>{0, 1, 0}, {}), 1);  // usable after an Error
  try {
    sampler.sample(std::vector<float>{1, kNan, 2}, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("token 1"), std::string::npos) << error.what();
  }
}

TEST(Sampler, RefusesOptionsOutOfRange) {
  EXPECT_THROW(Sampler({.temperature = -1}, 3), Error);
  EXPECT_THROW(Sampler({.temperature = std::nan("")}, 3), Error);
  EXPECT_THROW(Sampler({.top_k = -1}, 3), Error);
  EXPECT_THROW(Sampler({.top_p = 1.5}, 3), Error);
  EXPECT_THROW(Sampler({.min_p = -0.1}, 3), Error);
  EXPECT_THROW(Sampler({.repeat_penalty = 0}, 3), Error);
}

}  // namespace
}  // namespace tiercel
