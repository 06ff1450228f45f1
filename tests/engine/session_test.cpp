// A session as its users see it: equal ways give equal answers, limits are kept, bad input is
// refused.
#include "engine/session.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "engine/presets.h"
#include "engine/tokenizer.h"
#include "tests/engine/two_tiers.h"
#include "tests/sanitized.h"

namespace tiercel {
namespace {

constexpr const char* kModel = TIERCEL_SOURCE_DIR "/tools/demo/recall-4m";

std::shared_ptr<Model> model(int threads = 2) {
  return Model::open(kModel, {.backend = BackendKind::kCpu, .n_threads = threads});
}

// n sentences that say nothing.
std::string filler(int64_t first, int64_t n) {
  std::string text;
  for (int64_t i = first; i < first + n; ++i) {
    text += fmt::format("Step {} of the guide explains how part {} of the machine is cleaned. ", i,
                        (i * 37) % 101);
  }
  return text;
}

// A fact among filler, and the question for it. Short under a sanitizer.
std::vector<int32_t> prompt(int64_t n_filler_sentences) {
  if (test::kSanitized && n_filler_sentences > 40) n_filler_sentences = 40;
  const Tokenizer tokenizer = Tokenizer::load(kModel);
  const int64_t before = n_filler_sentences / 3 + 1;
  std::string text = filler(0, before) + "\nThe magic number for silver-harbor is 48213.\n" +
                     filler(before, n_filler_sentences - before);
  text += "\nWhat is the magic number for silver-harbor? The magic number for silver-harbor is";
  return tokenizer.encode(text);
}

std::vector<float> logits_after(const std::vector<int32_t>& ids, int64_t n_prefilled,
                                const SessionOptions& options, int threads = 2) {
  auto m = model(threads);
  const auto n = static_cast<int64_t>(ids.size());
  auto session = Session::open(m, Session::plan(*m, options, n_prefilled, n - n_prefilled + 1));
  EXPECT_TRUE(session->prefill(std::span(ids).first(static_cast<size_t>(n_prefilled)), {}));
  for (int64_t i = n_prefilled; i < n; ++i) session->step(ids[static_cast<size_t>(i)]);
  return {session->logits().begin(), session->logits().end()};
}

double rms_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double square = 0;
  for (size_t i = 0; i < a.size(); ++i) square += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return std::sqrt(square / static_cast<double>(a.size()));
}

double rms(const std::vector<float>& a) {
  return rms_difference(a, std::vector<float>(a.size(), 0.0f));
}

SessionOptions dense() {
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  options.prefill = PrefillMode::kDense;
  return options;
}

std::string answer(const std::vector<int32_t>& ids, const SessionOptions& options) {
  const Tokenizer tokenizer = Tokenizer::load(kModel);
  auto m = model();
  const auto n = static_cast<int64_t>(ids.size());
  auto session = Session::open(m, Session::plan(*m, options, n, 8));
  EXPECT_TRUE(session->prefill(ids, {}));
  std::vector<int32_t> out;
  for (int i = 0; i < 6; ++i) {
    const auto logits = session->logits();
    out.push_back(
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    session->step(out.back());
  }
  return tokenizer.decode(out, true);
}

TEST(Session, FindsAFact) {
  const std::vector<int32_t> ids = prompt(150);
  EXPECT_EQ(answer(ids, dense()).substr(0, 6), " 48213");
  SessionOptions shadow = test::two_tiers();
  shadow.selection.budget = 256;
  EXPECT_EQ(answer(ids, shadow).substr(0, 6), " 48213");
  shadow.prefill = PrefillMode::kSelect;
  shadow.prefill_budget = 512;
  EXPECT_EQ(answer(ids, shadow).substr(0, 6), " 48213");
}

// Prefill and decode round at different places (bf16 probabilities in prefill, fp32 in decode), so
// the yardstick is the noise of bf16 activations: about 2 % of the logits' own size.
TEST(Session, LayerMajorEqualsTokenMajor) {
  std::vector<int32_t> ids = prompt(12);
  const auto n = static_cast<int64_t>(ids.size());
  const std::vector<float> whole = logits_after(ids, n, dense());
  const double scale = rms(whole);
  for (int64_t prefilled : {int64_t{1}, int64_t{7}, n / 2}) {
    EXPECT_LT(rms_difference(whole, logits_after(ids, prefilled, dense())), 0.05 * scale)
        << prefilled << " of " << n;
  }
}

// As steps do: the same bits, whatever the lengths, through windows that move and chunks that retire.
TEST(Session, AppendedEqualsStepped) {
  const std::vector<int32_t> ids = prompt(60);
  const auto n = static_cast<int64_t>(ids.size());
  const int64_t n_prompt = n - 300;
  auto m = model();
  for (const AttentionMode mode : attention_modes()) {
    if (test::kSanitized && mode != AttentionMode::kShadow) continue;
    SessionOptions options = test::two_tiers(preset(mode));
    options.selection.budget = 64;
    options.selection.recent = 48;
    const SessionPlan plan = Session::plan(*m, options, n_prompt, 310);
    auto stepped = Session::open(m, plan), appended = Session::open(m, plan);
    for (auto* session : {stepped.get(), appended.get()}) {
      ASSERT_TRUE(session->prefill(std::span(ids).first(static_cast<size_t>(n_prompt)), {}));
    }
    int64_t done = n_prompt;
    for (const int64_t piece : {int64_t{1}, int64_t{64}, int64_t{130}, int64_t{100}}) {
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

// Behind selected prefill a long append makes a list for 16 tokens, but for its last 64. What selects
// everything attends everything all the same, through windows that move and chunks that retire.
TEST(Session, LongAppendsShareLists) {
  const std::vector<int32_t> ids = prompt(60);
  const auto n = static_cast<int64_t>(ids.size());
  const int64_t n_prompt = n - 300;
  auto m = model();
  for (const KeyCodec keys : {KeyCodec::kExact, KeyCodec::kInt8}) {
    for (const ValueHome home : {ValueHome::kHost, ValueHome::kDevice}) {
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
      // 64 of 300 tokens by themselves, of the others one in 16 or, where chunks leave the window, in 8.
      EXPECT_LT(shared, 0.4 * whole);
      EXPECT_GT(shared, 0.2 * whole);
    }
  }
}

// A shared list is attended in its slots, hits and misses, as it is where everything is at home.
TEST(Session, SharedListsAreAttendedWherever) {
  const std::vector<int32_t> ids = prompt(60);
  const int64_t n_prompt = std::ssize(ids) - 300;
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
    EXPECT_FALSE(session->append(more, [](const Progress& p) { return p.tokens_done < 192; }));
    EXPECT_EQ(session->n_tokens(), n_prompt + 192);
    logits.emplace_back(session->logits().begin(), session->logits().end());
  }
  EXPECT_LT(rms_difference(logits[0], logits[1]), 0.005 * rms(logits[1]));
}

// Chunks that left the window after the prompt, and outliers among them, are forgotten by a rewind: the
// same tokens lead to the same bits again, and other tokens to those of a session that never went back.
TEST(Session, RewindForgetsWhatLeftTheWindow) {
  const std::vector<int32_t> ids = prompt(60);
  const int64_t n_prompt = std::ssize(ids) - 70;
  auto m = model();
  SessionOptions options = test::two_tiers();
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
TEST(Session, FindsFactsOfAFollowUp) {
  if (test::kSanitized) GTEST_SKIP() << "minutes under a sanitizer";
  SessionOptions options = test::two_tiers();
  options.prefill = PrefillMode::kSelect;
  options.selection.budget = 128;
  const std::vector<bool> reference = found_in_follow_up(dense());
  EXPECT_GE(std::ranges::count(reference, true), 4);
  const std::vector<bool> found = found_in_follow_up(options);
  for (size_t i = 0; i < reference.size(); ++i) EXPECT_GE(found[i], reference[i]) << "fact " << i;
}

// A fork goes on as its origin does, and as if the other was not there.
TEST(Session, ForksGoTheirOwnWays) {
  const std::vector<int32_t> ids = prompt(60);
  const auto n = static_cast<int64_t>(ids.size());
  auto m = model();
  for (const AttentionMode mode : attention_modes()) {
    if (test::kSanitized && mode != AttentionMode::kShadow) continue;
    SessionOptions options = test::two_tiers(preset(mode));
    options.selection.budget = 64;
    options.selection.recent = 48;
    const SessionPlan plan = Session::plan(*m, options, n, 200);
    const auto origin = Session::open(m, plan), control = Session::open(m, plan);
    EXPECT_THROW(origin->fork(), Error);
    for (Session* session : {origin.get(), control.get()}) {
      ASSERT_TRUE(session->prefill(ids, {}));
      for (int32_t i = 0; i < 20; ++i) session->step(i);
    }
    const auto fork = origin->fork();
    ASSERT_TRUE(std::ranges::equal(fork->logits(), control->logits())) << name_of(mode);
    EXPECT_EQ(fork->n_tokens(), n + 20);
    // The origin says something else, then goes away; the fork says what the control does.
    for (int32_t i = 0; i < 30; ++i) origin->step(1000 + i);
    ASSERT_FALSE(std::ranges::equal(origin->logits(), control->logits()));
    const auto grandchild = fork->fork();
    for (int32_t i = 0; i < 90; ++i) {
      for (Session* session : {fork.get(), control.get(), grandchild.get()}) session->step(50 + i);
      if (i % 30 > 0) continue;
      ASSERT_TRUE(std::ranges::equal(fork->logits(), control->logits())) << name_of(mode) << i;
      ASSERT_TRUE(std::ranges::equal(grandchild->logits(), control->logits())) << name_of(mode);
    }
  }
}

// Where it lies changes what is counted, no bit.
TEST(Session, HostAttendsAsTheDeviceDoes) {
  const std::vector<int32_t> ids = prompt(60);
  const auto n = static_cast<int64_t>(ids.size());
  auto m = model();
  for (const AttentionMode mode : attention_modes()) {
    if (mode == AttentionMode::kDense) continue;
    if (test::kSanitized && mode != AttentionMode::kQuest) continue;
    SessionOptions options = preset(mode);
    options.selection.budget = 64;
    options.selection.recent = 48;
    options.value_home = ValueHome::kDevice;
    const auto device = Session::open(m, Session::plan(*m, options, n, 100));
    options.value_home = ValueHome::kHost;
    options.host_attention = HostAttention::kOn;
    const auto host = Session::open(m, Session::plan(*m, options, n, 100));
    EXPECT_EQ(host->plan().memory.device.values, 0);
    EXPECT_LT(host->plan().memory.device.total(), device->plan().memory.device.total());
    EXPECT_EQ(host->plan().memory.total() - host->plan().memory.process,
              device->plan().memory.total() - device->plan().memory.process);
    for (Session* session : {device.get(), host.get()}) ASSERT_TRUE(session->prefill(ids, {}));
    for (int32_t i = 0; i < 70; ++i) {
      host->step(ids[static_cast<size_t>(i)]);
      device->step(ids[static_cast<size_t>(i)]);
    }
    ASSERT_TRUE(std::ranges::equal(host->logits(), device->logits())) << name_of(mode);
    EXPECT_EQ(host->selection().fetched_bytes, 0);
  }
  // Layer by layer, after a trial of both: the same bits again.
  SessionOptions options = preset(AttentionMode::kShadow);
  options.selection.budget = 64;
  options.selection.recent = 48;
  options.selection.key_codec = KeyCodec::kExact;
  options.value_home = ValueHome::kHost;
  const auto fetching = Session::open(m, Session::plan(*m, options, n, 100));
  options.host_attention = HostAttention::kAuto;
  const auto trying = Session::open(m, Session::plan(*m, options, n, 100));
  for (Session* session : {fetching.get(), trying.get()}) ASSERT_TRUE(session->prefill(ids, {}));
  for (int32_t i = 0; i < 70; ++i) {
    for (Session* session : {fetching.get(), trying.get()}) session->step(ids[static_cast<size_t>(i)]);
  }
  EXPECT_GT(trying->selection().tried_fetch_seconds, 0);
  EXPECT_GT(trying->selection().tried_host_seconds, 0);
  SessionOptions wrong;
  wrong.host_attention = HostAttention::kOn;
  wrong.selection.value_codec = RowCodec::kInt8;
  EXPECT_THROW(Session::plan(*m, wrong, n, 100), Error);
  wrong.selection.value_codec = RowCodec::kBf16;
  wrong.selection.key_codec = KeyCodec::kInt8;
  EXPECT_THROW(Session::plan(*m, wrong, n, 100), Error);
}

TEST(Session, AppendStopsAndRefuses) {
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

TEST(Session, SelectPrefillWithRoomForEverythingEqualsDense) {
  const std::vector<int32_t> ids = prompt(60);
  const auto n = static_cast<int64_t>(ids.size());
  SessionOptions select = dense();
  select.prefill = PrefillMode::kSelect;
  select.prefill_budget = 2 * n;
  const std::vector<float> whole = logits_after(ids, n, dense());
  EXPECT_LT(rms_difference(whole, logits_after(ids, n, select)), 0.03 * rms(whole));
  // Whatever the index of decode is made of, prefill selects by means of chunks.
  for (const AttentionMode mode : attention_modes()) {
    SessionOptions options = test::two_tiers(preset(mode));
    options.prefill = PrefillMode::kSelect;
    options.prefill_budget = 2 * n;
    EXPECT_LT(rms_difference(whole, logits_after(ids, n, options)), 0.03 * rms(whole))
        << name_of(mode);
    options.prefill_budget = 256;
    EXPECT_GT(rms_difference(whole, logits_after(ids, n, options)), 0) << name_of(mode);
  }
}

TEST(Session, WholeBudgetEqualsDense) {
  const std::vector<int32_t> ids = prompt(100);
  const auto n = static_cast<int64_t>(ids.size());
  SessionOptions all = test::two_tiers();
  all.selection.budget = kBudgetAll;
  all.prefill = PrefillMode::kDense;
  const std::vector<float> whole = logits_after(ids, n - 20, dense());
  EXPECT_LT(rms_difference(whole, logits_after(ids, n - 20, all)), 0.03 * rms(whole));
}

TEST(Session, SameBitsForAnyThreadCount) {
  const std::vector<int32_t> ids = prompt(120);
  const auto n = static_cast<int64_t>(ids.size());
  SessionOptions shadow = test::two_tiers();
  shadow.selection.budget = 256;
  shadow.prefill = PrefillMode::kSelect;
  shadow.prefill_budget = 256;
  for (const SessionOptions& options : {dense(), shadow}) {
    const std::vector<float> one = logits_after(ids, n - 10, options, 1);
    EXPECT_EQ(one, logits_after(ids, n - 10, options, 2));
    EXPECT_EQ(one, logits_after(ids, n - 10, options, 3));
  }
}

// Every preset finds it with a quarter of the tokens, and with all of them equals dense attention.
TEST(Session, EveryPresetFindsAFact) {
  const std::vector<int32_t> ids = prompt(150);
  const auto n = static_cast<int64_t>(ids.size());
  const std::vector<float> whole = logits_after(ids, n - 20, dense());
  for (const AttentionMode mode : attention_modes()) {
    SessionOptions options = test::two_tiers(preset(mode));
    options.prefill = PrefillMode::kDense;
    options.selection.budget = 512;
    options.selection.static_budget = std::min<int64_t>(options.selection.static_budget, 512);
    const std::string found = answer(ids, options).substr(0, 6);
    // What MPCache keeps of a short prompt is its own; a sanitizer looks for other faults.
    if (!test::kSanitized) {
      EXPECT_EQ(found, " 48213") << name_of(mode);
    }
    options.selection.budget = kBudgetAll;
    options.selection.key_codec = KeyCodec::kExact;
    options.selection.drop_share = 0;
    options.selection.coarse_share = 1;
    EXPECT_LT(rms_difference(whole, logits_after(ids, n - 20, options)), 0.03 * rms(whole))
        << name_of(mode);
  }
}

// Memory that is enough for everything: exact keys and values stay on the device, nothing moves.
TEST(Session, WhatFitsTheDeviceStaysThere) {
  const std::vector<int32_t> ids = prompt(150);
  const auto n = static_cast<int64_t>(ids.size());
  auto m = model();
  SessionOptions options;
  options.selection.budget = 256;
  options.device_memory = int64_t{1} << 30;
  const SessionPlan roomy = Session::plan(*m, options, n, 8);
  EXPECT_EQ(roomy.device_layers, m->config().n_layers);
  EXPECT_EQ(roomy.options.selection.key_codec, KeyCodec::kExact);
  EXPECT_EQ(roomy.memory.host.total(), 0);
  auto session = Session::open(m, roomy);
  ASSERT_TRUE(session->prefill(ids, {}));
  session->step(ids[0]);
  EXPECT_GT(session->selection().steps, 0);
  EXPECT_EQ(session->selection().fetched_bytes, 0);

  // With less, some layers go to the host; with --value-home host, all.
  options.selection.key_codec = KeyCodec::kExact;
  options.device_memory = roomy.memory.device.total() - 1;
  const SessionPlan tight = Session::plan(*m, options, n, 8);
  EXPECT_LT(tight.device_layers, m->config().n_layers);
  EXPECT_LE(tight.memory.device.total(), options.device_memory);
  options.value_home = ValueHome::kHost;
  EXPECT_EQ(Session::plan(*m, options, n, 8).device_layers, 0);
}

// After a rewind everything happens again, bit by bit, whatever was generated in between; and a budget
// set later equals one that was planned.
TEST(Session, RewindsToTheEndOfItsPrompt) {
  const std::vector<int32_t> ids = prompt(150);
  const auto n = static_cast<int64_t>(ids.size());
  SessionOptions shadow = test::two_tiers();
  shadow.selection.budget = 512;
  shadow.selection.recent = 64;
  shadow.audit = 1;
  SessionOptions small = shadow;
  small.selection.budget = 64;
  auto m = model();
  const auto follow = [&](Session& session, int64_t n_steps) {
    std::vector<float> all(session.logits().begin(), session.logits().end());
    for (int64_t i = 0; i < n_steps; ++i) {
      session.step(ids[static_cast<size_t>(i)]);
      all.insert(all.end(), session.logits().begin(), session.logits().end());
    }
    return all;
  };
  auto session = Session::open(m, Session::plan(*m, shadow, n, 200));
  ASSERT_TRUE(session->prefill(ids, {}));
  const std::vector<float> first = follow(*session, 40);
  const int64_t fetched = session->selection().fetched_bytes;
  const double mass = session->audit().mass_mean;
  session->rewind();
  EXPECT_EQ(session->n_tokens(), n);
  EXPECT_EQ(session->selection().steps, 0);
  for (int32_t other : {11, 12, 13, 14, 15, 16, 17, 18, 19, 20}) session->step(other);
  session->rewind();
  EXPECT_EQ(follow(*session, 40), first);
  EXPECT_EQ(session->selection().fetched_bytes, fetched);
  EXPECT_EQ(session->audit().mass_mean, mass);
  EXPECT_EQ(session->audit().layer_mass.size(), static_cast<size_t>(m->config().n_layers));

  session->set_budget(64);
  session->rewind();
  const std::vector<float> less = follow(*session, 40);
  EXPECT_NE(less, first);
  auto planned = Session::open(m, Session::plan(*m, small, n, 200));
  ASSERT_TRUE(planned->prefill(ids, {}));
  // The selection cache has other sizes, so hits and misses are merged in another order.
  EXPECT_LT(rms_difference(follow(*planned, 40), less), 0.03 * rms(less));
  EXPECT_THROW(session->set_budget(513), Error);
  // Far beyond the window its rows have moved: said, not done wrongly.
  for (int i = 0; i < 150; ++i) session->step(17);
  EXPECT_THROW(session->rewind(), Error);
}

TEST(Session, GrowsFarBeyondItsWindow) {
  SessionOptions shadow = test::two_tiers();
  shadow.selection.budget = 128;
  shadow.selection.recent = 64;
  const std::vector<int32_t> ids = prompt(150);
  auto m = model();
  auto session =
      Session::open(m, Session::plan(*m, shadow, 600, static_cast<int64_t>(ids.size()) - 600 + 8));
  ASSERT_TRUE(session->prefill(std::span(ids).first(600), {}));
  // The fact lies in the part that is decoded token by token, long before the question.
  for (size_t i = 600; i < ids.size(); ++i) session->step(ids[i]);
  const Tokenizer tokenizer = Tokenizer::load(kModel);
  std::vector<int32_t> out;
  for (int i = 0; i < 6; ++i) {
    const auto logits = session->logits();
    out.push_back(
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    session->step(out.back());
  }
  EXPECT_EQ(tokenizer.decode(out, true).substr(0, 6), " 48213");
}

ErrorKind kind_of(const std::function<void()>& action, std::string* message = nullptr) {
  try {
    action();
  } catch (const Error& error) {
    if (message != nullptr) *message = error.what();
    return error.kind();
  }
  ADD_FAILURE() << "no Error";
  return ErrorKind::kInterrupted;
}

TEST(Session, PlansBeforeItAllocates) {
  auto m = model();
  std::string message;
  SessionOptions options = dense();
  options.device_memory = int64_t{64} << 20;
  EXPECT_EQ(kind_of([&] { Session::plan(*m, options, 500000, 100); }, &message),
            ErrorKind::kDoesNotFit);
  EXPECT_NE(message.find("--device-memory"), std::string::npos) << message;
  SessionOptions host;
  host.host_memory = 1 << 20;
  EXPECT_EQ(kind_of([&] { Session::plan(*m, host, 500000, 100); }, &message),
            ErrorKind::kDoesNotFit);
  EXPECT_NE(message.find("--host-memory"), std::string::npos) << message;
  // More than any machine has: refused by arithmetic, past 2^31 elements and far beyond.
  EXPECT_EQ(kind_of([&] { Session::plan(*m, dense(), int64_t{1} << 40, 100); }, &message),
            ErrorKind::kDoesNotFit);
}

// Two tiers of one memory that nobody limits are one.
TEST(Session, ACpuAttendsInPlace) {
  auto m = model();
  const auto plan_of = [&](const std::function<void(SessionOptions&)>& change) {
    SessionOptions options;
    change(options);
    return Session::plan(*m, options, 4000, 100);
  };
  const SessionPlan plan = plan_of([](SessionOptions&) {});
  EXPECT_EQ(plan.device_layers, m->config().n_layers);
  EXPECT_EQ(plan.options.selection.key_codec, KeyCodec::kExact);
  EXPECT_EQ(plan.memory.host.total(), 0);
  EXPECT_EQ(plan.memory.device.slots, plan_of([](SessionOptions& o) {
              o.value_home = ValueHome::kDevice;
            }).memory.device.slots);
  const std::function<void(SessionOptions&)> two_tiers[] = {
      [](SessionOptions& o) { o.value_home = ValueHome::kHost; },
      [](SessionOptions& o) { o.host_memory = int64_t{1} << 30; },
      [](SessionOptions& o) { o.selection.key_codec = KeyCodec::kInt8; },
      [](SessionOptions& o) { o.selection.value_codec = RowCodec::kInt8; },
      [](SessionOptions& o) { o.host_attention = HostAttention::kAuto; },
      [](SessionOptions& o) { o.imposed_hit_rate = 0.5; }};
  for (const auto& change : two_tiers) EXPECT_GT(plan_of(change).memory.host.values, 0);
}

TEST(Session, RefusesContradictions) {
  auto m = model();
  auto usage = [&](auto change) {
    SessionOptions options;
    change(options);
    return kind_of([&] { Session::plan(*m, options, 1000, 10); });
  };
  EXPECT_EQ(usage([](auto& o) { o.selection.chunk_size = 0; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.budget = 3; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.budget = -7; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.slots = 0.5; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.slots = std::nan(""); }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.rank = 0; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.recent = 0; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.context = 999; }), ErrorKind::kUsage);
  // Fine by themselves, not together.
  EXPECT_EQ(usage([](auto& o) { o.selection.top_p = 0.5; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.index = IndexKind::kMinMax; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.static_budget = 64; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.scope = SelectScope::kLayer; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.coarse_chunk = 20; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.estimate = true; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.reuse = 1.5; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.drop_share = -0.1; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) {
              o.selection.miss_cap = 4;
              o.selection.share_layers = 2;
            }),
            ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) {
              o.selection.rank = 40;
              o.selection.rank_codec = RowCodec::kInt8;
              o.selection.key_codec = KeyCodec::kLowRank;
            }),
            ErrorKind::kUsage);
  EXPECT_EQ(kind_of([&] { Session::plan(*m, {}, 0, 10); }), ErrorKind::kUsage);
  SessionOptions strict;
  strict.strict = true;
  EXPECT_EQ(kind_of([&] { Session::plan(*m, strict, (1 << 20) + 1, 0); }), ErrorKind::kUsage);
}

// What dense attention has no use for is said, not judged: neither by itself nor together.
TEST(Session, DenseAttentionHasNoUseForASelection) {
  auto m = model();
  SessionOptions options = dense();
  EXPECT_TRUE(Session::plan(*m, options, 1000, 10).notes.empty());
  const SessionPlan plain = Session::plan(*m, options, 1000, 10);
  options.selection.top_p = 0.5;  // of --group max
  options.selection.static_budget = 64;  // beside outliers
  options.selection.scope = SelectScope::kLayer;
  options.selection.coarse_chunk = 20;
  options.selection.budget = 3;
  options.selection.value_codec = RowCodec::kInt4;
  options.host_attention = HostAttention::kOn;
  options.audit = 4;
  const SessionPlan plan = Session::plan(*m, options, 1000, 10);
  ASSERT_EQ(plan.notes.size(), 1u);
  EXPECT_TRUE(plan.notes[0].starts_with(
      "--budget, --top-p-mass, --coarse-chunk, --scope, --static-budget, --value-codec, "
      "--host-attention, --audit: of no use"))
      << plan.notes[0];
  EXPECT_EQ(plan.memory.total() - plan.memory.process,
            plain.memory.total() - plain.memory.process);
  const std::vector<int32_t> ids = prompt(10);
  const auto n = static_cast<int64_t>(ids.size());
  EXPECT_EQ(logits_after(ids, n, options), logits_after(ids, n, dense()));
  // Chunks and sinks count in its prompt, and are judged.
  options.selection.chunk_size = 0;
  EXPECT_EQ(kind_of([&] { Session::plan(*m, options, 1000, 10); }), ErrorKind::kUsage);
}

TEST(Session, RefusesTokensThatDoNotExist) {
  auto m = model();
  auto session = Session::open(m, Session::plan(*m, {}, 4, 2));
  std::string message;
  const std::vector<int32_t> ids = {1, 2, 2048, 3};
  EXPECT_EQ(kind_of([&] { session->prefill(ids, {}); }, &message), ErrorKind::kUsage);
  EXPECT_NE(message.find("2048"), std::string::npos);
  EXPECT_EQ(kind_of([&] { session->step(-1); }), ErrorKind::kUsage);
}

TEST(Session, SaysWhenTheContextIsFull) {
  auto m = model();
  auto session = Session::open(m, Session::plan(*m, {}, 3, 2));
  ASSERT_TRUE(session->prefill(std::vector<int32_t>{5, 6, 7}, {}));
  session->step(8);
  session->step(9);
  EXPECT_EQ(kind_of([&] { session->step(10); }), ErrorKind::kRuntime);
  EXPECT_EQ(session->n_tokens(), 5);
}

TEST(Session, ProgressIsHonestAndStops) {
  auto m = model();
  const std::vector<int32_t> ids = prompt(150);
  const auto n = static_cast<int64_t>(ids.size());
  auto session = Session::open(m, Session::plan(*m, dense(), n, 1));
  double last = 0;
  EXPECT_TRUE(session->prefill(ids, [&](const Progress& p) {
    EXPECT_GT(p.fraction, last);
    last = p.fraction;
    EXPECT_EQ(p.tokens_total, n);
    return true;
  }));
  EXPECT_DOUBLE_EQ(last, 1.0);
  auto stopped = Session::open(m, Session::plan(*m, dense(), n, 1));
  int calls = 0;
  EXPECT_FALSE(stopped->prefill(ids, [&](const Progress&) { return ++calls < 3; }));
  EXPECT_EQ(calls, 3);
}

}  // namespace
}  // namespace tiercel
