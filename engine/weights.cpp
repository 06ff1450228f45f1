#include "engine/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/base/check.h"
#include "engine/weight_codes.h"

namespace tiercel {
namespace {

// Of a layer, without its MLP.
int64_t attention_parameters(const ModelConfig& c) {
  int64_t layer = (c.post_norms ? 4 : 2) * c.hidden;
  layer += (2 * c.q_width() + 2 * c.kv_width()) * c.hidden;
  if (c.qkv_bias) layer += c.q_width() + 2 * c.kv_width();
  if (c.o_bias) layer += c.hidden;
  if (c.qk_norm) layer += 2 * c.head_dim;
  if (c.eviction_head) layer += c.n_kv_heads * (c.kv_width() + 1);
  return layer;
}

int64_t mlp_parameters(const ModelConfig& c, int64_t layer) {
  const int64_t biases = c.mlp_bias ? 2 * c.intermediate + c.hidden : 0, router = c.experts.n * c.hidden;
  return feed_forward_parameters(c, layer) + (c.has_experts(layer) ? router : biases);
}

constexpr const char *kEmbedding = "model.embed_tokens.weight", *kHead = "lm_head.weight";

// Where only config.json is known: rather more memory than less.
bool may_be_plain(const ModelConfig& c, const std::string& name) {
  const auto is_in_name = [&](const std::string& module) { return name.find(module) != name.npos; };
  return c.not_coded.patterns || std::ranges::any_of(c.not_coded.names, is_in_name);
}

// In which codec the checkpoint has a matrix of k columns: bf16 where it has no codes, or none that can be kept.
WeightCodec stored_codec(const ModelConfig& c, const std::string& name, int64_t k) {
  if (!c.has_codes()) return {};
  if (c.coded_modules != nullptr) {
    const auto found = std::ranges::lower_bound(*c.coded_modules, module_of(name), {}, &CodedModule::name);
    return found != c.coded_modules->end() && found->name == module_of(name) ? found->codec(k) : WeightCodec{};
  }
  if (name == kEmbedding || name == kHead || may_be_plain(c, name)) return {};
  return c.fp8 ? c.fp8->codec(k) : c.int_weights->codec(k);
}

// In which one it is kept.
WeightCodec kept_codec(const ModelConfig& c, const std::string& name, int64_t k, WeightCodec stored) {
  if (c.weight_form == WeightForm::kStored) return stored;
  if (c.weight_form == WeightForm::kBf16 || k % kCodedColumns != 0) return {};
  // Logits show what rounding does to them at once.
  const bool of_tokens = name == kEmbedding || name == kHead;
  const WeightCodec wanted = c.weight_form == WeightForm::kInt8 || of_tokens ? kInt8Weights : kInt4Weights;
  return stored.bits() <= wanted.bits() ? stored : wanted;
}
WeightCodec codec_of(const ModelConfig& c, const std::string& name, int64_t k) {
  return kept_codec(c, name, k, stored_codec(c, name, k));
}

std::string expert_block(const ModelConfig& c, int64_t layer) {
  const bool is_mixtral = c.architecture == Architecture::kMixtral;
  return fmt::format("model.layers.{}.{}.", layer, is_mixtral ? "block_sparse_moe" : "mlp");
}
struct ExpertNames {
  const char *gate, *up, *down;
};
ExpertNames expert_names(const ModelConfig& c) {
  if (c.architecture == Architecture::kMixtral) return {"w1", "w3", "w2"};
  return {"gate_proj", "up_proj", "down_proj"};
}
std::string expert_tensor(const std::string& block, size_t expert, const char* name) {
  return fmt::format("{}experts.{}.{}.weight", block, expert, name);
}

// The feed-forward matrices of a layer, or of each of its experts.
struct FeedForward {
  WeightCodec gate, up, down;
  int64_t width = 0, n = 1;
};
FeedForward feed_forward(const ModelConfig& c, int64_t layer) {
  if (!c.has_experts(layer)) {
    const std::string mlp = fmt::format("model.layers.{}.mlp.", layer);
    const auto codec = [&](const char* name, int64_t k) { return codec_of(c, mlp + name + ".weight", k); };
    return {codec(c.fused_gate_up ? "gate_up_proj" : "gate_proj", c.hidden),
            codec(c.fused_gate_up ? "gate_up_proj" : "up_proj", c.hidden), codec("down_proj", c.intermediate),
            c.intermediate, 1};
  }
  // Kernels multiply those of all experts, and gate and up, as one: where some are no codes, none is kept as such.
  const std::string block = expert_block(c, layer);
  const auto stored = [&](const char* name, int64_t k) {
    const WeightCodec first = stored_codec(c, expert_tensor(block, 0, name), k);
    for (size_t e = 1; first.is_coded() && c.coded_modules != nullptr && e < static_cast<size_t>(c.experts.n); ++e) {
      if (stored_codec(c, expert_tensor(block, e, name), k) != first) return WeightCodec{};
    }
    return first;
  };
  const ExpertNames names = expert_names(c);
  const int64_t width = c.experts.intermediate;
  WeightCodec gate = stored(names.gate, c.hidden);
  if (gate != stored(names.up, c.hidden)) gate = {};
  gate = kept_codec(c, block, c.hidden, gate);
  return {gate, gate, kept_codec(c, block, width, stored(names.down, width)), width, c.experts.n};
}

// Bytes of a layer's feed-forward matrices; rounded: of each, elements to so many that they take.
template <typename Rounded>
int64_t bytes_of_feed_forward(const ModelConfig& c, int64_t layer, const Rounded& rounded) {
  const FeedForward f = feed_forward(c, layer);
  const int64_t elements = rounded(f.width * f.gate.row_bytes(c.hidden) / 2) +
                           rounded(f.width * f.up.row_bytes(c.hidden) / 2) +
                           rounded(c.hidden * f.down.row_bytes(f.width) / 2);
  return f.n * elements * static_cast<int64_t>(sizeof(bf16));
}

// As they lie beside a GPU.
int64_t aligned_feed_forward_bytes(const ModelConfig& c, int64_t layer) {
  return bytes_of_feed_forward(c, layer, [](int64_t n) { return aligned_elements(n); });
}

}  // namespace

int64_t feed_forward_bytes(const ModelConfig& c, int64_t layer) {
  return bytes_of_feed_forward(c, layer, [](int64_t n) { return n; });
}

int64_t head_bytes(const ModelConfig& c) {
  return c.vocab_size * codec_of(c, c.tie_word_embeddings ? kEmbedding : kHead, c.hidden).row_bytes(c.hidden);
}
int64_t embedding_bytes(const ModelConfig& c) {
  return c.vocab_size * codec_of(c, kEmbedding, c.hidden).row_bytes(c.hidden);
}

bool stays_on_host(const ModelConfig& c, const WeightTensor& tensor) {
  if (c.host_layers == 0) return false;
  if (tensor.feeds_layer >= 0) return c.feeds_from_host(tensor.feeds_layer);
  return tensor.is_embedding && !c.tie_word_embeddings;
}

int64_t weight_bytes(const ModelConfig& c) { return kept_weights(c).bytes; }

int64_t aligned_weight_bytes(const ModelConfig& c) {
  Weights weights;
  int64_t elements = 0;
  for (const WeightTensor& tensor : weight_tensors(c, weights)) elements += aligned_elements(tensor.kept_elements());
  return elements * static_cast<int64_t>(sizeof(bf16));
}

int64_t host_weight_bytes(const ModelConfig& c) {
  if (c.host_layers == 0) return 0;
  int64_t bytes = 0;
  if (!c.tie_word_embeddings) {
    bytes = aligned_elements(embedding_bytes(c) / 2) * static_cast<int64_t>(sizeof(bf16));
  }
  for (int64_t i = 0; i < c.n_layers; ++i) {
    if (c.feeds_from_host(i)) bytes += aligned_feed_forward_bytes(c, i);
  }
  return bytes;
}

int64_t largest_host_layer_bytes(const ModelConfig& c) {
  int64_t most = 0;
  for (int64_t i = 0; i < c.n_layers; ++i) {
    if (c.feeds_from_host(i)) most = std::max(most, aligned_feed_forward_bytes(c, i));
  }
  return most;
}

int64_t host_layers_to_free(ModelConfig config, int64_t bytes) {
  const auto off_device = [&] { return host_weight_bytes(config) - largest_host_layer_bytes(config); };
  const int64_t before = off_device();
  while (config.host_layers < config.n_layers) {
    ++config.host_layers;
    if (off_device() - before >= bytes) return config.host_layers;
  }
  return 0;
}

int64_t parameter_count(const ModelConfig& c) {
  int64_t layers = c.n_layers * attention_parameters(c);
  for (int64_t i = 0; i < c.n_layers; ++i) layers += mlp_parameters(c, i);
  const int64_t embeddings = (c.tie_word_embeddings ? 1 : 2) * c.vocab_size * c.hidden;
  return layers + embeddings + c.hidden;
}

int64_t feed_forward_parameters(const ModelConfig& c, int64_t layer) {
  return c.has_experts(layer) ? 3 * c.experts.n * c.experts.intermediate * c.hidden : 3 * c.intermediate * c.hidden;
}

std::vector<WeightTensor> weight_tensors(const ModelConfig& c, Weights& weights) {
  std::vector<WeightTensor> tensors;
  auto want = [&](const bf16** target, std::string name, std::vector<int64_t> shape,
                  bool turns = false) -> WeightTensor& {
    return tensors.emplace_back(
        WeightTensor{.target = target, .name = std::move(name), .shape = std::move(shape), .turns = turns});
  };
  auto want_matrix = [&](WeightMatrix* target, std::string name, std::vector<int64_t> shape,
                         bool turns = false) -> WeightTensor& {
    WeightTensor& tensor = want(&target->values, std::move(name), std::move(shape), turns);
    tensor.codec = target->codec = codec_of(c, tensor.name, tensor.shape[1]);
    return tensor;
  };
  // Matrices of as many columns, which are one in the checkpoint where it has them fused.
  struct Part {
    WeightMatrix* target;
    const char* name;
    int64_t n_rows;
    bool turns = false;
    int64_t feeds_layer = -1;
  };
  auto want_parts = [&](const std::string& prefix, const char* fused_name,
                        std::initializer_list<Part> parts) {
    int64_t n_rows = 0, first_row = 0;
    for (const Part& part : parts) n_rows += part.n_rows;
    for (const Part& part : parts) {
      const std::string name = prefix + (fused_name != nullptr ? fused_name : part.name);
      WeightTensor& tensor = want_matrix(part.target, name + ".weight", {part.n_rows, c.hidden}, part.turns);
      if (fused_name != nullptr) {
        tensor.first_row = first_row;
        tensor.stored_rows = n_rows;
      }
      tensor.feeds_layer = part.feeds_layer;
      first_row += part.n_rows;
    }
  };
  // Each matrix of all experts, before the next: where they are copied, they lie at equal distances.
  auto want_experts = [&](int64_t index, LayerWeights& w) {
    const std::string block = expert_block(c, index);
    want(&w.router, block + "gate.weight", {c.experts.n, c.hidden});
    auto want_each = [&](ExpertWeights& matrices, WeightCodec codec, const char* name,
                         const std::vector<int64_t>& shape) {
      matrices.codec = codec;
      matrices.of.resize(static_cast<size_t>(c.experts.n));
      for (size_t e = 0; e < matrices.of.size(); ++e) {
        WeightTensor& tensor = want(&matrices.of[e], expert_tensor(block, e, name), shape);
        tensor.feeds_layer = index;
        tensor.codec = codec;
      }
    };
    const FeedForward f = feed_forward(c, index);
    const ExpertNames names = expert_names(c);
    want_each(w.expert_gate, f.gate, names.gate, {c.experts.intermediate, c.hidden});
    want_each(w.expert_up, f.up, names.up, {c.experts.intermediate, c.hidden});
    want_each(w.expert_down, f.down, names.down, {c.hidden, c.experts.intermediate});
  };
  weights.layers.resize(static_cast<size_t>(c.n_layers));
  want_matrix(&weights.embedding, kEmbedding, {c.vocab_size, c.hidden}).is_embedding = true;
  want(&weights.final_norm, "model.norm.weight", {c.hidden});
  if (!c.tie_word_embeddings) want_matrix(&weights.head, kHead, {c.vocab_size, c.hidden});
  for (int64_t i = 0; i < c.n_layers; ++i) {
    LayerWeights& w = weights.layers[static_cast<size_t>(i)];
    const std::string layer = fmt::format("model.layers.{}.", i);
    const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
    want(&w.attention_norm, layer + "input_layernorm.weight", {c.hidden});
    want(&w.mlp_norm, layer + "post_attention_layernorm.weight", {c.hidden});
    if (c.post_norms) {
      want(&w.attention_post_norm, layer + "post_self_attn_layernorm.weight", {c.hidden});
      want(&w.mlp_post_norm, layer + "post_mlp_layernorm.weight", {c.hidden});
    }
    want_parts(attention, c.fused_qkv ? "qkv_proj" : nullptr,
               {{&w.q, "q_proj", c.q_width(), true},
                {&w.k, "k_proj", c.kv_width(), true},
                {&w.v, "v_proj", c.kv_width()}});
    want_matrix(&w.o, attention + "o_proj.weight", {c.hidden, c.q_width()});
    if (c.qkv_bias) {
      want(&w.q_bias, attention + "q_proj.bias", {c.q_width()}, true);
      want(&w.k_bias, attention + "k_proj.bias", {c.kv_width()}, true);
      want(&w.v_bias, attention + "v_proj.bias", {c.kv_width()});
    }
    if (c.o_bias) want(&w.o_bias, attention + "o_proj.bias", {c.hidden});
    if (c.qk_norm) {
      want(&w.q_norm, attention + "q_norm.weight", {c.head_dim}, true);
      want(&w.k_norm, attention + "k_norm.weight", {c.head_dim}, true);
    }
    if (c.eviction_head) {
      want(&w.delta, attention + "delta.weight", {c.n_kv_heads, c.kv_width()});
      want(&w.a, attention + "A", {c.n_kv_heads});
    }
    if (c.has_experts(i)) {
      want_experts(i, w);
      continue;
    }
    want_parts(mlp, c.fused_gate_up ? "gate_up_proj" : nullptr,
               {{&w.gate, "gate_proj", c.intermediate, false, i}, {&w.up, "up_proj", c.intermediate, false, i}});
    want_matrix(&w.down, mlp + "down_proj.weight", {c.hidden, c.intermediate}).feeds_layer = i;
    if (c.mlp_bias) {
      want(&w.gate_bias, mlp + "gate_proj.bias", {c.intermediate});
      want(&w.up_bias, mlp + "up_proj.bias", {c.intermediate});
      want(&w.down_bias, mlp + "down_proj.bias", {c.hidden});
    }
  }
  return tensors;
}

namespace {

KeptWeights describe_weights(const ModelConfig& c) {
  Weights weights;
  struct Part {
    WeightCodec codec;
    bool rounded;
    int64_t parameters;
  };
  std::vector<Part> parts;
  KeptWeights kept;
  int64_t all = 0;
  for (const WeightTensor& tensor : weight_tensors(c, weights)) {
    const int64_t n = tensor.n_elements();
    all += n;
    kept.bytes += tensor.kept_elements() * static_cast<int64_t>(sizeof(bf16));
    if (!tensor.codec.is_coded()) continue;
    const bool rounded = stored_codec(c, tensor.name, tensor.shape[1]) != tensor.codec;
    const auto part = std::ranges::find_if(
        parts, [&](const Part& p) { return p.codec == tensor.codec && p.rounded == rounded; });
    (part != parts.end() ? *part : parts.emplace_back(Part{tensor.codec, rounded, 0})).parameters += n;
  }
  std::ranges::sort(parts, std::greater(), &Part::parameters);
  for (const Part& part : parts) {
    const double percent = 100 * static_cast<double>(part.parameters) / static_cast<double>(all);
    const int32_t group = part.codec.code == WeightCode::kInt8x16 ? 16 : part.codec.group;
    const std::string what = part.codec.code == WeightCode::kE4M3
                                 ? "8-bit floats"
                                 : fmt::format("{} bits, groups of {}", part.codec.bits(), group);
    kept.text += fmt::format("{:.0f} % in {}, {}; ", percent, what,
                             part.rounded ? "rounded" : "as the checkpoint has them");
  }
  kept.coded = !parts.empty();
  if (kept.coded) {
    kept.text += "the rest bf16";
  } else if (c.has_codes()) {
    const std::string what = c.fp8 ? "8-bit floats" : c.int_weights ? "integers" : c.block_formats;
    kept.text = fmt::format("the checkpoint's {}, decoded to bf16", what);
  }
  return kept;
}

}  // namespace

void set_weight_form(ModelConfig& config, WeightForm form) {
  config.weight_form = form;
  config.kept = nullptr;
  config.kept = std::make_shared<const KeptWeights>(describe_weights(config));
}

KeptWeights kept_weights(const ModelConfig& c) { return c.kept != nullptr ? *c.kept : describe_weights(c); }

namespace {

// Of one expert there is none; then any that keeps addresses aligned is right.
void find_stride(ExpertWeights& experts) {
  constexpr int64_t kAnyStride = 128;
  const auto distance = [&](size_t e) { return experts.of[e + 1] - experts.of[e]; };
  for (size_t e = 1; e + 1 < experts.of.size(); ++e) {
    if (distance(e) != distance(0)) return;
  }
  experts.stride = experts.of.size() > 1 ? distance(0) : kAnyStride;
}

}  // namespace

void join_projections(const ModelConfig& c, Weights& weights) {
  for (LayerWeights& w : weights.layers) {
    if (w.router != nullptr) {
      for (ExpertWeights* experts : {&w.expert_gate, &w.expert_up, &w.expert_down}) find_stride(*experts);
    }
    const int64_t q = c.q_width(), kv = c.kv_width();
    if (w.q.codec != w.k.codec || w.k.codec != w.v.codec) continue;
    if (w.k.values != w.q.from_row(q, c.hidden).values || w.v.values != w.k.from_row(kv, c.hidden).values) continue;
    if (w.q_bias != nullptr && (w.k_bias != w.q_bias + q || w.v_bias != w.k_bias + kv)) continue;
    w.qkv = w.q;
    w.qkv_bias = w.q_bias;
  }
}

std::vector<RandomParams> synthetic_weights(const std::vector<WeightTensor>& tensors) {
  std::vector<RandomParams> fills;
  uint64_t seed = 1;
  for (const WeightTensor& tensor : tensors) {
    RandomParams fill;
    fill.out = const_cast<bf16*>(*tensor.target);
    fill.n = tensor.n_elements();
    fill.seed = seed;
    seed += kSplitmixStep * static_cast<uint64_t>(fill.n + 1);  // no two tensors share a value
    const bool bias = tensor.name.ends_with(".bias");
    const bool norm = !bias && tensor.shape.size() == 1;
    const bool embedding = tensor.name == kEmbedding;
    fill.offset = norm ? 1 : 0;
    fill.scale = norm        ? 0
                 : bias      ? 0.1f
                 : embedding ? 1
                             : 1 / std::sqrt(static_cast<float>(tensor.shape.back()));
    fills.push_back(fill);
  }
  return fills;
}

}  // namespace tiercel
