#include "engine/append_pass.h"

namespace tiercel {

std::vector<AppendRun> cut_append(const SessionOptions& options, int64_t n_tokens) {
  // A token's list serves all layers of a group before the next token makes another one.
  const bool one_by_one = options.selection.share_layers > 1;
  const int64_t rows = one_by_one ? 1 : kAppendRows;
  const bool share_lists = options.prefill == PrefillMode::kSelect && !one_by_one;
  const int64_t n_shared = share_lists ? std::max<int64_t>(0, n_tokens - kAppendTail) : 0;
  std::vector<AppendRun> runs;
  for (int64_t first = 0, end = 0; first < n_tokens; first = end) {
    const int64_t share = first < n_shared ? kAppendShare : 1;
    end = std::min(first + rows, share > 1 ? n_shared : n_tokens);
    runs.push_back({first, end - first, share});
  }
  return runs;
}

}  // namespace tiercel
