#include "engine/gguf/gguf_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/ops/experts.h"
#include "engine/config_family.h"
#include "engine/json.h"

namespace tiercel {
namespace {

constexpr GgufFamily kGgufFamilies[] = {
    {.architecture = "llama", .model_type = "llama", .interleaved = true},
    {.architecture = "qwen2", .model_type = "qwen2"},
    {.architecture = "qwen3", .model_type = "qwen3"},
    {.architecture = "qwen3moe", .model_type = "qwen3_moe"},
    {.architecture = "phi3", .model_type = "phi3", .fused_gate_up = true},
    {.architecture = "chatglm", .model_type = "glm", .interleaved = true, .fused_gate_up = true},
    {.architecture = "glm4", .model_type = "glm4", .interleaved = true, .fused_gate_up = true},
};

constexpr int64_t kMaxParts = 10'000;

const GgufFamily& find_family(const GgufFile& file) {
  const GgufValue architecture = file.at("general.architecture");
  std::string known;
  for (const GgufFamily& family : kGgufFamilies) {
    if (architecture.text() == family.architecture) return family;
    known += (known.empty() ? "" : ", ") + std::string(family.architecture);
  }
  architecture.unexpected("one of " + known, "no other architecture of GGUF files is supported");
}

// "model-00002-of-00003.gguf" of the first of three.
std::string name_of_part(const std::string& first, int64_t part, int64_t n) {
  const std::string end = fmt::format("-00001-of-{:05}.gguf", n);
  if (!first.ends_with(end)) {
    fail("{}: expected a name that ends with {}, as it is the first of {} parts, found another; give it its name "
         "back",
         first, end, n);
  }
  return fmt::format("{}-{:05}-of-{:05}.gguf", first.substr(0, first.size() - end.size()), part + 1, n);
}

// The layer's number in "blk.3.attn_q.weight", and what is behind it.
std::optional<std::pair<int64_t, std::string_view>> layer_of(std::string_view name) {
  constexpr std::string_view kBlock = "blk.";
  if (!name.starts_with(kBlock)) return std::nullopt;
  const char* const begin = name.data() + kBlock.size();
  const char* const end = name.data() + name.size();
  uint32_t layer = 0;
  const auto [behind, error] = std::from_chars(begin, end, layer);
  if (error != std::errc() || behind == end || *behind != '.') return std::nullopt;
  return std::pair(int64_t{layer}, std::string_view(behind + 1, end));
}

struct Renamed {
  const char *ours, *theirs;
};
constexpr Renamed kOfModel[] = {{"token_embd.weight", "model.embed_tokens.weight"},
                                {"output_norm.weight", "model.norm.weight"},
                                {"output.weight", "lm_head.weight"}};
// Without ".weight" or ".bias".
constexpr Renamed kOfLayers[] = {{"attn_norm", "input_layernorm"},
                                 {"ffn_norm", "post_attention_layernorm"},
                                 {"post_attention_norm", "post_self_attn_layernorm"},
                                 {"post_ffw_norm", "post_mlp_layernorm"},
                                 {"attn_q", "self_attn.q_proj"},
                                 {"attn_k", "self_attn.k_proj"},
                                 {"attn_v", "self_attn.v_proj"},
                                 {"attn_output", "self_attn.o_proj"},
                                 {"attn_q_norm", "self_attn.q_norm"},
                                 {"attn_k_norm", "self_attn.k_norm"},
                                 {"ffn_gate", "mlp.gate_proj"},
                                 {"ffn_down", "mlp.down_proj"}};
// [experts][..][..]
constexpr Renamed kExperts[] = {{"ffn_gate_exps", "gate_proj"},
                                {"ffn_up_exps", "up_proj"},
                                {"ffn_down_exps", "down_proj"}};
constexpr Renamed kMixtralExperts[] = {{"ffn_gate", "w1"}, {"ffn_up", "w3"}, {"ffn_down", "w2"}};

constexpr const char* kOthers[] = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"};

}  // namespace

int64_t GgufModel::n_heads() const { return first().at(key("attention.head_count")).integer(1, kMaxHeads); }

int64_t GgufModel::n_kv_heads() const {
  const std::optional<GgufValue> n = first().find(key("attention.head_count_kv"));
  return n ? n->integer(1, kMaxHeads) : n_heads();
}

int64_t GgufModel::head_dim() const {
  if (const auto width = first().find(key("attention.key_length"))) return width->integer(1, 1 << 12);
  const GgufValue hidden = first().at(key("embedding_length"));
  const int64_t width = hidden.integer(1, 1 << 20);
  if (width % n_heads() != 0) hidden.unexpected(fmt::format("a multiple of attention.head_count ({})", n_heads()));
  return width / n_heads();
}

const TensorInfo* GgufModel::find_tensor(std::string_view name) const {
  const auto found = std::ranges::find(tensors_, name, [](const Tensor& tensor) -> auto& { return tensor.info.name; });
  return found == tensors_.end() ? nullptr : &found->info;
}

const TensorInfo* GgufModel::find_other(std::string_view name) const {
  const auto found = std::ranges::find(others_, name, &TensorInfo::name);
  return found == others_.end() ? nullptr : &*found;
}

void GgufModel::add_named(const TensorInfo& tensor, size_t file, std::string name) {
  tensors_.push_back({tensor, file});
  TensorInfo& info = tensors_.back().info;
  info.stored_name = std::exchange(info.name, std::move(name));
}

void GgufModel::refuse(const TensorInfo& tensor, size_t file) const {
  fail("{}: tensor {}: expected one of a {} model, found one that is no part of it here; no model with it is supported",
       files_[file].name(), printable(tensor.name), family_->architecture);
}

void GgufModel::add_of_layer(const TensorInfo& tensor, size_t file, const std::string& layer, std::string_view part) {
  const size_t dot = part.rfind('.');
  if (dot == part.npos) refuse(tensor, file);
  const std::string_view stem = part.substr(0, dot);
  const std::string suffix(part.substr(dot));
  if (suffix != ".weight" && suffix != ".bias") refuse(tensor, file);
  const std::string experts = layer + (is_mixtral_ ? "block_sparse_moe." : "mlp.");

  for (const Renamed& name : kOfLayers) {
    if (stem == name.ours) return add_named(tensor, file, layer + name.theirs + suffix);
  }
  if (stem == "ffn_up") {
    return add_named(tensor, file, layer + (family_->fused_gate_up ? "mlp.gate_up_proj" : "mlp.up_proj") + suffix);
  }
  if (stem == "ffn_gate_inp") return add_named(tensor, file, experts + "gate" + suffix);
  if (stem == "attn_qkv") {
    if (std::string_view(family_->model_type) == "phi3") {
      return add_named(tensor, file, layer + "self_attn.qkv_proj" + suffix);
    }
    const int64_t kv = n_kv_heads() * head_dim(), q = n_heads() * head_dim();
    if (tensor.shape.empty() || tensor.shape[0] != q + 2 * kv) {
      fail("{}: tensor {}: expected {} rows, of queries, keys and values, found shape {}", files_[file].name(),
           printable(tensor.name), q + 2 * kv, to_string(tensor.shape));
    }
    add_named(rows_of(tensor, 0, q), file, layer + "self_attn.q_proj" + suffix);
    add_named(rows_of(tensor, q, kv), file, layer + "self_attn.k_proj" + suffix);
    return add_named(rows_of(tensor, q + kv, kv), file, layer + "self_attn.v_proj" + suffix);
  }
  const auto expert_of = [&](int64_t e) {
    TensorInfo expert = rows_of(tensor, e, 1);
    expert.shape.erase(expert.shape.begin());
    return expert;
  };
  const auto name_of_expert = [&](int64_t e, size_t matrix) {
    const char* const name = is_mixtral_ ? kMixtralExperts[matrix].theirs : kExperts[matrix].theirs;
    return fmt::format("{}experts.{}.{}{}", experts, e, name, suffix);
  };
  const bool is_of_experts = tensor.shape.size() == 3;
  if (is_of_experts) {
    const int64_t n = first().at(key("expert_count")).integer(1, kMaxExperts);
    if (tensor.shape[0] != n) {
      fail("{}: tensor {}: expected {} experts, found shape {}", files_[file].name(), printable(tensor.name), n,
           to_string(tensor.shape));
    }
  }
  if (stem == "ffn_gate_up_exps" && is_of_experts && tensor.shape[1] % 2 == 0) {
    const int64_t half = tensor.shape[1] / 2;
    for (int64_t e = 0; e < tensor.shape[0]; ++e) {
      add_named(rows_of(expert_of(e), 0, half), file, name_of_expert(e, 0));
      add_named(rows_of(expert_of(e), half, half), file, name_of_expert(e, 1));
    }
    return;
  }
  for (size_t i = 0; i < std::size(kExperts); ++i) {
    if (stem == kExperts[i].ours && is_of_experts) {
      for (int64_t e = 0; e < tensor.shape[0]; ++e) add_named(expert_of(e), file, name_of_expert(e, i));
      return;
    }
    // Files of 2023 have a tensor for each: ffn_gate.5.weight.
    const std::string each = std::string(kMixtralExperts[i].ours) + ".";
    if (is_mixtral_ && stem.starts_with(each)) {
      const char* const name = kMixtralExperts[i].theirs;
      const std::string number = printable(stem.substr(each.size()));
      return add_named(tensor, file, fmt::format("{}experts.{}.{}{}", experts, number, name, suffix));
    }
  }
  refuse(tensor, file);
}

void GgufModel::add(const TensorInfo& tensor, size_t file) {
  if (const auto place = layer_of(tensor.name)) {
    return add_of_layer(tensor, file, fmt::format("model.layers.{}.", place->first), place->second);
  }
  for (const Renamed& name : kOfModel) {
    if (tensor.name == name.ours) return add_named(tensor, file, name.theirs);
  }
  if (std::ranges::find(kOthers, tensor.name) != std::end(kOthers)) {
    others_.push_back(tensor);
    return;
  }
  refuse(tensor, file);
}

GgufModel GgufModel::open(const std::filesystem::path& path) {
  GgufModel model;
  model.files_.push_back(GgufFile::open(path));
  const std::string name = model.first().name();
  const auto part = model.first().find("split.no"), parts = model.first().find("split.count");
  const int64_t n_parts = parts ? std::max<int64_t>(parts->integer(0, kMaxParts), 1) : 1;
  if (part && part->integer(0, kMaxParts) != 0) {
    fail(ErrorKind::kUsage,
         "{}: expected the first part of a model, found part {} of {}; give -m the one whose name has -00001-of-", name,
         part->integer(0, kMaxParts) + 1, n_parts);
  }
  for (int64_t i = 1; i < n_parts; ++i) {
    const std::string next = name_of_part(name, i, n_parts);
    std::error_code ignored;
    if (!std::filesystem::exists(next, ignored)) {
      fail("{}: expected {} beside it, found no such file; download it", name, next);
    }
    model.files_.push_back(GgufFile::open(next));
    if (const GgufValue number = model.files_.back().at("split.no"); number.integer(0, kMaxParts) != i) {
      number.unexpected(fmt::format("{}, as its name says", i));
    }
  }
  model.family_ = &find_family(model.first());
  const auto experts = model.first().find(model.key("expert_count"));
  const bool is_llama = std::string_view(model.family_->model_type) == "llama";
  model.is_mixtral_ = is_llama && experts && experts->integer(0, kMaxExperts) > 0;
  for (size_t i = 0; i < model.files_.size(); ++i) {
    for (const TensorInfo& tensor : model.files_[i].tensors()) model.add(tensor, i);
  }
  return model;
}

}  // namespace tiercel
