// The decoder: a grouped-query transformer over a KvStore, written once for every backend.
//
// Prefill is layer-major: the hidden states of the whole prompt stay put and are updated in place,
// layer after layer, so only one layer's exact keys and values exist at a time. A decode step runs
// one token through all layers. The decoder allocates when it is made and when a prompt begins; a
// decode step allocates nothing.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/backend.h"
#include "engine/options.h"
#include "engine/weights.h"
#include "offload/kv_store.h"

namespace tiercel {

// Rows of logits that are made at once when every position's log-probability is wanted.
inline constexpr int64_t kLogprobRows = 128;
// Device memory in which the most likely token is found.
inline constexpr int64_t kBestWorkspaceBytes = 256;
// Tokens of decode steps that may be on their way to the device at once.
inline constexpr int64_t kTokenRing = 64;

// The decoder's own buffers, in elements of bf16 unless said.
struct DecoderLayout {
  // staged: the host cannot read the device's memory, so ids and results travel through buffers.
  DecoderLayout(const ModelConfig& config, int64_t n_prompt, bool logprobs, bool staged);
  int64_t bytes() const;       // on the device
  int64_t host_bytes() const;  // on the host

  int64_t rows = 0;         // tokens that run through a layer together
  int64_t hidden = 0;       // [n_prompt][hidden]
  int64_t normed = 0;       // [rows][hidden]
  int64_t q = 0, kv = 0;    // [rows][q width], [rows][kv width]
  int64_t qkv = 0;          // q, k and v of one row, side by side
  int64_t ffn = 0;          // [rows][intermediate]
  int64_t prompt_end = 0;   // [hidden]
  int64_t logits = 0;       // fp32
  int64_t ids = 0;          // int32, staged only
  int64_t logprobs = 0;     // fp64, staged only
  int64_t host_logits = 0;  // fp32, staged only
};

// A run of consecutive prompt tokens that passes through a layer in one piece.
struct PromptRun {
  int64_t first = 0, n_tokens = 0;
  bool dense = true;
};
// FLOPs of one layer for one run; what progress is measured in.
double layer_flops(const ModelConfig& config, const KvSettings& settings, int64_t window,
                   const PromptRun& run);

// Cuts a prompt into runs: at most kPrefillChunk tokens each, fewer where a dense run would take
// long (progress and Ctrl-C act between runs), and with selection a dense tail of its own that
// starts on a chunk boundary. The cut depends on shapes only.
std::vector<PromptRun> cut_prompt(const ModelConfig& config, const KvSettings& settings,
                                  int64_t n_tokens, double run_flops);

// After so many replays a step is recorded again: attention is cut for the length at the recording.
inline constexpr int64_t kMaxReplays = kMaxLater;

template <typename Q>
struct GraphOf {
  struct None {};
  using Type = None;
};
template <Replays Q>
struct GraphOf<Q> {
  using Type = typename Q::Graph;
};

template <Backend Device, HostTier Host>
class Decoder {
 public:
  static constexpr bool kStaged = !Device::kHostReadable;

  Decoder(Device& device, Arena<Device>& arena, Arena<Host>& host_arena, const ModelConfig& config,
          const Weights& weights, KvStore<Device, Host>& store, const DecoderLayout& layout)
      : device_(device),
        arena_(arena),
        config_(config),
        weights_(weights),
        store_(store),
        layout_(layout) {
    auto take = [&](int64_t n) { return arena_.template take<bf16>(Purpose::kActivations, n); };
    hidden_ = take(layout_.hidden);
    normed_ = take(layout_.normed);
    q_ = take(layout_.q);
    k_ = take(layout_.kv);
    v_ = take(layout_.kv);
    qkv_ = take(layout_.qkv);
    prompt_end_ = take(layout_.prompt_end);
    attended_ = take(layout_.q);
    gate_ = take(layout_.ffn);
    up_ = take(layout_.ffn);
    logits_ = arena_.template take<float>(Purpose::kActivations, layout_.logits);
    ids_ = arena_.template take<int32_t>(Purpose::kActivations, layout_.ids);
    logprobs_ = arena_.template take<double>(Purpose::kActivations, layout_.logprobs);
    host_logits_ = host_arena.template take<float>(Purpose::kActivations, layout_.host_logits);
    if (kStaged) {
      host_tokens_ = host_arena.template take<int32_t>(Purpose::kActivations, kTokenRing + 1);
      host_best_ = host_tokens_ + kTokenRing;
      best_workspace_ = arena_.template take<std::byte>(Purpose::kActivations, kBestWorkspaceBytes);
    }
  }

  // logprobs: empty, or [n - 1]. False: the callback asked to stop.
  bool prefill(std::span<const int32_t> ids, std::span<double> logprobs,
               const ProgressCallback& progress);
  void step(int32_t token);
  // After the store went back to the end of the prompt: its logits again.
  void rewind();
  // What is kept here from one step to the next: logits [vocab_size] of the last token, and the
  // last prompt token's hidden state [hidden]. Reading waits for them; writing replaces a prefill.
  void read_end(float* logits, bf16* prompt_end);
  void write_end(const float* logits, const bf16* prompt_end);
  // The next steps are enqueued anew: what was recorded no longer describes them.
  void forget_recording() { n_replays_ = kMaxReplays; }
  // Waits for them.
  std::span<const float> logits() {
    if (kStaged && !logits_are_here_) {
      move(logits_, host_logits_, config_.vocab_size * static_cast<int64_t>(sizeof(float)));
    }
    logits_are_here_ = true;
    device_.finish();
    return {kStaged ? host_logits_ : logits_, static_cast<size_t>(config_.vocab_size)};
  }
  // The most likely token, found where the logits are; nothing where the host reads them anyway, or
  // where no token can be named (NaN). Waits for it.
  std::optional<int32_t> best_token() {
    if (!kStaged) return std::nullopt;
    device_.finish();
    return *host_best_ >= 0 ? std::optional(*host_best_) : std::nullopt;
  }

 private:
  const int32_t* upload_ids(std::span<const int32_t> ids);
  void embed_tokens(const int32_t* ids, int64_t n);
  void move(const void* source, void* target, int64_t bytes);
  void find_best();
  void enqueue_step(const int32_t* id);
  bool step_by_graph(const int32_t* id);
  void norm(const bf16* x, const bf16* weight, int64_t n);
  void project(const bf16* x, const bf16* weight, const bf16* bias, bf16* out, int64_t n, int64_t k,
               int64_t width, bool accumulate = false);
  Projections attention_inputs(const LayerWeights& w, const bf16* x, int64_t n);
  Projections joined_inputs(const LayerWeights& w, const bf16* x);
  void attention_output(const LayerWeights& w, bf16* x, int64_t n);
  void mlp(const LayerWeights& w, bf16* x, int64_t n);
  void run_layer(int64_t layer, const PromptRun& run);
  void make_logits(const bf16* x, int64_t n);
  void score_prompt(std::span<const int32_t> ids, std::span<double> logprobs);

  Device& device_;
  Arena<Device>& arena_;
  const ModelConfig& config_;
  const Weights& weights_;
  KvStore<Device, Host>& store_;
  DecoderLayout layout_;
  bf16 *hidden_ = nullptr, *normed_ = nullptr, *q_ = nullptr, *k_ = nullptr, *v_ = nullptr;
  bf16* qkv_ = nullptr;
  bf16* prompt_end_ = nullptr;  // [hidden]: the last prompt token's
  bf16 *attended_ = nullptr, *gate_ = nullptr, *up_ = nullptr;
  float* logits_ = nullptr;
  int32_t* ids_ = nullptr;          // [n_prompt] on the device
  double* logprobs_ = nullptr;      // [kLogprobRows] on the device
  float* host_logits_ = nullptr;    // [vocab]
  int32_t* host_tokens_ = nullptr;  // [kTokenRing]
  int32_t* host_best_ = nullptr;    // written by the device
  std::byte* best_workspace_ = nullptr;
  bool logits_are_here_ = false;  // on the host
  int64_t n_steps_ = 0;
  typename GraphOf<Device>::Type graph_;
  int64_t n_replays_ = kMaxReplays;  // of what graph_ holds; kMaxReplays: it is not to be replayed
};

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::move(const void* source, void* target, int64_t bytes) {
  CopyParams params;
  params.source = source;
  params.target = target;
  params.row_bytes = bytes;
  copy(device_, params);
}

// The ids where the device reads them.
template <Backend Device, HostTier Host>
const int32_t* Decoder<Device, Host>::upload_ids(std::span<const int32_t> ids) {
  if (!kStaged) return ids.data();
  const auto bytes = static_cast<int64_t>(ids.size_bytes());
  if (ids.size() == 1) {
    const int64_t at = n_steps_ % kTokenRing;
    if (at == 0) device_.finish();  // its copies have ended before the ring is written again
    host_tokens_[at] = ids[0];
    move(host_tokens_ + at, ids_, bytes);
  } else {
    move(ids.data(), ids_, bytes);
  }
  return ids_;
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::embed_tokens(const int32_t* ids, int64_t n) {
  EmbedParams params;
  params.ids = ids;
  params.table = weights_.embedding;
  params.out = hidden_;
  params.n_tokens = n;
  params.vocab = config_.vocab_size;
  params.width = config_.hidden;
  embed(device_, params);
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::norm(const bf16* x, const bf16* weight, int64_t n) {
  NormParams params;
  params.x = x;
  params.weight = weight;
  params.out = normed_;
  params.n_rows = n;
  params.width = config_.hidden;
  params.eps = static_cast<float>(config_.rms_eps);
  rms_norm(device_, params);
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::project(const bf16* x, const bf16* weight, const bf16* bias, bf16* out,
                                    int64_t n, int64_t k, int64_t width, bool accumulate) {
  LinearParams params;
  params.x = x;
  params.weight = weight;
  params.bias = bias;
  params.out = out;
  params.m = n;
  params.k = k;
  params.n = width;
  params.accumulate = accumulate;
  linear(device_, params);
}

template <Backend Device, HostTier Host>
Projections Decoder<Device, Host>::attention_inputs(const LayerWeights& w, const bf16* x,
                                                    int64_t n) {
  if (n == 1 && w.qkv != nullptr) return joined_inputs(w, x);
  norm(x, w.attention_norm, n);
  project(normed_, w.q, w.q_bias, q_, n, config_.hidden, config_.q_width());
  project(normed_, w.k, w.k_bias, k_, n, config_.hidden, config_.kv_width());
  project(normed_, w.v, w.v_bias, v_, n, config_.hidden, config_.kv_width());
  return {q_, k_, v_, w.q_norm, w.k_norm, static_cast<float>(config_.rms_eps), n};
}

// One product for q, k and v of a single row.
template <Backend Device, HostTier Host>
Projections Decoder<Device, Host>::joined_inputs(const LayerWeights& w, const bf16* x) {
  const int64_t q = config_.q_width(), kv = config_.kv_width();
  NormLinearParams params;
  params.linear.x = x;
  params.linear.weight = w.qkv;
  params.linear.bias = w.qkv_bias;
  params.linear.out = qkv_;
  params.linear.m = 1;
  params.linear.k = config_.hidden;
  params.linear.n = q + 2 * kv;
  params.norm_weight = w.attention_norm;
  params.eps = static_cast<float>(config_.rms_eps);
  params.normed = normed_;
  norm_linear(device_, params);
  return {qkv_, qkv_ + q, qkv_ + q + kv, w.q_norm, w.k_norm, params.eps, 1};
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::attention_output(const LayerWeights& w, bf16* x, int64_t n) {
  project(attended_, w.o, w.o_bias, x, n, config_.q_width(), config_.hidden, true);
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::mlp(const LayerWeights& w, bf16* x, int64_t n) {
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
  params.normed = normed_;
  params.up_result = up_;
  gated_linear(device_, params);
  project(gate_, w.down, w.down_bias, x, n, config_.intermediate, config_.hidden, true);
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::run_layer(int64_t layer, const PromptRun& run) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  bf16* x = hidden_ + run.first * config_.hidden;
  store_.append_prompt(layer, attention_inputs(w, x, run.n_tokens), run.first);
  store_.attend_prompt(layer, q_, run.first, run.n_tokens, run.dense, attended_);
  attention_output(w, x, run.n_tokens);
  mlp(w, x, run.n_tokens);
}

template <Backend Device, HostTier Host>
bool Decoder<Device, Host>::prefill(std::span<const int32_t> ids, std::span<double> logprobs,
                                    const ProgressCallback& progress) {
  using Clock = std::chrono::steady_clock;
  const auto n = static_cast<int64_t>(ids.size());
  const KvSettings& settings = store_.layout().settings;
  const std::vector<PromptRun> runs = cut_prompt(config_, settings, n, Device::kRunFlops);
  double total = 0, done = 0;
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
    for (const PromptRun& run : runs) {
      total += layer_flops(config_, settings, config_.sliding_window[layer], run);
    }
  }
  const auto start = Clock::now();
  auto report = [&] {
    if (!progress) return true;
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    const double fraction = done / total;
    return progress({"prefill", fraction, static_cast<int64_t>(fraction * n), n, seconds});
  };
  embed_tokens(upload_ids(ids), n);
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
    for (const PromptRun& run : runs) {
      run_layer(layer, run);
      done += layer_flops(config_, settings, config_.sliding_window[layer], run);
      if (progress) device_.finish();  // what is reported is done
      if (!report()) return false;
    }
    store_.finish_layer(layer, n);
  }
  store_.end_prefill(n);
  if (!logprobs.empty()) score_prompt(ids, logprobs);
  move(hidden_ + (n - 1) * config_.hidden, prompt_end_,
       config_.hidden * static_cast<int64_t>(sizeof(bf16)));
  make_logits(prompt_end_, 1);
  find_best();
  arena_.give_back(hidden_);
  hidden_ = arena_.template take<bf16>(Purpose::kActivations, config_.hidden);
  return true;
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::make_logits(const bf16* x, int64_t n) {
  norm(x, weights_.final_norm, n);
  LinearParams params;
  params.x = normed_;
  params.weight = weights_.head;
  params.out = logits_;
  params.m = n;
  params.k = config_.hidden;
  params.n = config_.vocab_size;
  params.out_type = DType::kF32;
  linear(device_, params);
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::find_best() {
  if constexpr (kStaged) {
    argmax(device_, logits_, config_.vocab_size, host_best_, best_workspace_);
  }
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::score_prompt(std::span<const int32_t> ids, std::span<double> logprobs) {
  const auto n = static_cast<int64_t>(logprobs.size());
  for (int64_t first = 0; first < n; first += kLogprobRows) {
    const int64_t rows = std::min(kLogprobRows, n - first);
    make_logits(hidden_ + first * config_.hidden, rows);
    const int32_t* targets = (kStaged ? ids_ : ids.data()) + first + 1;
    double* out = kStaged ? logprobs_ : logprobs.data() + first;
    token_logprobs(device_, LogprobParams{logits_, targets, out, rows, config_.vocab_size});
    if (kStaged) {
      move(logprobs_, logprobs.data() + first, rows * static_cast<int64_t>(sizeof(double)));
      device_.finish();
    }
  }
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::step(int32_t token) {
  const int32_t* id = upload_ids({&token, 1});
  ++n_steps_;
  logits_are_here_ = false;
  if (!step_by_graph(id)) enqueue_step(id);
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::rewind() {
  forget_recording();
  logits_are_here_ = false;
  make_logits(prompt_end_, 1);
  find_best();
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::read_end(float* logits, bf16* prompt_end) {
  move(logits_, logits, config_.vocab_size * static_cast<int64_t>(sizeof(float)));
  move(prompt_end_, prompt_end, config_.hidden * static_cast<int64_t>(sizeof(bf16)));
  device_.finish();
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::write_end(const float* logits, const bf16* prompt_end) {
  forget_recording();
  logits_are_here_ = false;
  move(logits, logits_, config_.vocab_size * static_cast<int64_t>(sizeof(float)));
  move(prompt_end, prompt_end_, config_.hidden * static_cast<int64_t>(sizeof(bf16)));
  find_best();
  device_.finish();
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::enqueue_step(const int32_t* id) {
  embed_tokens(id, 1);
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
    const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    const Projections inputs = attention_inputs(w, hidden_, 1);
    store_.append(layer, inputs);
    store_.attend(layer, inputs.q, attended_);
    attention_output(w, hidden_, 1);
    mlp(w, hidden_, 1);
  }
  store_.advance();
  make_logits(hidden_, 1);
  find_best();
}

// Replays the recorded step, or records this one. False: this step is of another kind, or comes
// first (kernels are loaded by a step that is not recorded).
template <Backend Device, HostTier Host>
bool Decoder<Device, Host>::step_by_graph(const int32_t* id) {
  if constexpr (Replays<Device>) {
    if (store_.clock() == nullptr || n_steps_ == 1) return false;
    if (!store_.next_step_is_plain()) {
      n_replays_ = kMaxReplays;
      return false;
    }
    if (n_replays_ < kMaxReplays) {
      store_.count_replayed_step();
    } else {
      move_clock(device_, {.clock = store_.clock(), .reset = true});
      begin_capture(device_);
      store_.set_recording(true);
      enqueue_step(id);
      move_clock(device_, {.clock = store_.clock()});
      store_.set_recording(false);
      end_capture(device_, graph_);
      n_replays_ = 0;
    }
    ++n_replays_;
    replay(device_, graph_);
    return true;
  } else {
    return false;
  }
}

}  // namespace tiercel
