// Attention of one decode step over a list of key and value sources (Flash-Decoding's split of the
// keys, arXiv 2311.01282), and the normalised merge of partial results.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

// One partial (max, sum, out) over everything in params.sources; queries, keys, values, ids and
// counts are read by the device. The keys of a KV head are dealt out to several blocks, whose
// partials are merged in order: the bits depend on token counts and their bounds, shapes and the
// plan, not on timing. values may alias keys. A NaN or +inf score makes its head NaN; a -inf score
// weighs nothing. Whichever block writes the result writes final_out.
//
// Weights are rounded to bf16 before they meet the values (2^-8 of each weight; their sum is fp32),
// except where head_dim is not 64, 96, 128 or 256 or a row does not begin at a multiple of 16
// bytes: there a plain fp32 kernel runs, right but slow.
//
// params.workspace is zero at first and left alone by everybody else: its first words count the
// blocks that are done, and are zero again after every call.
void attend_decode(Stream& stream, const DecodeAttendParams& params);

// How the keys of a KV head are shared: a function of shapes and bounds that the host knows (blocks
// that the counts on the device leave without work end at once) and of the number of processors.
struct DecodePlan {
  int32_t n_splits = 1;       // at most this many blocks share the keys of one KV head
  bool merge_at_once = true;  // the last of them merges; false: a second kernel does
  bool few = false;           // all keys are asked for at once: less latency for few tokens
};
DecodePlan plan_decode(const Stream& stream, const DecodeAttendParams& params);
// With another plan than plan_decode's: the same answer up to rounding.
void attend_decode(Stream& stream, const DecodeAttendParams& params, const DecodePlan& plan);

// At most kMaxMergePartials of them.
inline constexpr int32_t kMaxMergePartials = 128;
void merge_partials(Stream& stream, const MergeParams& params);

}  // namespace tiercel::cuda
