// What lies in host memory beside a device is what it is on the device. Weights: prompts have them brought over
// layer by layer, steps read them where they are. Hidden states of a prompt: they come and go run by run. Either
// gives what it gives with everything on the device, bit by bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/batch.h"
#include "engine/session.h"
#include "offload/layout.h"
#include "tests/engine/add_prefilled.h"
#include "tests/engine/random_ids.h"
#include "tests/engine/two_tiers.h"

namespace tiercel {
namespace {

using test::random_ids;

#if defined(TIERCEL_EMULATED)
constexpr int64_t kPrompt = 90, kSteps = 6, kAppended = 36;
#else
constexpr int64_t kPrompt = 2000, kSteps = 60, kAppended = 200;
#endif
static_assert(kAppended > 32, "fewer appended tokens read weights where they are");
constexpr int64_t kTwoRuns = kDenseTail + 40;  // of which the tail is one
constexpr int64_t kSpan = 64;                  // of the models with dual chunk attention: a run ends with it

std::shared_ptr<Model> tiny(const std::string& name, int64_t host_layers) {
  return Model::open(TIERCEL_SOURCE_DIR "/tests/golden/models/" + name,
                     {.backend = BackendKind::kCuda, .host_layers = host_layers});
}

std::span<const int32_t> part(const std::vector<int32_t>& ids, int64_t first, int64_t n) {
  return std::span(ids).subspan(static_cast<size_t>(first), static_cast<size_t>(n));
}

void keep(std::vector<float>& all, std::span<const float> logits) {
  all.insert(all.end(), logits.begin(), logits.end());
}

// A prompt; steps, of which the later ones are recorded; and more rows than a step has.
std::vector<float> logits_of(const std::string& name, int64_t host_layers, AttentionMode mode, int64_t n_prompt,
                             HiddenHome hidden_home = HiddenHome::kDevice) {
  const auto model = tiny(name, host_layers);
  SessionOptions options = test::two_tiers();
  options.attention = mode;
  options.hidden_home = hidden_home;
  options.prefill = n_prompt > kDenseTail ? PrefillMode::kSelect : PrefillMode::kDense;
  options.selection.budget = 32;
  options.selection.recent = 16;
  options.selection.outliers = 1;
  const std::vector<int32_t> ids = random_ids(*model, n_prompt + kSteps + kAppended);
  std::vector<float> all;
  const SessionPlan plan = Session::plan(*model, options, n_prompt, kSteps + kAppended);
  EXPECT_EQ(plan.memory.host.weights > 0, host_layers != 0);
  EXPECT_EQ(plan.states_on_host, hidden_home == HiddenHome::kHost);
  auto session = Session::open(model, plan);
  EXPECT_TRUE(session->prefill(part(ids, 0, n_prompt), {}));
  keep(all, session->logits());
  for (int64_t i = 0; i < kSteps; ++i) session->step(ids[static_cast<size_t>(n_prompt + i)]);
  keep(all, session->logits());
  EXPECT_TRUE(session->append(part(ids, n_prompt + kSteps, kAppended), {}));
  keep(all, session->logits());
  return all;
}

TEST(HostLayers, SessionsHaveTheBitsOfWeightsOnTheDevice) {
  const auto expect_same = [](const char* name, int64_t host_layers, AttentionMode mode, int64_t n_prompt = kPrompt) {
    const std::vector<float> on_device = logits_of(name, 0, mode, n_prompt);
    EXPECT_EQ(logits_of(name, host_layers, mode, n_prompt), on_device) << name << ", " << host_layers;
  };
  expect_same("llama", 1, AttentionMode::kShadow);
  expect_same("llama", kAllLayers, AttentionMode::kShadow, kTwoRuns);
  for (const char* name : {"llama_tied", "phi3_partial", "mixtral"}) {
    expect_same(name, kAllLayers, AttentionMode::kShadow);
  }
  // Here nothing but the products themselves keeps the host from being layers ahead.
  for (const char* name : {"llama", "llama_biases", "qwen3_moe_sparse_step"}) {
    expect_same(name, kAllLayers, AttentionMode::kDense);
  }
}

// As many stay in host memory as must, for what the model is opened for.
TEST(HostLayers, AreAsManyAsMust) {
  const auto all_there = tiny("llama", 0);
  ExpectedLoad load{.session = test::two_tiers(), .n_prompt = kPrompt, .n_new = 1};
  load.session.selection.key_codec = KeyCodec::kExact;  // a smaller one would be tried first
  const int64_t needed = Session::plan(*all_there, load.session, kPrompt, 1).memory.device.total();
  const std::vector<int32_t> ids = random_ids(*all_there, kPrompt);
  std::vector<float> logits[2];
  for (const bool fits : {true, false}) {
    load.session.device_memory = needed - (fits ? 0 : 1);
    const auto model = Model::open(TIERCEL_SOURCE_DIR "/tests/golden/models/llama",
                                   {.backend = BackendKind::kCuda, .load = load});
    EXPECT_EQ(model->config().host_layers > 0, !fits);
    const auto session = Session::open(model, Session::plan(*model, load.session, kPrompt, 1));
    EXPECT_TRUE(session->prefill(ids, {}));
    keep(logits[fits], session->logits());
  }
  EXPECT_EQ(logits[0], logits[1]);
}

// A layer's weights arrive neither before the layer before has been computed nor after they are needed, whenever
// queues get to their work.
TEST(HostLayers, LayersWaitForTheirWeights) {
  std::vector<float> expected;
  const auto model = tiny("llama", kAllLayers);
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  const std::vector<int32_t> ids = random_ids(*model, 20);
  for (int i = 0; i < 40; ++i) {
    const auto session = Session::open(model, Session::plan(*model, options, std::ssize(ids), 1));
    EXPECT_TRUE(session->prefill(ids, {}));
    const auto logits = session->logits();
    if (expected.empty()) expected.assign(logits.begin(), logits.end());
    EXPECT_TRUE(std::ranges::equal(logits, expected)) << i;
  }
}

// One run, which stays where it is; two; and one for every span of dual chunk attention.
TEST(HiddenHome, PromptsHaveTheBitsOfStatesOnTheDevice) {
  const auto expect_same = [](const char* name, int64_t host_layers, AttentionMode mode, int64_t n_prompt) {
    const std::vector<float> on_device = logits_of(name, 0, mode, n_prompt);
    EXPECT_EQ(logits_of(name, host_layers, mode, n_prompt, HiddenHome::kHost), on_device) << name << ", " << n_prompt;
  };
  expect_same("llama", 0, AttentionMode::kShadow, kPrompt);
  expect_same("llama", kAllLayers, AttentionMode::kShadow, kTwoRuns);
  expect_same("qwen2_dual_chunk", 0, AttentionMode::kDense, 5 * kSpan + 3);
  expect_same("qwen3_dual_chunk", kAllLayers, AttentionMode::kShadow, 3 * kSpan);
}

// Rows arrive neither before their place is free nor after they are needed, whenever queues get to their work.
TEST(HiddenHome, RunsWaitForTheirRows) {
  std::vector<float> expected;
  // Short runs, which end with the spans of 16 tokens.
  const auto model = Model::open(TIERCEL_SOURCE_DIR "/tests/golden/models/llama",
                                 {.backend = BackendKind::kCuda, .reach = {.dual_chunk = 18, .dual_chunk_local = 2}});
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  const std::vector<int32_t> ids = random_ids(*model, 6 * 16 + 3);
  for (int i = 0; i < 20; ++i) {
    options.hidden_home = i == 0 ? HiddenHome::kDevice : HiddenHome::kHost;
    const auto session = Session::open(model, Session::plan(*model, options, std::ssize(ids), 1));
    EXPECT_TRUE(session->prefill(ids, {}));
    const auto logits = session->logits();
    if (expected.empty()) expected.assign(logits.begin(), logits.end());
    EXPECT_TRUE(std::ranges::equal(logits, expected)) << i;
  }
}

// Prompts that take turns need each other's place for another layer, while steps of others are taken.
TEST(HostLayers, PromptsThatTakeTurns) {
  for (const char* name : {"llama", "qwen3_moe", "qwen2_dual_chunk"}) {
    std::vector<float> logits[2];
    for (const bool on_host : {false, true}) {
      const auto model = tiny(name, on_host ? kAllLayers : 0);
      SessionOptions options = test::two_tiers();
      options.hidden_home = on_host ? HiddenHome::kHost : HiddenHome::kDevice;
      options.selection.budget = 32;
      options.selection.recent = 16;
      const auto batch = Batch::open(model, Batch::plan(*model, options, 4, kPrompt, 2 * kPrompt));
      const auto plan = batch->plan_sequence(kPrompt, kPrompt);
      EXPECT_EQ(plan.states_on_host, on_host);
      std::vector<Batch::Step> steps = {
          {test::add_prefilled(*batch, plan, random_ids(*model, kPrompt, 1)), 1},
          {test::add_prefilled(*batch, plan, random_ids(*model, kPrompt, 2)), 2}};
      std::vector<int64_t> prompts = {batch->add(plan, random_ids(*model, kPrompt, 3), -1),
                                      batch->add(plan, random_ids(*model, kPrompt, 4), -1)};
      batch->advance_prefill(prompts[1]);  // a layer ahead
      for (bool finished = false; !finished;) {
        finished = true;
        for (int64_t& prompt : prompts) {
          if (prompt < 0) continue;
          finished = false;
          if (!batch->advance_prefill(prompt).finished) continue;
          keep(logits[on_host], batch->logits(prompt));
          prompt = -1;
        }
        batch->step(steps);
        for (const Batch::Step& step : steps) keep(logits[on_host], batch->logits(step.sequence));
      }
    }
    EXPECT_EQ(logits[0], logits[1]) << name;
  }
}

// A prompt that is given up has rows on their way, into memory that the next one may get.
TEST(HiddenHome, APromptIsGivenUp) {
  const auto model = tiny("qwen2_dual_chunk", kAllLayers);
  SessionOptions options = test::two_tiers();
  options.hidden_home = HiddenHome::kHost;
  options.selection.budget = 32;
  options.selection.recent = 16;
  const auto batch = Batch::open(model, Batch::plan(*model, options, 2, 3 * kSpan, 3 * kSpan + 1));
  const auto plan = batch->plan_sequence(3 * kSpan, 1);
  const std::vector<int32_t> ids = random_ids(*model, 3 * kSpan);
  std::vector<float> logits[2];
  for (std::vector<float>& found : logits) {
    for (int64_t n_runs = 1; n_runs < 6; ++n_runs) {
      const int64_t given_up = batch->add(plan, ids, -1);
      for (int64_t i = 0; i < n_runs; ++i) batch->advance_prefill(given_up);
      batch->remove(given_up);
    }
    const int64_t whole = test::add_prefilled(*batch, plan, ids);
    keep(found, batch->logits(whole));
    batch->remove(whole);
  }
  EXPECT_EQ(logits[0], logits[1]);
}

#if defined(TIERCEL_EMULATED)
// Weights that the device, here one of 8 GiB, has no room for are refused before any are made, with what would help.
TEST(HostLayers, WeightsThatTheDeviceHasNoRoomFor) {
  const auto expect_refused = [](const char* name, int64_t host_layers, const std::vector<const char*>& parts) {
    try {
      Model::synthetic(name, {.backend = BackendKind::kCuda, .host_layers = host_layers});
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kDoesNotFit);
      for (const char* part : parts) EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  expect_refused("llama-3.1-8b", 0, {"15.0 GiB of device memory", "7.50 GiB can be had", "--host-layers 21 or more"});
  expect_refused("llama-3.1-70b", 0, {"131 GiB of device memory", "use a larger device"});
  expect_refused("llama-3.1-70b", kAllLayers, {"24.5 GiB of device memory", "use a larger device"});
}
#endif

}  // namespace
}  // namespace tiercel
