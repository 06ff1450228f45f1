// A decoder but for its attention: embedding, norms, linear layers and logits, for several rows
// (tokens) at a time. Written once for every backend; what reads and writes keys is a KvStore.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/backend.h"
#include "engine/config.h"
#include "engine/feed_forward_stage.h"
#include "engine/weights.h"
#include "offload/arena.h"
#include "offload/kv_store.h"

namespace tiercel {

// Its buffers, in elements of bf16 unless said.
struct TransformerLayout {
  // n_prompt_rows: tokens of a prompt that run through a layer together; n_step_rows: sequences that
  // take a step together; n_logit_rows: rows whose logits are wanted at once.
  // positions: of the longest sequence.
  TransformerLayout(const ModelConfig& config, int64_t positions, int64_t n_prompt_rows,
                    int64_t n_step_rows, int64_t n_logit_rows);
  int64_t bytes() const;

  int64_t normed = 0;     // [rows][hidden]
  int64_t q = 0, kv = 0;  // [rows][q width], [rows][kv width]
  int64_t qkv = 0;        // [step rows]: q, k and v of a row side by side
  // Where queries may have several views: of a step's rows one after the other, [step rows][views][q
  // width], or one view of a run, [prompt rows][q width].
  int64_t views_of_row = 0, views = 0;
  int64_t ffn = 0;        // [rows][widest MLP]
  int64_t logits = 0;     // fp32
  // Of experts, where there are some: a pair is a row and an expert of it.
  int64_t mixed = 0;          // [pairs][hidden]
  int64_t router_logits = 0;  // fp32, [rows][experts]
  int64_t pairs = 0;          // what is kept of each: int32, and one fp32
  int64_t expert_starts = 0;  // int32, [experts + 1]
  int64_t staged = 0;  // the largest layer's matrices that are brought from host memory
};

// What rows are. Those of steps and of appended tokens are computed "alone": a row's bits do not depend on how many
// there are.
enum class RowsOf : uint8_t { kPrompt, kAppend, kSteps };

template <Backend Device>
class Transformer {
 public:
  // Takes its buffers from the arena; the others outlive it. upload: carries weights from host memory.
  Transformer(Device& device, Device& upload, Arena<Device>& arena, const ModelConfig& config,
              const Weights& weights, const TransformerLayout& layout)
      : device_(device),
        config_(config),
        weights_(weights),
        stage_(device, upload, weights, arena.template take<bf16>(Purpose::kActivations, layout.staged)) {
    auto take = [&](int64_t n) { return arena.template take<bf16>(Purpose::kActivations, n); };
    normed_ = take(layout.normed);
    q_ = take(layout.q);
    k_ = take(layout.kv);
    v_ = take(layout.kv);
    qkv_ = take(layout.qkv);
    views_ = take(layout.views);
    views_of_row_ = layout.views_of_row;
    attended_ = take(layout.q);
    gate_ = take(layout.ffn);
    up_ = take(layout.ffn);
    logits_ = arena.template take<float>(Purpose::kActivations, layout.logits);
    mixed_ = take(layout.mixed);
    router_logits_ = arena.template take<float>(Purpose::kActivations, layout.router_logits);
    routes_.weights = arena.template take<float>(Purpose::kActivations, layout.pairs);
    for (int32_t** list : {&routes_.chosen, &routes_.order, &routes_.place}) {
      *list = arena.template take<int32_t>(Purpose::kActivations, layout.pairs);
    }
    routes_.starts = arena.template take<int32_t>(Purpose::kActivations, layout.expert_starts);
  }

  const ModelConfig& config() const { return config_; }

  // x: [n][hidden]
  void embed_tokens(const int32_t* ids, bf16* x, int64_t n);
  // Rows like these come to this layer: weights that they need next set out.
  void begin_layer(int64_t layer, RowsOf rows, int64_t n) {
    if (brings_weights(rows, n)) stage_.bring_from(layer);
  }
  // Of n consecutive tokens of one prompt.
  Projections prompt_inputs(int64_t layer, const bf16* x, int64_t n);
  // Of one token each of n sequences, whose projections become rows first_row .. of the step; those
  // of its other rows stay, so that two parts of a step may be in different layers. A row's bits
  // depend neither on n nor on the other rows, here and in whatever is told `alone`.
  void step_inputs(int64_t layer, const bf16* x, int64_t n, int64_t first_row = 0);
  Projections step_row(int64_t layer, int64_t row) const;
  // Where attention writes [rows][q width] before end_layer.
  bf16* attended() { return attended_; }
  // Output projection and MLP of n rows attended from first_row on, added to x.
  void end_layer(int64_t layer, bf16* x, int64_t n, RowsOf rows, int64_t first_row = 0);
  // To logits(): [n][vocab_size].
  void make_logits(const bf16* x, int64_t n, bool alone);
  float* logits() { return logits_; }

 private:
  const LayerWeights& weights_of(int64_t layer) const {
    return weights_.layers[static_cast<size_t>(layer)];
  }
  // Whether these rows' products would read a matrix more than once where it lies in host memory: a prompt's,
  // but for the few that one reading serves; appended ones, if they are more than a launch on a device with little
  // shared memory takes. Steps, which may be recorded, bring nothing.
  static bool brings_weights(RowsOf rows, int64_t n) {
    switch (rows) {
      case RowsOf::kPrompt: return n > 8;
      case RowsOf::kAppend: return n > 32;
      case RowsOf::kSteps: break;
    }
    return false;
  }
  void add_mlp(const LayerWeights& w, bf16* x, int64_t n, bool alone);
  void add_experts(const LayerWeights& w, bf16* x, int64_t n, bool alone);
  void norm(const bf16* x, const bf16* weight, int64_t n, bf16* out, const bf16* added = nullptr);
  void project(const bf16* x, const WeightMatrix& weight, const bf16* bias, bf16* out, int64_t n, int64_t k,
               int64_t width, bool accumulate, bool alone);
  // What was normed, [n][hidden], to fp32 [n][width].
  void project_normed(const WeightMatrix& weight, float* out, int64_t n, int64_t width, bool alone);
  void add_projected(const bf16* y, const WeightMatrix& weight, const bf16* bias, const bf16* post_norm,
                     bf16* x, int64_t n, int64_t k, bool alone);
  Projections separate_inputs(const LayerWeights& w, const bf16* x, int64_t n, bool alone,
                              int64_t first_row);

  Device& device_;
  const ModelConfig& config_;
  const Weights& weights_;
  FeedForwardStage<Device> stage_;
  bf16 *normed_ = nullptr, *q_ = nullptr, *k_ = nullptr, *v_ = nullptr, *qkv_ = nullptr;
  bf16* views_ = nullptr;
  int64_t views_of_row_ = 0;
  bf16 *attended_ = nullptr, *gate_ = nullptr, *up_ = nullptr;
  float* logits_ = nullptr;
  bf16* mixed_ = nullptr;
  float* router_logits_ = nullptr;
  ExpertRoutes routes_;
};

template <Backend Device>
void Transformer<Device>::embed_tokens(const int32_t* ids, bf16* x, int64_t n) {
  EmbedParams params;
  params.ids = ids;
  params.table = weights_.embedding;
  params.out = x;
  params.n_tokens = n;
  params.vocab = config_.vocab_size;
  params.width = config_.hidden;
  embed(device_, params);
}

template <Backend Device>
void Transformer<Device>::norm(const bf16* x, const bf16* weight, int64_t n, bf16* out,
                               const bf16* added) {
  NormParams params;
  params.x = x;
  params.weight = weight;
  params.out = out;
  params.n_rows = n;
  params.width = config_.hidden;
  params.eps = static_cast<float>(config_.rms_eps);
  params.added = added;
  rms_norm(device_, params);
}

template <Backend Device>
void Transformer<Device>::project(const bf16* x, const WeightMatrix& weight, const bf16* bias, bf16* out,
                                  int64_t n, int64_t k, int64_t width, bool accumulate,
                                  bool alone) {
  LinearParams params;
  params.x = x;
  params.weight = weight;
  params.bias = bias;
  params.out = out;
  params.m = n;
  params.k = k;
  params.n = width;
  params.accumulate = accumulate;
  params.alone = alone;
  linear(device_, params);
}

template <Backend Device>
Projections Transformer<Device>::separate_inputs(const LayerWeights& w, const bf16* x, int64_t n,
                                                 bool alone, int64_t first_row) {
  const int64_t hidden = config_.hidden, kv = config_.kv_width();
  bf16* q = q_ + first_row * config_.q_width();
  bf16 *k = k_ + first_row * kv, *v = v_ + first_row * kv;
  norm(x, w.attention_norm, n, normed_);
  project(normed_, w.q, w.q_bias, q, n, hidden, config_.q_width(), false, alone);
  project(normed_, w.k, w.k_bias, k, n, hidden, kv, false, alone);
  project(normed_, w.v, w.v_bias, v, n, hidden, kv, false, alone);
  return {q, k, v, w.q_norm, w.k_norm, static_cast<float>(config_.rms_eps), n, w.delta, w.a, views_};
}

template <Backend Device>
Projections Transformer<Device>::prompt_inputs(int64_t layer, const bf16* x, int64_t n) {
  if (n == 1) {
    step_inputs(layer, x, 1);
    return step_row(layer, 0);
  }
  return separate_inputs(weights_of(layer), x, n, false, 0);
}

// One product for q, k and v where their weights lie behind each other.
template <Backend Device>
void Transformer<Device>::step_inputs(int64_t layer, const bf16* x, int64_t n, int64_t first_row) {
  const LayerWeights& w = weights_of(layer);
  if (!w.qkv) {
    separate_inputs(w, x, n, true, first_row);
    return;
  }
  const int64_t width = config_.q_width() + 2 * config_.kv_width();
  NormLinearParams params;
  params.linear.x = x;
  params.linear.weight = w.qkv;
  params.linear.bias = w.qkv_bias;
  params.linear.out = qkv_ + first_row * width;
  params.linear.m = n;
  params.linear.k = config_.hidden;
  params.linear.n = width;
  params.linear.alone = true;
  params.norm_weight = w.attention_norm;
  params.eps = static_cast<float>(config_.rms_eps);
  params.normed = normed_;
  norm_linear(device_, params);
}

template <Backend Device>
Projections Transformer<Device>::step_row(int64_t layer, int64_t row) const {
  const LayerWeights& w = weights_of(layer);
  const int64_t q = config_.q_width(), kv = config_.kv_width();
  const float eps = static_cast<float>(config_.rms_eps);
  bf16* views = views_ + row * views_of_row_;
  if (!w.qkv) {
    return {q_ + row * q, k_ + row * kv, v_ + row * kv, w.q_norm, w.k_norm, eps, 1, w.delta, w.a, views};
  }
  bf16* joined = qkv_ + row * (q + 2 * kv);
  return {joined, joined + q, joined + q + kv, w.q_norm, w.k_norm, eps, 1, w.delta, w.a, views};
}

template <Backend Device>
void Transformer<Device>::end_layer(int64_t layer, bf16* x, int64_t n, RowsOf rows,
                                    int64_t first_row) {
  const bool alone = rows != RowsOf::kPrompt;
  const LayerWeights& w = brings_weights(rows, n) ? stage_.at(layer) : weights_of(layer);
  const int64_t q = config_.q_width();
  add_projected(attended_ + first_row * q, w.o, w.o_bias, w.attention_post_norm, x, n, q, alone);
  if (config_.has_experts(layer)) {
    add_experts(w, x, n, alone);
  } else {
    add_mlp(w, x, n, alone);
  }
}

template <Backend Device>
void Transformer<Device>::add_mlp(const LayerWeights& w, bf16* x, int64_t n, bool alone) {
  GatedLinearParams params;
  params.x = x;
  params.norm_weight = w.mlp_norm;
  params.gate = w.gate;
  params.up = w.up;
  params.gate_bias = w.gate_bias;
  params.up_bias = w.up_bias;
  params.out = gate_;
  params.m = n;
  params.k = config_.hidden;
  params.n = config_.intermediate;
  params.eps = static_cast<float>(config_.rms_eps);
  params.alone = alone;
  params.normed = normed_;
  params.up_result = up_;
  gated_linear(device_, params);
  add_projected(gate_, w.down, w.down_bias, w.mlp_post_norm, x, n, config_.intermediate, alone);
}

template <Backend Device>
void Transformer<Device>::add_experts(const LayerWeights& w, bf16* x, int64_t n, bool alone) {
  const Experts& experts = config_.experts;
  norm(x, w.mlp_norm, n, normed_);
  project_normed(w.router, router_logits_, n, experts.n, alone);
  RouteParams route;
  route.logits = router_logits_;
  route.n_tokens = n;
  route.n_experts = static_cast<int32_t>(experts.n);
  route.n_chosen = static_cast<int32_t>(experts.n_chosen);
  route.normalise = experts.normalise;
  route.routes = routes_;
  route_experts(device_, route);
  MixExpertsParams params;
  params.x = normed_;
  params.out = x;
  params.routes = routes_;
  params.gate = w.expert_gate.matrices();
  params.up = w.expert_up.matrices();
  params.down = w.expert_down.matrices();
  params.n_tokens = n;
  params.width = config_.hidden;
  params.inner = experts.intermediate;
  params.n_experts = route.n_experts;
  params.n_chosen = route.n_chosen;
  params.alone = alone;
  params.gated = gate_;
  params.up_result = up_;
  params.mixed = mixed_;
  mix_experts(device_, params);
}

// To the residual stream: a product, or where there is a norm, that of the product.
template <Backend Device>
void Transformer<Device>::add_projected(const bf16* y, const WeightMatrix& weight, const bf16* bias,
                                        const bf16* post_norm, bf16* x, int64_t n, int64_t k,
                                        bool alone) {
  const bool adds = post_norm == nullptr;
  project(y, weight, bias, adds ? x : normed_, n, k, config_.hidden, adds, alone);
  if (!adds) norm(normed_, post_norm, n, x, /*added=*/x);
}

template <Backend Device>
void Transformer<Device>::make_logits(const bf16* x, int64_t n, bool alone) {
  norm(x, weights_.final_norm, n, normed_);
  project_normed(weights_.head, logits_, n, config_.vocab_size, alone);
}

template <Backend Device>
void Transformer<Device>::project_normed(const WeightMatrix& weight, float* out, int64_t n, int64_t width, bool alone) {
  LinearParams params;
  params.x = normed_;
  params.weight = weight;
  params.out = out;
  params.m = n;
  params.k = config_.hidden;
  params.n = width;
  params.out_type = DType::kF32;
  params.alone = alone;
  linear(device_, params);
}

}  // namespace tiercel
