// The bytes of a step, counted by hand.
#include "engine/cost_model.h"

#include <gtest/gtest.h>

#include "engine/batch_plan.h"
#include "engine/known_models.h"
#include "engine/session_plan.h"
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
