// Attention of one decode step over a list of key and value sources (Flash-Decoding's split of the
// keys, arXiv 2311.01282), and the normalised merge of partial results.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// One partial (max, sum, out) over everything in params.sources. Every (source, KV head) is cut
// into ranges of tokens, the ranges' partials are merged in order: the bits depend on token counts
// and shapes, not on the number of threads. values may alias keys. A NaN or +inf score makes its
// head NaN; a -inf score weighs nothing. final_out is merge_partials, called at the end.
void attend_decode(Queue& queue, const DecodeAttendParams& params);

void merge_partials(Queue& queue, const MergeParams& params);

}  // namespace tiercel::cpu
