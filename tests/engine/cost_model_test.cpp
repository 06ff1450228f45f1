// The bytes of a step, counted by hand.
#include "engine/cost_model.h"

#include <gtest/gtest.h>

#include <utility>

#include <algorithm>
#include <cmath>

#include "cpu/ops.h"
#include "engine/batch_plan.h"
#include "engine/known_models.h"
#include "engine/session_plan.h"
#include "engine/tier_rates.h"
#include "engine/weights.h"

namespace tiercel {
namespace {

// Llama-3.1-8B: 32 layers, 8 KV heads of 128, so 1,024 channels of keys and as many of values.
constexpr int64_t kPair = 2 * 1024 * 2;

PlanRequest request_for(const ModelConfig& config, SessionOptions options, int64_t context) {
  PlanRequest request{.config = config, .backend = BackendKind::kCuda, .options = options};
  request.weight_bytes = 2 * parameter_count(config);
  request.n_prompt = context - 8;
  request.n_new = 8;
  request.this_machine = false;
  return request;
}

TEST(CostModel, DenseReadsEverything) {
  const ModelConfig config = known_model("llama-3.1-8b");
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  const SessionPlan plan = make_plan(request_for(config, options, 131072));
  const StepBytes bytes = step_bytes(config, plan, 0);
  EXPECT_EQ(bytes.device, 32 * 131072 * kPair);
  EXPECT_EQ(bytes.link, 0);
  EXPECT_EQ(bytes.weights, 2 * (parameter_count(config) - 128256 * 4096));
  const StepFloor floor = step_floor(bytes, {4e12, 5e10}, 7);
  EXPECT_DOUBLE_EQ(floor.overlapped,
                   static_cast<double>(bytes.weights + 7 * bytes.device) / 4e12);
  EXPECT_DOUBLE_EQ(floor.serial, floor.overlapped);
}

// A token is multiplied with 8 of 128 experts, 64 tokens with nearly all of them.
TEST(CostModel, ExpertsAreReadInPart) {
  const ModelConfig config = known_model("qwen3-30b-a3b-1m");
  EXPECT_NEAR(static_cast<double>(parameter_count(config)), 30.5e9, 0.1e9);
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  const SessionPlan plan = make_plan(request_for(config, options, 32768));
  const StepBytes bytes = step_bytes(config, plan, 0);
  EXPECT_EQ(bytes.experts, int64_t{2} * 48 * 128 * 3 * 768 * 2048);
  EXPECT_EQ(bytes.weights_read(1), bytes.weights - bytes.experts / 128 * 120);
  // The published 3.3 B active parameters, without the embedding.
  EXPECT_NEAR(static_cast<double>(bytes.weights_read(1)), 2 * 3.04e9, 0.05e9);
  const auto read = static_cast<double>(bytes.weights - bytes.weights_read(64));
  EXPECT_NEAR(read / static_cast<double>(bytes.experts), std::pow(120.0 / 128, 64), 1e-9);
  const StepFloor floor = step_floor(bytes, {4e12, 5e10}, 3);
  EXPECT_DOUBLE_EQ(floor.overlapped, static_cast<double>(bytes.weights_read(3) + 3 * bytes.device) / 4e12);
}

// Weights in host memory come over the link: all of a dense layer's, of experts those that are chosen.
TEST(CostModel, WeightsInHostMemory) {
  for (const char* name : {"llama-3.1-8b", "qwen3-30b-a3b-1m"}) {
    ModelConfig config = known_model(name);
    SessionOptions options;
    options.attention = AttentionMode::kDense;
    const StepBytes before = step_bytes(config, make_plan(request_for(config, options, 32768)), 0);
    set_host_layers(config, config.n_layers / 4, BackendKind::kCuda);
    const StepBytes bytes = step_bytes(config, make_plan(request_for(config, options, 32768)), 0);
    EXPECT_EQ(bytes.link_weights, config.n_layers / 4 * 2 * feed_forward_parameters(config, 0));
    EXPECT_EQ(bytes.link_experts, config.experts.n > 0 ? bytes.link_weights : 0);
    for (const int64_t n : {1, 5}) {
      EXPECT_NEAR(static_cast<double>(bytes.weights_read(n) + bytes.link_weights_read(n)),
                  static_cast<double>(before.weights_read(n)), 2);
    }
    const StepFloor floor = step_floor(bytes, {4e12, 5e10}, 5);
    const double link = static_cast<double>(bytes.link_weights_read(5)) / 5e10;
    EXPECT_TRUE(floor.link_bound);
    EXPECT_DOUBLE_EQ(floor.overlapped, link);
    EXPECT_NEAR(floor.joined, link + static_cast<double>(bytes.weights_read(5) + 5 * bytes.device) / 4e12, 1e-6);
  }
}

// Landmarks of a shared prompt are read once for all who are behind it, what they select once for each.
TEST(CostModel, BehindASharedPrompt) {
  const ModelConfig config = known_model("llama-3.1-8b");
  SessionOptions options;
  options.selection.key_codec = KeyCodec::kExact;
  constexpr int64_t kPrefix = 120000, kBehind = 100, kNew = 28, kContext = kPrefix + kBehind + kNew;
  const PlanRequest request = request_for(config, options, kContext);
  const BatchPlan batch = plan_batch(request, options, 16, kPrefix + kBehind, kNew, kBehind + kNew);
  const SessionPlan plan = plan_behind_prefix(request, batch, plan_prefix_in_batch(request, batch, kPrefix),
                                              kBehind, kNew, 0);
  const StepBytes shared = step_bytes(config, plan, 0.5), own = step_bytes(config, batch.largest, 0.5);
  EXPECT_EQ(shared.shared, 32 * 8 * (kPrefix / 8) * 128 * 2);
  EXPECT_EQ(own.shared, 0);
  EXPECT_NEAR(static_cast<double>(shared.shared + shared.device), static_cast<double>(own.device),
              1e-3 * static_cast<double>(own.device));
  EXPECT_EQ(shared.link, own.link);
  const StepFloor floor = step_floor(shared, {4e12, 1e15}, 16);
  EXPECT_DOUBLE_EQ(floor.overlapped,
                   static_cast<double>(shared.weights + shared.shared + 16 * shared.device) / 4e12);
  // In two parts it is read twice, as weights are.
  EXPECT_NEAR(floor.split - floor.joined,
              static_cast<double>(shared.weights - shared.head + shared.shared) / 4e12, 1e-9);
}

TEST(CostModel, SelectionReadsIndexExactRegionsAndWhatItSelects) {
  const ModelConfig config = known_model("llama-3.1-8b");
  SessionOptions options;
  options.value_home = ValueHome::kHost;
  options.selection.key_codec = KeyCodec::kExact;
  options.selection.value_codec = RowCodec::kInt8;  // 136 bytes for 128 channels
  const SessionPlan plan = make_plan(request_for(config, options, 131072));
  const int64_t index = 8 * (131072 / 8) * 128 * 2, always = 16 + 256 + 48 * 8;
  for (const double hit_rate : {0.0, 0.75, 1.0}) {
    const auto missed = static_cast<int64_t>((1 - hit_rate) * 2048);
    const StepBytes bytes = step_bytes(config, plan, hit_rate);
    EXPECT_EQ(bytes.device, 32 * (index + (always + 2048 + missed) * kPair)) << hit_rate;
    EXPECT_EQ(bytes.link, 32 * missed * (8 * 136 + 2048)) << hit_rate;
  }
  const StepBytes bytes = step_bytes(config, plan, 0.5);
  const StepFloor floor = step_floor(bytes, {4e12, 1e9}, 3);
  EXPECT_TRUE(floor.link_bound);
  EXPECT_DOUBLE_EQ(floor.overlapped, 3 * static_cast<double>(bytes.link) / 1e9);
  EXPECT_GT(floor.serial, floor.overlapped);
  // Attended where they are: nothing is fetched, no slot is written.
  options.value_home = ValueHome::kDevice;
  options.selection.value_codec = RowCodec::kBf16;
  const SessionPlan resident = make_plan(request_for(config, options, 131072));
  EXPECT_EQ(step_bytes(config, resident, 0).device, 32 * (index + (always + 2048) * kPair));
  EXPECT_EQ(step_bytes(config, resident, 0).link, 0);
}

// With exact keys the query goes to the host; with keys on the device, weights do. A partial comes back.
TEST(CostModel, TheHostReadsWhatIsSelected) {
  const ModelConfig config = known_model("llama-3.1-8b");
  SessionOptions options;
  options.value_home = ValueHome::kHost;
  options.host_attention = HostAttention::kOn;
  options.selection.key_codec = KeyCodec::kExact;
  const int64_t index = 8 * (131072 / 8) * 128 * 2, always = 16 + 256 + 48 * 8;
  const int64_t lists = 8 * 256 * 4, partial = 32 * 130 * 4;
  const StepBytes exact = step_bytes(config, make_plan(request_for(config, options, 131072)), 0.5);
  EXPECT_EQ(exact.device, 32 * (index + always * kPair));
  EXPECT_EQ(exact.host, 32 * 2048 * kPair);
  EXPECT_EQ(exact.link, 32 * (lists + partial + 32 * 128 * 2));
  options.selection.key_codec = KeyCodec::kInt8;
  options.selection.value_codec = RowCodec::kInt8;
  const StepBytes weighed = step_bytes(config, make_plan(request_for(config, options, 131072)), 0.5);
  EXPECT_EQ(weighed.device, 32 * (index + always * kPair + 2048 * (8 * 136 + kPair)));
  EXPECT_EQ(weighed.host, 32 * 2048 * 8 * 136);
  EXPECT_EQ(weighed.link, 32 * (lists + partial + 32 * (2048 * 2 + 2048 / 64 * 4)));
  const StepFloor floor = step_floor(weighed, {4e12, 5e10, 1e9}, 3);
  EXPECT_TRUE(floor.host_bound);
  EXPECT_DOUBLE_EQ(floor.overlapped, 3 * static_cast<double>(weighed.host) / 1e9);
}

// Two layers, one of which fetches; a byte takes a second.
TEST(CostModel, TwoMicroBatchesGainWhereFetchesOutlastAttentionAndWeights) {
  StepBytes bytes{.weights = 25, .head = 5, .device = 6, .link = 9, .layers = {{4, 9}, {2, 0}}};
  const Bandwidths unit = {1, 1};
  const StepFloor four = step_floor(bytes, unit, 4);
  EXPECT_DOUBLE_EQ(four.joined, 5 + (10 + 36) + (10 + 8));
  EXPECT_DOUBLE_EQ(four.split, 5 + 36 + (20 + 8));
  EXPECT_FALSE(splitting_gains(bytes, unit, 4));  // what one layer gains the other one loses
  // Both fetch: a layer gains from n (F - A) > W on.
  bytes.layers[1] = {4, 9};
  bytes.device = 8;
  bytes.link = 18;
  for (const int64_t n : {1, 2, 3, 4, 5, 100}) {
    EXPECT_EQ(splitting_gains(bytes, unit, n), n >= kLeastToSplit) << n;
    const StepFloor floor = step_floor(bytes, unit, n);
    EXPECT_EQ(floor.split < floor.joined, n * (9 - 4) > 10) << n;
    EXPECT_GE(std::min(floor.split, floor.joined), floor.overlapped) << n;
  }
  // The host attends, at a rate that nobody measured: the link's.
  StepBytes attended = bytes;
  for (LayerBytes& layer : attended.layers) layer.host = std::exchange(layer.link, 0);
  EXPECT_TRUE(splitting_gains(attended, unit, 100));
  // The device is the slower one, or nothing is fetched.
  EXPECT_FALSE(splitting_gains(bytes, {1, 3}, 100));
  bytes.link = 0;
  bytes.layers = {{4, 0}, {4, 0}};
  EXPECT_FALSE(splitting_gains(bytes, unit, 100));
}

TEST(CostModel, LayersMakeUpTheStep) {
  const ModelConfig config = known_model("llama-3.1-8b");
  SessionOptions options;
  options.value_home = ValueHome::kHost;
  options.selection.value_codec = RowCodec::kInt8;
  options.selection.share_layers = 4;
  const SessionPlan plan = make_plan(request_for(config, options, 131072));
  const StepBytes bytes = step_bytes(config, plan, kExpectedHitRate);
  ASSERT_EQ(bytes.layers.size(), 32u);
  double device = 0, link = 0;
  for (const LayerBytes& layer : bytes.layers) {
    device += layer.device;
    link += layer.link;
  }
  EXPECT_NEAR(device, static_cast<double>(bytes.device), 1);
  EXPECT_NEAR(link, static_cast<double>(bytes.link), 1);
  EXPECT_GT(bytes.layers[4].device, bytes.layers[5].device);  // who selects reads the index
  EXPECT_EQ(bytes.head, int64_t{2} * 128256 * 4096);
  // An H100 with fetches as its link allows: a few sequences hide behind the weights, many do not.
  const Bandwidths h100 = {3.35e12, 5e10};
  EXPECT_FALSE(splitting_gains(bytes, h100, 4));
  EXPECT_TRUE(splitting_gains(bytes, h100, 40));
}

TEST(TierRates, AreMeasured) {
  cpu::Queue queue(cpu::QueueOptions{.n_threads = 2});
  for (const int64_t bytes : {int64_t{1}, int64_t{4} << 20}) {
    const Bandwidths measured = measure_bandwidths(queue, queue, queue, bytes);
    EXPECT_TRUE(measured.device > 0 && std::isfinite(measured.device)) << measured.device;
    EXPECT_TRUE(measured.link > 0 && std::isfinite(measured.link)) << measured.link;
  }
}

// Of a batch, that codec is chosen with which so many sequences fit both tiers.
TEST(CostModel, CodecsMakeSequencesFit) {
  const ModelConfig config = known_model("llama-3.1-8b");
  SessionOptions options;
  options.device_memory = int64_t{80} << 30;
  options.host_memory = int64_t{256} << 30;
  PlanRequest request = request_for(config, options, 131072);
  const auto codec_for = [&](int64_t n) {
    return plan_batch(request, options, n, request.n_prompt, 8).largest.options.selection.key_codec;
  };
  EXPECT_EQ(codec_for(1), KeyCodec::kExact);  // everything fits the device
  EXPECT_EQ(codec_for(8), KeyCodec::kInt8);
  EXPECT_EQ(codec_for(14), KeyCodec::kInt4);
  EXPECT_EQ(codec_for(18), KeyCodec::kLowRank);
  EXPECT_EQ(codec_for(36), KeyCodec::kExact);  // beside the values
}

}  // namespace
}  // namespace tiercel
