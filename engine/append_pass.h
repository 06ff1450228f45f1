// Tokens behind what a store holds, on their way through the layers: several at a time, so that a weight
// is read once for all of them, each attending as in a step of its own; or many, as a prompt's do.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/options.h"
#include "engine/prompt_pass.h"
#include "engine/transformer.h"
#include "offload/kv_store.h"

namespace tiercel {

// Tokens that are appended together: what a weight is read for.
inline constexpr int64_t kAppendRows = 64;
// Of a long append, where the prompt was prefilled with selection: tokens that attend what the first
// of them selected, and how many at the end, the question perhaps, select each for itself.
inline constexpr int64_t kAppendShare = 16;
inline constexpr int64_t kAppendTail = 64;
// From so many tokens on a text is prefilled as a prompt is, where the store can do that: where every token attends
// everything it gains early. It is cut into segments of so many tokens at most, each of which passes through all
// layers, one layer after the other; a session's cannot be stopped on its way.
inline int64_t least_segments(const SessionOptions& options) {
  return options.attention == AttentionMode::kDense ? 64 : 256;
}
inline constexpr int64_t kSegmentTokens = 4096;

// A run of consecutive tokens that passes through all layers in one piece, or through each as a segment. The first of
// every `share` tokens selects for all of them.
struct AppendRun {
  int64_t first = 0, n_tokens = 0;
  int64_t share = 1;
  bool is_segment = false;
  bool dense = false;  // such a one attends everything, where others select
};

// Cuts n_tokens into runs: segments of at most that length first, if they are enough and it is not 0. The cut depends
// on the two and on the options of the session, or sequence, only.
std::vector<AppendRun> cut_append(const SessionOptions& options, int64_t n_tokens, int64_t segment_tokens = 0);

// Tokens of a segment that takes about run_flops in all layers behind so many others.
int64_t segment_tokens(const ModelConfig& config, const KvSettings& settings, int64_t n_held, double run_flops);

template <Backend Device, HostTier Host>
class AppendPass {
 public:
  AppendPass(Device& device, Transformer<Device>& transformer, KvStore<Device, Host>& store)
      : device_(device), transformer_(transformer), store_(store) {}

  // x: embeddings of the next n tokens, at most kAppendRows, [n][hidden], updated in place. As a step
  // with each of them, bit by bit where share is 1.
  void run(bf16* x, int64_t n, int64_t share) {
    CHECK(n <= kAppendRows, "{} tokens", n);
    for (int64_t layer = 0; layer < transformer_.config().n_layers; ++layer) {
      transformer_.begin_layer(layer, RowsOf::kAppend, n);
      transformer_.step_inputs(layer, x, n);
      attend(layer, n, share);
      transformer_.end_layer(layer, x, n, RowsOf::kAppend);
    }
    store_.advance(n);
  }

  // A segment in one layer; x: [n][hidden]. In all of them in their order, and no other run between; others may use the
  // transformer. A layer has the whole segment before the next one, so that weights that must be brought are so once.
  void run_segment(int64_t layer, bf16* x, int64_t n, int64_t n_context, bool dense) {
    const ModelConfig& config = transformer_.config();
    const int64_t held = store_.n_tokens();
    const int64_t longest = store_.layout().settings.continued;
    const int64_t n_runs = (n + longest - 1) / longest;
    const int64_t rows = (n + n_runs - 1) / n_runs;
    transformer_.begin_layer(layer, RowsOf::kPrompt, rows);
    int64_t n_rows = 0;
    for (int64_t first = 0; first < n; first += n_rows) {
      n_rows = within_span(config.dual_chunk.spans, held + first, std::min(rows, n - first));
      bf16* states = x + first * config.hidden;
      const Projections inputs = transformer_.prompt_inputs(layer, states, n_rows);
      store_.append_run(layer, inputs, held + first);
      store_.attend_run(layer, inputs, held + first, n_context, dense, transformer_.attended());
      transformer_.end_layer(layer, states, n_rows, RowsOf::kPrompt);
      store_.finish_run(layer, held + first + n_rows);
    }
    if (layer + 1 == config.n_layers) store_.count_runs(n);
  }

 private:
  // Appends and attends rows of step_inputs, those that follow when the one that they follow has
  // attended.
  void attend(int64_t layer, int64_t n, int64_t share) {
    const auto attended_of = [&](int64_t i) {
      return transformer_.attended() + i * transformer_.config().q_width();
    };
    for (int64_t i = 0; i < n;) {
      const Projections inputs = transformer_.step_row(layer, i);
      store_.append(layer, inputs, i);
      store_.attend(layer, store_.queries(inputs, i), attended_of(i));
      ++i;
      const int64_t end = std::min(n, (i + share - 1) / share * share);
      followers_.clear();
      for (; i < end && store_.may_follow(layer, i); ++i) {
        followers_.push_back({i, store_.queries(transformer_.step_row(layer, i), i), attended_of(i)});
      }
      together(device_, std::ssize(followers_), [&](int64_t j) {
        const int64_t row = followers_[static_cast<size_t>(j)].ahead;
        store_.append(layer, transformer_.step_row(layer, row), row, /*follows=*/true);
      });
      store_.attend_followers(layer, followers_);
    }
  }

  Device& device_;
  Transformer<Device>& transformer_;
  KvStore<Device, Host>& store_;
  std::vector<typename KvStore<Device, Host>::Follower> followers_;
};

}  // namespace tiercel
