// A session as its users see it: equal ways give equal answers, facts are found, bad input is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "engine/base/check.h"
#include "engine/presets.h"
#include "engine/session.h"
#include "engine/session_plan.h"
#include "engine/text/tokenizer.h"
#include "tests/engine/recall.h"
#include "tests/engine/two_tiers.h"
#include "tests/sanitized.h"

namespace tiercel {
namespace {

using namespace test;

TEST(Session, FindsAFact) {
  const std::vector<int32_t> ids = prompt(150);
  EXPECT_EQ(answer(ids, dense()).substr(0, 6), " 48213");
  SessionOptions shadow = two_tiers();
  shadow.selection.budget = 256;
  EXPECT_EQ(answer(ids, shadow).substr(0, 6), " 48213");
  shadow.prefill = PrefillMode::kSelect;
  shadow.prefill_budget = 512;
  EXPECT_EQ(answer(ids, shadow).substr(0, 6), " 48213");
}

// Chunks of 3 tokens, and of 8 to select in prefill: neither divides the other.
TEST(Session, FindsAFactInOddChunks) {
  SessionOptions shadow = two_tiers();
  shadow.selection.chunk_size = 3;
  shadow.selection.budget = 256;
  shadow.prefill = PrefillMode::kSelect;
  shadow.prefill_budget = 512;
  const std::vector<int32_t> ids = prompt(330);
  ASSERT_TRUE(kSanitized || std::ssize(ids) > kPrefillChunk + kDenseTail + 3);
  EXPECT_EQ(answer(ids, shadow).substr(0, 6), " 48213");
}

// So long that a saved session would be mapped, whose planes are further apart; with a selection cache that
// holds everything.
TEST(Session, ForksALongPrompt) {
  if (kSanitized) GTEST_SKIP() << "short prompts only";
  SessionOptions options = two_tiers();
  options.selection.budget = 256;
  options.selection.slots = 100;
  options.prefill = PrefillMode::kSelect;
  const std::vector<int32_t> ids = prompt(500);
  ASSERT_GT(std::ssize(ids), kMappedTokens);
  auto m = model();
  const auto origin = Session::open(m, Session::plan(*m, options, std::ssize(ids), 8));
  ASSERT_TRUE(origin->prefill(ids, {}));
  origin->step(7);
  const auto fork = origin->fork();
  ASSERT_TRUE(std::ranges::equal(fork->logits(), origin->logits()));
  const SelectionReport before = origin->selection();
  for (Session* session : {origin.get(), fork.get()}) session->step(7);
  ASSERT_TRUE(std::ranges::equal(fork->logits(), origin->logits()));
  EXPECT_EQ(fork->selection().fetched_bytes, origin->selection().fetched_bytes - before.fetched_bytes);
  EXPECT_GT(fork->selection().hit_chunks, 0) << "the cache is forked too";
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

// A fork goes on as its origin does, and as if the other was not there.
TEST(Session, ForksGoTheirOwnWays) {
  const std::vector<int32_t> ids = prompt(60);
  const auto n = static_cast<int64_t>(ids.size());
  auto m = model();
  for (const AttentionMode mode : attention_modes()) {
    if (kSanitized && mode != AttentionMode::kShadow) continue;
    SessionOptions options = two_tiers(preset(mode));
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
    if (kSanitized && mode != AttentionMode::kQuest) continue;
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
    if (kSanitized && mode != AttentionMode::kQuest) continue;
    SessionOptions options = two_tiers(preset(mode));
    options.prefill = PrefillMode::kSelect;
    options.prefill_budget = 2 * n;
    EXPECT_LT(rms_difference(whole, logits_after(ids, n, options)), 0.03 * rms(whole))
        << name_of(mode);
    options.prefill_budget = 256;
    EXPECT_GT(rms_difference(whole, logits_after(ids, n, options)), 0) << name_of(mode);
  }
}

// A budget that is more than the prompt is all of it, however long the context may become.
TEST(Session, PrefillBudgetBeyondThePromptIsAllOfIt) {
  const std::vector<int32_t> ids = prompt(30);
  SessionOptions select = dense();
  select.prefill = PrefillMode::kSelect;
  select.prefill_budget = 290000;
  select.context = 300000;
  auto m = model();
  const auto session = Session::open(m, Session::plan(*m, select, std::ssize(ids), 8));
  ASSERT_TRUE(session->prefill(ids, {}));
  const std::vector<float> whole = logits_after(ids, std::ssize(ids), dense());
  EXPECT_LT(rms_difference(whole, {session->logits().begin(), session->logits().end()}), 0.03 * rms(whole));
}

TEST(Session, SaysWhatCodingItsKeysTook) {
  const std::vector<int32_t> ids = prompt(60);
  auto m = model();
  for (const KeyCodec codec : {KeyCodec::kExact, KeyCodec::kInt8, KeyCodec::kLowRank}) {
    SessionOptions options = two_tiers();
    options.selection.key_codec = codec;
    auto session = Session::open(m, Session::plan(*m, options, std::ssize(ids), 2));
    EXPECT_EQ(session->key_coding_seconds(), 0) << "before the prefill";
    const auto start = std::chrono::steady_clock::now();
    ASSERT_TRUE(session->prefill(ids, {}));
    const std::chrono::duration<double> whole = std::chrono::steady_clock::now() - start;
    const double seconds = session->key_coding_seconds();
    EXPECT_EQ(seconds > 0, codec != KeyCodec::kExact);
    EXPECT_LT(seconds, whole.count());
    session->step(ids[0]);
    EXPECT_EQ(session->key_coding_seconds(), seconds) << "of the prompt only";
  }
}

TEST(Session, WholeBudgetEqualsDense) {
  const std::vector<int32_t> ids = prompt(100);
  const auto n = static_cast<int64_t>(ids.size());
  SessionOptions all = two_tiers();
  all.selection.budget = kBudgetAll;
  all.prefill = PrefillMode::kDense;
  const std::vector<float> whole = logits_after(ids, n - 20, dense());
  EXPECT_LT(rms_difference(whole, logits_after(ids, n - 20, all)), 0.03 * rms(whole));
}

TEST(Session, SameBitsForAnyThreadCount) {
  const std::vector<int32_t> ids = prompt(120);
  const auto n = static_cast<int64_t>(ids.size());
  SessionOptions shadow = two_tiers();
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
    if (kThreadSanitized && mode != AttentionMode::kShadow) continue;
    SessionOptions options = two_tiers(preset(mode));
    options.prefill = PrefillMode::kDense;
    options.selection.budget = 512;
    options.selection.static_budget = std::min<int64_t>(options.selection.static_budget, 512);
    const std::string found = answer(ids, options).substr(0, 6);
    // What MPCache keeps of a short prompt is its own; a sanitizer looks for other faults.
    if (!kSanitized) {
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
  SessionOptions shadow = two_tiers();
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
  SessionOptions shadow = two_tiers();
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
