#include "engine/prompt_pass.h"

#include <algorithm>
#include <numeric>

namespace tiercel {

double layer_flops(const ModelConfig& c, const KvSettings& settings, int64_t window,
                   const PromptRun& run) {
  const auto n = static_cast<double>(run.n_tokens);
  const double width = static_cast<double>(2 * c.q_width() + 2 * c.kv_width()) + 3 * c.mean_mlp_width();
  double seen = static_cast<double>(run.first) + n / 2;
  if (window > 0) seen = std::min(seen, static_cast<double>(window));
  double scored = 0;
  if (!run.dense && window == 0) {
    const auto budget = static_cast<double>(settings.prefill_budget + settings.sinks +
                                            kPrefillLocal + kPrefillBlock / 2);
    scored = seen / settings.chunk_tokens / kPrefillBlock;
    seen = std::min(seen, budget);
  }
  return n * (2 * width * static_cast<double>(c.hidden) +
              4 * static_cast<double>(c.q_width()) * (seen + scored));
}

int64_t within_span(const QuerySpans& spans, int64_t first, int64_t length) {
  const int64_t last = first + length - 1;
  if (spans.first_plain(last) * spans.tokens <= first) return length;
  return (spans.span_of(first) + 1) * spans.tokens - first;
}

std::vector<PromptRun> cut_prompt(const ModelConfig& config, const KvSettings& settings,
                                  int64_t n_tokens, double run_flops) {
  // Never so few tokens that staged keys serve too few queries.
  constexpr int64_t kShortestRun = 1024;
  const bool select = settings.select_prefill;
  const int64_t chunk = settings.chunk_tokens;
  const int64_t unit = std::lcm(chunk, settings.prefill_chunk());
  int64_t tail = n_tokens;
  if (select) tail = std::max<int64_t>(0, n_tokens - kDenseTail) / chunk * chunk;
  std::vector<PromptRun> runs;
  for (int64_t first = 0; first < tail;) {
    const PromptRun token{first + kPrefillChunk, 1, !select};
    const double affordable = run_flops / layer_flops(config, settings, 0, token);
    int64_t length = kPrefillChunk;
    while (length > kShortestRun && static_cast<double>(length) > affordable) length /= 2;
    length = std::min(length / unit * unit, tail - first);
    length = within_span(config.dual_chunk.spans, first, length);
    runs.push_back({first, length, !select});
    first += length;
  }
  for (int64_t first = tail; first < n_tokens;) {
    const int64_t length = within_span(config.dual_chunk.spans, first, n_tokens - first);
    runs.push_back({first, length, true});
    first += length;
  }
  return runs;
}

double prompt_flops(const ModelConfig& config, const KvSettings& settings,
                    const std::vector<PromptRun>& runs) {
  double total = 0;
  for (const int64_t window : config.sliding_window) {
    for (const PromptRun& run : runs) total += layer_flops(config, settings, window, run);
  }
  return total;
}

}  // namespace tiercel
