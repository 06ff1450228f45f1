#include "engine/weights.h"

#include <fmt/format.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <unordered_set>

#include "cpu/synthetic.h"
#include "cpu/topology.h"
#include "engine/base/check.h"
#include "engine/base/units.h"

namespace tiercel {
namespace {

// Below this a copy into huge pages costs less than it saves in address translation.
constexpr int64_t kCopyBelow = int64_t{2} << 30;

constexpr int64_t aligned(int64_t elements) { return (elements + 31) / 32 * 32; }

// Before anything is read.
void check_room(const std::string& model, int64_t n_parameters) {
  const int64_t bytes = n_parameters * static_cast<int64_t>(sizeof(bf16));
  const int64_t available = cpu::memory_of_this_process_bytes();
  if (bytes <= available) return;
  fail(ErrorKind::kDoesNotFit, "{}: its weights take {} of memory as bf16, this machine has {} left", model,
       format_bytes(bytes), format_bytes(available));
}

// What quantised checkpoints say of activations and of the KV cache, which are bf16 here, or in a codec of
// the engine's own.
bool is_scale_of_activations(std::string_view tensor) {
  for (const char* end : {".input_scale", ".k_scale", ".v_scale"}) {
    if (tensor.ends_with(end)) return true;
  }
  return false;
}

}  // namespace

bool has_eviction_head(const std::string& directory) {
  return Checkpoint::open(directory).find("model.layers.0.self_attn.delta.weight") != nullptr;
}

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

// Without experts.
int64_t mlp_parameters(const ModelConfig& c, int64_t layer) {
  if (c.has_experts(layer)) return c.experts.n * c.hidden;
  return feed_forward_parameters(c, layer) + (c.mlp_bias ? 2 * c.intermediate + c.hidden : 0);
}

}  // namespace

bool stays_on_host(const ModelConfig& c, const WeightTensor& tensor) {
  if (c.host_layers == 0) return false;
  if (tensor.feeds_layer >= 0) return c.feeds_from_host(tensor.feeds_layer);
  return tensor.is_embedding && !c.tie_word_embeddings;
}

namespace {

// Of a layer's feed-forward matrices, as they lie beside a GPU.
int64_t feed_forward_bytes(const ModelConfig& c, int64_t layer) {
  const int64_t elements = c.has_experts(layer)
                               ? 3 * c.experts.n * aligned_elements(c.experts.intermediate * c.hidden)
                               : 3 * aligned_elements(c.intermediate * c.hidden);
  return elements * static_cast<int64_t>(sizeof(bf16));
}

}  // namespace

int64_t aligned_weight_bytes(const ModelConfig& c) {
  Weights weights;
  int64_t elements = 0;
  for (const WeightTensor& tensor : weight_tensors(c, weights)) elements += aligned_elements(tensor.n_elements());
  return elements * static_cast<int64_t>(sizeof(bf16));
}

int64_t host_weight_bytes(const ModelConfig& c) {
  if (c.host_layers == 0) return 0;
  int64_t bytes = 0;
  if (!c.tie_word_embeddings) {
    bytes = aligned_elements(c.vocab_size * c.hidden) * static_cast<int64_t>(sizeof(bf16));
  }
  for (int64_t i = 0; i < c.n_layers; ++i) {
    if (c.feeds_from_host(i)) bytes += feed_forward_bytes(c, i);
  }
  return bytes;
}

int64_t largest_host_layer_bytes(const ModelConfig& c) {
  int64_t most = 0;
  for (int64_t i = 0; i < c.n_layers; ++i) {
    if (c.feeds_from_host(i)) most = std::max(most, feed_forward_bytes(c, i));
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
  return layers + expert_parameters(c) + embeddings + c.hidden;
}

int64_t feed_forward_parameters(const ModelConfig& c, int64_t layer) {
  return c.has_experts(layer) ? 3 * c.experts.n * c.experts.intermediate * c.hidden : 3 * c.intermediate * c.hidden;
}

int64_t expert_parameters(const ModelConfig& c) {
  int64_t n = 0;
  for (int64_t i = 0; i < c.n_layers; ++i) {
    if (c.has_experts(i)) n += feed_forward_parameters(c, i);
  }
  return n;
}

std::vector<WeightTensor> weight_tensors(const ModelConfig& c, Weights& weights) {
  std::vector<WeightTensor> tensors;
  auto want = [&](const bf16** target, std::string name, std::vector<int64_t> shape,
                  bool turns = false) -> WeightTensor& {
    return tensors.emplace_back(
        WeightTensor{.target = target, .name = std::move(name), .shape = std::move(shape), .turns = turns});
  };
  // Matrices of as many columns, which are one in the checkpoint where it has them fused.
  struct Part {
    const bf16** target;
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
      WeightTensor& tensor = want(part.target, name + ".weight", {part.n_rows, c.hidden}, part.turns);
      if (fused_name != nullptr) {
        tensor.first_row = first_row;
        tensor.stored_rows = n_rows;
      }
      tensor.feeds_layer = part.feeds_layer;
      first_row += part.n_rows;
    }
  };
  // Each matrix of all experts, before the next: where they are copied, they lie at equal distances.
  auto want_experts = [&](int64_t index, const std::string& layer, LayerWeights& w) {
    const bool is_mixtral = c.architecture == Architecture::kMixtral;
    const std::string block = layer + (is_mixtral ? "block_sparse_moe." : "mlp.");
    want(&w.router, block + "gate.weight", {c.experts.n, c.hidden});
    auto want_each = [&](ExpertWeights& matrices, const char* name, const std::vector<int64_t>& shape) {
      matrices.of.resize(static_cast<size_t>(c.experts.n));
      for (size_t e = 0; e < matrices.of.size(); ++e) {
        want(&matrices.of[e], fmt::format("{}experts.{}.{}.weight", block, e, name), shape).feeds_layer = index;
      }
    };
    want_each(w.expert_gate, is_mixtral ? "w1" : "gate_proj", {c.experts.intermediate, c.hidden});
    want_each(w.expert_up, is_mixtral ? "w3" : "up_proj", {c.experts.intermediate, c.hidden});
    want_each(w.expert_down, is_mixtral ? "w2" : "down_proj", {c.hidden, c.experts.intermediate});
  };
  weights.layers.resize(static_cast<size_t>(c.n_layers));
  want(&weights.embedding, "model.embed_tokens.weight", {c.vocab_size, c.hidden}).is_embedding = true;
  want(&weights.final_norm, "model.norm.weight", {c.hidden});
  if (!c.tie_word_embeddings) want(&weights.head, "lm_head.weight", {c.vocab_size, c.hidden});
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
    want(&w.o, attention + "o_proj.weight", {c.hidden, c.q_width()});
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
      want_experts(i, layer, w);
      continue;
    }
    want_parts(mlp, c.fused_gate_up ? "gate_up_proj" : nullptr,
               {{&w.gate, "gate_proj", c.intermediate, false, i}, {&w.up, "up_proj", c.intermediate, false, i}});
    want(&w.down, mlp + "down_proj.weight", {c.hidden, c.intermediate}).feeds_layer = i;
    if (c.mlp_bias) {
      want(&w.gate_bias, mlp + "gate_proj.bias", {c.intermediate});
      want(&w.up_bias, mlp + "up_proj.bias", {c.intermediate});
      want(&w.down_bias, mlp + "down_proj.bias", {c.hidden});
    }
  }
  return tensors;
}

namespace {

void find_stride(ExpertWeights& experts) {
  const auto distance = [&](size_t e) { return experts.of[e + 1] - experts.of[e]; };
  for (size_t e = 1; e + 1 < experts.of.size(); ++e) {
    if (distance(e) != distance(0)) return;
  }
  experts.stride = experts.of.size() > 1 ? distance(0) : 1;
}

}  // namespace

void join_projections(const ModelConfig& c, Weights& weights) {
  for (LayerWeights& w : weights.layers) {
    if (w.router != nullptr) {
      for (ExpertWeights* experts : {&w.expert_gate, &w.expert_up, &w.expert_down}) find_stride(*experts);
    }
    const int64_t q = c.q_width(), kv = c.kv_width();
    if (w.k != w.q + q * c.hidden || w.v != w.k + kv * c.hidden) continue;
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
    const bool embedding = tensor.name == "model.embed_tokens.weight";
    fill.offset = norm ? 1 : 0;
    fill.scale = norm        ? 0
                 : bias      ? 0.1f
                 : embedding ? 1
                             : 1 / std::sqrt(static_cast<float>(tensor.shape.back()));
    fills.push_back(fill);
  }
  return fills;
}

struct WeightStore::Wanted {
  const bf16** target;
  TensorInfo tensor;  // the rows that are ours
  int64_t first_row;  // within the checkpoint's tensor
  bool is_moved;      // its rows come in another order
  std::optional<Fp8Tensor> scaled;  // the checkpoint's tensor
  std::string scale_name;           // of its scales
  int64_t row_elements() const { return tensor.n_elements() / tensor.shape[0]; }
  bool is_as_wanted() const {
    return !is_moved && tensor.dtype == DType::kBf16 &&
           reinterpret_cast<uintptr_t>(tensor.data) % alignof(bf16) == 0;
  }
};

WeightStore::WeightStore(std::optional<Checkpoint> checkpoint, cpu::Queue& queue)
    : checkpoint_(std::move(checkpoint)), queue_(queue) {}

WeightStore::~WeightStore() { cpu::unmap_pages(block_, static_cast<size_t>(block_bytes_)); }

std::unique_ptr<WeightStore> WeightStore::open(const std::string& directory, const ModelConfig& config,
                                               cpu::Queue& queue) {
  std::unique_ptr<WeightStore> store(new WeightStore(Checkpoint::open(directory), queue));
  store->collect(config);
  CHECK(store->n_parameters_ == parameter_count(config), "{} parameters, {} by configuration",
        store->n_parameters_, parameter_count(config));
  return store;
}

std::unique_ptr<WeightStore> WeightStore::load(const std::string& directory,
                                               const ModelConfig& config, cpu::Queue& queue) {
  std::unique_ptr<WeightStore> store = open(directory, config, queue);
  check_room(directory, store->n_parameters_);
  store->checkpoint_->will_need();
  store->check_tied_head(config);  // which reads both
  store->place();
  if (config.tie_word_embeddings) store->weights_.head = store->weights_.embedding;
  store->wanted_.clear();
  // Pages of the mapping are resident memory too; nothing points into them when all was copied.
  if (!store->in_place_) store->checkpoint_.reset();
  return store;
}

std::unique_ptr<WeightStore> WeightStore::random(const ModelConfig& config, cpu::Queue& queue) {
  std::unique_ptr<WeightStore> store(new WeightStore(std::nullopt, queue));
  const std::vector<WeightTensor> tensors = weight_tensors(config, store->weights_);
  int64_t elements = 0;
  for (const WeightTensor& tensor : tensors) {
    store->n_parameters_ += tensor.n_elements();
    elements += aligned(tensor.n_elements());
  }
  check_room("--synthetic", store->n_parameters_);
  store->bytes_ = store->n_parameters_ * static_cast<int64_t>(sizeof(bf16));
  store->block_bytes_ = elements * static_cast<int64_t>(sizeof(bf16));
  store->block_ = static_cast<bf16*>(cpu::map_pages(static_cast<size_t>(store->block_bytes_)));
  bf16* next = store->block_;
  for (const WeightTensor& tensor : tensors) {
    *tensor.target = next;
    next += aligned(tensor.n_elements());
  }
  for (const RandomParams& fill : synthetic_weights(tensors)) cpu::fill_random(queue, fill);
  if (config.tie_word_embeddings) store->weights_.head = store->weights_.embedding;
  return store;
}

void WeightStore::collect(const ModelConfig& config) {
  channel_order_ = rope_channel_order(config.rope, config.head_dim);
  for (const WeightTensor& wanted : weight_tensors(config, weights_)) {
    std::vector<int64_t> stored = wanted.shape;
    if (wanted.stored_rows > 0) stored[0] = wanted.stored_rows;
    const TensorInfo& whole = checkpoint_->require(wanted.name, stored);
    Wanted& ours = wanted_.emplace_back(
        Wanted{wanted.target, rows_of(whole, wanted.first_row, wanted.shape[0]), wanted.first_row,
               wanted.turns && !channel_order_.empty(), std::nullopt, {}});
    if (whole.dtype == DType::kF8E4M3) {
      const TensorInfo& scales = scales_of(whole, config);
      ours.scaled.emplace(whole, scales, *config.fp8, checkpoint_->file_of(scales.name));
      ours.scale_name = scales.name;
      check_finite(scales, 0);
    }
    n_parameters_ += wanted.n_elements();
  }
  check_nothing_ignored(config);
}

// A head beside a tied embedding is a copy of it, or the model was changed and its configuration not.
void WeightStore::check_tied_head(const ModelConfig& config) const {
  const TensorInfo* head = config.tie_word_embeddings ? checkpoint_->find("lm_head.weight") : nullptr;
  if (head == nullptr) return;
  const TensorInfo& embedding = checkpoint_->tensor("model.embed_tokens.weight");
  const bool same = head->dtype == embedding.dtype && head->shape == embedding.shape &&
                    std::memcmp(head->data, embedding.data, head->bytes) == 0;
  wont_need(*head);
  if (same) return;
  fail("{}: tensor lm_head.weight differs from model.embed_tokens.weight, though config.json has "
       "tie_word_embeddings true, with which it would be ignored; set that to false to use it",
       checkpoint_->file_of(head->name));
}

const TensorInfo& WeightStore::scales_of(const TensorInfo& codes, const ModelConfig& config) const {
  const std::string& file = checkpoint_->file_of(codes.name);
  if (!config.fp8 || codes.shape.size() != 2) {
    fail("{}: tensor {}: expected dtype BF16, F16 or F32, found {}{}", file, codes.name, codes.stored_dtype,
         config.fp8 ? ", which is only supported of matrices"
                    : "; config.json has no quantization_config that says what it means");
  }
  for (const char* suffix : {"_scale_inv", "_scale"}) {
    if (const TensorInfo* scales = checkpoint_->find(codes.name + suffix)) return *scales;
  }
  fail("{}: tensor {} is {}, and the checkpoint has no {}_scale_inv or {}_scale beside it; fetch it again",
       file, codes.name, codes.stored_dtype, codes.name, codes.name);
}

// A layer's tensor that nobody reads (a bias that the configuration denies, scales of a quantized
// matrix, a head that biases attention) is a part of the model that would silently be left out.
void WeightStore::check_nothing_ignored(const ModelConfig& config) const {
  std::unordered_set<std::string_view> used;
  for (const Wanted& wanted : wanted_) {
    used.insert(wanted.tensor.name);
    used.insert(wanted.scale_name);
  }
  for (const std::string_view name : checkpoint_->names()) {
    if (!name.starts_with("model.layers.") || used.contains(name)) continue;
    if (name.ends_with(".rotary_emb.inv_freq")) continue;  // computed; old checkpoints store it
    if (config.fp8 && is_scale_of_activations(name)) continue;
    fail("{}: tensor {} is no part of a {} of {} layers as config.json describes it, and would be "
         "ignored; check config.json, or convert the model to the plain architecture",
         checkpoint_->file_of(name), name, name_of(config.architecture), config.n_layers);
  }
}

// first_element: of its tensor in the checkpoint.
void WeightStore::check_finite(const TensorInfo& tensor, int64_t first_element) const {
  const std::optional<int64_t> bad = find_non_finite(tensor);
  if (!bad) return;
  fail("{}: tensor {}: element {} is NaN or infinite; the checkpoint is damaged or was not fully "
       "written, fetch it again",
       checkpoint_->file_of(tensor.name), tensor.name, first_element + *bad);
}

// As to_bf16: decoded, and with the channels of heads in the engine's order.
int64_t WeightStore::copy_rows(const Wanted& wanted, bf16* out) const {
  if (!wanted.is_moved && !wanted.scaled) return to_bf16(wanted.tensor, out);
  const int64_t n_rows = wanted.tensor.shape[0], row_elements = wanted.row_elements();
  const auto d = static_cast<int64_t>(channel_order_.size());
  TensorInfo row = rows_of(wanted.tensor, 0, 1);
  int64_t overflowed = 0;
  for (int64_t r = 0; r < n_rows; ++r, out += row_elements) {
    const int64_t source =
        wanted.is_moved ? r / d * d + channel_order_[static_cast<size_t>(r % d)] : r;
    if (wanted.scaled) {
      overflowed += wanted.scaled->decode_row(wanted.first_row + source, out);
    } else {
      row.data = wanted.tensor.data + static_cast<uint64_t>(source) * row.bytes;
      overflowed += to_bf16(row, out);
    }
  }
  return overflowed;
}

// Checks tensors first .. and copies those that have a place in `copies`: on all threads, some rows at a time. The
// first bad one in their order is the one reported.
void WeightStore::read(size_t first, std::span<bf16* const> copies) const {
  constexpr int64_t kElements = int64_t{4} << 20;  // of an item
  struct Item {
    Wanted rows;
    bf16* out;
    bool is_bad = false;
    int64_t overflowed = 0;
  };
  std::vector<Item> items;
  for (size_t i = 0; i < copies.size(); ++i) {
    const Wanted& wanted = wanted_[first + i];
    const int64_t n_rows = wanted.tensor.shape[0], row_elements = wanted.row_elements();
    // Rows change places within a head only.
    const int64_t unit = wanted.is_moved ? static_cast<int64_t>(channel_order_.size()) : 1;
    const int64_t of_item = std::max<int64_t>(kElements / (row_elements * unit), 1) * unit;
    for (int64_t row = 0; row < n_rows; row += of_item) {
      Item& item = items.emplace_back(Item{wanted, copies[i] != nullptr ? copies[i] + row * row_elements : nullptr});
      item.rows.tensor = rows_of(wanted.tensor, row, std::min(of_item, n_rows - row));
      item.rows.first_row += row;
    }
  }
  queue_.for_each(std::ssize(items), [&](int64_t n, cpu::Worker&) {
    Item& item = items[static_cast<size_t>(n)];
    item.is_bad = find_non_finite(item.rows.tensor).has_value();
    if (item.out == nullptr) return;
    item.overflowed = copy_rows(item.rows, item.out);
    wont_need(item.rows.tensor);
  });
  for (const Item& item : items) {
    const TensorInfo& tensor = item.rows.tensor;
    if (item.is_bad) check_finite(tensor, item.rows.first_row * item.rows.row_elements());
    if (item.overflowed > 0) {
      fail("{}: tensor {}: at least {} values are too large for bf16", checkpoint_->file_of(tensor.name), tensor.name,
           item.overflowed);
    }
  }
}

// Points every target at its values: in place, or copied.
void WeightStore::place() {
  bytes_ = n_parameters_ * static_cast<int64_t>(sizeof(bf16));
  const bool copy_all = bytes_ < kCopyBelow;
  std::vector<int64_t> offset(wanted_.size(), -1);
  int64_t elements = 0;
  for (size_t i = 0; i < wanted_.size(); ++i) {
    const bool in_place = !copy_all && wanted_[i].is_as_wanted();
    in_place_ |= in_place;
    if (in_place) continue;
    offset[i] = elements;
    elements += aligned(wanted_[i].tensor.n_elements());
  }
  check_room(checkpoint_->file_of(wanted_.front().tensor.name), elements);
  block_bytes_ = elements * static_cast<int64_t>(sizeof(bf16));
  block_ = static_cast<bf16*>(cpu::map_pages(static_cast<size_t>(block_bytes_)));
  std::vector<bf16*> copies(wanted_.size());
  for (size_t i = 0; i < wanted_.size(); ++i) copies[i] = offset[i] >= 0 ? block_ + offset[i] : nullptr;
  read(0, copies);
  for (size_t i = 0; i < wanted_.size(); ++i) {
    *wanted_[i].target =
        copies[i] != nullptr ? copies[i] : reinterpret_cast<const bf16*>(wanted_[i].tensor.data);
  }
}

void read_weights(const std::string& directory, const ModelConfig& config, cpu::Queue& queue, const PutWeights& put,
                  int64_t elements_at_once) {
  const std::unique_ptr<WeightStore> store = WeightStore::open(directory, config, queue);
  store->checkpoint_->will_need();
  store->check_tied_head(config);
  const std::vector<WeightStore::Wanted>& wanted = store->wanted_;
  std::unique_ptr<bf16[]> buffer;
  int64_t room = 0;
  for (size_t first = 0; first < wanted.size();) {
    size_t end = first;
    int64_t elements = 0, copied = 0;
    std::vector<int64_t> offset;
    for (; end < wanted.size(); ++end) {
      const int64_t n = aligned(wanted[end].tensor.n_elements());
      if (end > first && elements + n > elements_at_once) break;
      elements += n;
      offset.push_back(wanted[end].is_as_wanted() ? -1 : copied);
      if (offset.back() >= 0) copied += n;
    }
    if (copied > room) {
      buffer.reset();  // before there are two
      buffer = std::make_unique_for_overwrite<bf16[]>(static_cast<size_t>(copied));
      room = copied;
    }
    std::vector<bf16*> copies;
    for (const int64_t at : offset) copies.push_back(at >= 0 ? buffer.get() + at : nullptr);
    store->read(first, copies);
    for (size_t i = first; i < end; ++i) {
      const bf16* copy = copies[i - first];
      put(i, copy != nullptr ? copy : reinterpret_cast<const bf16*>(wanted[i].tensor.data));
      wont_need(wanted[i].tensor);
    }
    first = end;
  }
}

}  // namespace tiercel
