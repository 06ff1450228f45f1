// Which chunks a decode step, or a block of prefill queries, attends: landmark scores, softmax per
// query head, the best k per KV head. Scores are clamped to +-2^126 (log2 units); a NaN score
// counts as the lowest. Both are exact: the same set as a full sort by (score descending, index
// ascending), where scores are the fp32 values of this device. No limit on k or on the group.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

void select_chunks(Stream& stream, const SelectParams& params);

// The scan of the landmarks alone, what select_chunks begins with: for a stopwatch.
void score_chunks(Stream& stream, const SelectParams& params);

// select_chunks, then map_slots; in the plain case with one launch fewer. map.ids, map.counts and
// map.stride are select's ids, counts and k.
void select_and_map(Stream& stream, const SelectParams& select, const MapSlotsParams& map);

// Takes select_prefill_scratch_bytes(params) of the stream's scratch memory. The mean query of a
// block is rounded to bf16 before it scores; its softmax is over the chunks that compete.
void select_prefill_chunks(Stream& stream, const PrefillSelectParams& params);

void mean_queries(Stream& stream, const MeanQueriesParams& params);

// Looks at shapes and positions only. Grows with first_position and n_tokens, so the last call of a
// prefill says what all of them need.
int64_t select_prefill_scratch_bytes(const PrefillSelectParams& shape);

}  // namespace tiercel::cuda
