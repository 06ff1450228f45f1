// The decoder of one sequence: a transformer over a KvStore, written once for every backend. A decode
// step runs one token through all layers. It allocates when it is made, when a prompt begins and when a long text is
// appended; a decode step allocates nothing.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine/append_pass.h"
#include "engine/backend.h"
#include "engine/device_sampler.h"
#include "engine/options.h"
#include "engine/prompt_pass.h"
#include "engine/session.h"
#include "engine/step_recorder.h"
#include "engine/transformer.h"
#include "engine/weights.h"
#include "offload/kv_store.h"

namespace tiercel {

// Rows of logits that are made at once when every position's log-probability is wanted.
inline constexpr int64_t kLogprobRows = 128;
// Tokens of decode steps that may be on their way to the device at once.
inline constexpr int64_t kTokenRing = 64;

// The decoder's own buffers, in elements of bf16 unless said.
struct DecoderLayout {
  // staged: the host cannot read the device's memory, so ids and results travel through buffers.
  DecoderLayout(const ModelConfig& config, const SessionPlan& plan, bool staged);
  int64_t bytes() const;       // on the device, but for continued_hidden
  int64_t host_bytes() const;  // on the host

  TransformerLayout transformer;
  int64_t hidden = 0;       // of the prompt (PromptStatesLayout), or [kAppendRows][hidden]
  int64_t host_hidden = 0;  // of the prompt, on the host
  int64_t continued_hidden = 0;  // while a long text is appended
  int64_t prompt_end = 0;   // [hidden]
  int64_t ids = 0;          // int32, staged only
  int64_t logprobs = 0;     // fp64, staged only
  int64_t clock = 0;        // int64, staged only
  int64_t host_logits = 0;  // fp32, staged only
  int64_t host_best = 0;    // int32, staged only
  DeviceSamplerLayout sampler;  // staged only
};

template <Backend Device, HostTier Host>
class Decoder {
 public:
  static constexpr bool kStaged = !Device::kHostReadable;

  // Beside `device`, what carries weights, and a prompt's states, if they are in host memory.
  struct Queues {
    Device& device;
    Device& upload;
    Device& states;
  };
  Decoder(const Queues& queues, Arena<Device>& arena, Arena<Host>& host_arena, const ModelConfig& config,
          const Weights& weights, KvStore<Device, Host>& store, const DecoderLayout& layout,
          bool replays)
      : queues_(queues),
        device_(queues.device),
        arena_(arena),
        host_arena_(host_arena),
        config_(config),
        transformer_(device_, queues.upload, arena, config, weights, layout.transformer),
        store_(store),
        append_(device_, transformer_, store),
        continued_elements_(layout.continued_hidden),
        recorder_(device_, /*at_least=*/4),  // by estimate, as what a batch needs
        sampler_(device_, arena, host_arena, layout.sampler) {
    hidden_ = arena_.template take<bf16>(Purpose::kActivations, layout.hidden);
    host_hidden_ = host_arena_.template take<bf16>(Purpose::kActivations, layout.host_hidden);
    prompt_end_ = arena_.template take<bf16>(Purpose::kActivations, layout.prompt_end);
    ids_ = arena_.template take<int32_t>(Purpose::kActivations, layout.ids);
    logprobs_ = arena_.template take<double>(Purpose::kActivations, layout.logprobs);
    int64_t* clock = arena_.template take<int64_t>(Purpose::kActivations, layout.clock);
    if (replays) recorder_.record_by(clock);
    host_logits_ = host_arena.template take<float>(Purpose::kActivations, layout.host_logits);
    if (kStaged) {
      host_tokens_ = host_arena.template take<int32_t>(Purpose::kActivations, kTokenRing + layout.host_best);
      host_best_ = host_tokens_ + kTokenRing;
    }
  }

  // logprobs: empty, or [n - 1]. False: the callback asked to stop.
  bool prefill(std::span<const int32_t> ids, std::span<double> logprobs,
               const ProgressCallback& progress);
  void step(int32_t token);
  // A run of an append (AppendPass). The logits are those behind the last token.
  void append(std::span<const int32_t> ids, int64_t share = 1);
  // As a step with each of them; the logits of all are kept, and those in hand are the first one's.
  void step_drafted(std::span<const int32_t> ids);
  // Takes the logits of another one in hand.
  void show(int64_t row) {
    row_ = row;
    logits_are_here_ = false;
  }
  // A long text behind what is held, segment after segment (AppendPass::run_segment). The logits are those behind the
  // last token of each. n_context: tokens that scores are scaled by.
  void begin_segments();
  void append_segment(std::span<const int32_t> ids, int64_t n_context, bool dense);
  void end_segments();
  // After the store went back to the end of the prompt: its logits again.
  void rewind();
  // What is kept here from one step to the next: logits [vocab_size] of the last token, and the
  // last prompt token's hidden state [hidden]. Reading waits for them; writing replaces a prefill.
  void read_end(float* logits, bf16* prompt_end);
  void write_end(const float* logits, const bf16* prompt_end);
  // The next steps are enqueued anew: what was recorded no longer describes them.
  void forget_recording() { recorder_.forget(); }
  // Waits for them.
  std::span<const float> logits() {
    if (kStaged && !logits_are_here_) {
      copy_block(device_, logits_in_hand(), host_logits_,
                 config_.vocab_size * static_cast<int64_t>(sizeof(float)));
    }
    logits_are_here_ = true;
    device_.finish();
    return {kStaged ? host_logits_ : logits_in_hand(), static_cast<size_t>(config_.vocab_size)};
  }
  // The sampler's token, picked where the logits are; nothing where the host reads them anyway, where no
  // token can be named (NaN), or where the sampler looks back further than the device. Waits for it.
  std::optional<int32_t> sample(Sampler& sampler, std::span<const int32_t> history) {
    DevicePick pick{logits_in_hand(), host_best_ + row_, &sampler, history};
    if constexpr (kStaged) sampler_.pick({&pick, 1});
    return pick.token >= 0 ? std::optional(pick.token) : std::nullopt;
  }

 private:
  const int32_t* upload_ids(std::span<const int32_t> ids);
  void make_logits(const bf16* x, int64_t n = 1);
  float* logits_in_hand() { return transformer_.logits() + row_ * config_.vocab_size; }
  void append_rows(std::span<const int32_t> ids, int64_t share);
  void enqueue_step(const int32_t* id);
  void score_prompt(std::span<const int32_t> ids, std::span<double> logprobs);

  Queues queues_;
  Device& device_;
  Arena<Device>& arena_;
  Arena<Host>& host_arena_;
  const ModelConfig& config_;
  Transformer<Device> transformer_;
  KvStore<Device, Host>& store_;
  AppendPass<Device, Host> append_;
  const int64_t continued_elements_;
  bf16* continued_ = nullptr;  // hidden states of a segment
  StepRecorder<Device, KvStore<Device, Host>> recorder_;
  [[no_unique_address]] DeviceSamplerOf<Device, Host> sampler_;
  bf16 *hidden_ = nullptr, *host_hidden_ = nullptr;
  bf16* prompt_end_ = nullptr;      // [hidden]: the last prompt token's
  int32_t* ids_ = nullptr;          // [n_prompt] on the device
  double* logprobs_ = nullptr;      // [kLogprobRows] on the device
  float* host_logits_ = nullptr;    // [vocab]
  int32_t* host_tokens_ = nullptr;  // [kTokenRing]
  int32_t* host_best_ = nullptr;    // of each row of logits; written by the device
  int64_t row_ = 0;               // of the logits in hand
  bool logits_are_here_ = false;  // they are on the host
  int64_t n_steps_ = 0;
};

// The ids where the device reads them.
template <Backend Device, HostTier Host>
const int32_t* Decoder<Device, Host>::upload_ids(std::span<const int32_t> ids) {
  if (!kStaged) return ids.data();
  const auto bytes = static_cast<int64_t>(ids.size_bytes());
  if (ids.size() == 1) {
    const int64_t at = n_steps_ % kTokenRing;
    if (at == 0) device_.finish();  // its copies have ended before the ring is written again
    host_tokens_[at] = ids[0];
    copy_block(device_, host_tokens_ + at, ids_, bytes);
  } else {
    copy_block(device_, ids.data(), ids_, bytes);
  }
  return ids_;
}

template <Backend Device, HostTier Host>
bool Decoder<Device, Host>::prefill(std::span<const int32_t> ids, std::span<double> logprobs,
                                    const ProgressCallback& progress) {
  using Clock = std::chrono::steady_clock;
  const auto n = static_cast<int64_t>(ids.size());
  const auto start = Clock::now();
  const PromptStates<Device> states(device_, queues_.states, hidden_, host_hidden_, n, config_.hidden);
  PromptPass<Device, Host> pass(transformer_, store_, states, upload_ids(ids), n);
  while (!pass.done()) {
    pass.advance();
    if (!progress) continue;
    device_.finish();  // what is reported is done
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    const double fraction = pass.done_flops() / pass.total_flops();
    if (!progress({"prefill", fraction, static_cast<int64_t>(fraction * n), n, seconds})) {
      queues_.states.finish();  // rows that were on their way for the next run
      return false;
    }
  }
  if (!logprobs.empty()) score_prompt(ids, logprobs);
  copy_block(device_, pass.last_row(), prompt_end_, config_.hidden * static_cast<int64_t>(sizeof(bf16)));
  make_logits(prompt_end_);
  arena_.give_back(hidden_);
  host_arena_.give_back(host_hidden_);
  host_hidden_ = nullptr;
  hidden_ = arena_.template take<bf16>(Purpose::kActivations, kAppendRows * config_.hidden);
  return true;
}

// Of the newest n tokens; those of the first are in hand.
template <Backend Device, HostTier Host>
void Decoder<Device, Host>::make_logits(const bf16* x, int64_t n) {
  transformer_.make_logits(x, n, /*alone=*/true);
  if constexpr (kStaged) sampler_.find_best(transformer_.logits(), n, host_best_);
  show(0);
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::score_prompt(std::span<const int32_t> ids, std::span<double> logprobs) {
  CHECK(host_hidden_ == nullptr, "all states are on the device");
  const auto n = static_cast<int64_t>(logprobs.size());
  for (int64_t first = 0; first < n; first += kLogprobRows) {
    const int64_t rows = std::min(kLogprobRows, n - first);
    transformer_.make_logits(hidden_ + first * config_.hidden, rows, /*alone=*/false);
    const int32_t* targets = (kStaged ? ids_ : ids.data()) + first + 1;
    double* out = kStaged ? logprobs_ : logprobs.data() + first;
    token_logprobs(device_, LogprobParams{transformer_.logits(), targets, out, rows, config_.vocab_size});
    if (kStaged) {
      copy_block(device_, logprobs_, logprobs.data() + first, rows * static_cast<int64_t>(sizeof(double)));
      device_.finish();
    }
  }
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::step(int32_t token) {
  const int32_t* id = upload_ids({&token, 1});
  ++n_steps_;
  show(0);  // a replayed step makes these
  KvStore<Device, Host>* const stores[] = {&store_};
  const auto enqueue = [&] { enqueue_step(id); };
  if (!recorder_.step(stores, enqueue)) enqueue();
}

// Their hidden states are in hidden_ then.
template <Backend Device, HostTier Host>
void Decoder<Device, Host>::append_rows(std::span<const int32_t> ids, int64_t share) {
  const auto n = static_cast<int64_t>(ids.size());
  forget_recording();
  if (kStaged) device_.finish();  // what ids_ held has been read
  transformer_.embed_tokens(upload_ids(ids), hidden_, n);
  append_.run(hidden_, n, share);
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::append(std::span<const int32_t> ids, int64_t share) {
  append_rows(ids, share);
  make_logits(hidden_ + (std::ssize(ids) - 1) * config_.hidden);
  if (kStaged) device_.finish();  // ids are the caller's
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::step_drafted(std::span<const int32_t> ids) {
  append_rows(ids, /*share=*/1);
  make_logits(hidden_, std::ssize(ids));
  if (kStaged) device_.finish();  // ids are the caller's
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::begin_segments() {
  forget_recording();
  continued_ = arena_.template take<bf16>(Purpose::kActivations, continued_elements_);
  try {
    store_.begin_runs();
  } catch (...) {
    arena_.give_back(std::exchange(continued_, nullptr));
    throw;
  }
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::append_segment(std::span<const int32_t> ids, int64_t n_context, bool dense) {
  const auto n = static_cast<int64_t>(ids.size());
  CHECK(n * config_.hidden <= continued_elements_, "a segment of {} tokens", n);
  if (kStaged) device_.finish();  // what ids_ held has been read
  transformer_.embed_tokens(upload_ids(ids), continued_, n);
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
    append_.run_segment(layer, continued_, n, n_context, dense);
  }
  make_logits(continued_ + (n - 1) * config_.hidden);
  if (kStaged) device_.finish();  // ids are the caller's
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::end_segments() {
  store_.end_runs();
  arena_.give_back(std::exchange(continued_, nullptr));
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::rewind() {
  forget_recording();
  make_logits(prompt_end_);
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::read_end(float* logits, bf16* prompt_end) {
  copy_block(device_, logits_in_hand(), logits, config_.vocab_size * static_cast<int64_t>(sizeof(float)));
  copy_block(device_, prompt_end_, prompt_end, config_.hidden * static_cast<int64_t>(sizeof(bf16)));
  device_.finish();
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::write_end(const float* logits, const bf16* prompt_end) {
  forget_recording();
  show(0);
  copy_block(device_, logits, logits_in_hand(), config_.vocab_size * static_cast<int64_t>(sizeof(float)));
  copy_block(device_, prompt_end, prompt_end_, config_.hidden * static_cast<int64_t>(sizeof(bf16)));
  if constexpr (kStaged) sampler_.find_best(logits_in_hand(), 1, host_best_);
  device_.finish();
}

template <Backend Device, HostTier Host>
void Decoder<Device, Host>::enqueue_step(const int32_t* id) {
  transformer_.embed_tokens(id, hidden_, 1);
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
    transformer_.step_inputs(layer, hidden_, 1);
    const Projections inputs = transformer_.step_row(layer, 0);
    store_.append(layer, inputs);
    store_.attend(layer, store_.queries(inputs), transformer_.attended());
    transformer_.end_layer(layer, hidden_, 1, RowsOf::kSteps);
  }
  store_.advance();
  make_logits(hidden_);
}

}  // namespace tiercel
