// Recorded and replayed decode steps give what steps that are enqueued anew give: across recordings,
// chunks that retire from the window, and tokens whose logits nobody asks for.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "engine/presets.h"
#include "engine/session.h"
#include "offload/layout.h"
#include "tests/engine/two_tiers.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

// Logits after every seventh of n_new forced tokens.
std::vector<float> run(const char* name, SessionOptions options, int64_t n_prompt, int64_t n_new) {
  auto model = Model::open(std::string(TIERCEL_SOURCE_DIR "/tests/golden/models/") + name,
                           {.backend = BackendKind::kCuda});
  std::mt19937_64 random(test::seed());
  std::vector<int32_t> ids(static_cast<size_t>(n_prompt + n_new));
  for (int32_t& id : ids) {
    id = static_cast<int32_t>(random() % static_cast<uint64_t>(model->config().vocab_size));
  }
  auto session = Session::open(model, Session::plan(*model, options, n_prompt, n_new));
  EXPECT_TRUE(session->prefill(std::span(ids).first(static_cast<size_t>(n_prompt)), {}));
  std::vector<float> all;
  for (int64_t i = 0; i < n_new; ++i) {
    session->step(ids[static_cast<size_t>(n_prompt + i)]);
    if (i % 7 != 0) continue;
    const auto logits = session->logits();
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

// Bit by bit: attention is cut alike.
void expect_same(const char* name, SessionOptions options, int64_t n_prompt, int64_t n_new) {
  const std::vector<float> replayed = run(name, options, n_prompt, n_new);
  options.no_graphs = true;
  EXPECT_EQ(replayed, run(name, options, n_prompt, n_new)) << name;
}

#if defined(TIERCEL_EMULATED)
constexpr int64_t kShort = 12, kLong = 75;
#else
constexpr int64_t kShort = 100, kLong = 3 * kCutTokens;
#endif

TEST(Replay, SelectedAttention) {
  SessionOptions options = test::two_tiers();
  options.selection.budget = 32;
  options.selection.recent = 16;
  options.selection.outliers = 1;
  options.selection.rank = 16;
  options.selection.key_codec = KeyCodec::kLowRank;
  expect_same("llama", options, 150, kLong);  // chunks retire at least once
  options.selection.key_codec = KeyCodec::kExact;
  expect_same("qwen3", options, 150, kShort);
}

// The worker is called by recorded steps too, with keys and values or with weights.
TEST(Replay, TheHostAttends) {
  SessionOptions options;
  options.selection.budget = 32;
  options.selection.recent = 16;
  options.selection.outliers = 1;
  options.value_home = ValueHome::kHost;
  options.host_attention = HostAttention::kOn;
  options.selection.key_codec = KeyCodec::kExact;
  expect_same("llama", options, 150, kShort);
  options.selection.key_codec = KeyCodec::kInt8;
  options.selection.value_codec = RowCodec::kInt8;
  expect_same("llama", options, 150, kLong);
}

// The bias of the newest token goes where the clock says.
TEST(Replay, EvictionHead) {
  SessionOptions options = test::two_tiers(preset(AttentionMode::kNosa));
  options.selection.budget = 32;
  options.selection.recent = 16;
  options.selection.static_budget = 16;
  expect_same("llama_eviction_head", options, 150, kLong);
  options = SessionOptions();
  options.attention = AttentionMode::kDense;
  expect_same("llama_eviction_head", options, 40, kShort);
}

// Steps have one view more of their queries every span, and their scores another scale every so many tokens.
TEST(Replay, DualChunkAttention) {
  SessionOptions options = test::two_tiers();
  options.selection.budget = 32;
  options.selection.recent = 16;
  options.selection.outliers = 1;
  options.selection.key_codec = KeyCodec::kExact;
  expect_same("qwen2_dual_chunk", options, 150, kLong);
  options = SessionOptions();
  options.attention = AttentionMode::kDense;
  expect_same("qwen2_dual_chunk", options, 216, kShort);  // 224: another view
  expect_same("qwen3_dual_chunk", options, 130, kShort);
  expect_same("qwen2_dual_chunk", options, 250, kShort);  // 256: another scale
}

// Which experts a step has is chosen by the step itself.
TEST(Replay, Experts) {
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  expect_same("mixtral", options, 40, kShort);
  expect_same("qwen3_moe", options, 40, kShort);
}

TEST(Replay, DenseAttention) {
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  expect_same("llama", options, 40, kShort);
}

// A window moves with every step: such steps are never replayed.
TEST(Replay, SlidingWindow) {
  SessionOptions options;
  expect_same("mistral_window", options, 60, kShort);
}

}  // namespace
}  // namespace tiercel
