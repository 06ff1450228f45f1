// Tokens behind a prompt: appended as stepped, forgotten by a rewind, found in a follow-up.
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/base/check.h"
#include "engine/presets.h"
#include "engine/session.h"
#include "engine/text/tokenizer.h"
#include "tests/engine/recall.h"
#include "tests/engine/two_tiers.h"
#include "tests/sanitized.h"

namespace tiercel {
namespace {

using namespace test;

// As steps do: the same bits, whatever the lengths, through windows that move and chunks that retire.
TEST(Append, EqualsSteps) {
  const std::vector<int32_t> ids = prompt(60);
  const auto n = static_cast<int64_t>(ids.size());
  const int64_t n_prompt = n - 300;
  auto m = model();
  for (const AttentionMode mode : attention_modes()) {
    if (kSanitized && mode != AttentionMode::kShadow) continue;
    SessionOptions options = two_tiers(preset(mode));
    options.selection.budget = 64;
    options.selection.recent = 48;
    const SessionPlan plan = Session::plan(*m, options, n_prompt, 310);
    auto stepped = Session::open(m, plan), appended = Session::open(m, plan);
    for (auto* session : {stepped.get(), appended.get()}) {
      ASSERT_TRUE(session->prefill(std::span(ids).first(static_cast<size_t>(n_prompt)), {}));
    }
    int64_t done = n_prompt;
    const bool is_dense = mode == AttentionMode::kDense;
    for (const int64_t piece : {int64_t{1}, int64_t{is_dense ? 63 : 64}, int64_t{is_dense ? 40 : 130}, int64_t{60}}) {
      for (int64_t i = 0; i < piece; ++i) stepped->step(ids[static_cast<size_t>(done + i)]);
      ASSERT_TRUE(appended->append(
          std::span(ids).subspan(static_cast<size_t>(done), static_cast<size_t>(piece)), {}));
      done += piece;
      ASSERT_EQ(appended->n_tokens(), done);
      ASSERT_TRUE(std::ranges::equal(stepped->logits(), appended->logits()))
          << name_of(mode) << " after " << piece;
      stepped->step(7);
      appended->step(7);
      ++done;
      ASSERT_TRUE(std::ranges::equal(stepped->logits(), appended->logits())) << name_of(mode);
    }
    EXPECT_EQ(stepped->selection().hit_chunks, appended->selection().hit_chunks);
  }
}

// Behind selected prefill an append of more than 64 tokens makes a list for 16 tokens, but for its last 64. What selects
// everything attends everything all the same, through windows that move and chunks that retire.
TEST(Append, LongOnesShareLists) {
  const std::vector<int32_t> ids = prompt(60);
  const auto n = static_cast<int64_t>(ids.size());
  const int64_t n_prompt = n - 250;
  auto m = model();
  for (const KeyCodec keys : {KeyCodec::kExact, KeyCodec::kInt8}) {
    for (const ValueHome home : {ValueHome::kHost, ValueHome::kDevice}) {
      if (kSanitized && (keys == KeyCodec::kInt8) != (home == ValueHome::kHost)) continue;
      SessionOptions options;
      options.prefill = PrefillMode::kSelect;
      options.selection.key_codec = keys;
      options.selection.budget = kBudgetAll;
      options.selection.recent = 48;
      options.value_home = home;
      const SessionPlan plan = Session::plan(*m, options, n_prompt, 310);
      auto stepped = Session::open(m, plan), appended = Session::open(m, plan);
      for (auto* session : {stepped.get(), appended.get()}) {
        ASSERT_TRUE(session->prefill(std::span(ids).first(static_cast<size_t>(n_prompt)), {}));
      }
      for (int64_t i = n_prompt; i < n; ++i) stepped->step(ids[static_cast<size_t>(i)]);
      ASSERT_TRUE(appended->append(std::span(ids).subspan(static_cast<size_t>(n_prompt)), {}));
      const std::vector<float> expected(stepped->logits().begin(), stepped->logits().end());
      EXPECT_LT(rms_difference({appended->logits().begin(), appended->logits().end()}, expected),
                0.05 * rms(expected));
      EXPECT_EQ(appended->selection().steps, stepped->selection().steps);
      if (home == ValueHome::kDevice) continue;  // nothing is fetched, nothing counted
      const auto whole = static_cast<double>(stepped->selection().selected_chunks);
      const auto shared = static_cast<double>(appended->selection().selected_chunks);
      // 64 of 250 tokens by themselves, of the others one in 16 or, where chunks leave the window, in 8.
      EXPECT_LT(shared, 0.4 * whole);
      EXPECT_GT(shared, 0.2 * whole);
    }
  }
}

// A shared list is attended in its slots, hits and misses, as it is where everything is at home.
TEST(Append, SharedListsAreAttendedWherever) {
  const std::vector<int32_t> ids = prompt(60);
  const int64_t n_prompt = std::ssize(ids) - 250;
  auto m = model();
  std::vector<std::vector<float>> logits;
  for (const ValueHome home : {ValueHome::kHost, ValueHome::kDevice}) {
    SessionOptions options;
    options.prefill = PrefillMode::kSelect;
    options.selection.key_codec = KeyCodec::kExact;
    options.selection.budget = 64;
    options.selection.recent = 48;
    options.selection.slots = 1;
    options.value_home = home;
    auto session = Session::open(m, Session::plan(*m, options, n_prompt, 310));
    ASSERT_TRUE(session->prefill(std::span(ids).first(static_cast<size_t>(n_prompt)), {}));
    // Ends with a shared list: the last 64 would hide it.
    const auto more = std::span(ids).subspan(static_cast<size_t>(n_prompt));
    EXPECT_FALSE(session->append(more, [](const Progress& p) { return p.tokens_done < 128; }));
    EXPECT_EQ(session->n_tokens(), n_prompt + 128);
    logits.emplace_back(session->logits().begin(), session->logits().end());
  }
  EXPECT_LT(rms_difference(logits[0], logits[1]), 0.005 * rms(logits[1]));
}

// Chunks that left the window after the prompt, and outliers among them, are forgotten by a rewind: the
// same tokens lead to the same bits again, and other tokens to those of a session that never went back.
TEST(Append, RewindForgetsWhatLeftTheWindow) {
  const std::vector<int32_t> ids = prompt(60);
  const int64_t n_prompt = std::ssize(ids) - 70;
  auto m = model();
  SessionOptions options = two_tiers();
  options.selection.budget = 64;
  options.selection.recent = 48;
  options.selection.outliers = 2;
  options.selection.key_codec = KeyCodec::kInt8;
  const SessionPlan plan = Session::plan(*m, options, n_prompt, 80);
  const auto open = [&] {
    auto session = Session::open(m, plan);
    EXPECT_TRUE(session->prefill(std::span(ids).first(static_cast<size_t>(n_prompt)), {}));
    return session;
  };
  const auto walk = [&](Session& session, bool backwards) {
    for (int64_t i = 0; i < 65; ++i) {
      session.step(ids[static_cast<size_t>(backwards ? 64 - i : n_prompt + i)]);
    }
    return std::vector<float>(session.logits().begin(), session.logits().end());
  };
  auto session = open();
  const std::vector<float> first = walk(*session, false);
  session->rewind();
  EXPECT_EQ(walk(*session, true), walk(*open(), true));
  session->rewind();
  EXPECT_EQ(walk(*session, false), first);
}

// Which of eight facts are found that a long follow-up of the prompt states.
std::vector<bool> found_in_follow_up(const SessionOptions& options) {
  const Tokenizer tokenizer = Tokenizer::load(kModel);
  const char* const keys[] = {"silver-harbor", "amber mango",   "bison-pebble", "falcon jade",
                              "lemur-nova",    "quartz willow", "cedar-comet",  "violet anchor"};
  std::string more;
  for (int64_t i = 0; i < 8; ++i) {
    more += filler(300 + 10 * i, 8);
    more += fmt::format("\nThe magic number for {} is {}.\n", keys[i], 10843 + 7919 * i);
  }
  more += filler(400, 40);
  auto m = model();
  const std::vector<int32_t> ids = tokenizer.encode(filler(0, 300)), follow_up = tokenizer.encode(more);
  auto session = Session::open(
      m, Session::plan(*m, options, std::ssize(ids), std::ssize(follow_up) + 100));
  EXPECT_TRUE(session->prefill(ids, {}));
  EXPECT_TRUE(session->append(follow_up, {}));
  std::vector<bool> found;
  for (int64_t i = 0; i < 8; ++i) {
    auto fork = session->fork();
    EXPECT_TRUE(fork->append(
        tokenizer.encode(fmt::format("\nWhat is the magic number for {0}? The magic number for {0} is",
                                     keys[i])), {}));
    std::vector<int32_t> out;
    for (int step = 0; step < 4; ++step) {
      const auto logits = fork->logits();
      out.push_back(
          static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
      fork->step(out.back());
    }
    found.push_back(tokenizer.decode(out, true).starts_with(fmt::format(" {}\n", 10843 + 7919 * i)));
  }
  return found;
}

// What dense attention finds a small budget finds too, though it left the window long ago: such chunks
// are those that a mean describes badly, and stay exact behind the prompt as well.
TEST(Append, FindsFactsOfAFollowUp) {
  if (kSanitized) GTEST_SKIP() << "minutes under a sanitizer";
  SessionOptions options = two_tiers();
  options.prefill = PrefillMode::kSelect;
  options.selection.budget = 128;
  const std::vector<bool> reference = found_in_follow_up(dense());
  EXPECT_GE(std::ranges::count(reference, true), 4);
  const std::vector<bool> found = found_in_follow_up(options);
  for (size_t i = 0; i < reference.size(); ++i) EXPECT_GE(found[i], reference[i]) << "fact " << i;
}

TEST(Append, StopsAndRefuses) {
  const std::vector<int32_t> ids = prompt(20);
  const auto n = static_cast<int64_t>(ids.size());
  auto m = model();
  auto session = Session::open(m, Session::plan(*m, {}, n, 200));
  ASSERT_TRUE(session->prefill(ids, {}));
  const std::vector<int32_t> more(150, 9);
  std::vector<int64_t> seen;
  EXPECT_FALSE(session->append(more, [&](const Progress& p) {
    seen.push_back(p.tokens_done);
    EXPECT_EQ(p.tokens_total, 150);
    return seen.size() < 2;
  }));
  EXPECT_EQ(seen, (std::vector<int64_t>{64, 128}));
  EXPECT_EQ(session->n_tokens(), n + 128);
  EXPECT_THROW(session->append(more, {}), Error);
  EXPECT_THROW(session->append(std::vector<int32_t>{1, 2, 1 << 20}, {}), Error);
  EXPECT_EQ(session->n_tokens(), n + 128);
  EXPECT_TRUE(session->append({}, {}));
  EXPECT_TRUE(session->append(std::span(more).first(72), {}));
  EXPECT_THROW(session->step(1), Error);
}

}  // namespace
}  // namespace tiercel
