// The golden checkpoints as the C++ readers see them, against what transformers said of them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "engine/checkpoint.h"
#include "engine/config.h"
#include "tests/model/files.h"

namespace tiercel::test {
namespace {

using nlohmann::json;

std::string fnv1a(const void* data, size_t n) {
  uint64_t hash = 0xcbf29ce484222325;
  for (size_t i = 0; i < n; ++i) {
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3;
  }
  return fmt::format("{:016x}", hash);
}

// transformers computes frequencies in fp32: theta^x loses about ln(theta) ulp to the rounding of
// x, and a few to each step; between two regimes, a blend's weight is wrong by an ulp of its
// numerator and is worth up to `factor` times the result.
void expect_frequencies(const ModelConfig& config, const json& expected, double attention_scaling,
                        const std::string& name, int64_t context = 1) {
  const RopeSpec& rope = config.rope;
  const RopeFrequencies actual =
      rope_frequencies(rope, static_cast<int>(config.head_dim), rope.is_long(context));
  ASSERT_EQ(std::ssize(actual.inv_freq), config.head_dim / 2) << name;
  ASSERT_EQ(std::ssize(expected), rope.rotary_dim / 2) << name;
  double steps = 4 + std::log(rope.theta);
  if (rope.type == RopeType::kLlama3) {
    steps += steps * rope.factor * rope.high_freq_factor /
             (rope.high_freq_factor - rope.low_freq_factor);
  }
  // yarn's ramp is at most head_dim channels long; its ends are computed in fp64 by both.
  if (rope.type == RopeType::kYarn) steps += rope.factor * static_cast<double>(config.head_dim);
  for (size_t i = 0; i < expected.size(); ++i) {
    const double value = expected[i].get<double>();
    EXPECT_NEAR(actual.inv_freq[i], value, steps * 0x1p-24 * value) << name << " channel " << 2 * i;
  }
  for (size_t i = expected.size(); i < actual.inv_freq.size(); ++i) {
    EXPECT_EQ(actual.inv_freq[i], 0) << name << " pair " << i << " does not turn";
  }
  EXPECT_DOUBLE_EQ(actual.attention_scaling, attention_scaling) << name;
}

TEST(GoldenRope, FrequenciesAreThoseOfTransformers) {
  const json cases = read_json(golden_models() / "rope.json");
  ASSERT_GT(cases.size(), 20u);
  for (const json& entry : cases) {
    const auto name = entry["name"].get<std::string>();
    const ModelConfig config = parse_config(entry["config"].dump(), name);
    expect_frequencies(config, entry["inv_freq"], entry["attention_scaling"].get<double>(), name);
  }
}

TEST(GoldenRope, ScalingsDiffer) {
  RopeSpec spec;
  const RopeFrequencies plain = rope_frequencies(spec, 64, false);
  EXPECT_EQ(plain.inv_freq[0], 1.0);
  EXPECT_EQ(plain.attention_scaling, 1.0);
  spec.type = RopeType::kLinear;
  spec.factor = 4;
  EXPECT_EQ(rope_frequencies(spec, 64, false).inv_freq[0], 0.25);
  spec.type = RopeType::kYarn;
  spec.original_max_position = 2048;
  const RopeFrequencies yarn = rope_frequencies(spec, 64, false);
  EXPECT_EQ(yarn.inv_freq[0], 1.0);                             // short wavelengths stay
  EXPECT_DOUBLE_EQ(yarn.inv_freq[31], plain.inv_freq[31] / 4);  // long ones are stretched
  EXPECT_DOUBLE_EQ(yarn.attention_scaling, 0.1 * std::log(4.0) + 1);
}

TEST(GoldenRope, LongContextsHaveFactorsOfTheirOwn) {
  RopeSpec spec;
  spec.type = RopeType::kLongRope;
  spec.rotary_dim = 4;
  spec.original_max_position = 100;
  spec.short_factor = {1, 2};
  spec.long_factor = {4, 8};
  spec.attention_factor = 2;
  EXPECT_FALSE(spec.is_long(100));
  EXPECT_TRUE(spec.is_long(101));
  const RopeFrequencies few = rope_frequencies(spec, 8, false), many = rope_frequencies(spec, 8, true);
  EXPECT_EQ(few.inv_freq, (std::vector<double>{1, 0.005, 0, 0}));
  EXPECT_EQ(many.inv_freq, (std::vector<double>{0.25, 0.00125, 0, 0}));
  EXPECT_EQ(many.still_scale(), 0.25f);
}

// Pairs that are turned together lie half a head apart, whatever the checkpoint has.
TEST(GoldenRope, ChannelOrderBringsPairsTogether) {
  RopeSpec spec;
  EXPECT_TRUE(rope_channel_order(spec, 8).empty());
  spec.rotary_dim = 8;
  EXPECT_TRUE(rope_channel_order(spec, 8).empty());
  spec.rotary_dim = 4;
  EXPECT_EQ(rope_channel_order(spec, 8), (std::vector<int64_t>{0, 1, 4, 6, 2, 3, 5, 7}));
  spec.interleaved = true;
  EXPECT_EQ(rope_channel_order(spec, 8), (std::vector<int64_t>{0, 2, 4, 6, 1, 3, 5, 7}));
  spec.rotary_dim = 0;
  EXPECT_EQ(rope_channel_order(spec, 4), (std::vector<int64_t>{0, 2, 1, 3}));
}

class GoldenModel : public ::testing::TestWithParam<std::string> {
 protected:
  std::filesystem::path folder_ = golden_models() / GetParam();
  json golden_ = read_json(folder_ / "golden.json");
};

TEST_P(GoldenModel, ConfigIsThatOfTransformers) {
  const ModelConfig config = load_config(folder_);
  const json& expected = golden_["config"];
  EXPECT_EQ(name_of(config.architecture), expected["architecture"].get<std::string>());
  EXPECT_EQ(config.n_layers, expected["n_layers"]);
  EXPECT_EQ(config.hidden, expected["hidden"]);
  EXPECT_EQ(config.intermediate, expected["intermediate"]);
  EXPECT_EQ(config.n_heads, expected["n_heads"]);
  EXPECT_EQ(config.n_kv_heads, expected["n_kv_heads"]);
  EXPECT_EQ(config.head_dim, expected["head_dim"]);
  EXPECT_EQ(config.vocab_size, expected["vocab_size"]);
  EXPECT_EQ(config.rms_eps, expected["rms_eps"]);
  EXPECT_EQ(name_of(config.rope.type), expected["rope_type"].get<std::string>());
  EXPECT_EQ(config.rope.theta, expected["rope_theta"]);
  EXPECT_EQ(config.tie_word_embeddings, expected["tie_word_embeddings"]);
  EXPECT_EQ(config.max_position_embeddings, expected["max_position_embeddings"]);
  EXPECT_EQ(json(config.sliding_window), expected["sliding_window"]);
  EXPECT_EQ(config.qkv_bias, expected["qkv_bias"]);
  EXPECT_EQ(config.o_bias, expected["o_bias"]);
  EXPECT_EQ(config.mlp_bias, expected["mlp_bias"]);
  EXPECT_EQ(config.qk_norm, expected["qk_norm"]);
  const Experts& experts = config.experts;
  json of_experts;
  if (experts.n > 0) {
    of_experts = {{"n", experts.n},
                  {"n_chosen", experts.n_chosen},
                  {"intermediate", experts.intermediate},
                  {"normalise", experts.normalise},
                  {"layers", std::vector<bool>(experts.layers.begin(), experts.layers.end())}};
  }
  EXPECT_EQ(of_experts, expected.contains("experts") ? expected["experts"] : json());
  EXPECT_EQ(config.bos_token_id, expected["bos_token_id"].get<int64_t>());
  const bool sampling = GetParam() == "qwen2";  // its generation_config.json says more
  EXPECT_EQ(json(config.eos_token_ids), sampling ? json({2, 9}) : expected["eos_token_ids"]);
  EXPECT_EQ(config.sampling.do_sample.value_or(false), sampling);
  if (sampling) {
    EXPECT_EQ(config.sampling.temperature, 0.7);
    EXPECT_EQ(config.sampling.top_k, 20);
    EXPECT_EQ(config.sampling.top_p, 0.8);
    EXPECT_EQ(config.sampling.min_p, 0.05);
    EXPECT_EQ(config.sampling.repetition_penalty, 1.05);
  }
  expect_frequencies(config, expected["inv_freq"], expected["attention_scaling"].get<double>(),
                     GetParam(), std::ssize(golden_["prompt"]));
}

TEST_P(GoldenModel, TensorsAreThoseThatWereWritten) {
  const Checkpoint checkpoint = Checkpoint::open(folder_);
  const json& tensors = golden_["tensors"];
  EXPECT_EQ(checkpoint.n_tensors(), tensors.size());
  uint64_t total = 0;
  for (const auto& [name, expected] : tensors.items()) {
    const auto shape = expected["shape"].get<std::vector<int64_t>>();
    const TensorInfo* found = checkpoint.find_any(name);
    ASSERT_NE(found, nullptr) << name;
    const TensorInfo& info = *found;
    EXPECT_EQ(info.shape, shape) << name;
    EXPECT_EQ(fnv1a(info.data, info.bytes), expected["hash"]) << name;
    total += info.bytes;
    if (!expected.contains("hash_bf16")) {  // codes
      EXPECT_FALSE(info.supported) << name;
      continue;
    }
    EXPECT_EQ(name_of(info.dtype), expected["dtype"].get<std::string>()) << name;
    std::vector<bf16> values(static_cast<size_t>(info.n_elements()));
    EXPECT_EQ(to_bf16(info, values.data()), 0) << name;
    EXPECT_EQ(fnv1a(values.data(), values.size() * sizeof(bf16)), expected["hash_bf16"]) << name;
    EXPECT_EQ(find_non_finite(info), std::nullopt) << name;
  }
  EXPECT_EQ(checkpoint.total_bytes(), total);
}

// The references themselves: shapes, finite, and consistent with each other.
TEST_P(GoldenModel, ReferenceIsComplete) {
  const ModelConfig config = load_config(folder_);
  const SafetensorsFile file = SafetensorsFile::open(folder_ / "golden.safetensors");
  const TensorInfo* logits = file.find("logits");
  ASSERT_NE(logits, nullptr);
  ASSERT_NE(file.find("logprobs"), nullptr);
  ASSERT_NE(file.find("greedy_logits"), nullptr);
  EXPECT_EQ(logits->shape, (std::vector<int64_t>{16, config.vocab_size}));
  EXPECT_EQ(file.find("greedy_logits")->shape, (std::vector<int64_t>{8, config.vocab_size}));
  EXPECT_EQ(find_non_finite(*logits), std::nullopt);
  const auto prompt = golden_["prompt"].get<std::vector<int64_t>>();
  EXPECT_EQ(file.find("logprobs")->shape, (std::vector<int64_t>{std::ssize(prompt) - 1}));
  for (const int64_t id : prompt) EXPECT_TRUE(id >= 0 && id < config.vocab_size);

  // The first greedy token is the largest of the last row, by the first margin.
  std::vector<float> last(static_cast<size_t>(config.vocab_size));
  std::memcpy(last.data(), logits->data + 15 * last.size() * 4, last.size() * 4);
  const auto top = std::max_element(last.begin(), last.end());
  EXPECT_EQ(top - last.begin(), golden_["greedy"][0].get<int64_t>());
  const float best = *top;
  *top = -1e30f;
  EXPECT_NEAR(best - *std::max_element(last.begin(), last.end()),
              golden_["margins"][0].get<double>(), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenModel, ::testing::ValuesIn(golden_model_names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tiercel::test
