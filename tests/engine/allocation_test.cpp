// The decode loop allocates nothing: every way to the heap is counted while tokens are generated.
#include <gtest/gtest.h>

#include "engine/presets.h"
#include "engine/sampler.h"
#include "engine/session.h"
#include "tests/count_allocations.h"
#include "tests/engine/two_tiers.h"
#include "tests/sanitized.h"

namespace tiercel {
namespace {

int64_t allocations_while_decoding(const SessionOptions& options) {
  auto model = Model::open(TIERCEL_SOURCE_DIR "/tools/demo/recall-4m",
                           {.backend = BackendKind::kCpu, .n_threads = 2});
  const int64_t n_prompt = test::kSanitized ? 800 : 2000, n_new = 200;
  const int n_steps = test::kSanitized ? 20 : 150;
  auto session = Session::open(model, Session::plan(*model, options, n_prompt, n_new));
  std::vector<int32_t> ids(static_cast<size_t>(n_prompt));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 7919) % 2000);
  EXPECT_TRUE(session->prefill(ids, {}));
  Sampler sampler(
      SamplingOptions{
          .temperature = 0.8, .top_k = 40, .top_p = 0.9, .min_p = 0.01, .repeat_penalty = 1.1},
      model->config().vocab_size);
  // The first steps may set things up (a primitive for one row, a worker's first task).
  for (int i = 0; i < 4; ++i) session->step(sampler.sample(session->logits(), ids));
  const int64_t before = test::n_allocations;
  for (int i = 0; i < n_steps; ++i) session->step(sampler.sample(session->logits(), ids));
  return test::n_allocations - before;
}

TEST(DecodeLoop, DenseAllocatesNothing) {
  if (test::kOpsMakeThreads) GTEST_SKIP() << "threads are made per op here";
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  EXPECT_EQ(allocations_while_decoding(options), 0);
}

TEST(DecodeLoop, ShadowAllocatesNothing) {
  if (test::kOpsMakeThreads) GTEST_SKIP() << "threads are made per op here";
  SessionOptions options = test::two_tiers();
  options.selection.budget = 256;
  options.audit = 7;
  EXPECT_EQ(allocations_while_decoding(options), 0);
  options.selection.key_codec = KeyCodec::kExact;
  EXPECT_EQ(allocations_while_decoding(options), 0);
}

TEST(DecodeLoop, NoPresetAllocates) {
  if (test::kOpsMakeThreads) GTEST_SKIP() << "threads are made per op here";
  for (const AttentionMode mode : attention_modes()) {
    SessionOptions options = test::two_tiers(preset(mode));
    options.selection.recent = 64;
    EXPECT_EQ(allocations_while_decoding(options), 0) << name_of(mode);
  }
  SessionOptions coded = test::two_tiers();
  coded.selection.key_codec = KeyCodec::kInt8;
  coded.selection.value_codec = RowCodec::kInt4;
  coded.selection.landmark_codec = RowCodec::kInt8;
  coded.selection.miss_cap = 8;
  coded.selection.recent = 64;
  EXPECT_EQ(allocations_while_decoding(coded), 0);
}

// Right guesses and wrong ones.
TEST(DecodeLoop, DraftsAllocateNothing) {
  if (test::kOpsMakeThreads) GTEST_SKIP() << "threads are made per op here";
  const auto model = Model::open(TIERCEL_SOURCE_DIR "/tools/demo/recall-4m",
                                 {.backend = BackendKind::kCpu, .n_threads = 2});
  constexpr int kPrompt = 700;
  const auto token = [](int i) { return i % 7 == 6 ? 5 : i % 35 * 13; };
  std::vector<int32_t> ids;
  for (int i = 0; i < kPrompt; ++i) ids.push_back(token(i));
  SessionOptions options;
  options.draft = DraftMode::kAlways;
  options.selection.recent = 64;
  const auto session = Session::open(model, Session::plan(*model, options, kPrompt, 200));
  ASSERT_TRUE(session->prefill(ids, {}));
  Sampler sampler({.temperature = 1}, model->config().vocab_size);
  const auto walk = [&](int first, int end) {
    for (int i = first; i < end; ++i) {
      session->step(i % 11 == 3 ? 7 : token(kPrompt + i));
      sampler.sample(session->logits(), ids);
    }
  };
  walk(0, 40);  // what so many rows need is made once
  const int64_t before = test::n_allocations;
  walk(40, 150);
  EXPECT_EQ(test::n_allocations - before, 0);
  EXPECT_GT(session->drafts().right, 50);
  EXPECT_GT(session->drafts().guessed, session->drafts().right);
}

TEST(DecodeLoop, TheCounterCounts) {
  const int64_t before = test::n_allocations;
  const auto numbers = std::make_unique<std::vector<int>>(100);
  EXPECT_GE(test::n_allocations - before, 2);
}

}  // namespace
}  // namespace tiercel
