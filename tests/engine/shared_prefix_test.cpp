// What is behind a shared prefix says what it says at the end of a prompt of its own, where everything
// is selected. On the CPU, and on the emulated or a real device.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/batch.h"
#include "engine/presets.h"
#include "engine/scheduler.h"
#include "offload/layout.h"
#include "tests/engine/add_prefilled.h"
#include "tests/engine/backend.h"
#include "tests/engine/changed_model.h"
#include "tests/engine/rms.h"
#include "tests/sanitized.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::add_prefilled;
using test::kBackend;
#if defined(TIERCEL_EMULATED)
constexpr bool kSlow = true;
constexpr int64_t kSteps = 3;
constexpr RowCodec kLandmarks[] = {RowCodec::kInt8};
#else
constexpr bool kSlow = test::kSanitized;
constexpr int64_t kSteps = 20;
constexpr RowCodec kLandmarks[] = {RowCodec::kBf16, RowCodec::kInt8};
#endif
struct Lengths {
  int64_t prefix = 0, behind = 0;
};
constexpr Lengths kShort = kSlow ? Lengths{70, 5} : Lengths{300, 90};
// Runs of several lengths, and several blocks of queries.
constexpr Lengths kLong = kSlow ? Lengths{330, 400} : Lengths{2500, 1900};

std::vector<int32_t> random_ids(std::mt19937_64& random, const Model& model, int64_t n) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  const auto vocab = static_cast<uint64_t>(model.config().vocab_size);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % vocab);
  return ids;
}

// Spans of 320 tokens, which no list of fetched chunks ends with, and no scales by lengths.
std::shared_ptr<Model> golden(const std::string& name) {
  ReachOptions reach;
  if (name.ends_with("dual_chunk")) reach = {.dual_chunk = 416, .dual_chunk_local = 96, .scale_from = 0};
  return Model::open(TIERCEL_SOURCE_DIR "/tests/golden/models/" + name, {.backend = kBackend, .reach = reach});
}

// Everything is attended, exactly where keys are.
SessionOptions everything(AttentionMode mode, ValueHome home) {
  SessionOptions options;
  options.attention = mode;
  if (mode != AttentionMode::kDense) options.selection = preset(mode).selection;
  options.value_home = home;
  options.selection.budget = kBudgetAll;
  options.selection.reuse = 0;
  options.selection.recent = 16;
  options.selection.outliers = std::min<int64_t>(options.selection.outliers, 1);
  options.selection.key_codec = KeyCodec::kExact;
  options.prefill_budget = 4000;
  return options;
}

class Beside {
 public:
  Beside(const std::string& name, const SessionOptions& options, const Lengths& lengths, double tolerance = 0.03)
      : Beside(golden(name), options, lengths, tolerance) {}
  Beside(std::shared_ptr<Model> model, const SessionOptions& options, const Lengths& lengths, double tolerance)
      : model_(std::move(model)),
        lengths_(lengths),
        tolerance_(tolerance),
        random_(test::seed()),
        batch_(Batch::open(model_, Batch::plan(*model_, options, 3, lengths.prefix + lengths.behind, kSteps))) {}

  std::vector<int32_t> ids(int64_t n) { return random_ids(random_, *model_, n); }
  int64_t add(const SessionPlan& plan, std::span<const int32_t> tokens, int64_t prefix = -1) {
    return add_prefilled(*batch_, plan, tokens, prefix);
  }

  // Two sequences behind one prefix, beside one whose prompt is all of the first one's.
  void compare(bool in_segments = false) {
    const auto [n_prefix, n_behind] = lengths_;
    const std::vector<int32_t> prefix = ids(n_prefix), behind = ids(n_behind);
    std::vector<int32_t> all = prefix;
    all.insert(all.end(), behind.begin(), behind.end());
    const SessionPlan prefix_plan = batch_->plan_prefix(n_prefix);
    const int64_t shared = add(prefix_plan, prefix);
    const int64_t whole = add(batch_->plan_sequence(n_prefix + n_behind, kSteps), all);
    const SessionPlan behind_plan = batch_->plan_behind(prefix_plan, n_behind, kSteps);
    EXPECT_EQ(behind_plan.continued > 0, in_segments);
    const int64_t first = add(behind_plan, behind, shared);
    const int64_t other = add(behind_plan, ids(n_behind), shared);
    for (int64_t i = 0; i + 1 < kSteps; ++i) {
      const std::vector<int32_t> tokens = ids(2);
      // The newest logits are of the sequence that was prefilled last, until all take a step.
      batch_->step(std::array{Batch::Step{other, tokens[1]}, Batch::Step{whole, tokens[0]},
                              Batch::Step{first, tokens[0]}});
      expect_close(whole, first);
    }
    for (const int64_t name : {first, other, shared, whole}) batch_->remove(name);
  }

 private:
  // Logits of bf16 activations, summed in another order.
  void expect_close(int64_t a, int64_t b) {
    const std::span<const float> now = batch_->logits(a);
    const std::vector<float> expected(now.begin(), now.end());
    const std::span<const float> found = batch_->logits(b);
    EXPECT_LT(test::rms_difference(found, expected), tolerance_ * test::rms(expected));
  }

  std::shared_ptr<Model> model_;
  Lengths lengths_;
  double tolerance_;
  std::mt19937_64 random_;
  std::unique_ptr<Batch> batch_;
};

TEST(SharedPrefix, SaysWhatAPromptOfItsOwnSays) {
  for (const char* name : {"llama", "qwen3", "qwen2_window", "llama_head96", "llama_eviction_head"}) {
    for (const AttentionMode mode : {AttentionMode::kDense, AttentionMode::kShadow}) {
      for (const ValueHome home : {ValueHome::kHost, ValueHome::kDevice}) {
        if (mode == AttentionMode::kDense && home == ValueHome::kDevice) continue;
        SCOPED_TRACE(fmt::format("{}, {}, values at home on {}", name, name_of(mode),
                                 home == ValueHome::kHost ? "the host" : "the device"));
        Beside(name, everything(mode, home), kShort).compare(mode == AttentionMode::kDense && !kSlow);
      }
    }
  }
}

// A long one is prefilled as the prefix was: in place, or by what is fetched; with windows, biases, views.
TEST(SharedPrefix, LongTextsBehindItArePrefilled) {
  for (const std::string name :
       {"llama", "qwen2_window", "mistral_window", "llama_eviction_head", "qwen2_dual_chunk"}) {
    if (kSlow && name != "qwen2_window" && name != "qwen2_dual_chunk") continue;
    for (const AttentionMode mode : {AttentionMode::kDense, AttentionMode::kShadow, AttentionMode::kTokenSelect}) {
      for (const PrefillMode prefill : {PrefillMode::kDense, PrefillMode::kSelect}) {
        for (const ValueHome home : {ValueHome::kHost, ValueHome::kDevice}) {
          if (mode == AttentionMode::kDense && home == ValueHome::kHost) continue;
          if (mode == AttentionMode::kTokenSelect && (home == ValueHome::kHost || kSlow)) continue;
          if (kSlow && (prefill == PrefillMode::kSelect) != (name == "qwen2_dual_chunk")) continue;
          if (name == "llama_eviction_head" && home == ValueHome::kHost) continue;
          SCOPED_TRACE(fmt::format("{}, {}, values at home on {}, prefill {}", name, name_of(mode),
                                   home == ValueHome::kHost ? "the host" : "the device", name_of(prefill)));
          SessionOptions options = everything(mode, home);
          options.prefill = prefill;
          Beside(name, options, kLong, 0.05).compare(true);
        }
      }
    }
  }
}

// Windows that still see the prefix when the text ends, of a store that keeps all rows and of one that does not.
TEST(SharedPrefix, LongTextsSeeThePrefixThroughWindows) {
  const auto model = test::open_changed("mistral_window", {{"sliding_window", 500}}, {.backend = kBackend});
  for (const AttentionMode mode : {AttentionMode::kDense, AttentionMode::kShadow}) {
    if (kSlow && mode == AttentionMode::kDense) continue;
    Beside(model, everything(mode, ValueHome::kHost), {kSlow ? 130 : 700, 300}, 0.03).compare(true);
  }
  KvShape shape = {.n_layers = 2, .n_heads = 2, .n_kv_heads = 1, .head_dim = 64, .window = {0, 500}};
  const KvSettings behind = {.kind = StoreKind::kDense, .capacity = 700, .behind = 400, .continued = 300};
  EXPECT_TRUE(KvLayout(shape, behind).continues);
  shape.eviction_head = true;  // biases would be of two planes in one
  EXPECT_FALSE(KvLayout(shape, behind).continues);
}

// A window that is still within the prefix: nothing is guessed there, and nothing is taken back.
TEST(SharedPrefix, DraftsLeaveWindowsWhereTheyAre) {
  constexpr int64_t kPrefix = kSlow ? 130 : 700, kNew = kSlow ? 4 : 40;
  std::mt19937_64 random(test::seed());
  const auto model = test::open_changed("mistral_window", {{"sliding_window", 500}}, {.backend = kBackend});
  const auto prefix = std::make_shared<const std::vector<int32_t>>(random_ids(random, *model, kPrefix));
  const std::vector<int32_t> prompt = random_ids(random, *model, 20);
  for (const AttentionMode mode : {AttentionMode::kDense, AttentionMode::kShadow}) {
    std::vector<std::vector<int32_t>> said;
    for (const DraftMode draft : {DraftMode::kOff, DraftMode::kAlways}) {
      SessionOptions options = everything(mode, ValueHome::kHost);
      options.draft = draft;
      Scheduler scheduler(Batch::open(model, Batch::plan(*model, options, 2, kPrefix + 20, kNew)), {});
      const auto id = scheduler.submit({.prefix = prefix, .prompt = prompt, .n_new = kNew});
      while (scheduler.turn()) {
      }
      ASSERT_EQ(scheduler.report(id).state, RequestState::kFinished) << scheduler.report(id).error;
      said.push_back(scheduler.report(id).tokens);
    }
    EXPECT_EQ(said[0], said[1]);
  }
}

// As long as its window has everything nothing is selected, whatever the budget.
TEST(SharedPrefix, LongTextsAttendItsWindowWhole) {
  SessionOptions options = everything(AttentionMode::kShadow, ValueHome::kHost);
  options.prefill = PrefillMode::kSelect;
  options.selection.recent = 2000;
  options.prefill_budget = 16;
  Beside("llama", options, {200, 350}, 0.03).compare(true);
  options.attention = AttentionMode::kDense;  // which has no window, but the last tokens are never left out
  Beside("llama", options, {kPrefillLocal, 350}, 0.03).compare(true);
}

TEST(SharedPrefix, LongTextsBehindCodesAreNearlyAsOnePrompt) {
  for (const KeyCodec keys : {KeyCodec::kInt8, KeyCodec::kLowRank}) {
    for (const PrefillMode prefill : {PrefillMode::kDense, PrefillMode::kSelect}) {
      if (kSlow && (keys == KeyCodec::kInt8) != (prefill == PrefillMode::kSelect)) continue;
      SCOPED_TRACE(fmt::format("keys {}, prefill {}", static_cast<int>(keys), name_of(prefill)));
      SessionOptions options = everything(AttentionMode::kShadow, ValueHome::kHost);
      options.prefill = prefill;
      options.selection.key_codec = keys;
      options.selection.value_codec = RowCodec::kInt8;
      options.selection.rank = 1000;  // all channels
      Beside("llama_head128", options, kLong, 0.1).compare(true);
    }
  }
}

// A small budget is another answer, and the same wherever chunks are, for whoever else is in the batch, and whether or
// not others take steps between its layers.
TEST(SharedPrefix, LongTextsBehindItSelectTheSameInAnyBatch) {
  constexpr int64_t kPrefix = kSlow ? 330 : 500;  // which attends all of itself
  const auto model = golden("llama");
  const auto logits_of = [&](ValueHome home, int64_t budget, bool alone) {
    SessionOptions options = everything(AttentionMode::kShadow, home);
    options.prefill = PrefillMode::kSelect;
    options.prefill_budget = budget;
    std::mt19937_64 random(test::seed());
    const std::vector<int32_t> prefix = random_ids(random, *model, kPrefix);
    const std::vector<int32_t> text = random_ids(random, *model, kLong.behind);
    const auto batch = Batch::open(model, Batch::plan(*model, options, alone ? 1 : 3, kPrefix, kLong.behind + kSteps));
    const SessionPlan prefix_plan = batch->plan_prefix(kPrefix);
    const int64_t shared = add_prefilled(*batch, prefix_plan, prefix);
    const SessionPlan plan = batch->plan_behind(prefix_plan, kLong.behind, kSteps);
    EXPECT_GT(plan.continued, 0);
    std::vector<int64_t> others;
    if (!alone) {
      const SessionPlan few = batch->plan_behind(prefix_plan, 7, 100);
      others = {add_prefilled(*batch, few, std::span(text).first(7), shared), batch->add(plan, text, shared)};
      batch->advance_prefill(others[1]);
    }
    const int64_t name = batch->add(plan, text, shared);
    int64_t n_others = 0;
    while (!batch->advance_prefill(name).finished) {
      if (alone) continue;
      if (++n_others < 20) batch->step(std::array{Batch::Step{others[0], 3}});
      if (n_others == 2) batch->advance_prefill(others[1]);
      if (n_others == 3) batch->remove(others[1]);  // as if it were cancelled, on its way
    }
    batch->step(std::array{Batch::Step{name, 5}});
    const std::span<const float> found = batch->logits(name);
    return std::vector<float>(found.begin(), found.end());
  };
  const std::vector<float> expected = logits_of(ValueHome::kDevice, 48, true);
  EXPECT_EQ(logits_of(ValueHome::kDevice, 48, false), expected);
  if (kSlow) return;
  EXPECT_LT(test::rms_difference(logits_of(ValueHome::kHost, 48, false), expected), 0.01 * test::rms(expected));
  EXPECT_GT(test::rms_difference(logits_of(ValueHome::kDevice, 32, true), expected), 0.012 * test::rms(expected));
}

// Scores are scaled by the length of both, as they are where a session appends it.
TEST(SharedPrefix, LongTextsAreScaledAsInASession) {
  if (kSlow) GTEST_SKIP() << "a CPU's, without sanitizers";
  const auto model = Model::open(TIERCEL_SOURCE_DIR "/tests/golden/models/llama",
                                 {.backend = kBackend, .reach = {.scale_from = 16}});
  std::mt19937_64 random(test::seed());
  const std::vector<int32_t> prefix = random_ids(random, *model, 2500), text = random_ids(random, *model, 300);
  SessionOptions options = everything(AttentionMode::kDense, ValueHome::kDevice);
  options.prefill = PrefillMode::kDense;
  const auto session = Session::open(model, Session::plan(*model, options, std::ssize(prefix), std::ssize(text)));
  ASSERT_TRUE(session->prefill(prefix, {}));
  ASSERT_TRUE(session->append(text, {}));
  const std::vector<float> expected(session->logits().begin(), session->logits().end());
  const auto batch = Batch::open(model, Batch::plan(*model, options, 1, std::ssize(prefix), std::ssize(text) + 1));
  const SessionPlan prefix_plan = batch->plan_prefix(std::ssize(prefix));
  const int64_t shared = add_prefilled(*batch, prefix_plan, prefix);
  const int64_t name = add_prefilled(*batch, batch->plan_behind(prefix_plan, std::ssize(text), 1), text, shared);
  EXPECT_LT(test::rms_difference(batch->logits(name), expected), 0.01 * test::rms(expected));
}

// Where there is no memory for what that takes, it is appended as steps are.
TEST(SharedPrefix, LongTextsAreStepsWhereMemoryIsShort) {
  if (kSlow) GTEST_SKIP() << "a CPU's, without sanitizers";
  const auto model = golden("llama");
  int64_t needed_with_all = 0;
  const auto continued_in = [&](int64_t device_memory, int64_t* needed) {
    SessionOptions options = everything(AttentionMode::kShadow, ValueHome::kHost);
    options.prefill = PrefillMode::kDense;
    options.selection.budget = 64;
    options.selection.slots = 4;
    options.device_memory = device_memory;
    const auto batch = Batch::open(model, Batch::plan(*model, options, 2, 300, 2000, 2000));
    std::mt19937_64 random(test::seed());
    const SessionPlan prefix = batch->plan_prefix(300), plan = batch->plan_behind(prefix, 1500, kSteps);
    EXPECT_EQ(batch->plan_behind(prefix, 1500, kSteps, 1).continued, plan.continued);  // a smaller cache, same text
    const SequenceBytes bytes = batch->bytes_of(plan);
    *needed = batch->plan().shared_device + batch->bytes_of(prefix).device + bytes.device + bytes.prefill;
    const int64_t shared = add_prefilled(*batch, prefix, random_ids(random, *model, 300));
    EXPECT_TRUE(batch->has_room(bytes));
    const int64_t before = batch->device_bytes();
    const int64_t name = batch->add(plan, random_ids(random, *model, 1500), shared);
    const bool is_full = device_memory > 0 && device_memory == needed_with_all;
    EXPECT_EQ(batch->has_room({.device = 1}), !is_full);
    test::prefill(*batch, name);
    EXPECT_TRUE(batch->has_room({.device = 1}));
    EXPECT_EQ(batch->device_bytes() - before, bytes.device);  // the rest was given back
    return plan.continued;
  };
  int64_t needed = 0;
  EXPECT_GT(continued_in(0, &needed), 0);
  needed_with_all = needed;
  EXPECT_GT(continued_in(needed_with_all, &needed), 0);
  EXPECT_EQ(continued_in(needed_with_all - 1, &needed), 0);
}

// They select, and the landmarks that they share are read for all of them at once: no bit depends on it.
TEST(SharedPrefix, NoSequenceIsDisturbedByOthersBehindIt) {
  constexpr int64_t kTokens = kShort.prefix + 20, kOwn = 2, kSequences = 3;
  const auto model =
      Model::open(TIERCEL_SOURCE_DIR "/tools/demo/recall-4m", {.backend = kBackend});
  for (const RowCodec landmarks : kLandmarks) {
    SessionOptions options;
    options.selection.budget = 16;
    options.selection.sinks = 8;
    options.selection.recent = 16;
    options.selection.outliers = 1;
    options.selection.landmark_codec = landmarks;
    const auto logits_of = [&](bool together) {
      std::mt19937_64 random(test::seed());
      const auto ids = [&](int64_t n) { return random_ids(random, *model, n); };
      const auto batch =
          Batch::open(model, Batch::plan(*model, options, kSequences, kTokens + kOwn, kSteps));
      const SessionPlan prefix_plan = batch->plan_prefix(kTokens);
      const int64_t prefix = add_prefilled(*batch, prefix_plan, ids(kTokens));
      const SessionPlan plan = batch->plan_behind(prefix_plan, kOwn, kSteps);
      std::vector<int64_t> names;
      for (int64_t i = 0; i < kSequences; ++i) names.push_back(add_prefilled(*batch, plan, ids(kOwn), prefix));
      std::vector<std::vector<float>> all;
      for (int64_t i = 0; i + 1 < kSteps; ++i) {
        std::vector<Batch::Step> steps;
        for (const int64_t name : names) steps.push_back({name, ids(1)[0]});
        if (together) batch->step(steps);
        for (const Batch::Step& step : steps) {
          if (!together) batch->step({&step, 1});
          const std::span<const float> found = batch->logits(step.sequence);
          all.emplace_back(found.begin(), found.end());
        }
      }
      return all;
    };
    EXPECT_EQ(logits_of(true), logits_of(false)) << static_cast<int>(landmarks);
  }
}

// Of a long text behind a prefix that was prefilled with selection, tokens attend many at once, however
// few sequences the batch has room for: each in a workspace of its own.
TEST(SharedPrefix, ALongTextBehindItDependsNotOnTheBatch) {
  constexpr int64_t kTokens = 400, kOwn = 90;
  const auto model = Model::open(TIERCEL_SOURCE_DIR "/tests/golden/models/llama", {.backend = kBackend});
  SessionOptions options;
  options.prefill = PrefillMode::kSelect;
  options.prefill_budget = 64;
  options.selection.budget = 320;
  options.selection.sinks = 8;
  options.selection.recent = 16;
  options.selection.outliers = 1;
  options.selection.key_codec = KeyCodec::kExact;
  const auto logits_of = [&](int64_t n_sequences) {
    std::mt19937_64 random(test::seed());
    const auto batch =
        Batch::open(model, Batch::plan(*model, options, n_sequences, kTokens + kOwn, kSteps));
    const SessionPlan prefix_plan = batch->plan_prefix(kTokens);
    const int64_t prefix = add_prefilled(*batch, prefix_plan, random_ids(random, *model, kTokens));
    const int64_t name = add_prefilled(*batch, batch->plan_behind(prefix_plan, kOwn, kSteps),
                                       random_ids(random, *model, kOwn), prefix);
    const std::span<const float> found = batch->logits(name);
    return std::vector<float>(found.begin(), found.end());
  };
  const std::vector<float> expected = logits_of(8);
  for (const int64_t n_sequences : {1, 3}) EXPECT_EQ(logits_of(n_sequences), expected) << n_sequences;
}

}  // namespace
}  // namespace tiercel
