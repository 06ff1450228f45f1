// On a device, too, sequences that are decoded together give what each gives by itself: tokens and
// logits, bit by bit; and tokens that are appended give what stepped ones give.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "engine/session.h"
#include "tests/engine/add_prefilled.h"
#include "tests/engine/two_tiers.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

#if defined(TIERCEL_EMULATED)
constexpr int64_t kSteps = 3, kSequences = 10, kShortest = 20, kMore = 4;
#else
constexpr int64_t kSteps = 100, kSequences = 20, kShortest = 200, kMore = 100;
#endif

std::shared_ptr<Model> tiny(const char* name) {
  return Model::open(std::string(TIERCEL_SOURCE_DIR "/tests/golden/models/") + name,
                     {.backend = BackendKind::kCuda});
}

std::vector<std::vector<int32_t>> prompts(const Model& model) {
  std::mt19937_64 random(test::seed());
  std::vector<std::vector<int32_t>> all;
  for (int64_t i = 0; i < kSequences; ++i) {
    auto& ids = all.emplace_back(static_cast<size_t>(kShortest + 7 * i));
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(random() % static_cast<uint64_t>(model.config().vocab_size));
    }
  }
  return all;
}

SessionOptions small(AttentionMode mode, KeyCodec codec) {
  SessionOptions options = test::two_tiers();
  options.attention = mode;
  options.selection.budget = 16;
  options.selection.recent = 16;
  options.selection.outliers = 1;
  options.selection.key_codec = codec;
  options.selection.rank = 16;
  return options;
}

void expect_as_alone(const char* name, const SessionOptions& options) {
  const auto model = tiny(name);
  const auto all = prompts(*model);
  const auto longest = static_cast<int64_t>(all.back().size());
  const auto batch =
      Batch::open(model, Batch::plan(*model, options, kSequences, longest, kSteps + 1));
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<Batch::Step> steps;
  Sampler greedy({}, model->config().vocab_size);
  for (const auto& ids : all) {
    const auto n = static_cast<int64_t>(ids.size());
    const int64_t sequence = test::add_prefilled(*batch, batch->plan_sequence(n, kSteps + 1), ids);
    sessions.push_back(Session::open(model, Session::plan(*model, options, n, kSteps + 1)));
    ASSERT_TRUE(sessions.back()->prefill(ids, {}));
    steps.push_back({sequence, batch->sample(sequence, greedy, {})});
    EXPECT_EQ(steps.back().token, sessions.back()->sample(greedy, {}));
  }
  for (int64_t i = 0; i < kSteps; ++i) {
    batch->step(steps);
    for (size_t s = 0; s < steps.size(); ++s) {
      sessions[s]->step(steps[s].token);
      ASSERT_TRUE(std::ranges::equal(sessions[s]->logits(), batch->logits(steps[s].sequence)))
          << name << ", sequence " << s << ", step " << i;
      steps[s].token = batch->sample(steps[s].sequence, greedy, {});
      ASSERT_EQ(steps[s].token, sessions[s]->sample(greedy, {}));
    }
    // They come and go.
    if (i == 0) {
      batch->remove(steps[1].sequence);
      steps.erase(steps.begin() + 1);
      sessions.erase(sessions.begin() + 1);
    }
  }
}

TEST(DeviceBatch, EverySequenceAsAlone) {
  expect_as_alone("llama", small(AttentionMode::kShadow, KeyCodec::kExact));
  expect_as_alone("qwen3", small(AttentionMode::kShadow, KeyCodec::kLowRank));
  expect_as_alone("qwen2", small(AttentionMode::kDense, KeyCodec::kAuto));
  expect_as_alone("llama_eviction_head", small(AttentionMode::kNosa, KeyCodec::kExact));
}

// Steps are recorded and replayed as long as the same sequences take them and nothing else happens, with the
// bits of steps that are enqueued anew; in two parts, behind a prefix or not.
TEST(DeviceBatch, ReplaysSteps) {
  const auto model = tiny("qwen3");
  const std::vector<std::vector<int32_t>> all = prompts(*model);
  const auto longest = static_cast<int64_t>(all.back().size());
  constexpr int64_t kStepsHere = 24;
  for (const bool shares : {false, true}) {
    std::vector<std::vector<float>> logits[2];
    for (const bool replays : {false, true}) {
      SessionOptions options = small(AttentionMode::kShadow, KeyCodec::kInt8);
      options.no_graphs = !replays;
      BatchPlan plan = Batch::plan(*model, options, 4, 2 * longest, kStepsHere + 1);
      plan.micro_batches = MicroBatches::kTwo;
      const auto batch = Batch::open(model, plan);
      const SessionPlan prefix_plan = batch->plan_prefix(longest);
      const int64_t prefix = shares ? test::add_prefilled(*batch, prefix_plan, all.back()) : -1;
      const auto joins = [&](size_t i) {
        const int64_t n = std::ssize(all[i]);
        const SessionPlan its_plan = shares ? batch->plan_behind(prefix_plan, n, kStepsHere)
                                            : batch->plan_sequence(n, kStepsHere);
        return test::add_prefilled(*batch, its_plan, all[i], prefix);
      };
      std::vector<Batch::Step> steps;
      for (size_t i = 0; i < 3; ++i) steps.push_back({joins(i), all[i][0]});
      int64_t n_replayed = 0;
      for (int32_t i = 0; i < kStepsHere; ++i) {
        if (i == 8) steps.push_back({joins(3), 1});
        if (i == 17) {  // its address may be the next one's
          batch->remove(steps[1].sequence);
          steps[1].sequence = joins(1);
        }
        for (Batch::Step& step : steps) step.token = (step.token + 7 * i) % 200;
        batch->step(steps);
        n_replayed += batch->replayed() ? 1 : 0;
        for (const Batch::Step& step : steps) {
          const auto found = batch->logits(step.sequence);
          logits[replays].emplace_back(found.begin(), found.end());
        }
      }
      EXPECT_EQ(n_replayed > kStepsHere / 3, replays) << n_replayed;
    }
    EXPECT_EQ(logits[0], logits[1]) << shares;
  }
}

// Between two runs of a prompt that moves home layer by layer, the same streams take recorded steps.
TEST(DeviceBatch, PromptsArePrefilledBetweenReplayedSteps) {
  const auto model = tiny("llama");
  const std::vector<std::vector<int32_t>> all = prompts(*model);
  const std::vector<int32_t>& ids = all.back();
  const auto n = static_cast<int64_t>(ids.size());
  for (const KeyCodec codec : {KeyCodec::kExact, KeyCodec::kLowRank}) {
    SessionOptions options = small(AttentionMode::kShadow, codec);
    options.value_home = ValueHome::kHost;
    const auto alone = Session::open(model, Session::plan(*model, options, n, 2));
    ASSERT_TRUE(alone->prefill(ids, {}));
    alone->step(1);

    const auto batch = Batch::open(model, Batch::plan(*model, options, 4, n, 200));
    std::vector<Batch::Step> steps;
    for (size_t i = 0; i < 3; ++i) {
      const std::vector<int32_t>& its = all[all.size() - 2 - i];
      const SessionPlan plan = batch->plan_sequence(std::ssize(its), 200);
      steps.push_back({test::add_prefilled(*batch, plan, its), 1});
    }
    int n_replayed = 0;
    for (int round = 0; round < 3; ++round) {
      // One that goes again, while a layer of it moves home.
      const int64_t given_up = batch->add(batch->plan_sequence(n, 2), ids);
      batch->advance_prefill(given_up);
      batch->remove(given_up);

      const int64_t name = batch->add(batch->plan_sequence(n, 2), ids);
      bool is_prefilled = false;
      while (!is_prefilled) {
        batch->step(std::span(steps).first(2));  // what follows is recorded anew
        for (int i = 0; i < 3; ++i) {
          batch->step(steps);
          n_replayed += batch->replayed() ? 1 : 0;
        }
        is_prefilled = batch->advance_prefill(name).finished;
      }
      const Batch::Step its{name, 1};
      batch->step({&its, 1});
      EXPECT_TRUE(std::ranges::equal(alone->logits(), batch->logits(name))) << round;
      batch->remove(name);
    }
    EXPECT_GT(n_replayed, 5);
  }
}

// Kernels of a step of n sequences of one length.
int64_t launches_of(const SessionOptions& options, int n) {
  const auto model = tiny("llama");
  const std::vector<int32_t> ids = prompts(*model).back();
  const auto tokens = static_cast<int64_t>(ids.size());
  const auto batch = Batch::open(model, Batch::plan(*model, options, kSequences, tokens, 2));
  std::vector<Batch::Step> steps;
  for (int i = 0; i < n; ++i) {
    steps.push_back({test::add_prefilled(*batch, batch->plan_sequence(tokens, 2), ids), ids[0]});
  }
  batch->step(steps);
  return batch->step_launches();
}

TEST(DeviceBatch, EightSequencesTakeAsManyLaunchesAsOne) {
  for (const KeyCodec codec : {KeyCodec::kInt8, KeyCodec::kLowRank}) {
    const SessionOptions options = small(AttentionMode::kShadow, codec);
    const int64_t one = launches_of(options, 1);
    EXPECT_GT(one, 2 * 7) << "two layers of RoPE, selection, attention, fetches";
    EXPECT_EQ(launches_of(options, 8), one);
  }
}

// What the device picks is what the sampler would have: for every kind of sampler, one or several at once,
// in a batch and in a session.
TEST(DeviceBatch, TokensAreTheSamplers) {
  const auto model = tiny("llama");
  const std::vector<int32_t> ids = prompts(*model).back();
  const auto tokens = static_cast<int64_t>(ids.size()), vocab = model->config().vocab_size;
  const SessionOptions options = small(AttentionMode::kDense, KeyCodec::kAuto);
  const SamplingOptions kinds[] = {{.temperature = 0.9, .seed = 1},
                                   {},
                                   {.temperature = 1.5, .top_k = 7, .repeat_penalty = 1.3, .seed = 2},
                                   {.repeat_penalty = 1.7},
                                   {.temperature = 0.7, .top_p = 0.8, .min_p = 0.02, .seed = 3},
                                   {.temperature = 1, .repeat_penalty = 1.2, .repeat_last_n = 1 << 20},
                                   {.temperature = 1, .presence_penalty = 5, .frequency_penalty = 1, .seed = 4},
                                   {.logit_bias = {{7, 9}, {8, -3}, {9, -1e9}}}};
  std::vector<int32_t> long_history;
  for (int i = 0; i < 1500; ++i) long_history.push_back(ids[static_cast<size_t>(i) % ids.size()]);
  const auto history_of = [&](const SamplingOptions& o) -> std::span<const int32_t> {
    return o.repeat_last_n > 1000 ? std::span<const int32_t>(long_history) : ids;
  };

  const int64_t n = std::ssize(kinds);
  const auto batch = Batch::open(model, Batch::plan(*model, options, n, tokens, 4));
  const auto session = Session::open(model, Session::plan(*model, options, tokens, 4));
  ASSERT_TRUE(session->prefill(ids, {}));
  std::vector<Sampler> samplers, references, of_session;
  std::vector<Batch::Step> steps;
  for (const SamplingOptions& kind : kinds) {
    for (auto* list : {&samplers, &references, &of_session}) list->emplace_back(kind, vocab);
    steps.push_back({test::add_prefilled(*batch, batch->plan_sequence(tokens, 4), ids), ids[0]});
  }
  for (int step = 0; step < 3; ++step) {
    batch->step(steps);
    session->step(ids[0]);
    std::vector<Batch::Sampling> all;
    for (int64_t i = 0; i < n; ++i) {
      all.push_back({steps[i].sequence, &samplers[i], history_of(kinds[i])});
    }
    batch->sample_ahead(all);
    for (int64_t i = 0; i < n; ++i) {
      const auto history = history_of(kinds[i]);
      const int32_t expected = references[i].sample(batch->logits(steps[i].sequence), history);
      EXPECT_EQ(all[i].token, expected) << "kind " << i << ", step " << step;
      EXPECT_EQ(session->sample(of_session[i], history), expected) << "kind " << i << ", step " << step;
    }
  }
}

// The host then picks, from the same logits.
TEST(DeviceBatch, MoreAdjustmentsThanTheDeviceMakes) {
  const auto model = Model::open(TIERCEL_SOURCE_DIR "/tools/demo/recall-4m", {.backend = BackendKind::kCuda});
  const int64_t vocab = model->config().vocab_size;
  ASSERT_GT(vocab, kMaxLogitAdjustments);
  SamplingOptions options{.temperature = 1, .seed = 3};
  for (int32_t token = 0; token <= kMaxLogitAdjustments; ++token) options.logit_bias.push_back({token, -0.5});
  const std::vector<int32_t> ids = {1, 50, 60, 70};
  const auto batch = Batch::open(model, Batch::plan(*model, small(AttentionMode::kDense, KeyCodec::kAuto), 1, 4, 3));
  const int64_t name = test::add_prefilled(*batch, batch->plan_sequence(4, 3), ids);
  Sampler sampler(options, vocab), reference(options, vocab);
  Batch::Sampling one{name, &sampler, ids};
  batch->sample_ahead({&one, 1});
  EXPECT_EQ(one.token, -1);
  EXPECT_EQ(batch->sample(name, sampler, ids), reference.sample(batch->logits(name), ids));
}

SessionOptions attended_by_host(KeyCodec codec) {
  SessionOptions options = small(AttentionMode::kShadow, codec);
  options.value_home = ValueHome::kHost;
  options.host_attention = HostAttention::kOn;
  return options;
}

// One worker for all of them.
TEST(DeviceBatch, AttendedByTheHostAsAlone) {
  expect_as_alone("llama", attended_by_host(KeyCodec::kExact));
  expect_as_alone("qwen3", attended_by_host(KeyCodec::kInt8));
}

void expect_appended_as_stepped(const SessionOptions& options) {
  const auto model = tiny("llama");
  const std::vector<int32_t> ids = prompts(*model).back();
  const auto n = static_cast<int64_t>(ids.size()) - kMore;
  std::vector<std::unique_ptr<Session>> sessions;
  for (int i = 0; i < 2; ++i) {
    sessions.push_back(Session::open(model, Session::plan(*model, options, n, kMore)));
    ASSERT_TRUE(sessions[i]->prefill(std::span(ids).first(static_cast<size_t>(n)), {}));
  }
  for (int64_t i = n; i < std::ssize(ids); ++i) sessions[0]->step(ids[static_cast<size_t>(i)]);
  ASSERT_TRUE(sessions[1]->append(std::span(ids).subspan(static_cast<size_t>(n)), {}));
  EXPECT_TRUE(std::ranges::equal(sessions[0]->logits(), sessions[1]->logits()));
}

TEST(DeviceBatch, AppendedAsStepped) {
  expect_appended_as_stepped(small(AttentionMode::kShadow, KeyCodec::kExact));
  expect_appended_as_stepped(attended_by_host(KeyCodec::kInt8));
}

}  // namespace
}  // namespace tiercel
