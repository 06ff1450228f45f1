// The weights of a decoder by role: which tensors a model has, how each is kept, and how large they are.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/base/dtype.h"
#include "engine/base/ops.h"
#include "engine/config.h"

namespace tiercel {

// A matrix of every expert of a layer.
struct ExpertWeights {
  std::vector<const bf16*> of;
  int64_t stride = 0;  // as of ExpertMatrices
  WeightCodec codec;
  ExpertMatrices matrices() const { return {of.data(), of[0], stride, codec}; }
};

struct LayerWeights {
  const bf16 *attention_norm = nullptr, *mlp_norm = nullptr;           // [hidden]
  const bf16 *attention_post_norm = nullptr, *mlp_post_norm = nullptr;  // [hidden] or null
  WeightMatrix q, k, v;            // [width][hidden]
  WeightMatrix qkv;                // the three as one matrix, where they lie behind each other; or null
  const bf16* qkv_bias = nullptr;  // likewise, or null
  const bf16 *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr;  // [width] or null
  const bf16 *q_norm = nullptr, *k_norm = nullptr;                     // [head_dim] or null
  const bf16 *delta = nullptr, *a = nullptr;  // [n_kv_heads][kv width], [n_kv_heads]; or null
  WeightMatrix o;                  // [hidden][q width]
  const bf16* o_bias = nullptr;    // [hidden] or null
  WeightMatrix gate, up, down;     // [ffn][hidden] x2, [hidden][ffn]
  // Instead of these, where the layer has experts: [experts][hidden], and each expert's.
  const bf16* router = nullptr;
  ExpertWeights expert_gate, expert_up, expert_down;
  const bf16 *gate_bias = nullptr, *up_bias = nullptr, *down_bias = nullptr;
  // Where the layer feeds from host memory (ModelConfig): all of gate, up and down, or of the experts', with
  // what lies between them.
  std::span<const bf16> host_block;
};

struct Weights {
  WeightMatrix embedding;            // [vocab][hidden]
  const bf16* final_norm = nullptr;  // [hidden]
  WeightMatrix head;                 // [vocab][hidden]; the embedding when tied
  std::vector<LayerWeights> layers;
};

// A tensor of a model, and where its values are to be found.
struct WeightTensor {
  const bf16** target;
  std::string name;            // of the checkpoint's tensor that holds it
  std::vector<int64_t> shape;  // of ours
  // Where several of ours are one in the checkpoint (qkv_proj, gate_up_proj): rows first_row .. of
  // stored_rows are this one. stored_rows 0: it is by itself.
  int64_t first_row = 0, stored_rows = 0;
  bool turns = false;  // its rows are channels of heads that RoPE turns
  int64_t feeds_layer = -1;  // whose feed-forward matrix it is; gate, up and down follow each other
  bool is_embedding = false;
  WeightCodec codec = {};  // how it is kept
  int64_t n_elements() const {
    int64_t n = 1;
    for (const int64_t extent : shape) n *= extent;
    return n;
  }
  // Of memory, as it is kept; 2 bytes each.
  int64_t kept_elements() const { return codec.is_coded() ? shape[0] * codec.row_bytes(shape[1]) / 2 : n_elements(); }
};

// Every tensor of a model of this configuration, in a fixed order; the targets lie in `weights`,
// whose layers are made, and know their codecs. A tied head has no tensor of its own.
std::vector<WeightTensor> weight_tensors(const ModelConfig& config, Weights& weights);

// Sets weight_form of a configuration that is complete otherwise, and what follows from it (ModelConfig::kept).
void set_weight_form(ModelConfig& config, WeightForm form);
// What set_weight_form has found, or would.
KeptWeights kept_weights(const ModelConfig& config);

// Sets qkv of every layer whose q, k and v (and biases) lie behind each other, and the stride of experts that
// lie at equal distances.
void join_projections(const ModelConfig& config, Weights& weights);

// What fills these tensors for a synthetic model: matrices of standard deviation 1 / sqrt(inputs), so
// that activations keep their size, norms of one, biases of a tenth.
std::vector<RandomParams> synthetic_weights(const std::vector<WeightTensor>& tensors);

// Elements from one tensor's beginning to the next one's at least, in blocks beside a GPU: for the widest loads
// (256 bytes).
constexpr int64_t aligned_elements(int64_t n) { return (n + 127) / 128 * 128; }
// Whether a tensor stays in host memory (ModelConfig::host_layers).
bool stays_on_host(const ModelConfig& config, const WeightTensor& tensor);
// Bytes of all tensors as they are kept; the same in such blocks; of those that stay in host memory; and of those of
// one layer, the most of any.
int64_t weight_bytes(const ModelConfig& config);
int64_t aligned_weight_bytes(const ModelConfig& config);
int64_t host_weight_bytes(const ModelConfig& config);
int64_t largest_host_layer_bytes(const ModelConfig& config);
// The fewest host_layers with which so many bytes less of device memory would be needed; 0: no number is enough.
int64_t host_layers_to_free(ModelConfig config, int64_t bytes);

// Parameters that a model of this configuration has; tied embeddings count once.
int64_t parameter_count(const ModelConfig& config);
// Those of a layer's feed-forward matrices: gate, up and down, or all of the experts'.
int64_t feed_forward_parameters(const ModelConfig& config, int64_t layer);
// Bytes of some of them as they are kept: of a layer's feed-forward matrices; of what logits are made of; of what
// tokens become.
int64_t feed_forward_bytes(const ModelConfig& config, int64_t layer);
int64_t head_bytes(const ModelConfig& config);
int64_t embedding_bytes(const ModelConfig& config);

}  // namespace tiercel
