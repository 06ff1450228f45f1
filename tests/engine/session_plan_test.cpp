// What a session will do is decided, and refused, before anything is allocated.
#include <gtest/gtest.h>

#include "engine/base/check.h"
#include "engine/batch_plan.h"
#include "engine/expected_load.h"
#include "engine/known_models.h"
#include "engine/session.h"
#include "engine/session_plan.h"
#include "engine/weights.h"
#include "tests/engine/recall.h"

namespace tiercel {
namespace {

using namespace test;

TEST(SessionPlan, PlansBeforeItAllocates) {
  auto m = model();
  std::string message;
  SessionOptions options = dense();
  options.device_memory = int64_t{64} << 20;
  EXPECT_EQ(kind_of([&] { Session::plan(*m, options, 500000, 100); }, &message),
            ErrorKind::kDoesNotFit);
  EXPECT_NE(message.find("--device-memory"), std::string::npos) << message;
  SessionOptions host;
  host.host_memory = 1 << 20;
  EXPECT_EQ(kind_of([&] { Session::plan(*m, host, 500000, 100); }, &message),
            ErrorKind::kDoesNotFit);
  EXPECT_NE(message.find("--host-memory"), std::string::npos) << message;
  // More than any machine has: refused by arithmetic, past 2^31 elements and far beyond.
  EXPECT_EQ(kind_of([&] { Session::plan(*m, dense(), int64_t{1} << 40, 100); }, &message),
            ErrorKind::kDoesNotFit);
}

// Two tiers of one memory that nobody limits are one.
TEST(SessionPlan, ACpuAttendsInPlace) {
  auto m = model();
  const auto plan_of = [&](const std::function<void(SessionOptions&)>& change) {
    SessionOptions options;
    change(options);
    return Session::plan(*m, options, 4000, 100);
  };
  const SessionPlan plan = plan_of([](SessionOptions&) {});
  EXPECT_EQ(plan.device_layers, m->config().n_layers);
  EXPECT_EQ(plan.options.selection.key_codec, KeyCodec::kExact);
  EXPECT_EQ(plan.memory.host.total(), 0);
  EXPECT_EQ(plan.memory.device.slots, plan_of([](SessionOptions& o) {
              o.value_home = ValueHome::kDevice;
            }).memory.device.slots);
  const std::function<void(SessionOptions&)> not_in_place[] = {
      [](SessionOptions& o) { o.value_home = ValueHome::kHost; },
      [](SessionOptions& o) { o.host_memory = int64_t{1} << 30; },
      [](SessionOptions& o) { o.selection.key_codec = KeyCodec::kInt8; },
      [](SessionOptions& o) { o.selection.value_codec = RowCodec::kInt8; },
      [](SessionOptions& o) { o.host_attention = HostAttention::kAuto; },
      [](SessionOptions& o) { o.imposed_hit_rate = 0.5; }};
  for (const auto& change : not_in_place) EXPECT_GT(plan_of(change).memory.host.values, 0);
}

// What does not fit says what the smallest of the codecs would need: none on the device, where the host has room
// for them.
TEST(SessionPlan, SaysTheLeastThatWouldDo) {
  auto m = model();
  const auto needed = [&](KeyCodec codec, int64_t host_memory, ValueHome home = ValueHome::kAuto) {
    SessionOptions options;
    options.value_home = home;
    options.selection.key_codec = codec;
    options.device_memory = 1 << 20;
    options.host_memory = host_memory;
    std::string message;
    EXPECT_EQ(kind_of([&] { Session::plan(*m, options, 500000, 100); }, &message),
              ErrorKind::kDoesNotFit);
    return message.substr(0, message.find(" of device memory"));
  };
  const std::string least = needed(KeyCodec::kExact, 0), of_codes = needed(KeyCodec::kInt4, 0);
  EXPECT_NE(least, of_codes);
  EXPECT_NE(of_codes, needed(KeyCodec::kLowRank, 0));
  EXPECT_EQ(least, needed(KeyCodec::kAuto, 0));
  EXPECT_EQ(of_codes, needed(KeyCodec::kAuto, 1 << 20));
  EXPECT_EQ(needed(KeyCodec::kInt4, 0, ValueHome::kDevice), needed(KeyCodec::kAuto, 0, ValueHome::kDevice));
}

// Keys that no codec makes small enough for the device are fetched as values are.
TEST(SessionPlan, KeysLeaveADeviceThatIsTooSmall) {
  auto m = model();
  const auto plan_for = [&](KeyCodec codec, int64_t device_memory) {
    SessionOptions options;
    options.selection.key_codec = codec;
    options.device_memory = device_memory;
    return Session::plan(*m, options, 50000, 100);
  };
  const int64_t low_rank = plan_for(KeyCodec::kLowRank, 0).memory.device.total();
  const int64_t int4 = plan_for(KeyCodec::kInt4, 0).memory.device.total();
  const int64_t too_few = std::min(low_rank, int4) - 1;
  const SessionPlan plan = plan_for(KeyCodec::kAuto, too_few);
  EXPECT_EQ(plan.options.selection.key_codec, KeyCodec::kExact);
  EXPECT_GT(plan.memory.host.keys, 0);
  EXPECT_LE(plan.memory.device.total(), too_few);
  EXPECT_NE(plan_for(KeyCodec::kAuto, too_few + 1).options.selection.key_codec, KeyCodec::kExact);
}

// Weights that leave the device are in the plan where they go, and a plan that is too large says how many
// layers' would be enough.
TEST(SessionPlan, WeightsStayInHostMemory) {
  const auto plan_with = [](int64_t host_layers, int64_t device_memory, std::string* message) {
    ModelConfig config = known_model("llama-3.1-8b");
    set_host_layers(config, host_layers, BackendKind::kCuda);
    PlanRequest request{.config = config, .backend = BackendKind::kCuda, .options = {}};
    request.weight_bytes = 2 * parameter_count(config) - host_weight_bytes(config);
    request.weights_resident = request.this_machine = false;
    request.options.device_memory = device_memory;
    request.n_prompt = 300000;
    const SessionPlan plan = make_plan(request);
    if (message != nullptr) kind_of([&] { check_limits(request, plan); }, message);
    return plan.memory;
  };
  constexpr int64_t kLayer = int64_t{3} * 14336 * 4096 * 2, kEmbedding = int64_t{128256} * 4096 * 2;
  const MemoryReport none = plan_with(0, 0, nullptr), some = plan_with(5, 0, nullptr),
                     all = plan_with(kAllLayers, 0, nullptr);
  EXPECT_EQ(none.host.weights, 0);
  EXPECT_EQ(some.host.weights, 5 * kLayer + kEmbedding);
  EXPECT_EQ(all.host.weights, 32 * kLayer + kEmbedding);
  for (const MemoryReport& m : {some, all}) {
    EXPECT_EQ(m.device.weights + m.host.weights, none.device.weights);
    EXPECT_EQ(m.device.activations, none.device.activations + kLayer);  // of the layer that a prompt is in
    EXPECT_EQ(m.host.total() - m.host.weights, none.host.total());
  }
  // Without its keys and 13 GiB of 15.0 it fits.
  constexpr int64_t kDevice = int64_t{18} << 30;
  std::string message;
  plan_with(0, kDevice, &message);
  const size_t at = message.find("(--host-layers ");
  ASSERT_NE(at, std::string::npos) << message;
  const int64_t enough = std::stoll(message.substr(at + 15));
  ASSERT_GT(enough, 1);
  EXPECT_LE(plan_with(enough, kDevice, nullptr).device.total(), kDevice);
  EXPECT_GT(plan_with(enough - 1, kDevice, &message).device.total(), kDevice);
  EXPECT_NE(message.find(fmt::format("(--host-layers {})", enough)), std::string::npos) << message;
  // Where nothing is enough, nothing is said.
  plan_with(0, int64_t{4} << 30, &message);
  EXPECT_EQ(message.find("--host-layers"), std::string::npos) << message;

  ModelConfig config = known_model("llama-3.1-8b");
  EXPECT_EQ(kind_of([&] { set_host_layers(config, 33, BackendKind::kCuda); }, &message), ErrorKind::kUsage);
  EXPECT_NE(message.find("0 to 32 layers, all or auto, found 33"), std::string::npos) << message;
  EXPECT_EQ(kind_of([&] { set_host_layers(config, 1, BackendKind::kCpu); }, &message), ErrorKind::kUsage);
}

// Nobody need say how many layers' weights a device has no room for.
TEST(SessionPlan, AsManyHostLayersAsMust) {
  for (const char* name : {"llama-3.1-8b", "qwen3-30b-a3b-1m"}) {
    ModelConfig config = known_model(name);
    const auto total_with = [&](int64_t host_layers, const ExpectedLoad& load) {
      config.host_layers = host_layers;
      PlanRequest request{.config = config, .backend = BackendKind::kCuda, .options = load.session};
      request.weight_bytes = 2 * parameter_count(config) - host_weight_bytes(config);
      request.weights_resident = request.this_machine = false;
      request.n_prompt = load.n_prompt;
      return make_plan(request).memory.device.total();
    };
    constexpr int64_t kGiB = int64_t{1} << 30;
    int64_t before = config.n_layers + 1;
    for (const int64_t room : {20 * kGiB, 24 * kGiB, 28 * kGiB, 70 * kGiB}) {
      ExpectedLoad load{.n_prompt = 700000, .this_machine = false};
      load.session.device_memory = room;
      const int64_t n = host_layers_for(config, load, 0);
      EXPECT_LE(n, before) << name << ", " << room;
      before = n;
      EXPECT_LE(total_with(n, load), room) << name;
      if (n > 0) {
        EXPECT_GT(total_with(n - 1, load), room) << name;
      }
    }
    EXPECT_EQ(before, 0) << name;
    // Where no number is enough, what the weights need; of a device of which that is unknown, none.
    ExpectedLoad endless{.n_prompt = int64_t{1} << 32, .this_machine = false};
    endless.session.device_memory = 4 * kGiB;
    EXPECT_EQ(host_layers_for(config, endless, 0), 0);
    const int64_t few = host_layers_for(config, endless, 14 * kGiB);
    const auto on_device = [&](int64_t host_layers) {
      config.host_layers = host_layers;
      return 2 * parameter_count(config) - host_weight_bytes(config) + largest_host_layer_bytes(config);
    };
    EXPECT_LE(on_device(few), 14 * kGiB - kDeviceReserve);
    EXPECT_GT(on_device(few - 1), 14 * kGiB - kDeviceReserve);
  }
}

// A sequence too short for a basis has exact keys, which a host that multiplies coded values cannot attend.
TEST(SessionPlan, AShortSequenceWhereTheHostAttends) {
  const ModelConfig config = known_model("llama-3.1-8b");
  PlanRequest request{.config = config, .backend = BackendKind::kCuda, .options = {}};
  request.weight_bytes = 2 * parameter_count(config);
  request.weights_resident = request.this_machine = false;
  SessionOptions options;
  options.host_attention = HostAttention::kOn;
  options.selection.value_codec = RowCodec::kInt8;
  options.device_memory = int64_t{40} << 30;
  const BatchPlan plan = plan_batch(request, options, 16, 300000, 100);
  ASSERT_EQ(plan.largest.options.selection.key_codec, KeyCodec::kLowRank);
  EXPECT_EQ(plan_in_batch(request, plan, 10000, 100).options.host_attention, HostAttention::kOn);
  std::string message;
  EXPECT_EQ(kind_of([&] { plan_in_batch(request, plan, 100, 10); }, &message), ErrorKind::kUsage);
  EXPECT_NE(message.find("--host-attention"), std::string::npos) << message;
}

// Hidden states of a long prompt make room on a device where something gains by it.
TEST(SessionPlan, HiddenStatesLeaveTheDevice) {
  const ModelConfig config = known_model("llama-3.1-8b");
  const auto plan_with = [&](int64_t n_prompt, int64_t device_memory, HiddenHome home, bool logprobs = false) {
    PlanRequest request{.config = config, .backend = BackendKind::kCuda, .options = {}};
    request.weight_bytes = 2 * parameter_count(config);
    request.weights_resident = request.this_machine = false;
    request.options.device_memory = device_memory;
    request.options.hidden_home = home;
    request.n_prompt = n_prompt;
    request.logprobs = logprobs;
    return make_plan(request);
  };
  constexpr int64_t kTokens = 500000, kRow = 4096 * 2, kGiB = int64_t{1} << 30;
  const SessionPlan device = plan_with(kTokens, 0, HiddenHome::kDevice);
  const SessionPlan host = plan_with(kTokens, 0, HiddenHome::kHost);
  EXPECT_FALSE(device.states_on_host);
  EXPECT_TRUE(host.states_on_host);
  EXPECT_EQ(device.memory.device.total() - host.memory.device.total(), (kTokens - 2 * kPrefillChunk) * kRow);
  EXPECT_EQ(host.memory.host.total() - device.memory.host.total(), kTokens * kRow);
  // Auto: with a device that has no room for them, or for better keys beside them; not with one that has room
  // for all, nor with few tokens, nor where all of them are wanted at the end.
  const int64_t needed = device.memory.device.total();
  EXPECT_TRUE(plan_with(kTokens, needed - 1, HiddenHome::kAuto).states_on_host);
  EXPECT_FALSE(plan_with(kTokens, 200 * kGiB, HiddenHome::kAuto).states_on_host);
  EXPECT_FALSE(plan_with(kLeastStatesOnHost, 16 * kGiB, HiddenHome::kAuto).states_on_host);
  EXPECT_FALSE(plan_with(kTokens, 16 * kGiB, HiddenHome::kAuto, true).states_on_host);
  const SessionPlan scores = plan_with(kTokens, 16 * kGiB, HiddenHome::kHost, true);
  EXPECT_FALSE(scores.states_on_host);
  ASSERT_EQ(scores.notes.size(), 2u);
  EXPECT_NE(scores.notes[1].find("--hidden-home host: of no use"), std::string::npos);
}

// A short prompt is turned by long factors because of what may come behind it: nobody would guess that.
TEST(SessionPlan, SaysWhichLongRopeFactorsAShortPromptHas) {
  ModelConfig config = model()->config();
  config.rope.type = RopeType::kLongRope;
  config.rope.original_max_position = 256;
  PlanRequest request{.config = config, .options = {}};
  const auto notes = [&](int64_t n_prompt, int64_t n_new) {
    request.n_prompt = n_prompt;
    request.n_new = n_new;
    return make_plan(request).notes;
  };
  EXPECT_TRUE(notes(200, 56).empty());
  EXPECT_TRUE(notes(257, 56).empty());
  const std::vector<std::string> said = notes(256, 1);
  ASSERT_EQ(said.size(), 1u);
  for (const char* part : {"LongRoPE", "257 tokens", "256 tokens too", "end at 256 (-c)"}) {
    EXPECT_NE(said[0].find(part), std::string::npos) << said[0];
  }
  request.restored = true;
  EXPECT_TRUE(notes(256, 1).empty());
}

// Of a context that fits one span nothing is asked, and nothing taken.
TEST(SessionPlan, KnowsWhatDualChunkAttentionNeeds) {
  ModelConfig config = model()->config();
  config.dual_chunk = {.spans = {.tokens = 1920, .local = 128}, .scaled_from = 2048};
  PlanRequest request{.config = config, .options = {}};
  request.n_prompt = 1900;
  request.n_new = 148;
  const auto bytes = [&] { return make_plan(request).memory.device.activations; };
  const auto refuses = [&](auto change, const char* what) {
    PlanRequest other = request;
    change(other.options);
    std::string message;
    EXPECT_EQ(kind_of([&] { make_plan(other); }, &message), ErrorKind::kUsage);
    EXPECT_NE(message.find(what), std::string::npos) << message;
    EXPECT_NE(message.find("2049 tokens or fewer"), std::string::npos) << message;
  };
  const int64_t without = bytes();
  config.dual_chunk = {.spans = {}, .scaled_from = 1000};  // by itself: everything is as it was
  request.options.selection.coarse_chunk = 64;
  request.options.selection.coarse_share = 0.5;
  EXPECT_TRUE(make_plan(request).notes.empty());
  request.options = {};
  config.dual_chunk = {};
  EXPECT_EQ(bytes(), without);
  config.dual_chunk = {.spans = {.tokens = 1920, .local = 128}, .scaled_from = 2048};
  request.n_new = 150;
  EXPECT_GT(bytes(), without);
  EXPECT_TRUE(make_plan(request).notes.empty());
  refuses([](SessionOptions& o) { o.selection.coarse_chunk = 64; o.selection.coarse_share = 0.5; },
          "--coarse-chunk");
  refuses([](SessionOptions& o) { o.selection.outliers = 0; o.selection.drop_share = 0.5; }, "--drop-share");
  refuses([](SessionOptions& o) { o.selection.chunk_size = 7; },
          "8 chunks of 7 tokens, found 1920");
  request.n_new = 1920 * kMaxSpans;
  std::string message;
  EXPECT_EQ(kind_of([&] { make_plan(request); }, &message), ErrorKind::kUsage);
  EXPECT_NE(message.find("reaches 122880 tokens"), std::string::npos) << message;
}

TEST(SessionPlan, RefusesContradictions) {
  auto m = model();
  auto usage = [&](auto change) {
    SessionOptions options;
    change(options);
    return kind_of([&] { Session::plan(*m, options, 1000, 10); });
  };
  EXPECT_EQ(usage([](auto& o) { o.selection.chunk_size = 0; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.budget = 3; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.budget = -7; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.slots = 0.5; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.slots = std::nan(""); }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.rank = 0; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.recent = 0; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.context = 999; }), ErrorKind::kUsage);
  // Fine by themselves, not together.
  EXPECT_EQ(usage([](auto& o) { o.selection.top_p = 0.5; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.index = IndexKind::kMinMax; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.static_budget = 64; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.scope = SelectScope::kLayer; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.coarse_chunk = 20; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.estimate = true; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.reuse = 1.5; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) { o.selection.drop_share = -0.1; }), ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) {
              o.selection.miss_cap = 4;
              o.selection.share_layers = 2;
            }),
            ErrorKind::kUsage);
  EXPECT_EQ(usage([](auto& o) {
              o.selection.rank = 40;
              o.selection.rank_codec = RowCodec::kInt8;
              o.selection.key_codec = KeyCodec::kLowRank;
            }),
            ErrorKind::kUsage);
  EXPECT_EQ(kind_of([&] { Session::plan(*m, {}, 0, 10); }), ErrorKind::kUsage);
  SessionOptions strict;
  strict.strict = true;
  EXPECT_EQ(kind_of([&] { Session::plan(*m, strict, (1 << 20) + 1, 0); }), ErrorKind::kUsage);
}

// What dense attention has no use for is said, not judged: neither by itself nor together.
TEST(SessionPlan, DenseAttentionHasNoUseForASelection) {
  auto m = model();
  SessionOptions options = dense();
  EXPECT_TRUE(Session::plan(*m, options, 1000, 10).notes.empty());
  const SessionPlan plain = Session::plan(*m, options, 1000, 10);
  options.selection.top_p = 0.5;  // of --group max
  options.selection.static_budget = 64;  // beside outliers
  options.selection.scope = SelectScope::kLayer;
  options.selection.coarse_chunk = 20;
  options.selection.budget = 3;
  options.selection.value_codec = RowCodec::kInt4;
  options.host_attention = HostAttention::kOn;
  options.audit = 4;
  const SessionPlan plan = Session::plan(*m, options, 1000, 10);
  ASSERT_EQ(plan.notes.size(), 1u);
  EXPECT_TRUE(plan.notes[0].starts_with(
      "--budget, --top-p-mass, --coarse-chunk, --scope, --static-budget, --value-codec, "
      "--host-attention, --audit: of no use"))
      << plan.notes[0];
  EXPECT_EQ(plan.memory.total() - plan.memory.process,
            plain.memory.total() - plain.memory.process);
  options.strict = true;
  EXPECT_EQ(kind_of([&] { Session::plan(*m, options, 1000, 10); }), ErrorKind::kUsage);
  options.strict = false;
  const std::vector<int32_t> ids = prompt(10);
  const auto n = static_cast<int64_t>(ids.size());
  EXPECT_EQ(logits_after(ids, n, options), logits_after(ids, n, dense()));
  // Chunks and sinks count in its prompt, and are judged.
  options.selection.chunk_size = 0;
  EXPECT_EQ(kind_of([&] { Session::plan(*m, options, 1000, 10); }), ErrorKind::kUsage);
}

}  // namespace
}  // namespace tiercel
