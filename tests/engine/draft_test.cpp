// Drafts: what is guessed, how much of it, and that it changes no token.
#include "engine/draft.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "engine/sampler.h"
#include "engine/session.h"
#include "tests/engine/recall.h"
#include "tests/engine/two_tiers.h"
#include "tests/sanitized.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using namespace test;

// By looking everywhere.
std::vector<int32_t> expected_guess(const std::vector<int32_t>& ids, int64_t most) {
  const int64_t n = std::ssize(ids);
  int64_t longest = PromptLookup::kLeastMatch - 1, place = -1;
  for (int64_t next = 1; next < n; ++next) {
    int64_t match = 0;
    while (match < std::min(next, PromptLookup::kMostMatch) &&
           ids[static_cast<size_t>(next - 1 - match)] == ids[static_cast<size_t>(n - 1 - match)]) {
      ++match;
    }
    if (match < longest || match < PromptLookup::kLeastMatch) continue;
    longest = match;
    place = next;
  }
  if (place < 0) return {};
  std::vector<int32_t> longer = ids;  // the text, as it goes on if it repeats itself
  for (int64_t i = 0; i < most; ++i) longer.push_back(longer[static_cast<size_t>(place + i)]);
  return {longer.begin() + n, longer.end()};
}

// So few places are alike here that all of them are looked at.
TEST(PromptLookup, GuessesWhatFollowedTheLongestMatch) {
  std::mt19937_64 random(seed());
  int n_guesses = 0;
  for (int round = 0; round < 50; ++round) {
    PromptLookup lookup(300);
    std::vector<int32_t> ids;
    for (int i = 0; i < 300; ++i) ids.push_back(static_cast<int32_t>(random() % 25));
    for (size_t n = 100; n < 300; n += 1 + random() % 40) {
      lookup.truncate(static_cast<int64_t>(random() % n));
      const auto known = static_cast<size_t>(lookup.n_tokens());
      lookup.append(std::span(ids).subspan(known, n - known));
      const std::vector<int32_t> expected = expected_guess({ids.begin(), ids.begin() + static_cast<int64_t>(n)}, 9);
      ASSERT_TRUE(std::ranges::equal(lookup.guess(9), expected)) << round << " " << n;
      n_guesses += !expected.empty();
    }
  }
  EXPECT_GT(n_guesses, 50);
}

TEST(PromptLookup, FollowsItsPlaceAndLearns) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 200; ++i) ids.push_back(i);
  PromptLookup lookup(1000);
  lookup.append(ids);
  EXPECT_TRUE(lookup.guess(4).empty());
  lookup.push(10);
  lookup.push(11);
  EXPECT_TRUE(std::ranges::equal(lookup.guess(4), std::vector<int32_t>{12, 13, 14, 15}));
  EXPECT_DOUBLE_EQ(lookup.probability(0), 0.5);
  for (int32_t i = 12; i < 150; ++i) {
    lookup.push(i);
    ASSERT_EQ(lookup.guess(1)[0], i + 1);
  }
  EXPECT_GT(lookup.probability(0), 0.9);
  // Of the places with little in common it has seen one each; then they are wrong.
  for (int32_t i = 0; i < 60; ++i) {
    lookup.push(3 * i % 100);
    lookup.push(3 * i % 100 + 1);
    lookup.push(900);
  }
  EXPECT_LT(lookup.probability(-lookup.guess(1).empty()), 0.3);
}

// By every length.
TEST(DraftLength, MakesTheMostTokensPerSecond) {
  PromptLookup lookup(1000);
  lookup.append(std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 2});
  for (const double extra : {0.0, 0.05, 0.2, 0.45, 0.6, 2.0}) {
    DraftLength length;
    const auto best = [&](int64_t most) { return length.best(most, [&](int64_t i) { return lookup.probability(i); }); };
    EXPECT_EQ(best(8), 0) << "nothing was measured";
    for (int i = 0; i < 2; ++i) length.took(1, 1.0);
    for (int i = 0; i < 60; ++i) length.took(5, 1 + 4 * extra);
    int64_t expected = 0;
    double best_rate = 1;
    for (int64_t n = 1; n <= 8; ++n) {
      double tokens = 1, reached = 1;
      for (int64_t i = 0; i < n; ++i) tokens += reached *= lookup.probability(i);
      const double rate = tokens / (1 + extra * static_cast<double>(n));
      if (rate > best_rate + 1e-9) {
        best_rate = rate;
        expected = n;
      }
    }
    EXPECT_EQ(best(8), expected) << extra;
    EXPECT_EQ(expected == 0, extra >= 0.5) << extra;
    EXPECT_LE(best(2), 2);
  }
}

// A moment's noise, during which a guess seemed to cost ten steps.
TEST(DraftLength, TriesAgain) {
  DraftLength length;
  const auto best = [&] { return length.best(2, [](int64_t) { return 0.5; }); };
  for (int i = 0; i < 2; ++i) length.took(1, 1.0);
  length.took(2, 11.0);
  EXPECT_EQ(best(), 0);
  int n = 0;
  for (; best() == 0 && n < 1000; ++n) length.took(1, 1.0);
  EXPECT_GT(n, 20);
  EXPECT_LT(n, 300);
}

// A first step in which much happens, and a slow one behind it, must not make guesses seem to cost nothing for ever.
TEST(DraftLength, ForgetsASlowStep) {
  DraftLength length;
  const auto best = [&] { return length.best(15, [](int64_t) { return 0.2; }); };
  length.took(1, 100.0);
  length.took(1, 10.0);
  EXPECT_GT(best(), 0);
  for (int i = 0; i < 200; ++i) length.took(i % 8 == 0 ? 1 : 4, i % 8 == 0 ? 1.0 : 1 + 3 * 0.5);
  EXPECT_EQ(best(), 0);
}

// Whatever seems best, a step alone is measured now and then.
TEST(Drafts, MeasureStepsAlone) {
  Drafts drafts(DraftMode::kAuto, 4, 10000);
  std::vector<int32_t> ids;
  for (int i = 0; i < 100; ++i) ids.push_back(i % 10);
  drafts.append(ids);
  int n_alone = 0, n_steps = 0;
  for (int i = 0; i < 3000; ++i) {
    if (drafts.is_next(i % 10)) continue;
    const auto n = std::ssize(drafts.begin_step(i % 10, 100)) - 1;
    drafts.took(1 + 0.01 * static_cast<double>(n));
    n_alone += n == 0;
    ++n_steps;
  }
  EXPECT_GT(n_steps, 500);
  EXPECT_LT(n_steps, 800);
  EXPECT_GT(n_alone, n_steps / 40);
  EXPECT_LT(n_alone, n_steps / 20);
}

std::vector<int32_t> generated(Session& session, const SamplingOptions& options, std::vector<int32_t> history, int n) {
  Sampler sampler(options, 2048);
  const size_t n_prompt = history.size();
  for (int i = 0; i < n; ++i) {
    if (i > 0) session.step(history.back());
    history.push_back(session.sample(sampler, history));
  }
  return {history.begin() + static_cast<int64_t>(n_prompt), history.end()};
}

// Also of draws and penalties; and of a cache that fetches, where rounding differs, as long as no two tokens are as good
// as one another. And what is told of it.
TEST(Drafts, GiveTheTokensOfStepsAlone) {
  const std::vector<int32_t> ids = prompt(60);
  const auto n = static_cast<int64_t>(ids.size());
  auto m = model();
  SessionOptions exact;
  exact.attention = AttentionMode::kDense;
  SessionOptions cached = two_tiers();
  cached.selection.budget = 128;
  for (const SessionOptions& options : {exact, cached}) {
    for (const SamplingOptions& sampling :
         {SamplingOptions{}, SamplingOptions{.temperature = 0.7, .top_p = 0.9, .presence_penalty = 0.1, .seed = 3}}) {
      SessionOptions guessing = options;
      guessing.draft = DraftMode::kAlways;
      guessing.draft_max = 8;
      std::vector<std::vector<int32_t>> tokens;
      for (const SessionOptions& o : {options, guessing}) {
        auto session = Session::open(m, Session::plan(*m, o, n, 200));
        ASSERT_TRUE(session->prefill(ids, {}));
        tokens.push_back(generated(*session, sampling, ids, 150));
        ASSERT_EQ(session->n_tokens(), n + 149);
        const DraftReport report = session->drafts();
        if (o.draft == DraftMode::kOff) {
          EXPECT_EQ(report.steps, 0);
          continue;
        }
        EXPECT_EQ(report.steps + report.right, 149);
        EXPECT_GT(report.right, 0);
        EXPECT_GT(report.guessed, report.right);
      }
      EXPECT_EQ(tokens[0], tokens[1]);
    }
  }
}

// To the last token that the context has room for, in one that the plan has counted.
TEST(Drafts, EndWithTheContext) {
  auto m = model();
  std::vector<int32_t> ids;
  for (int i = 0; i < 64; ++i) ids.push_back(100 + i % 8);
  SessionOptions options;
  options.draft = DraftMode::kAlways;
  const SessionPlan plan = Session::plan(*m, options, 64, 20);
  EXPECT_EQ(plan.draft, options.draft_max);
  auto session = Session::open(m, plan);
  ASSERT_TRUE(session->prefill(ids, {}));
  for (int i = 0; i < 20; ++i) session->step(100 + i % 8);
  EXPECT_EQ(session->n_tokens(), 84);
  EXPECT_GT(session->drafts().right, 10);
  std::string message;
  EXPECT_EQ(kind_of([&] { session->step(1); }, &message), ErrorKind::kRuntime);
  EXPECT_NE(message.find("context"), std::string::npos);
  options.draft = DraftMode::kOff;
  EXPECT_LT(Session::plan(*m, options, 64, 20).memory.device.activations, plan.memory.device.activations);
}

// Said in the plan, and with --strict refused.
TEST(Drafts, AreNotForEverything) {
  auto m = model();
  const auto plan_of = [&](const std::function<void(SessionOptions&)>& change) {
    SessionOptions options = two_tiers();
    options.draft = DraftMode::kAuto;
    change(options);
    return Session::plan(*m, options, 2000, 100);
  };
  EXPECT_EQ(plan_of([](SessionOptions&) {}).draft, SessionOptions().draft_max);
  const std::vector<std::pair<const char*, std::function<void(SessionOptions&)>>> cases = {
      {"--reuse", [](SessionOptions& o) { o.selection.reuse = 0.9; }},
      {"--miss-cap", [](SessionOptions& o) { o.selection.miss_cap = 8; }},
      {"--share-layers", [](SessionOptions& o) { o.selection.share_layers = 2; }},
      {"--audit", [](SessionOptions& o) { o.audit = 4; }},
      {"--host-attention", [](SessionOptions& o) { o.host_attention = HostAttention::kOn; }}};
  for (const auto& [name, change] : cases) {
    const SessionPlan plan = plan_of(change);
    EXPECT_EQ(plan.draft, 0) << name;
    EXPECT_TRUE(std::ranges::any_of(plan.notes, [name = name](const std::string& note) {
      return note.find("--draft: of no use") != std::string::npos && note.find(name) != std::string::npos;
    })) << name;
    EXPECT_EQ(kind_of([&, change = change] {
                plan_of([&](SessionOptions& o) {
                  change(o);
                  o.strict = true;
                });
              }),
              ErrorKind::kUsage)
        << name;
  }
  for (const int64_t n : {0, 32}) {
    EXPECT_EQ(kind_of([&] { plan_of([n](SessionOptions& o) { o.draft_max = n; }); }), ErrorKind::kUsage);
  }
}

}  // namespace
}  // namespace tiercel
