#include "cpu/key_weights.h"

#include <algorithm>
#include <numbers>

#include "cpu/levels.h"
#include "cpu/query.h"
#include "cpu/source_rows.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

static_assert(kWeightRange == kDecodeBlock);
constexpr int64_t kItemTokens = 8 * kWeightRange;

int64_t tokens_of(const KeyWeightsParams& p, int64_t kv_head) {
  return int64_t{p.keys.counts[kv_head]} * p.keys.chunk_tokens;
}
int64_t items_of(const KeyWeightsParams& p, int64_t kv_head) {
  return (tokens_of(p, kv_head) + kItemTokens - 1) / kItemTokens;
}

// Weights of tokens begin .. end - 1 of a KV head for all heads of its group; begin is the first of
// a range.
void weigh_tokens(const KeyWeightsParams& p, const DecodeKernel& kernel, int32_t kv_head,
                  int64_t begin, int64_t end, const Worker& worker) {
  const int32_t group = p.n_heads / p.n_kv_heads;
  const int32_t n_heads = padded_heads(group);
  Carver scratch(worker.scratch);
  float* scores = scratch.take<float>(n_heads * int64_t{kWeightRange});
  char* queries = scratch.take<char>(n_heads * packed_width(kernel, p.head_dim) * 4);
  int64_t* offsets = scratch.take<int64_t>(2 * kDecodeBlock);
  float* bias = scratch.take<float>(kWeightRange);

  ScoreRows score{};
  score.query_bytes =
      pack_queries(kernel, p.q + int64_t{kv_head} * group * p.head_dim, group, p.head_dim, queries);
  score.row_base = bits(p.keys.keys + kv_head * p.keys.head_stride);
  score.offsets = offsets;
  score.head_dim = p.head_dim;
  score.n_heads = n_heads;
  score.queries = queries;
  score.score_stride = kWeightRange;
  score.scale = p.scale * std::numbers::log2e_v<float>;
  const int64_t step = block_rows(p.head_dim);
  score.prefetch_rows = static_cast<int32_t>(step);

  const SourceRows rows(p.keys, kv_head);
  rows.fill(begin, end, step, offsets + step);
  for (int64_t first = begin; first < end; first += kWeightRange) {
    const int64_t n = std::min<int64_t>(kWeightRange, end - first);
    for (int64_t at = 0; at < n; at += step) {
      // This block and the next one: what was next is this now.
      std::copy(offsets + step, offsets + 2 * step, offsets);
      if (first + at + step < end) rows.fill(first + at + step, end, step, offsets + step);
      score.n_rows = static_cast<int32_t>(std::min(step, n - at));
      score.scores = scores + at;
      kernel.score_rows(score);
    }
    if (rows.has_bias()) rows.fill_bias(first, first + n, bias);
    for (int32_t g = 0; g < group; ++g) {
      const int64_t head = int64_t{kv_head} * group + g;
      bf16* weights = p.weights + head * p.weight_stride + first;
      const float max = kernel.weigh_scores(scores + g * kWeightRange, static_cast<int32_t>(n),
                                            rows.has_bias() ? bias : nullptr, bits(weights));
      // A bias on every score is one on their maximum.
      p.maxima[head * p.maximum_stride + first / kWeightRange] = max + p.keys.bias;
    }
  }
}

}  // namespace

void key_weights(Queue& queue, const KeyWeightsParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= 256 && p.head_dim % 2 == 0, "head_dim {}", p.head_dim);
  CHECK(p.keys.ids != nullptr && p.keys.counts != nullptr && p.keys.chunk_tokens > 0,
        "a list of chunks of {}", p.keys.chunk_tokens);
  const DecodeKernel& kernel = decode_kernel(queue.isa());
  int64_t n_items = 0, n_tokens = 0;
  for (int32_t j = 0; j < p.n_kv_heads; ++j) {
    n_items += items_of(p, j);
    n_tokens += tokens_of(p, j);
  }
  const auto weigh_item = [&](int64_t item, const Worker& worker) {
    int32_t j = 0;
    for (; item >= items_of(p, j); ++j) item -= items_of(p, j);
    const int64_t begin = item * kItemTokens;
    weigh_tokens(p, kernel, j, begin, std::min(begin + kItemTokens, tokens_of(p, j)), worker);
  };
  if (n_tokens * 2 * p.head_dim < kMinParallelBytes) {
    queue.for_each(n_items > 0 ? 1 : 0, [&](int64_t, const Worker& worker) {
      for (int64_t i = 0; i < n_items; ++i) weigh_item(i, worker);
    });
    return;
  }
  queue.for_each(n_items, weigh_item);
}

}  // namespace tiercel::cpu
