#include "engine/append_pass.h"

#include "engine/prompt_pass.h"

namespace tiercel {

std::vector<AppendRun> cut_append(const SessionOptions& options, int64_t n_tokens, int64_t segment_tokens) {
  // A token's list serves all layers of a group before the next token makes another one.
  const bool one_by_one = options.selection.share_layers > 1;
  const int64_t rows = one_by_one ? 1 : kAppendRows;
  const bool selects = options.prefill == PrefillMode::kSelect;
  const int64_t before_tail = selects ? std::max<int64_t>(0, n_tokens - kAppendTail) : n_tokens;
  std::vector<AppendRun> runs;
  int64_t first = 0;
  if (segment_tokens > 0 && n_tokens >= least_segments(options)) {
    // Steps would attend everything, too, one query at a time. What few come before them need no lists.
    const bool ends_densely = selects && options.attention == AttentionMode::kDense;
    const bool few = before_tail < kAppendTail && n_tokens <= segment_tokens;
    const int64_t n = ends_densely && few ? 0 : before_tail;
    const int64_t n_segments = (n + segment_tokens - 1) / segment_tokens;
    const int64_t length = n_segments > 0 ? (n + n_segments - 1) / n_segments : 0;
    for (; first < n; first += runs.back().n_tokens) {
      runs.push_back({.first = first, .n_tokens = std::min(length, n - first), .is_segment = true});
    }
    if (ends_densely) {
      runs.push_back({.first = first, .n_tokens = n_tokens - first, .is_segment = true, .dense = true});
      return runs;
    }
  }
  const int64_t n_shared = selects && !one_by_one ? before_tail : 0;
  for (int64_t end = 0; first < n_tokens; first = end) {
    const int64_t share = first < n_shared ? kAppendShare : 1;
    end = std::min(first + rows, share > 1 ? n_shared : n_tokens);
    runs.push_back({first, end - first, share});
  }
  return runs;
}

int64_t segment_tokens(const ModelConfig& config, const KvSettings& settings, int64_t n_held, double run_flops) {
  int64_t n = kSegmentTokens;
  if (config.host_layers > 0) return n;  // a device's, to which weights are brought once for each
  const auto flops = [&] {
    double sum = 0;
    for (const int64_t window : config.sliding_window) {
      sum += layer_flops(config, settings, window, {n_held, n, !settings.select_prefill});
    }
    return sum;
  };
  while (n > kAppendRows && flops() > run_flops) n /= 2;
  return n;
}

}  // namespace tiercel
