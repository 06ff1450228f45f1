#include "engine/gguf/gguf_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "engine/base/check.h"
#include "engine/config_family.h"
#include "engine/gguf/block_format.h"
#include "engine/gguf/gguf_tokenizer.h"
#include "engine/json.h"

namespace tiercel {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMost = int64_t{1} << 40;  // parse_config has bounds of its own

// What changes the computation where it is there and neither 0 nor, of scales, 1: tools write those too.
constexpr const char* kRefused[] = {"attention.scale",         "attention.temperature_scale", "attn_logit_softcapping",
                                    "embedding_scale",         "expert_group_count",          "expert_shared_count",
                                    "final_logit_softcapping", "logit_scale",                 "residual_scale",
                                    "attention.clamp_kqv",     "attention.max_alibi_bias",    "expert_weights_scale",
                                    "rope.scaling.alpha",      "rope.scaling.yarn_log_multiplier"};

bool may_be_one(std::string_view key) { return key.ends_with("scale") || key == "expert_group_count"; }

class ConfigWriter {
 public:
  explicit ConfigWriter(const GgufModel& model) : model_(model), file_(model.first()) {}

  Json run() {
    refuse_unsupported();
    const std::string type = model_.family().model_type;
    const bool has_window = find("attention.sliding_window") && window() > 0;
    config_["model_type"] = model_.is_mixtral() ? "mixtral" : type == "llama" && has_window ? "mistral" : type;
    config_["num_hidden_layers"] = at("block_count").integer(1, kMaxLayers);
    copy("embedding_length", "hidden_size");
    copy("context_length", "max_position_embeddings");
    config_["num_attention_heads"] = model_.n_heads();
    config_["num_key_value_heads"] = model_.n_kv_heads();
    config_["head_dim"] = model_.head_dim();
    if (const auto width = find("attention.value_length"); width && width->integer(1, kMost) != model_.head_dim()) {
      width->unexpected(fmt::format("{}, as wide as keys", model_.head_dim()));
    }
    config_["rms_norm_eps"] = at("attention.layer_norm_rms_epsilon").number(0, 1);
    config_["vocab_size"] = rows_of_embedding();
    config_["tie_word_embeddings"] = model_.find_tensor("lm_head.weight") == nullptr;
    write_experts();
    write_window(has_window);
    write_rope();
    return std::move(config_);
  }

 private:
  std::optional<GgufValue> find(std::string_view name) const { return file_.find(model_.key(name)); }
  GgufValue at(std::string_view name) const { return file_.at(model_.key(name)); }
  void copy(const char* key, const char* name) { config_[name] = at(key).integer(1, kMost); }
  int64_t window() const { return at("attention.sliding_window").integer(0, kMost); }

  void refuse_unsupported() const {
    for (const char* key : kRefused) {
      const auto value = find(key);
      if (!value || value->is_neutral(may_be_one(key))) continue;
      value->unexpected("no such value", "what it asks for is not supported; use a plain model of this architecture");
    }
    if (const auto sections = find("rope.dimension_sections")) {
      sections->unexpected("no such value", "models that see are not supported");
    }
    if (const auto causal = find("attention.causal"); causal && !causal->boolean()) {
      causal->unexpected("true", "only models that generate text are supported");
    }
    if (const auto gate = find("expert_gating_func"); gate && gate->integer(0, 1 << 16) > 1) {
      gate->unexpected("1 (softmax)", "no other router is supported");
    }
  }

  int64_t rows_of_embedding() const {
    const TensorInfo* embedding = model_.find_tensor("model.embed_tokens.weight");
    if (embedding == nullptr || embedding->shape.size() != 2) {
      fail("{}: expected a tensor token_embd.weight of rows and columns, found {}", file_.name(),
           embedding == nullptr ? "none" : to_string(embedding->shape));
    }
    const auto tokens = file_.find("tokenizer.ggml.tokens");
    if (tokens && tokens->is_array() && static_cast<int64_t>(tokens->size()) > embedding->shape[0]) {
      tokens->unexpected(fmt::format("at most {} tokens, as token_embd.weight has rows", embedding->shape[0]),
                         "convert the original model again");
    }
    return embedding->shape[0];
  }

  void write_experts() {
    if (const auto width = find("feed_forward_length")) {
      if (width->is_array()) width->unexpected("one width for all layers");
      config_["intermediate_size"] = width->integer(0, kMost);
    }
    const auto n = find("expert_count");
    if (!n || n->integer(0, kMost) == 0) return;
    config_["num_local_experts"] = n->integer(1, kMost);
    config_["num_experts_per_tok"] = at("expert_used_count").integer(1, kMost);
    if (model_.is_mixtral()) return;
    config_["moe_intermediate_size"] = at("expert_feed_forward_length").integer(1, kMost);
    const auto normalise = find("expert_weights_norm");
    config_["norm_topk_prob"] = !normalise || normalise->boolean();  // as llama.cpp computes this architecture
    // Such files need not say how wide the layers without experts are: there are none.
    const int64_t dense_width = config_.value("intermediate_size", int64_t{0});
    if (dense_width == 0) config_["intermediate_size"] = config_["moe_intermediate_size"];
    Json dense = Json::array();
    for (int64_t i = 0; i < config_["num_hidden_layers"].get<int64_t>(); ++i) {
      if (model_.find_tensor(fmt::format("model.layers.{}.mlp.gate.weight", i)) == nullptr) dense.push_back(i);
    }
    config_["mlp_only_layers"] = dense;
  }

  void write_window(bool has_window) {
    config_["sliding_window"] = has_window ? Json(window()) : Json();
    if (has_window && find("attention.sliding_window_pattern")) {
      at("attention.sliding_window_pattern").unexpected("the same window in all layers");
    }
    const std::string type = config_["model_type"];
    if (type == "qwen2" || type == "qwen3" || type == "qwen3_moe") {
      config_["use_sliding_window"] = has_window;
      config_["max_window_layers"] = 0;
    }
  }

  Json factors_of(const char* name) const {
    const TensorInfo* tensor = model_.find_other(name);
    if (tensor == nullptr) return {};
    if (tensor->stored_dtype != "F32") {
      fail("{}: tensor {}: expected dtype F32, found {}", file_.name(), name, tensor->stored_dtype);
    }
    Json factors = Json::array();
    for (int64_t i = 0; i < tensor->n_elements(); ++i) factors.push_back(double{number_at(*tensor, i)});
    return factors;
  }

  void write_rope() {
    Json rope = {{"rope_theta", find("rope.freq_base") ? at("rope.freq_base").number(kTiny, kHuge) : 10000.0}};
    const int64_t head_dim = model_.head_dim();
    if (const auto width = find("rope.dimension_count")) {
      const int64_t turned = width->integer(2, kMost);
      if (turned > head_dim) width->unexpected(fmt::format("at most {}, the width of a head", head_dim));
      const bool is_family_with_parts = model_.family().fused_gate_up;
      if (turned != head_dim && !is_family_with_parts) {
        width->unexpected(fmt::format("{}, as this architecture turns all of a head", head_dim));
      }
      // Of which the whole part of the product is taken.
      const double part = (static_cast<double>(turned) + 0.25) / static_cast<double>(head_dim);
      if (is_family_with_parts) config_["partial_rotary_factor"] = turned == head_dim ? 1.0 : part;
    }
    const Json freqs = factors_of("rope_freqs.weight");
    const Json long_factor = factors_of("rope_factors_long.weight");
    const auto type = find("rope.scaling.type");
    const auto linear = find("rope.scaling.factor") ? find("rope.scaling.factor") : find("rope.scale_linear");
    std::string kind(type ? type->text() : linear ? "linear" : "none");
    const double factor = linear ? linear->number(0, kHuge) : 1.0;
    if (kind == "linear" && (factor == 0 || factor == 1)) kind = "none";
    if (!long_factor.is_null()) {
      rope["rope_type"] = "longrope";
      rope["long_factor"] = long_factor;
      rope["short_factor"] = factors_of("rope_factors_short.weight");
      config_["original_max_position_embeddings"] = at("rope.scaling.original_context_length").integer(1, kMost);
      write_attention_factor(rope);
    } else if (!freqs.is_null()) {
      // What Llama 3 makes of each wavelength, in contexts of any length: LongRoPE's whose original one is endless.
      if (kind != "none") (type ? *type : *linear).unexpected("no scaling beside rope_freqs.weight");
      rope["rope_type"] = "longrope";
      rope["short_factor"] = rope["long_factor"] = freqs;
      rope["original_max_position_embeddings"] = kMaxPosition;
      rope["attention_factor"] = 1.0;
    } else if (kind == "linear") {
      rope["rope_type"] = "linear";
      rope["factor"] = factor;
    } else if (kind == "yarn") {
      write_yarn(rope);
    } else if (kind != "none") {
      type->unexpected("none, linear, yarn, or longrope beside its factors");
    }
    if (long_factor.is_null()) {
      const auto attention = find("rope.scaling.attn_factor");
      if (attention && !attention->is_neutral(true)) attention->unexpected("1", "nothing else is supported here");
    }
    config_["rope_parameters"] = rope;
  }

  // The file has what follows from the two lengths, in fp32.
  void write_attention_factor(Json& rope) const {
    const auto factor = find("rope.scaling.attn_factor");
    if (!factor) return;
    const double given = factor->number(1e-6, 1e6);
    const auto original = config_["original_max_position_embeddings"].get<double>();
    const double ratio = config_["max_position_embeddings"].get<double>() / original;
    const double usual = ratio <= 1 ? 1 : std::sqrt(1 + std::log(ratio) / std::log(original));
    if (std::abs(given - usual) > 1e-5) rope["attention_factor"] = given;
  }

  void write_yarn(Json& rope) const {
    for (const char* key : {"rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"}) {
      if (const auto value = find(key); value && value->number(-kHuge, kHuge) != 1) {
        value->unexpected("1", "no other YaRN is supported");
      }
    }
    rope["rope_type"] = "yarn";
    rope["factor"] = at("rope.scaling.factor").number(kTiny, kHuge);
    const char* const original = "rope.scaling.original_context_length";
    rope["original_max_position_embeddings"] = at(find(original) ? original : "context_length").integer(1, kMost);
    if (const auto fast = find("rope.scaling.yarn_beta_fast")) rope["beta_fast"] = fast->number(0, kHuge);
    if (const auto slow = find("rope.scaling.yarn_beta_slow")) rope["beta_slow"] = slow->number(0, kHuge);
  }

  const GgufModel& model_;
  const GgufFile& file_;
  Json config_ = Json::object();
};

// Which matrices are codes, in what; and the formats' names.
void describe_blocks(const GgufModel& model, ModelConfig& config) {
  auto modules = std::make_shared<std::vector<CodedModule>>();
  std::set<std::string> names;
  for (const GgufModel::Tensor& tensor : model.tensors()) {
    const TensorInfo& info = tensor.info;
    if (info.supported) continue;
    if (info.blocks == nullptr || info.shape.size() != 2 || !info.name.ends_with(".weight")) {
      const bool is_matrix = info.shape.size() == 2;
      fail("{}: tensor {}: expected F32, F16, BF16{}{}, found {}; take a file of another quantisation",
           model.files()[tensor.file].name(), printable(info.label()), is_matrix ? ", or one of " : "",
           is_matrix ? decodable_block_formats() : "", info.stored_dtype);
    }
    names.insert(info.stored_dtype);
    modules->push_back({std::string(module_of(info.name)), info.blocks->code(), BlockFormat::kKeptGroup});
  }
  std::ranges::sort(*modules, {}, &CodedModule::name);
  for (const std::string& name : names) config.block_formats += (config.block_formats.empty() ? "" : ", ") + name;
  config.coded_modules = std::move(modules);
}

}  // namespace

Json gguf_config_json(const GgufModel& model) { return ConfigWriter(model).run(); }

Json gguf_generation_json(const GgufModel& model) {
  const GgufFile& file = model.first();
  Json generation = Json::object();
  const GgufEndTokens ends = gguf_end_tokens(file);
  if (ends.bos) generation["bos_token_id"] = *ends.bos;
  generation["eos_token_id"] = ends.eos;
  const auto copy_number = [&](const char* key, const char* name) {
    if (const auto value = file.find(key)) generation[name] = value->number(0, 1e3);
  };
  copy_number("general.sampling.temp", "temperature");
  copy_number("general.sampling.top_p", "top_p");
  copy_number("general.sampling.min_p", "min_p");
  copy_number("general.sampling.penalty_repeat", "repetition_penalty");
  if (const auto k = file.find("general.sampling.top_k")) {
    generation["top_k"] = std::max<int64_t>(k->integer(-1, 1 << 24), 0);
  }
  if (generation.contains("temperature")) generation["do_sample"] = generation["temperature"].get<double>() > 0;
  return generation;
}

ModelConfig gguf_config(const GgufModel& model) {
  const std::string file = model.first().name() + " (its metadata, as config.json names them)";
  ModelConfig config = parse_config(gguf_config_json(model).dump(), file);
  if (model.family().interleaved) config.rope.interleaved = true;
  // What config.json says of biases, tensors say.
  const auto has = [&](const char* name) { return model.find_tensor(name) != nullptr; };
  config.qkv_bias = has("model.layers.0.self_attn.q_proj.bias");
  config.o_bias = has("model.layers.0.self_attn.o_proj.bias");
  config.mlp_bias = has("model.layers.0.mlp.down_proj.bias");
  apply_generation_config(config, gguf_generation_json(model).dump(), file);
  describe_blocks(model, config);
  return config;
}

}  // namespace tiercel
