// A prompt on its way through the layers, layer-major: the hidden states of all its tokens are updated
// in place, run after run, layer after layer, so that only one layer's exact keys and values exist at
// a time. It is advanced one run at a time: between two of them others may use the
// same transformer.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/config.h"
#include "engine/prompt_states.h"
#include "engine/transformer.h"
#include "offload/kv_store.h"

namespace tiercel {

// A run of consecutive prompt tokens that passes through a layer in one piece.
struct PromptRun {
  int64_t first = 0, n_tokens = 0;
  bool dense = true;
};
// As many tokens of a run as look at each span alike, if not as they are.
int64_t within_span(const QuerySpans& spans, int64_t first, int64_t length);

// FLOPs of one layer for one run; what progress is measured in.
double layer_flops(const ModelConfig& config, const KvSettings& settings, int64_t window,
                   const PromptRun& run);

// Cuts a prompt into runs: at most kPrefillChunk tokens each, fewer where a dense run would take
// long (progress and Ctrl-C act between runs), and with selection a dense tail of its own that
// starts on a chunk boundary. The cut depends on shapes only.
std::vector<PromptRun> cut_prompt(const ModelConfig& config, const KvSettings& settings,
                                  int64_t n_tokens, double run_flops);

// FLOPs of a whole prompt.
double prompt_flops(const ModelConfig& config, const KvSettings& settings,
                    const std::vector<PromptRun>& runs);

template <Backend Device, HostTier Host>
class PromptPass {
 public:
  // ids: [n_tokens], where the device reads them; all outlive the pass.
  PromptPass(Transformer<Device>& transformer, KvStore<Device, Host>& store, const PromptStates<Device>& states,
             const int32_t* ids, int64_t n_tokens)
      : transformer_(transformer),
        store_(store),
        states_(states),
        ids_(ids),
        n_tokens_(n_tokens),
        runs_(cut_prompt(transformer.config(), store.layout().settings, n_tokens,
                         Device::kRunFlops)),
        total_flops_(prompt_flops(transformer.config(), store.layout().settings, runs_)) {}

  bool done() const { return layer_ == transformer_.config().n_layers; }
  double total_flops() const { return total_flops_; }
  double done_flops() const { return done_flops_; }

  // One run through one layer. Behind the last run of the last layer the store can be decoded from.
  void advance() {
    const ModelConfig& config = transformer_.config();
    const PromptRun& run = runs_[run_];
    if (run_ == 0) transformer_.begin_layer(layer_, RowsOf::kPrompt, run.n_tokens);
    bf16* x = states_.rows(run.first);
    bring_next();
    if (layer_ == 0) transformer_.embed_tokens(ids_ + run.first, x, run.n_tokens);
    const Projections inputs = transformer_.prompt_inputs(layer_, x, run.n_tokens);
    store_.append_prompt(layer_, inputs, run.first);
    store_.attend_prompt(layer_, inputs, run.first, n_tokens_, run.dense, transformer_.attended());
    transformer_.end_layer(layer_, x, run.n_tokens, RowsOf::kPrompt);
    // A single run stays where it is.
    if (runs_.size() > 1) states_.leave(run.first, run.n_tokens, layer_ + 1 < config.n_layers);
    done_flops_ += layer_flops(config, store_.layout().settings,
                               config.sliding_window[static_cast<size_t>(layer_)], run);
    if (++run_ < runs_.size()) return;
    // In the same call: the store still looks at this run's queries.
    store_.finish_layer(layer_, n_tokens_);
    run_ = 0;
    if (++layer_ == config.n_layers) store_.end_prefill(n_tokens_);
  }

  // Of the last token, behind the last run of the last layer.
  const bf16* last_row() const {
    const PromptRun& run = runs_.back();
    return states_.last_row(run.first, run.n_tokens);
  }

 private:
  // Rows of the next run that has been in a layer before.
  void bring_next() {
    const bool ends_layer = run_ + 1 == runs_.size();
    const int64_t layer = layer_ + (ends_layer ? 1 : 0);
    if (runs_.size() == 1 || layer == 0 || layer == transformer_.config().n_layers) return;
    const PromptRun& next = runs_[ends_layer ? 0 : run_ + 1];
    states_.bring(next.first, next.n_tokens);
  }

  Transformer<Device>& transformer_;
  KvStore<Device, Host>& store_;
  PromptStates<Device> states_;
  const int32_t* ids_;
  int64_t n_tokens_;
  std::vector<PromptRun> runs_;
  double total_flops_, done_flops_ = 0;
  int64_t layer_ = 0;
  size_t run_ = 0;
};

}  // namespace tiercel
