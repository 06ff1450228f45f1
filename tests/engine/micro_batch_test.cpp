// A step that is taken in two micro-batches gives what one taken at once gives: tokens and logits, bit
// by bit, whoever comes and goes between steps. On the CPU, and on the emulated or a real device.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "tests/engine/add_prefilled.h"
#include "tests/engine/backend.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using test::kBackend;
#if defined(TIERCEL_EMULATED)
constexpr int64_t kSteps = 6, kSequences = 5, kShortest = 30;
#else
constexpr int64_t kSteps = 40, kSequences = 9, kShortest = 60;
#endif
constexpr int64_t kLongest = kShortest + 8 * kSequences;

std::shared_ptr<Model> tiny(const std::string& name) {
  return Model::open(TIERCEL_SOURCE_DIR "/tests/golden/models/" + name, {.backend = kBackend});
}

SessionOptions small(AttentionMode mode, KeyCodec codec, int64_t share_layers = 1) {
  SessionOptions options;
  options.attention = mode;
  options.value_home = ValueHome::kHost;
  options.selection.budget = 16;
  options.selection.recent = 16;
  options.selection.outliers = 1;
  options.selection.slots = 1.5;
  options.selection.key_codec = codec;
  options.selection.rank = 16;
  options.selection.share_layers = share_layers;
  return options;
}

// The same batch twice, but for how its steps are taken.
class Twins {
 public:
  Twins(const std::string& name, const SessionOptions& options)
      : model_(tiny(name)), random_(test::seed()) {
    BatchPlan plan = Batch::plan(*model_, options, kSequences, kLongest, kSteps + 1);
    for (const MicroBatches how : {MicroBatches::kOne, MicroBatches::kTwo, MicroBatches::kAuto}) {
      plan.micro_batches = how;
      batches_.push_back(Batch::open(model_, plan));
    }
    const std::vector<int32_t> prefix = random_ids(kShortest);
    prefix_plan_ = batches_[0]->plan_prefix(kShortest);
    for (const auto& batch : batches_) prefix_ = test::add_prefilled(*batch, prefix_plan_, prefix);
    for (int64_t n = 1; n <= kSequences; ++n) {
      EXPECT_EQ(batches_[0]->micro_batches(n), 1);
      EXPECT_EQ(batches_[1]->micro_batches(n), n > 1 ? 2 : 1);
      // Nothing runs beside anything on the CPU, and few are too few.
      const bool one = kBackend == BackendKind::kCpu || n < 4;
      EXPECT_LE(batches_[2]->micro_batches(n), one ? 1 : 2);
    }
  }

  int64_t size() const { return std::ssize(steps_); }

  // One with a prompt of its own, or one behind the prefix that all such share.
  void add() {
    const bool behind = pick(0, 1) == 1;
    const int64_t n = behind ? pick(1, kLongest - kShortest)
                             : kShortest + pick(0, kLongest - kShortest);
    const std::vector<int32_t> ids = random_ids(n);
    Batch::Step step;
    for (const auto& batch : batches_) {
      step.sequence =
          behind ? test::add_prefilled(*batch, batch->plan_behind(prefix_plan_, n, kSteps + 1), ids, prefix_)
                 : test::add_prefilled(*batch, batch->plan_sequence(n, kSteps + 1), ids);
    }
    steps_.push_back(step);
    compare(steps_.back());
  }

  void remove() {
    const auto which = steps_.begin() + pick(0, std::ssize(steps_) - 1);
    for (const auto& batch : batches_) batch->remove(which->sequence);
    steps_.erase(which);
  }

  // In an order of its own.
  void step() {
    std::ranges::shuffle(steps_, random_);
    for (const auto& batch : batches_) batch->step(steps_);
    for (Batch::Step& step : steps_) compare(step);
  }

  int64_t fetched_bytes() const {
    int64_t bytes = 0;
    for (const Batch::Step& step : steps_) {
      bytes += batches_[1]->selection(step.sequence).fetched_bytes;
    }
    return bytes;
  }

  int64_t pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution(low, high)(random_);
  }

 private:
  std::vector<int32_t> random_ids(int64_t n) {
    std::vector<int32_t> ids(static_cast<size_t>(n));
    for (int32_t& id : ids) id = static_cast<int32_t>(pick(0, model_->config().vocab_size - 1));
    return ids;
  }

  void compare(Batch::Step& step) {
    const std::span<const float> first = batches_[0]->logits(step.sequence);
    const std::vector<float> expected(first.begin(), first.end());
    step.token = batches_[0]->sample(step.sequence, greedy_, {});
    for (const auto& batch : batches_) {
      ASSERT_TRUE(std::ranges::equal(batch->logits(step.sequence), expected))
          << "sequence " << step.sequence << " of " << steps_.size();
      ASSERT_EQ(batch->sample(step.sequence, greedy_, {}), step.token);
    }
  }

  std::shared_ptr<Model> model_;
  std::mt19937_64 random_;
  Sampler greedy_ = Sampler({}, model_->config().vocab_size);
  std::vector<std::unique_ptr<Batch>> batches_;
  SessionPlan prefix_plan_;
  int64_t prefix_ = -1;  // in each of the batches
  std::vector<Batch::Step> steps_;
};

void expect_the_same(const std::string& name, const SessionOptions& options) {
  SCOPED_TRACE(name);
  Twins twins(name, options);
  const auto step = [&] {
    twins.step();
    return !testing::Test::HasFatalFailure();
  };
  // One, two, .. all: even and odd numbers of rows.
  for (int64_t i = 0; i < kSequences; ++i) {
    twins.add();
    ASSERT_TRUE(step());
  }
  EXPECT_EQ(twins.fetched_bytes() > 0, options.attention != AttentionMode::kDense);
  for (int64_t i = kSequences; i < kSteps; ++i) {
    if (twins.size() > 1 && twins.pick(0, 2) == 0) twins.remove();
    if (twins.size() < kSequences && twins.pick(0, 2) == 0) twins.add();
    ASSERT_TRUE(step());
  }
}

TEST(MicroBatches, NoBitDependsOnThem) {
  expect_the_same("llama", small(AttentionMode::kShadow, KeyCodec::kExact));
  expect_the_same("qwen3", small(AttentionMode::kShadow, KeyCodec::kLowRank));
  expect_the_same("qwen2", small(AttentionMode::kDense, KeyCodec::kAuto));
  expect_the_same("qwen2_window", small(AttentionMode::kShadow, KeyCodec::kInt8));
  expect_the_same("llama_head96", small(AttentionMode::kShadow, KeyCodec::kExact, 2));
  expect_the_same("llama_eviction_head", small(AttentionMode::kNosa, KeyCodec::kExact));
}

}  // namespace
}  // namespace tiercel
