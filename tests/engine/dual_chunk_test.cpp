// Dual chunk attention beyond what tests/golden says of it: selected prompts, saved sessions of versions that
// did not know it, and memory. On the CPU, and on the emulated or a real device.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "engine/append_pass.h"
#include "engine/base/check.h"
#include "engine/batch.h"
#include "engine/presets.h"
#include "engine/session.h"
#include "tests/engine/add_prefilled.h"
#include "tests/engine/backend.h"
#include "tests/engine/changed_model.h"
#include "tests/engine/rms.h"
#include "tests/engine/two_tiers.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

#if defined(TIERCEL_EMULATED)
constexpr bool kSlow = true;
constexpr int64_t kPrompt = 640;
constexpr AttentionMode kModes[] = {AttentionMode::kShadow};
#else
constexpr bool kSlow = false;
constexpr int64_t kPrompt = 1500;
constexpr AttentionMode kModes[] = {AttentionMode::kShadow, AttentionMode::kTokenSelect,
                                    AttentionMode::kQuest, AttentionMode::kDelta};
#endif

std::vector<int32_t> random_ids(int64_t n) {
  std::mt19937_64 random(test::seed());
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = static_cast<int32_t>(3 + random() % 253);
  return ids;
}

class DualChunkAttention : public ::testing::TestWithParam<const char*> {
 protected:
  static std::shared_ptr<Model> open(const ReachOptions& reach = {}) {
    return Model::open(std::string(TIERCEL_SOURCE_DIR "/tests/golden/models/") + GetParam(),
                       {.backend = test::kBackend, .n_threads = 2, .reach = reach});
  }
  // Behind the prompt and behind a few steps.
  std::vector<float> logits(const SessionOptions& options) { return logits(options, open()); }
  static std::vector<float> logits(const SessionOptions& options, const std::shared_ptr<Model>& model) {
    const std::vector<int32_t> ids = random_ids(kPrompt + 3);
    auto session = Session::open(model, Session::plan(*model, options, kPrompt, 3));
    EXPECT_TRUE(session->prefill(std::span(ids).first(static_cast<size_t>(kPrompt)), {}));
    std::vector<float> all(session->logits().begin(), session->logits().end());
    for (int64_t i = kPrompt; i < kPrompt + 3; ++i) session->step(ids[static_cast<size_t>(i)]);
    all.insert(all.end(), session->logits().begin(), session->logits().end());
    return all;
  }
};

// What config.json says can be said by options, of any model.
TEST_P(DualChunkAttention, OptionsGoBeforeTheConfiguration) {
  SessionOptions dense;
  dense.attention = AttentionMode::kDense;
  const std::vector<float> as_configured = logits(dense);
  const DualChunk own = open()->config().dual_chunk;
  const ReachOptions none = {.dual_chunk = 0, .scale_from = 0};
  const std::vector<float> plain = logits(dense, open(none));
  EXPECT_GT(test::rms_difference(plain, as_configured), 0.1 * test::rms(plain));
  const ReachOptions same = {.dual_chunk = own.spans.tokens + own.spans.local,
                             .dual_chunk_local = own.spans.local,
                             .scale_from = own.scaled_from};
  EXPECT_EQ(logits(dense, open(same)), as_configured);
  const double apart = test::rms_difference(plain, logits(dense, open({.dual_chunk = 0, .scale_from = 100})));
  EXPECT_GT(apart, 0.01 * test::rms(plain)) << "scaled without chunks";
  // Far off, and never reached.
  EXPECT_EQ(logits(dense, open({.dual_chunk = 4096, .scale_from = 4096})), plain);
}

// Behind one prefix, at lengths that have scales of their own.
TEST_P(DualChunkAttention, SequencesBehindAPrefixAreAsAlone) {
  SessionOptions options = test::two_tiers();
  options.selection.budget = 64;
  options.selection.recent = 16;
  options.selection.outliers = 1;
  options.selection.group = GroupScore::kMean;
  options.selection.top_p = 0.8;
  const auto model = open();
  const std::vector<int32_t> ids = random_ids(400);
  constexpr int64_t kShared = 200, kBehind[] = {50, 62};  // as many views, another scale
  const auto logits_of = [&](std::vector<size_t> members) {
    const auto batch = Batch::open(model, Batch::plan(*model, options, 2, kShared + 62, 4));
    const SessionPlan plan = batch->plan_prefix(kShared);
    const int64_t prefix = test::add_prefilled(*batch, plan, std::span(ids).first(kShared));
    std::vector<Batch::Step> steps;
    for (const size_t i : members) {
      const auto rest = std::span(ids).subspan(kShared, static_cast<size_t>(kBehind[i]));
      steps.push_back({test::add_prefilled(*batch, batch->plan_behind(plan, kBehind[i], 4), rest, prefix), 7});
    }
    batch->step(steps);
    std::vector<std::vector<float>> all;
    for (const Batch::Step& step : steps) {
      const auto found = batch->logits(step.sequence);
      all.emplace_back(found.begin(), found.end());
    }
    return all;
  };
  const auto both = logits_of({0, 1});
  EXPECT_EQ(both[0], logits_of({0})[0]);
  EXPECT_EQ(both[1], logits_of({1})[0]);
}

// Every block of queries looks at all chunks, in parts, by their views.
TEST_P(DualChunkAttention, SelectedPromptsWithRoomForEverythingAreDense) {
  SessionOptions dense;
  dense.attention = AttentionMode::kDense;
  dense.prefill = PrefillMode::kDense;
  const std::vector<float> whole = logits(dense);
  const double size = test::rms(whole);
  for (const AttentionMode mode : kModes) {
    SessionOptions options = test::two_tiers(preset(mode));
    options.selection.budget = options.prefill_budget = kBudgetAll;
    options.selection.reuse = 0;
    options.selection.chunk_size = std::min<int64_t>(options.selection.chunk_size, 8);
    options.prefill = PrefillMode::kSelect;
    options.selection.key_codec = KeyCodec::kExact;
    EXPECT_LT(test::rms_difference(whole, logits(options)), 0.04 * size) << name_of(mode);
    // A part of it is another answer, of about the same size.
    options.selection.budget = options.prefill_budget = 64;
    const double apart = test::rms_difference(whole, logits(options));
    EXPECT_GT(apart, 0) << name_of(mode);
    EXPECT_LT(apart, 1.5 * size) << name_of(mode);
  }
}

// Where positions turn nothing all views of a query are one: what is selected by them is what is selected without, of
// a prompt and of a long text behind it.
TEST_P(DualChunkAttention, ViewsThatAreAlikeSelectAlike) {
  const nlohmann::json still = {
      {"rope_parameters", {{"rope_type", "linear"}, {"rope_theta", 10000.0}, {"factor", 1e12}}}};
  const auto open_still = [&](const ReachOptions& reach) {
    return test::open_changed(GetParam(), still, {.backend = test::kBackend, .n_threads = 2, .reach = reach});
  };
  const auto plain = open_still({.dual_chunk = 0, .scale_from = 0});
  const auto in_spans = open_still({.dual_chunk = 256 + 64, .dual_chunk_local = 64, .scale_from = 0});
  // A run of one span, and steps.
  const int64_t n_prompt = (kPrompt + kPrefillBlock - 1) / kPrefillBlock * kPrefillBlock;
  const int64_t n_run = kPrefillBlock + kAppendTail;
  for (const int64_t n_more : {int64_t{3}, n_run}) {
    for (const AttentionMode mode : {AttentionMode::kDense, AttentionMode::kShadow}) {
      if (kSlow && (n_more < n_run || mode == AttentionMode::kDense)) continue;
      SCOPED_TRACE(std::string(name_of(mode)) + ", " + std::to_string(n_more) + " behind the prompt");
      SessionOptions options;
      if (mode != AttentionMode::kDense) options = test::two_tiers(preset(mode));
      options.attention = mode;
      options.prefill = PrefillMode::kSelect;
      options.prefill_budget = 32;
      options.selection.budget = kBudgetAll;
      const auto logits_of = [&](const std::shared_ptr<Model>& model, const SessionOptions& some) {
        const std::vector<int32_t> ids = random_ids(n_prompt + n_more);
        const auto session = Session::open(model, Session::plan(*model, some, n_prompt, n_more));
        EXPECT_TRUE(session->prefill(std::span(ids).first(static_cast<size_t>(n_prompt)), {}));
        EXPECT_TRUE(session->append(std::span(ids).subspan(static_cast<size_t>(n_prompt)), {}));
        return std::vector<float>(session->logits().begin(), session->logits().end());
      };
      const std::vector<float> expected = logits_of(plain, options), found = logits_of(in_spans, options);
      SessionOptions few = options;
      few.prefill_budget = 16;
      const double apart = test::rms_difference(logits_of(plain, few), expected);
      EXPECT_LT(test::rms_difference(found, expected), 0.6 * apart);  // near ties may go another way
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, DualChunkAttention, ::testing::Values("qwen2_dual_chunk", "qwen3_dual_chunk"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tiercel
