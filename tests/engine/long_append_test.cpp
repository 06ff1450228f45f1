// A long text behind a prompt is prefilled as the prompt was: what a session says behind both is what it says behind
// one prompt of both, wherever keys and values are and however they are kept.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/append_pass.h"
#include "engine/base/check.h"
#include "engine/presets.h"
#include "engine/saved_session.h"
#include "engine/session.h"
#include "tests/engine/backend.h"
#include "tests/engine/random_ids.h"
#include "tests/engine/rms.h"
#include "tests/sanitized.h"

namespace tiercel {
namespace {

using test::random_ids;

#if defined(TIERCEL_EMULATED)
constexpr bool kSlow = true;
constexpr int64_t kMore = 700;
#else
constexpr bool kSlow = test::kSanitized;
constexpr int64_t kMore = 1100;
#endif
constexpr int64_t kSteps = 12;

struct Lengths {
  int64_t prompt = 0, more = 0;
  int64_t all() const { return prompt + more; }
};
// Runs of half a segment; a window that moves; a middle of several lists that are fetched.
constexpr Lengths kLong = kSlow ? Lengths{200, kMore} : Lengths{2500, 1900};
constexpr Lengths kShortPrompt = {9, 600};

// Scores are not scaled by lengths, which are those of the text's end here, and there of the prompt's. Spans of 320
// tokens, which no list of fetched chunks ends with.
std::shared_ptr<Model> tiny(const std::string& name) {
  ReachOptions reach;
  if (name.ends_with("dual_chunk")) reach = {.dual_chunk = 416, .dual_chunk_local = 96, .scale_from = 0};
  return Model::open(TIERCEL_SOURCE_DIR "/tests/golden/models/" + name, {.backend = test::kBackend, .reach = reach});
}

// Everything is attended, exactly where keys are.
SessionOptions everything(AttentionMode mode, PrefillMode prefill) {
  SessionOptions options;
  options.attention = mode;
  if (mode != AttentionMode::kDense) options.selection = preset(mode).selection;
  options.selection.budget = kBudgetAll;
  options.selection.recent = 64;
  options.selection.outliers = std::min<int64_t>(options.selection.outliers, 4);
  options.selection.static_budget = 0;
  options.selection.drop_share = 0;
  options.selection.top_p = 0;
  options.prefill = prefill;
  options.prefill_budget = 4000;
  return options;
}

std::unique_ptr<Session> open(const std::shared_ptr<Model>& model, const SessionOptions& options, int64_t n_prompt,
                              int64_t n_all) {
  return Session::open(model, Session::plan(*model, options, n_prompt, n_all - n_prompt + 2 * kSteps));
}

// False where it was appended as steps are.
bool append(Session& session, std::span<const int32_t> ids) {
  int64_t first = 0;
  EXPECT_TRUE(session.append(ids, [&](const Progress& p) {
    if (first == 0) first = p.tokens_done;
    return true;
  }));
  return first > kAppendRows;
}

void keep(std::vector<float>& all, const std::span<const float> logits) {
  all.insert(all.end(), logits.begin(), logits.end());
}

// Behind the text, and after steps that make chunks leave the window.
std::vector<float> logits_behind(Session& session, const std::vector<int32_t>& ids) {
  std::vector<float> all;
  keep(all, session.logits());
  for (int64_t i = 0; i < kSteps; ++i) session.step(ids[static_cast<size_t>(i)]);
  keep(all, session.logits());
  return all;
}

std::vector<float> in_one_piece(const std::shared_ptr<Model>& model, const std::vector<int32_t>& ids) {
  const auto session = open(model, everything(AttentionMode::kDense, PrefillMode::kDense), std::ssize(ids),
                            std::ssize(ids));
  EXPECT_TRUE(session->prefill(ids, {}));
  return logits_behind(*session, ids);
}

std::vector<float> in_two_pieces(const std::shared_ptr<Model>& model, const SessionOptions& options,
                                 const std::vector<int32_t>& ids, int64_t n_prompt, bool* in_segments) {
  const auto session = open(model, options, n_prompt, std::ssize(ids));
  EXPECT_TRUE(session->prefill(std::span(ids).first(static_cast<size_t>(n_prompt)), {}));
  *in_segments = append(*session, std::span(ids).subspan(static_cast<size_t>(n_prompt)));
  EXPECT_EQ(session->n_tokens(), std::ssize(ids));
  return logits_behind(*session, ids);
}

void expect_as_one(const std::string& name, const SessionOptions& options, const Lengths& lengths,
                   double tolerance = 0.05) {
  SCOPED_TRACE(name);
  const auto model = tiny(name);
  const std::vector<int32_t> ids = random_ids(*model, lengths.all());
  const std::vector<float> whole = in_one_piece(model, ids);
  bool in_segments = false;
  const std::vector<float> pieces = in_two_pieces(model, options, ids, lengths.prompt, &in_segments);
  EXPECT_TRUE(in_segments);
  EXPECT_LT(test::rms_difference(whole, pieces), tolerance * test::rms(whole));
}

// Two kinds of layers, and views of queries.
bool is_for_slow(const std::string& name) { return name == "qwen2_window" || name.ends_with("dual_chunk"); }

// Windows, norms, biases, an eviction head, two kinds of layers, views; all in one plane.
TEST(LongAppend, BehindADensePromptIsOnePrompt) {
  for (const char* name : {"llama", "mistral_window", "qwen2_window", "llama_eviction_head", "glm4", "phi3_window",
                           "qwen2_dual_chunk"}) {
    if (kSlow && !is_for_slow(name)) continue;
    expect_as_one(name, everything(AttentionMode::kDense, PrefillMode::kDense), kLong);
    expect_as_one(name, everything(AttentionMode::kDense, PrefillMode::kSelect), kLong);
    if (kSlow) continue;
    expect_as_one(name, everything(AttentionMode::kDense, PrefillMode::kDense), kShortPrompt);
    expect_as_one(name, everything(AttentionMode::kDense, PrefillMode::kSelect), {1500, 110});
  }
}

// Chunks attended where they are, or fetched.
TEST(LongAppend, BehindTiersIsOnePrompt) {
  for (const std::string name :
       {"llama", "qwen2_window", "mistral_window", "llama_eviction_head", "qwen3_dual_chunk"}) {
    if (kSlow && !is_for_slow(name)) continue;
    for (const ValueHome home : {ValueHome::kHost, ValueHome::kDevice}) {
      if (name == "llama_eviction_head" && home == ValueHome::kHost) continue;
      for (const PrefillMode prefill : {PrefillMode::kDense, PrefillMode::kSelect}) {
        SCOPED_TRACE(testing::Message() << "home " << int(home) << " prefill " << int(prefill));
        SessionOptions options = everything(AttentionMode::kShadow, prefill);
        options.selection.key_codec = KeyCodec::kExact;
        options.value_home = home;
        expect_as_one(name, options, kLong);
        if (!kSlow) expect_as_one(name, options, kShortPrompt);
      }
    }
  }
}

// Values and keys that are coded, and landmarks that must be remade from what there is.
TEST(LongAppend, BehindCodesIsNearlyOnePrompt) {
  for (const KeyCodec keys : {KeyCodec::kInt8, KeyCodec::kLowRank}) {
    for (const PrefillMode prefill : {PrefillMode::kDense, PrefillMode::kSelect}) {
      if (kSlow && (keys == KeyCodec::kInt8) != (prefill == PrefillMode::kSelect)) continue;
      SCOPED_TRACE(testing::Message() << "keys " << int(keys) << " prefill " << int(prefill));
      SessionOptions options = everything(AttentionMode::kShadow, prefill);
      options.selection.key_codec = keys;
      options.selection.value_codec = RowCodec::kInt8;
      options.selection.rank = 1000;  // all channels
      options.value_home = ValueHome::kHost;
      expect_as_one("llama_head128", options, kLong, 0.07);
    }
  }
}

// Where the index is of something else than means of the chunks that prefill selects.
TEST(LongAppend, SelectsWhateverTheIndexIsMadeOf) {
  for (const AttentionMode mode : attention_modes()) {
    if (mode == AttentionMode::kDense || (kSlow && mode != AttentionMode::kTokenSelect)) continue;
    SessionOptions options = everything(mode, PrefillMode::kSelect);
    options.selection.key_codec = KeyCodec::kExact;
    options.value_home = ValueHome::kDevice;
    expect_as_one("llama", options, kLong);
  }
  SessionOptions coded = everything(AttentionMode::kShadow, PrefillMode::kSelect);
  coded.selection.key_codec = KeyCodec::kExact;
  coded.selection.landmark_codec = RowCodec::kInt8;
  coded.value_home = ValueHome::kDevice;
  expect_as_one("llama", coded, kLong);
}

// A small budget is another answer, and the same wherever chunks are, by landmarks that there are or means that are
// made again.
void expect_selects_the_same(const char* name) {
  SCOPED_TRACE(name);
  const auto model = tiny(name);
  const std::vector<int32_t> ids = random_ids(*model, kLong.all());
  SessionOptions options = everything(AttentionMode::kShadow, PrefillMode::kSelect);
  options.selection.key_codec = KeyCodec::kExact;
  if (!kSlow) options.selection.recent = kPrefillLocal;  // as much as a dense store leaves out of what is selected among
  options.prefill_budget = 48;
  options.value_home = ValueHome::kDevice;
  const auto logits_with = [&](const SessionOptions& some) {
    bool in_segments = false;
    std::vector<float> logits = in_two_pieces(model, some, ids, kLong.prompt, &in_segments);
    EXPECT_TRUE(in_segments);
    return logits;
  };
  const std::vector<float> selected = logits_with(options);
  SessionOptions fetched = options, coded = options;
  fetched.value_home = ValueHome::kHost;
  EXPECT_LT(test::rms_difference(logits_with(fetched), selected), 0.01 * test::rms(selected));
  fetched.selection.key_codec = KeyCodec::kInt8;
  EXPECT_LT(test::rms_difference(logits_with(fetched), selected), 0.05 * test::rms(selected));
  coded.selection.landmark_codec = RowCodec::kInt8;
  EXPECT_EQ(logits_with(coded), selected);
  SessionOptions few = options;
  few.prefill_budget = 32;
  EXPECT_GT(test::rms_difference(logits_with(few), selected), 0.012 * test::rms(selected)) << "nothing was selected";
  if (kSlow) return;  // and on a GPU more leaves the window at once
  options.attention = AttentionMode::kDense;
  EXPECT_LT(test::rms_difference(logits_with(options), selected), 0.03 * test::rms(selected));
}
TEST(LongAppend, SelectsTheSameWhereverChunksAre) {
  // What the last layer selects for all but the last tokens is not seen: more than two of them where they are fast.
  for (const char* name : {kSlow ? "llama" : "qwen3_moe", "qwen2_dual_chunk"}) expect_selects_the_same(name);
}

// As long as the window has everything nothing is selected, whatever the budget.
TEST(LongAppend, AttendsTheWindowWhole) {
  SessionOptions options = everything(AttentionMode::kShadow, PrefillMode::kSelect);
  options.selection.recent = 2000;
  options.prefill_budget = 16;
  for (const ValueHome home : {ValueHome::kHost, ValueHome::kDevice}) {
    options.value_home = home;
    expect_as_one("llama", options, {9, 1300});
  }
}

// Steps behind the text do not attend what was selected before it.
TEST(LongAppend, ForgetsListsThatMightBeKept) {
  if (kSlow) GTEST_SKIP() << "a CPU's, without sanitizers";
  const auto model = tiny("llama");
  const std::vector<int32_t> ids = random_ids(*model, 1600);
  SessionOptions options = everything(AttentionMode::kTokenSelect, PrefillMode::kDense);
  options.selection.budget = 64;
  options.selection.reuse = 0;
  options.selection.reuse_steps = 1000;
  const auto session = open(model, options, 1000, 1600);
  ASSERT_TRUE(session->prefill(std::span(ids).first(1000), {}));
  session->step(1);
  session->step(2);
  const SelectionReport before = session->selection();
  EXPECT_GT(before.reused, 0);
  ASSERT_TRUE(append(*session, std::span(ids).subspan(1000)));
  session->step(3);
  const SelectionReport behind = session->selection();
  EXPECT_GT(behind.decisions, before.decisions);
  EXPECT_EQ(behind.reused, before.reused);
}

// What cannot be continued is appended as steps are.
TEST(LongAppend, WhatCannotBeContinuedIsSteps) {
  if (kSlow) GTEST_SKIP() << "a CPU's, without sanitizers";
  const auto model = tiny("llama_eviction_head");
  const std::vector<int32_t> ids = random_ids(*model, 700);
  SessionOptions options = everything(AttentionMode::kShadow, PrefillMode::kDense);
  options.selection.key_codec = KeyCodec::kExact;
  options.value_home = ValueHome::kHost;
  bool in_segments = true;
  const std::vector<float> pieces = in_two_pieces(model, options, ids, 100, &in_segments);
  EXPECT_FALSE(in_segments);
  EXPECT_LT(test::rms_difference(in_one_piece(model, ids), pieces), 0.05 * test::rms(pieces));
}

// What they take while they last is planned: a text fits within the plan's own limits, behind a short prompt, whose
// prefill took less, a long one, and a saved one.
TEST(LongAppend, FitsThePlan) {
  if (kSlow) GTEST_SKIP() << "a CPU's, without sanitizers";
  const auto model = tiny("llama");
  const std::string path = testing::TempDir() + "long_append_fits.session";
  for (const AttentionMode mode : {AttentionMode::kDense, AttentionMode::kShadow, AttentionMode::kTokenSelect}) {
    for (const PrefillMode prefill : {PrefillMode::kDense, PrefillMode::kSelect}) {
      for (const int64_t n_prompt : {20, 4000}) {
        SCOPED_TRACE(testing::Message() << int(mode) << " prefill " << int(prefill) << " behind " << n_prompt);
        const std::vector<int32_t> ids = random_ids(*model, n_prompt + 5000);
        const auto prompt = std::span(ids).first(static_cast<size_t>(n_prompt));
        const auto text = std::span(ids).subspan(static_cast<size_t>(n_prompt));
        SessionOptions options = everything(mode, prefill);
        options.selection.budget = 64;
        options.value_home = mode == AttentionMode::kShadow ? ValueHome::kHost : ValueHome::kDevice;
        const auto within = [](SessionOptions some, const SessionPlan& plan) {
          some.device_memory = plan.memory.device.total();
          some.host_memory = std::max<int64_t>(plan.memory.host.total(), 1);
          return some;
        };
        const SessionPlan plan = Session::plan(*model, options, n_prompt, std::ssize(text));
        options = within(plan.options, plan);
        const auto session = Session::open(model, Session::plan(*model, options, n_prompt, std::ssize(text)));
        ASSERT_TRUE(session->prefill(prompt, {}));
        session->save(path, prompt, {});
        ASSERT_TRUE(append(*session, text));
        const auto saved = SavedSession::open(path);
        const SessionPlan free = Session::plan(*model, saved->options(), *saved, std::ssize(text));
        const auto restored = Session::open(
            model, Session::plan(*model, within(free.options, free), *saved, std::ssize(text)));
        restored->restore(*saved, {});
        ASSERT_TRUE(append(*restored, text));
        std::filesystem::remove(path);
      }
    }
  }
}

// Two of them, steps between and behind; saved and restored before, between and after: the same bits.
TEST(LongAppend, GoesOnAsSaved) {
  if (kSlow) GTEST_SKIP() << "a CPU's, without sanitizers";
  const auto model = tiny("llama");
  const std::vector<int32_t> ids = random_ids(*model, 3000);
  const auto part = [&](size_t first, size_t n) { return std::span(ids).subspan(first, n); };
  for (const PrefillMode prefill : {PrefillMode::kDense, PrefillMode::kSelect}) {
    for (const ValueHome home : {ValueHome::kHost, ValueHome::kDevice}) {
      SessionOptions options = everything(AttentionMode::kShadow, prefill);
      options.selection.budget = 64;
      options.prefill_budget = 64;
      options.value_home = home;
      auto session = open(model, options, 1000, std::ssize(ids));
      ASSERT_TRUE(session->prefill(part(0, 1000), {}));
      const std::string path = testing::TempDir() + "long_append.session";
      std::vector<int32_t> held(ids.begin(), ids.begin() + 1000);
      std::unique_ptr<Session> restored;
      const auto save_and_restore = [&] {
        session->save(path, held, {});
        const auto saved = SavedSession::open(path);
        const int64_t n_more = std::ssize(ids) + 2 * kSteps - session->n_tokens();
        restored = Session::open(model, Session::plan(*model, saved->options(), *saved, n_more));
        restored->restore(*saved, {});
      };
      const auto go_on = [&](std::span<const int32_t> more) {
        save_and_restore();
        for (Session* one : {session.get(), restored.get()}) {
          if (std::ssize(more) > 1) {
            ASSERT_TRUE(append(*one, more));
          } else {
            one->step(more[0]);
          }
        }
        held.insert(held.end(), more.begin(), more.end());
        ASSERT_TRUE(std::ranges::equal(session->logits(), restored->logits()))
            << "home " << int(home) << " prefill " << int(prefill) << " behind " << held.size();
        const auto fork = restored->fork();
        session = std::move(restored);
        fork->step(3);
      };
      go_on(part(1000, 700));
      go_on(part(1700, 1));
      go_on(part(1701, 800));
      go_on(part(2501, 1));
      std::filesystem::remove(path);
    }
  }
}

// As long as the window has room for the text, the session may go back to its prompt, and then has room for a longer
// text than it was planned with when it was restored.
TEST(LongAppend, IsForgottenByARewind) {
  if (kSlow) GTEST_SKIP() << "a CPU's, without sanitizers";
  const auto model = tiny("llama");
  const std::vector<int32_t> ids = random_ids(*model, 3000);
  const std::string path = testing::TempDir() + "long_append_rewind.session";
  for (const AttentionMode mode : {AttentionMode::kDense, AttentionMode::kShadow}) {
    SessionOptions options = everything(mode, PrefillMode::kSelect);
    options.prefill_budget = 64;
    options.selection.budget = 64;
    options.selection.recent = 600;
    options.value_home = ValueHome::kDevice;
    const auto session = open(model, options, 1000, std::ssize(ids));
    ASSERT_TRUE(session->prefill(std::span(ids).first(1000), {}));
    const auto text = std::span(ids).subspan(1000, 500);
    ASSERT_TRUE(append(*session, text));
    const std::vector<float> once = logits_behind(*session, ids);
    session->rewind();
    ASSERT_TRUE(append(*session, std::span(ids).subspan(2000, 400)));
    session->rewind();
    ASSERT_TRUE(append(*session, text));
    EXPECT_EQ(logits_behind(*session, ids), once) << int(mode);
    session->rewind();
    ASSERT_TRUE(append(*session, std::span(ids).subspan(1000, 100 + least_segments(options))));
    session->save(path, std::span(ids).first(static_cast<size_t>(session->n_tokens())), {});
    const auto saved = SavedSession::open(path);
    const auto restored = Session::open(model, Session::plan(*model, saved->options(), *saved, 300));
    restored->restore(*saved, {});
    restored->rewind();
    EXPECT_TRUE(append(*restored, text.first(450)));
    EXPECT_EQ(restored->n_tokens(), 1450);
    const auto tight = Session::open(model, Session::plan(*model, saved->options(), *saved, least_segments(options)));
    tight->restore(*saved, {});
    tight->rewind();
    EXPECT_TRUE(tight->append(text.first(static_cast<size_t>(least_segments(options) + 20)), {}));
    std::filesystem::remove(path);
  }
}

// A callback may stop between segments: those before are in, and the session goes on from there.
TEST(LongAppend, StopsBetweenSegments) {
  if (kSlow) GTEST_SKIP() << "a CPU's, without sanitizers";
  const auto model = tiny("llama");
  const std::vector<int32_t> ids = random_ids(*model, 10000);
  for (const AttentionMode mode : {AttentionMode::kDense, AttentionMode::kShadow}) {
    const auto stopped = open(model, everything(mode, PrefillMode::kDense), 100, std::ssize(ids));
    ASSERT_TRUE(stopped->prefill(std::span(ids).first(100), {}));
    EXPECT_FALSE(stopped->append(std::span(ids).subspan(100), [](const Progress&) { return false; }));
    const int64_t n = stopped->n_tokens();
    ASSERT_GT(n, 100 + kAppendRows);
    ASSERT_LT(n, std::ssize(ids));
    const std::vector<int32_t> those(ids.begin(), ids.begin() + n);
    const std::vector<float> whole = in_one_piece(model, those);
    EXPECT_LT(test::rms_difference(whole, logits_behind(*stopped, ids)), 0.03 * test::rms(whole));
    // What the callback throws ends it as well, and nothing is left open.
    const int64_t before = stopped->n_tokens();
    EXPECT_THROW(stopped->append(std::span(ids).first(5000), [](const Progress&) -> bool { throw 1; }), int);
    EXPECT_GT(stopped->n_tokens(), before);
    EXPECT_TRUE(append(*stopped, std::span(ids).first(300)));
  }
}

}  // namespace
}  // namespace tiercel
