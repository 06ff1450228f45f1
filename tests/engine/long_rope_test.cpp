// LongRoPE in a batch: a sequence is turned as its own context has it, whatever else the batch was planned
// for. On the CPU, and on the emulated or a real device.
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/batch.h"
#include "tests/engine/add_prefilled.h"
#include "tests/engine/backend.h"
#include "tests/engine/rms.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

constexpr int64_t kOriginal = 256;  // of phi3_partial
constexpr int64_t kFew = 100, kMany = kOriginal + 20, kSteps = 4;

std::vector<int32_t> random_ids(int64_t n) {
  std::mt19937_64 random(test::seed());
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = static_cast<int32_t>(3 + random() % 253);
  return ids;
}

class LongRope : public ::testing::Test {
 protected:
  std::unique_ptr<Batch> open(int64_t max_prompt, int64_t max_new = kSteps) {
    SessionOptions options;
    options.attention = AttentionMode::kDense;
    return Batch::open(model_, Batch::plan(*model_, options, 3, max_prompt, max_new));
  }
  // After each of two tokens behind a prompt of kFew, beside one of kMany where the batch has room for it.
  std::vector<float> logits_in(Batch& batch, int64_t n_new = kSteps) {
    const std::vector<int32_t> ids = random_ids(kMany);
    const auto add = [&](int64_t n, int64_t more) {
      const auto prompt = std::span(ids).first(static_cast<size_t>(n));
      return test::add_prefilled(batch, batch.plan_sequence(n, more), prompt);
    };
    std::vector<Batch::Step> steps;
    const int64_t first = add(kFew, n_new);
    steps.push_back({first, 7});
    if (batch.plan().largest.n_prompt >= kMany) steps.push_back({add(kMany, kSteps), 8});
    std::vector<float> all;
    for (int i = 0; i < 2; ++i) {
      batch.step(steps);
      const std::span<const float> logits = batch.logits(first);
      all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
  }

  std::shared_ptr<Model> model_ = Model::open(
      TIERCEL_SOURCE_DIR "/tests/golden/models/phi3_partial", {.backend = test::kBackend});
};

TEST_F(LongRope, ASequenceIsWhatItIsAlone) {
  const auto small = open(kFew), large = open(kMany);
  EXPECT_FALSE(small->plan().largest.long_rope);
  EXPECT_TRUE(large->plan().largest.long_rope);
  const std::vector<float> alone = logits_in(*small), beside = logits_in(*large);
  EXPECT_LT(test::rms_difference(alone, beside), 1e-3 * test::rms(alone));
  // What may become long is turned so from the start.
  const auto longer = open(kFew, kOriginal);
  const std::vector<float> other = logits_in(*longer, kOriginal);
  EXPECT_GT(test::rms_difference(alone, other), 0.05 * test::rms(alone));
}

// A shared text is turned once.
TEST_F(LongRope, NothingGetsLongBehindAShortPrefix) {
  const auto batch = open(kMany + 40);
  const SessionPlan few = batch->plan_prefix(kFew), many = batch->plan_prefix(kMany);
  EXPECT_FALSE(few.long_rope);
  EXPECT_TRUE(many.long_rope);
  EXPECT_FALSE(batch->plan_behind(few, kOriginal - kFew - 1, 1).long_rope);
  EXPECT_TRUE(batch->plan_behind(many, 5, 1).long_rope);
  try {
    batch->plan_behind(few, kOriginal - kFew, 1);
    FAIL() << "planned";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_NE(std::string(error.what()).find("LongRoPE"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace tiercel
