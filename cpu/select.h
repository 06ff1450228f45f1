// Which chunks a decode step, or a block of prefill queries, attends: landmark scores, softmax per
// query head, the best k per KV head or per layer. Scores are clamped to +-2^126 (log2 units); a
// NaN score counts as the lowest. Both ops are exact: the same set as a full sort by (score
// descending, index ascending), where scores are the fp32 values of the queue's instruction-set
// level.
//
// int8 landmarks meet a query of 16 bits, q ~ step * integer with step = max |q| / 32639 per head
// (cpu/select_codes.h); a query that is not finite scores NaN everywhere. In scope kLayer blocks
// and slots are those of KV head 0. top_p adds fp32 weights in fp64.
#pragma once

#include <span>

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

void select_chunks(Queue& queue, const SelectParams& params);

// Of several sequences, each with a workspace of its own. Those that follow each other and have the same
// candidates, as behind a prefix that they share, read each landmark once. No bit depends on it.
void select_chunks(Queue& queue, std::span<const SelectParams> all);
inline constexpr size_t kScoredTogether = 8;

// One after the other.
void select_and_map(Queue& queue, const SelectParams& select, const MapSlotsParams& map);

// The mean query of a block is rounded to bf16 before it scores; its softmax is over the chunks
// that compete (sinks do not). k is at most max_prefill_chunks(n_heads / n_kv_heads).
void select_prefill_chunks(Queue& queue, const PrefillSelectParams& params);

void mean_queries(Queue& queue, const MeanQueriesParams& params);

// The lists of one block's heads have to fit a worker's scratch memory.
constexpr int64_t max_prefill_chunks(int64_t group) {
  return static_cast<int64_t>(kScratchBytes / 2) / (8 * 4 * group);
}

}  // namespace tiercel::cpu
