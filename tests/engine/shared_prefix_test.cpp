// What is behind a shared prefix says what it says at the end of a prompt of its own, where everything
// is selected. On the CPU, and on the emulated or a real device.
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/batch.h"
#include "engine/presets.h"
#include "tests/engine/add_prefilled.h"
#include "tests/engine/backend.h"
#include "tests/engine/rms.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::add_prefilled;
using test::kBackend;
#if defined(TIERCEL_EMULATED)
constexpr int64_t kPrefix = 70, kBehind = 5, kSteps = 3;
constexpr RowCodec kLandmarks[] = {RowCodec::kInt8};
#else
constexpr int64_t kPrefix = 300, kBehind = 90, kSteps = 20;
constexpr RowCodec kLandmarks[] = {RowCodec::kBf16, RowCodec::kInt8};
#endif

std::vector<int32_t> random_ids(std::mt19937_64& random, const Model& model, int64_t n) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  const auto vocab = static_cast<uint64_t>(model.config().vocab_size);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % vocab);
  return ids;
}

class Beside {
 public:
  Beside(const std::string& name, const SessionOptions& options)
      : model_(Model::open(TIERCEL_SOURCE_DIR "/tests/golden/models/" + name, {.backend = kBackend})),
        random_(test::seed()),
        batch_(Batch::open(model_, Batch::plan(*model_, options, 3, kPrefix + kBehind, kSteps))) {}

  std::vector<int32_t> ids(int64_t n) { return random_ids(random_, *model_, n); }
  int64_t add(const SessionPlan& plan, std::span<const int32_t> tokens, int64_t prefix = -1) {
    return add_prefilled(*batch_, plan, tokens, prefix);
  }

  // Two sequences behind one prefix, beside one whose prompt is all of the first one's.
  void compare() {
    const std::vector<int32_t> prefix = ids(kPrefix), behind = ids(kBehind);
    std::vector<int32_t> all = prefix;
    all.insert(all.end(), behind.begin(), behind.end());
    const SessionPlan prefix_plan = batch_->plan_prefix(kPrefix);
    const int64_t shared = add(prefix_plan, prefix);
    const int64_t whole = add(batch_->plan_sequence(kPrefix + kBehind, kSteps), all);
    const SessionPlan behind_plan = batch_->plan_behind(prefix_plan, kBehind, kSteps);
    const int64_t first = add(behind_plan, behind, shared);
    const int64_t other = add(behind_plan, ids(kBehind), shared);
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
    EXPECT_LT(test::rms_difference(found, expected), 0.03 * test::rms(expected));
  }

  std::shared_ptr<Model> model_;
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
        SessionOptions options;
        options.attention = mode;
        options.value_home = home;
        options.selection.budget = kBudgetAll;
        options.selection.recent = 16;
        options.selection.outliers = 1;
        options.selection.key_codec = KeyCodec::kExact;
        Beside(name, options).compare();
      }
    }
  }
}

// They select, and the landmarks that they share are read for all of them at once: no bit depends on it.
TEST(SharedPrefix, NoSequenceIsDisturbedByOthersBehindIt) {
  constexpr int64_t kTokens = kPrefix + 20, kOwn = 2, kSequences = 3;
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
