#include "engine/config.h"

#include <gtest/gtest.h>

#include "tests/model/files.h"

namespace tiercel::test {
namespace {

using nlohmann::json;

// A plausible Llama; tests change a key or two.
json llama() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"num_hidden_layers", 4},
          {"hidden_size", 256},
          {"intermediate_size", 512},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"vocab_size", 1000},
          {"max_position_embeddings", 4096},
          {"rms_norm_eps", 1e-5},
          {"hidden_act", "silu"}};
}

json family(const std::string& type, const std::string& name) {
  json config = llama();
  config["model_type"] = type;
  config["architectures"] = {name};
  return config;
}

ModelConfig parse(const json& config) { return parse_config(config.dump(), "config.json"); }

ModelConfig parse_with(json config, const json& changes) {
  config.update(changes);
  return parse(config);
}

void expect_refused(const json& changes, std::vector<std::string> parts, json base = llama()) {
  base.update(changes);
  parts.push_back("config.json");
  expect_error([&] { parse(base); }, parts);
}

TEST(Config, ReadsALlama) {
  const ModelConfig config = parse(llama());
  EXPECT_EQ(config.architecture, Architecture::kLlama);
  EXPECT_EQ(config.n_layers, 4);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.q_width(), 256);
  EXPECT_EQ(config.kv_width(), 128);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_EQ(config.rope.type, RopeType::kDefault);
  EXPECT_EQ(config.sliding_window, std::vector<int64_t>(4, 0));
  EXPECT_FALSE(config.qkv_bias || config.o_bias || config.mlp_bias || config.qk_norm ||
               config.tie_word_embeddings);
  EXPECT_TRUE(config.eos_token_ids.empty());
  EXPECT_FALSE(config.bos_token_id.has_value());
}

TEST(Config, FillsTheDefaultsOfTransformers) {
  json config = llama();
  for (const char* key : {"num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
                          "hidden_act", "architectures"}) {
    config.erase(key);
  }
  EXPECT_EQ(parse(config).n_kv_heads, 4);
  EXPECT_EQ(parse(config).max_position_embeddings, 2048);
  EXPECT_EQ(parse(config).rms_eps, 1e-6);
  config["num_attention_heads"] = 32;
  config["hidden_size"] = 2048;
  config["model_type"] = "mistral";
  EXPECT_EQ(parse(config).n_kv_heads, 8);
  EXPECT_EQ(parse(config).max_position_embeddings, 131072);
  EXPECT_EQ(parse(config).sliding_window, std::vector<int64_t>(4, 4096));
  EXPECT_EQ(parse(config).head_dim, 64);
  config["num_key_value_heads"] = nullptr;
  EXPECT_EQ(parse(config).n_kv_heads, 32);
  config["model_type"] = "qwen3";
  EXPECT_EQ(parse(config).head_dim, 128);  // not hidden / heads
  EXPECT_TRUE(parse(config).qk_norm);
}

TEST(Config, BiasesFollowTheFamily) {
  const ModelConfig llama_config =
      parse_with(llama(), {{"attention_bias", true}, {"mlp_bias", true}});
  EXPECT_TRUE(llama_config.qkv_bias && llama_config.o_bias && llama_config.mlp_bias);
  const json qwen2 = family("qwen2", "Qwen2ForCausalLM");
  EXPECT_TRUE(parse(qwen2).qkv_bias);
  EXPECT_FALSE(parse(qwen2).o_bias);
  const json qwen3 = family("qwen3", "Qwen3ForCausalLM");
  EXPECT_FALSE(parse(qwen3).qkv_bias);
  EXPECT_TRUE(parse_with(qwen3, {{"attention_bias", true}}).o_bias);
  EXPECT_FALSE(
      parse_with(family("mistral", "MistralForCausalLM"), {{"attention_bias", true}}).qkv_bias);
}

TEST(Config, SlidingWindowsFollowTheFamily) {
  using Windows = std::vector<int64_t>;
  const json mistral = family("mistral", "MistralForCausalLM");
  EXPECT_EQ(parse_with(mistral, {{"sliding_window", 24}}).sliding_window, Windows(4, 24));
  EXPECT_EQ(parse_with(mistral, {{"sliding_window", nullptr}}).sliding_window, Windows(4, 0));
  EXPECT_EQ(parse_with(llama(), {{"sliding_window", 24}}).sliding_window, Windows(4, 0));
  for (const char* type : {"qwen2", "qwen3"}) {
    json qwen = llama();
    qwen.erase("architectures");
    qwen["model_type"] = type;
    qwen["sliding_window"] = 32;
    EXPECT_EQ(parse(qwen).sliding_window, Windows(4, 0));  // use_sliding_window is false
    qwen["use_sliding_window"] = true;
    EXPECT_EQ(parse(qwen).sliding_window, Windows(4, 0));  // max_window_layers is 28
    qwen["max_window_layers"] = 2;
    EXPECT_EQ(parse(qwen).sliding_window, (Windows{0, 0, 32, 32}));
    qwen["layer_types"] = {"sliding_attention", "full_attention", "full_attention",
                           "sliding_attention"};
    EXPECT_EQ(parse(qwen).sliding_window, (Windows{32, 0, 0, 32}));
    expect_refused({{"use_sliding_window", false}}, {"layer_types[0]", "use_sliding_window"}, qwen);
    expect_refused({{"layer_types", {"full_attention"}}}, {"layer_types", "(4)"}, qwen);
    qwen["layer_types"][1] = "linear_attention";
    expect_refused(json::object(), {"layer_types[1]", "linear_attention"}, qwen);
    qwen.erase("layer_types");
    qwen.erase("sliding_window");
    qwen["max_position_embeddings"] = 32768;
    EXPECT_EQ(parse(qwen).sliding_window, (Windows{0, 0, 4096, 4096}));
    qwen["sliding_window"] = nullptr;
    EXPECT_EQ(parse(qwen).sliding_window, Windows(4, 0));
  }
  expect_refused({{"sliding_window", 0}}, {"sliding_window", "found 0"}, mistral);
  expect_refused({{"layer_types", {"sliding_attention"}}}, {"layer_types[0]", "full_attention"});
}

TEST(Config, RefusesOtherArchitectures) {
  expect_refused({{"architectures", {"GPT2LMHeadModel"}}},
                 {"architectures[0]", "GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM",
                  "Qwen2ForCausalLM", "Qwen3ForCausalLM"});
  expect_refused({{"architectures", {"LlamaForSequenceClassification"}}}, {"architectures[0]"});
  expect_refused({{"architectures", nullptr}, {"model_type", "gemma"}},
                 {"model_type", "\"gemma\""});
  expect_refused({{"model_type", "qwen2"}}, {"model_type", "expected llama", "LlamaForCausalLM"});
  expect_refused({{"architectures", json::array()}, {"model_type", nullptr}}, {"found neither"});
  expect_refused({{"architectures", "LlamaForCausalLM"}}, {"architectures", "an array"});
  expect_refused({{"architectures", {1}}}, {"architectures[0]", "a string"});
}

TEST(Config, RefusesBadExtents) {
  for (const char* key : {"num_hidden_layers", "hidden_size", "intermediate_size",
                          "num_attention_heads", "vocab_size"}) {
    expect_refused({{key, nullptr}}, {key, "null"});
    json config = llama();
    config.erase(key);
    expect_error([&] { parse(config); }, {key, "no such key"});
    for (const json& value : {json(0), json(-1), json(1e15), json("12"), json(1.5), json(true),
                              json(UINT64_MAX), json::array({4})}) {
      expect_refused({{key, value}}, {key, "expected an integer"});
    }
  }
  expect_refused({{"num_key_value_heads", 3}}, {"num_attention_heads", "multiple", "(3)"});
  expect_refused({{"num_key_value_heads", 0}}, {"num_key_value_heads"});
  expect_refused({{"head_dim", 63}}, {"head_dim", "even"});
  expect_refused({{"head_dim", 512}}, {"head_dim", "256"});
  expect_refused({{"hidden_size", 255}}, {"hidden_size", "multiple"});
  expect_refused({{"hidden_size", 252}}, {"hidden_size", "even head_dim"});
  expect_refused({{"hidden_size", 4096}}, {"hidden_size", "at most 256"});
  expect_refused({{"max_position_embeddings", 0}}, {"max_position_embeddings"});
  expect_refused({{"rms_norm_eps", "small"}}, {"rms_norm_eps", "a number"});
  expect_refused({{"rms_norm_eps", -1}}, {"rms_norm_eps"});
  EXPECT_EQ(parse_with(llama(), {{"hidden_size", 256.0}}).hidden, 256);
  EXPECT_EQ(parse_with(llama(), {{"hidden_size", 250}, {"head_dim", 64}}).head_dim, 64);
}

TEST(Config, RefusesWhatTheEngineDoesNotCompute) {
  expect_refused({{"hidden_act", "gelu"}}, {"hidden_act", "\"silu\"", "\"gelu\""});
  expect_refused({{"quantization_config", {{"bits", 4}}}}, {"quantization_config.quant_method", "no such key"});
  for (const char* method : {"hqq", "bitsandbytes"}) {
    expect_refused({{"quantization_config", {{"quant_method", method}}}},
                   {"quantization_config.quant_method", "gptq, awq or compressed-tensors", "the original one", method});
  }
  expect_refused({{"partial_rotary_factor", 0.5}},
                 {"partial_rotary_factor", "0.5", "LlamaForCausalLM rotates all of head_dim"});
  expect_refused({{"rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}}},
                 {"rope_parameters.partial_rotary_factor"});
  expect_refused({{"rope_scaling", {{"type", "default"}, {"mrope_section", {1, 2}}}}},
                 {"rope_scaling.mrope_section"});
  expect_refused({{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}},
                 {"rope_parameters.full_attention", "layer type"});
  EXPECT_NO_THROW(
      parse_with(llama(), {{"partial_rotary_factor", 1.0}, {"quantization_config", nullptr}}));
}

TEST(Config, ReadsAPhi3) {
  const json base = family("phi3", "Phi3ForCausalLM");
  ModelConfig config = parse(base);
  EXPECT_TRUE(config.fused_qkv && config.fused_gate_up);
  EXPECT_FALSE(config.qkv_bias || config.post_norms || config.rope.interleaved);
  EXPECT_EQ(config.rope.rotary_dim, 64);
  EXPECT_EQ(config.sliding_window, std::vector<int64_t>(4, 0));
  config = parse_with(base, {{"sliding_window", 2047}});
  EXPECT_EQ(config.sliding_window, std::vector<int64_t>(4, 2047));
  config = parse_with(base, {{"sliding_window", 4096}});
  EXPECT_EQ(config.sliding_window, std::vector<int64_t>(4, 0)) << "as many as there are positions";

  // As published: "su" is what longrope was called at first, the original context stands outside.
  const json stretch(24, 1.5), scaling = {{"type", "su"}, {"short_factor", json(24, 1.0)},
                                          {"long_factor", stretch}};
  const json partial = {{"partial_rotary_factor", 0.75}, {"rope_scaling", scaling},
                        {"max_position_embeddings", 131072}};
  config = parse_with(base, partial);
  EXPECT_EQ(config.rope.type, RopeType::kLongRope);
  EXPECT_EQ(config.rope.rotary_dim, 48);
  EXPECT_EQ(config.rope.original_max_position, 4096);
  EXPECT_EQ(config.rope.factor, 32);
  EXPECT_EQ(config.rope.long_factor, std::vector<double>(24, 1.5));
  json outside = partial;
  outside["original_max_position_embeddings"] = 8192;
  EXPECT_EQ(parse_with(base, outside).rope.original_max_position, 8192);

  expect_refused({{"rope_scaling", scaling}},
                 {"rope_scaling.short_factor", "32 numbers, one for each pair"}, base);
  json bad = partial;
  bad["rope_scaling"]["long_factor"][3] = 0;
  expect_refused(bad, {"rope_scaling.long_factor[3]"}, base);
  bad["rope_scaling"].erase("long_factor");
  expect_refused(bad, {"rope_scaling.long_factor", "no such key"}, base);
  bad = partial;
  bad["original_max_position_embeddings"] = 1;
  expect_refused(bad, {"original_max_position_embeddings"}, base);
  expect_refused({{"partial_rotary_factor", 0.3}}, {"partial_rotary_factor", "an even part of head_dim"},
                 base);
}

TEST(Config, ReadsAGlm) {
  for (const bool is_glm4 : {false, true}) {
    const json base = family(is_glm4 ? "glm4" : "glm", is_glm4 ? "Glm4ForCausalLM" : "GlmForCausalLM");
    const ModelConfig config = parse(base);
    EXPECT_EQ(config.head_dim, 128) << "hidden_size / num_attention_heads is 64";
    EXPECT_EQ(config.rope.rotary_dim, 64);
    EXPECT_TRUE(config.rope.interleaved && config.qkv_bias && config.fused_gate_up);
    EXPECT_FALSE(config.o_bias || config.fused_qkv);
    EXPECT_EQ(config.post_norms, is_glm4);
    EXPECT_FALSE(parse_with(base, {{"attention_bias", false}}).qkv_bias);
    EXPECT_EQ(parse_with(base, {{"partial_rotary_factor", 1.0}}).rope.rotary_dim, 128);
    EXPECT_EQ(parse_with(base, {{"partial_rotary_factor", nullptr}}).rope.rotary_dim, 128);
    json bare = base;
    for (const char* key : {"num_key_value_heads", "rms_norm_eps"}) bare.erase(key);
    EXPECT_EQ(parse(bare).n_kv_heads, 2);
    EXPECT_EQ(parse(bare).rms_eps, 1.5625e-7);
  }
}

TEST(Config, ReadsFp8) {
  EXPECT_FALSE(parse(llama()).fp8.has_value());
  const auto read = [](const json& quantisation) {
    return parse_with(llama(), {{"quantization_config", quantisation}}).fp8;
  };
  const auto blocks = read({{"quant_method", "fp8"}, {"weight_block_size", {128, 64}}});
  ASSERT_TRUE(blocks.has_value());
  EXPECT_EQ(blocks->block_rows, 128);
  EXPECT_EQ(blocks->block_columns, 64);
  EXPECT_EQ(read({{"quant_method", "fp8"}, {"activation_scheme", "static"}})->block_rows, 0);
  EXPECT_EQ(read({{"quant_method", "fbgemm_fp8"}})->block_rows, 0);
  const auto compressed = [](const json& weights) -> json {
    return {{"quant_method", "compressed-tensors"}, {"config_groups", {{"group_0", {{"weights", weights}}}}}};
  };
  EXPECT_EQ(read(compressed({{"num_bits", 8}, {"type", "float"}, {"strategy", "channel"}}))->block_rows, 0);
  EXPECT_EQ(read(compressed({{"num_bits", 8}, {"type", "float"}, {"block_structure", {32, 128}}}))->block_columns, 128);
  expect_refused({{"quantization_config", compressed({{"num_bits", 4}, {"type", "float"}})}},
                 {"num_bits", "the original one"});
  expect_refused({{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128}}}}},
                 {"weight_block_size", "rows and columns"});
}

// Of layers that stay as they were: names, and patterns, which are not read.
TEST(Config, ReadsWhatIsNotCoded) {
  const auto read = [](const json& list) {
    return parse_with(llama(), {{"quantization_config", {{"quant_method", "fp8"}, {"modules_to_not_convert", list}}}})
        .not_coded;
  };
  EXPECT_TRUE(read(nullptr).names.empty());
  EXPECT_TRUE(read({"lm_head", "model.layers.3.mlp.gate"}).names.empty());
  const ModelConfig::NotCoded some = read({"lm_head", "model.layers.0.self_attn.q_proj", "layers.1."});
  EXPECT_EQ(some.names, (std::vector<std::string>{"model.layers.0.self_attn.q_proj", "layers.1."}));
  EXPECT_FALSE(some.patterns);
  EXPECT_FALSE(read({"re:.*lm_head", "re:.*mlp.gate$"}).patterns);
  EXPECT_TRUE(read({"re:.*self_attn.*"}).patterns);
  expect_refused({{"quantization_config", {{"quant_method", "fp8"}, {"modules_to_not_convert", {1}}}}},
                 {"modules_to_not_convert"});
}

TEST(Config, ReadsIntegers) {
  EXPECT_FALSE(parse(llama()).int_weights.has_value());
  const auto read = [](const json& quantisation) {
    return *parse_with(llama(), {{"quantization_config", quantisation}}).int_weights;
  };
  using Layout = IntWeights::Layout;
  const json gptq = {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 128}, {"sym", true}};
  EXPECT_EQ(read(gptq), (IntWeights{.layout = Layout::kGptq, .bits = 4, .group = 128, .less_one = true}));
  json changed = gptq;
  changed.update({{"bits", 8}, {"group_size", -1}, {"desc_act", true}, {"checkpoint_format", "gptq_v2"}});
  EXPECT_EQ(read(changed), (IntWeights{.layout = Layout::kGptq, .bits = 8, .group = 0, .act_order = true}));
  const json awq = {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 64}, {"zero_point", true}, {"version", "gemm"}};
  EXPECT_EQ(read(awq), (IntWeights{.layout = Layout::kAwq, .bits = 4, .group = 64}));
  const auto compressed = [](const char* format, const json& weights) -> json {
    return {{"quant_method", "compressed-tensors"},
            {"format", format},
            {"config_groups", {{"group_0", {{"weights", weights}}}}}};
  };
  const json four = {{"num_bits", 4}, {"type", "int"}, {"strategy", "group"}, {"group_size", 32}, {"actorder", nullptr}};
  EXPECT_EQ(read(compressed("pack-quantized", four)), (IntWeights{.layout = Layout::kPacked, .bits = 4, .group = 32}));
  json ordered = four;
  for (const auto& [order, means] : {std::pair<json, bool>{"group", true}, {"dynamic", true}, {"weight", false},
                                     {"static", false}, {true, true}, {nullptr, false}}) {
    ordered["actorder"] = order;
    EXPECT_EQ(read(compressed("pack-quantized", ordered)).act_order, means) << order;
  }
  json beside = compressed("pack-quantized", four);
  beside["config_groups"]["group_1"] = {{"targets", {"LlamaAttention"}}, {"weights", nullptr}};
  EXPECT_EQ(read(beside).bits, 4);
  beside["transform_config"] = {{"config_groups", {{"R1", json::object()}}}};
  expect_refused({{"quantization_config", beside}}, {"transform_config", "rotations"});
  changed["desc_act"] = false;
  changed["static_groups"] = true;
  EXPECT_FALSE(read(changed).act_order);
  const json eight = {{"num_bits", 8}, {"type", "int"}, {"strategy", "channel"}, {"group_size", nullptr}};
  EXPECT_EQ(read(compressed("int-quantized", eight)), (IntWeights{.layout = Layout::kPlain, .bits = 8, .group = 0}));

  const auto refused = [](json quantisation, const json& changes, const std::vector<std::string>& mentions) {
    quantisation.update(changes);
    expect_refused({{"quantization_config", quantisation}}, mentions);
  };
  refused(gptq, {{"bits", 3}}, {"quantization_config.bits", "4 or 8"});
  refused(gptq, {{"group_size", 0}}, {"group_size"});
  refused(gptq, {{"checkpoint_format", "marlin"}}, {"checkpoint_format", "gptq_v2", "marlin"});
  refused(gptq, {{"dynamic", {{"+:.*up_proj.*", {{"bits", 8}}}}}}, {"dynamic", "of all matrices"});
  EXPECT_NO_THROW(read([&] {
    json some = gptq;
    some["dynamic"] = {{"-:.*lm_head.*", json::object()}};
    return some;
  }()));
  refused(awq, {{"version", "gemv"}}, {"version", "gemm", "gemv"});
  refused(awq, {{"zero_point", false}}, {"zero_point"});
  refused(compressed("marlin-24", four), json::object(), {"pack-quantized"});
  refused(compressed("int-quantized", four), json::object(), {"int-quantized of 8 bits"});
  json two = compressed("pack-quantized", four);
  two["config_groups"]["group_1"] = {{"weights", {{"num_bits", 8}, {"type", "int"}, {"group_size", 32}}}};
  refused(two, json::object(), {"config_groups", "of all matrices"});

  // What is kept as codes, and in which groups.
  const IntWeights by_row{.layout = Layout::kGptq, .bits = 4, .group = 0};
  EXPECT_EQ(by_row.codec(256), (WeightCodec{WeightCode::kInt4, 128}));
  EXPECT_EQ((IntWeights{.bits = 4, .group = 96}.codec(384)), (WeightCodec{WeightCode::kInt4, 32}));
  EXPECT_EQ((IntWeights{.bits = 8, .group = 256}.codec(512)), (WeightCodec{WeightCode::kInt8, 128}));
  EXPECT_FALSE((IntWeights{.bits = 4, .group = 16}.codec(256).is_coded()));
  EXPECT_FALSE((IntWeights{.bits = 4, .group = 32}.codec(320).is_coded()));
  EXPECT_FALSE((IntWeights{.bits = 4, .group = 128, .act_order = true}.codec(256).is_coded()));
}

TEST(Config, ReadsAMixtral) {
  const json base = family("mixtral", "MixtralForCausalLM");
  const ModelConfig config = parse(base);
  EXPECT_EQ(config.experts.n, 8);
  EXPECT_EQ(config.experts.n_chosen, 2);
  EXPECT_EQ(config.experts.intermediate, 512);
  EXPECT_TRUE(config.experts.normalise);
  EXPECT_EQ(config.experts.layers, std::vector<uint8_t>(4, 1));
  EXPECT_EQ(config.widest_mlp(), 1024);
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_EQ(config.sliding_window, std::vector<int64_t>(4, 0));
  EXPECT_EQ(parse_with(base, {{"sliding_window", 64}}).sliding_window, std::vector<int64_t>(4, 64));
  EXPECT_EQ(parse(llama()).experts.n, 0);
  expect_refused({{"num_local_experts", 0}}, {"num_local_experts"}, base);
  expect_refused({{"num_local_experts", 513}}, {"num_local_experts", "512"}, base);
  expect_refused({{"num_experts_per_tok", 9}}, {"num_experts_per_tok", "at most 8 experts per token"}, base);
  expect_refused({{"num_local_experts", 1}}, {"at most 1 experts per token"}, base);
  expect_refused({{"num_local_experts", 64}, {"num_experts_per_tok", 33}}, {"num_experts_per_tok", "at most 32"}, base);
  expect_refused({{"intermediate_size", 516}}, {"intermediate_size", "a multiple of 8"}, base);
  expect_refused({{"hidden_size", 260}, {"head_dim", 64}}, {"hidden_size", "a multiple of 8"}, base);
}

TEST(Config, ReadsAQwen3Moe) {
  json base = family("qwen3_moe", "Qwen3MoeForCausalLM");
  ModelConfig config = parse(base);
  EXPECT_EQ(config.experts.n, 128);
  EXPECT_EQ(config.experts.n_chosen, 8);
  EXPECT_EQ(config.experts.intermediate, 768);
  EXPECT_FALSE(config.experts.normalise);
  EXPECT_EQ(config.widest_mlp(), 8 * 768);
  EXPECT_EQ(config.mean_mlp_width(), 8 * 768);
  EXPECT_TRUE(config.qk_norm);
  EXPECT_EQ(config.head_dim, 64) << "of Qwen3 it would be 128";
  base.erase("num_key_value_heads");
  EXPECT_EQ(parse(base).n_kv_heads, 4);
  config = parse_with(base, {{"num_experts", 16}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 64},
                             {"norm_topk_prob", true}, {"decoder_sparse_step", 2}, {"mlp_only_layers", {3}}});
  EXPECT_TRUE(config.experts.normalise);
  EXPECT_EQ(config.experts.layers, (std::vector<uint8_t>{0, 1, 0, 0}));
  EXPECT_EQ(config.widest_mlp(), 512);
  EXPECT_EQ(config.mean_mlp_width(), (128 + 3 * 512) / 4.0);
  // All layers slide, or none: max_window_layers is not asked.
  const json windows = {{"use_sliding_window", true}, {"sliding_window", 64}, {"max_window_layers", 2}};
  EXPECT_EQ(parse_with(base, windows).sliding_window, std::vector<int64_t>(4, 64));
  EXPECT_EQ(parse_with(base, {{"num_experts", 0}}).experts.n, 0);
  EXPECT_EQ(parse_with(base, {{"num_local_experts", 32}}).experts.n, 32);
  expect_refused({{"mlp_only_layers", {4}}}, {"mlp_only_layers"}, base);
  expect_refused({{"moe_intermediate_size", 100}}, {"moe_intermediate_size", "a multiple of 8"}, base);
  expect_refused({{"decoder_sparse_step", 0}}, {"decoder_sparse_step"}, base);
}

TEST(Config, ReadsDualChunkAttention) {
  const json dual = {{"chunk_size", 262144}, {"local_size", 8192}, {"original_max_position_embeddings", 262144}};
  EXPECT_EQ(parse(llama()).dual_chunk.spans.tokens, 0);
  const DualChunk read = parse_with(llama(), {{"dual_chunk_attention_config", dual}}).dual_chunk;
  EXPECT_EQ(read.spans.tokens, 253952);
  EXPECT_EQ(read.spans.local, 8192);
  EXPECT_EQ(read.scaled_from, 262144);
  EXPECT_EQ(read.plain_tokens(), 262144);
  EXPECT_EQ(parse_with(llama(), {{"dual_chunk_attention_config", nullptr}}).dual_chunk.spans.tokens, 0);
  const json least = {{"chunk_size", 64}};
  EXPECT_EQ(parse_with(llama(), {{"dual_chunk_attention_config", least}}).dual_chunk.plain_tokens(), 65);
  expect_refused({{"dual_chunk_attention_config", json::object()}}, {"chunk_size", "no such key"});
  expect_refused({{"dual_chunk_attention_config", {{"chunk_size", 8}, {"local_size", 5}}}}, {"local_size"});
  expect_refused({{"architectures", {"MistralForCausalLM"}}, {"model_type", "mistral"}, {"sliding_window", 24}, {"dual_chunk_attention_config", dual}},
                 {"dual_chunk_attention_config", "no sliding window"});
}

TEST(Config, ReachIsWhatOptionsSay) {
  const json dual = {{"chunk_size", 262144}, {"local_size", 8192}, {"original_max_position_embeddings", 262144}};
  const auto read = [&](bool has_it, const ReachOptions& options) {
    ModelConfig config = parse_with(llama(), {{"dual_chunk_attention_config", has_it ? dual : json()}});
    set_reach(config, options);
    return flags_of(config.dual_chunk);
  };
  const char* none = "--dual-chunk 0 --dual-chunk-local 0 --scale-from 0";
  EXPECT_EQ(read(false, {}), none);
  EXPECT_EQ(read(true, {}), "--dual-chunk 262144 --dual-chunk-local 8192 --scale-from 262144");
  EXPECT_EQ(read(true, {.dual_chunk = 0, .scale_from = 0}), none);
  EXPECT_EQ(read(false, {.dual_chunk = 131072}), "--dual-chunk 131072 --dual-chunk-local 4096 --scale-from 0");
  EXPECT_EQ(read(false, {.dual_chunk = 100000}), "--dual-chunk 100000 --dual-chunk-local 3744 --scale-from 0");
  EXPECT_EQ(read(false, {.dual_chunk = 72}), "--dual-chunk 72 --dual-chunk-local 8 --scale-from 0");
  for (int64_t chunk = 1; chunk < 5000; ++chunk) {
    ModelConfig config = parse(llama());
    set_reach(config, {.dual_chunk = chunk});  // fits whatever is given
    const DualChunk& its = config.dual_chunk;
    ASSERT_EQ(its.spans.views_of(its.tokens_of_one_view() - 1), 1) << chunk;
    ASSERT_GT(its.spans.views_of(its.tokens_of_one_view()), 1) << chunk;
    set_reach(config, {.dual_chunk = chunk, .dual_chunk_local = chunk / 2});
    ASSERT_EQ(its.spans.views_of(its.tokens_of_one_view() - 1), 1) << chunk;
    ASSERT_GT(its.spans.views_of(its.tokens_of_one_view()), 1) << chunk;
  }
  EXPECT_EQ(read(true, {.dual_chunk = 64, .dual_chunk_local = 32}),
            "--dual-chunk 64 --dual-chunk-local 32 --scale-from 262144");
  EXPECT_EQ(read(false, {.scale_from = 1024}), "--dual-chunk 0 --dual-chunk-local 0 --scale-from 1024");
  EXPECT_THROW(read(false, {.dual_chunk = 64, .dual_chunk_local = 33}), Error);
  EXPECT_THROW(read(false, {.dual_chunk_local = 33}), Error);
  ModelConfig windows = parse(llama());
  windows.sliding_window[0] = 24;
  EXPECT_THROW(set_reach(windows, {.dual_chunk = 64}), Error);
  EXPECT_THROW(set_reach(windows, {.scale_from = 64}), Error);
  set_reach(windows, {});
}

TEST(Config, RefusesBadRope) {
  for (const char* type : {"dynamic", "su", "proportional", "YARN"}) {
    expect_refused({{"rope_scaling", {{"type", type}, {"factor", 2}}}},
                   {"rope_scaling.type", "default, linear, llama3, yarn or longrope", type});
    expect_refused({{"rope_parameters", {{"rope_type", type}, {"factor", 2}}}},
                   {"rope_parameters.rope_type", type});
  }
  expect_refused({{"rope_scaling", {{"type", "linear"}}}}, {"rope_scaling.factor", "no such key"});
  expect_refused({{"rope_scaling", {{"type", "yarn"}}}}, {"rope_scaling.factor", "no such key"});
  expect_refused({{"rope_scaling", {{"type", "linear"}, {"factor", nullptr}}}}, {"factor", "null"});
  expect_refused({{"rope_scaling", {{"type", "linear"}, {"factor", 0}}}}, {"factor", "found 0"});
  expect_refused({{"rope_scaling", {{"type", 3}}}}, {"rope_scaling.type", "a string"});
  expect_refused({{"rope_scaling", 3}}, {"rope_scaling", "an object"});
  expect_refused({{"rope_theta", 0}}, {"rope_theta"});
  expect_refused({{"rope_theta", 1}}, {"rope_theta", "above 1"});
  expect_refused({{"rope_parameters", {{"rope_theta", -5}}}}, {"rope_parameters.rope_theta"});
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8},
                       {"low_freq_factor", 4},
                       {"high_freq_factor", 4},
                       {"original_max_position_embeddings", 64}};
  expect_refused({{"rope_parameters", llama3}}, {"high_freq_factor", "more than low_freq_factor"});
}

TEST(Config, RefusesWhatIsNotJson) {
  for (const char* text :
       {"", "{", "nonsense", "{\"a\":1,}", "{\"a\":NaN}", "{\"a\":1e999}", "\xff"}) {
    expect_error([&] { parse_config(text, "c.json"); }, {"c.json", "expected JSON"});
  }
  expect_error([] { parse_config("[]", "c.json"); }, {"the document", "an object"});
  expect_error([] { parse_config(R"({"vocab_size":1,"vocab_size":2})", "c.json"); }, {"twice"});
  expect_error([] { parse_config(std::string(100000, '['), "c.json"); }, {"nested levels"});
}

TEST(Config, ReadsTokenIds) {
  ModelConfig config = parse_with(llama(), {{"bos_token_id", 1}, {"eos_token_id", 2}});
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{2}));
  config = parse_with(llama(), {{"eos_token_id", {2, 7}}});
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{2, 7}));
  expect_refused({{"eos_token_id", 1000}}, {"eos_token_id", "from 0 to 999"});
  expect_refused({{"eos_token_id", {2, -1}}}, {"eos_token_id[1]"});
  expect_refused({{"bos_token_id", "<s>"}}, {"bos_token_id", "integer"});

  apply_generation_config(config, R"({"eos_token_id":9,"temperature":0.5,"top_k":null})", "g.json");
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{9}));
  EXPECT_EQ(config.sampling.temperature, 0.5);
  EXPECT_FALSE(config.sampling.top_k.has_value());
  EXPECT_FALSE(config.sampling.do_sample.has_value());
  for (const char* text : {R"({"top_p":1.5})", R"({"top_p":-0.1})", R"({"min_p":"x"})",
                           R"({"temperature":-1})", R"({"top_k":-3})", R"({"do_sample":1})",
                           R"({"repetition_penalty":0})", R"({"eos_token_id":[1000]})", "[]"}) {
    expect_error([&] { apply_generation_config(config, text, "g.json"); }, {"g.json", "expected"});
  }
}

TEST(Config, LoadsADirectoryOrAFile) {
  const TempDir dir;
  expect_error([&] { load_config(dir.path()); }, {"config.json", "no such file"});
  expect_error([&] { load_config(dir.path() / "x.json"); }, {"x.json", "no such file"});
  const auto file = dir.write("config.json", llama().dump());
  EXPECT_EQ(load_config(dir.path()).n_layers, 4);
  dir.write("generation_config.json", R"({"temperature":0.25})");
  EXPECT_EQ(load_config(dir.path()).sampling.temperature, 0.25);
  EXPECT_EQ(load_config(file).sampling.temperature, 0.25);
  dir.write("generation_config.json", "{");
  expect_error([&] { load_config(dir.path()); }, {"generation_config.json", "expected JSON"});
}

}  // namespace
}  // namespace tiercel::test
