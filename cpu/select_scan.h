// Phase 1 of decode selection: scores of landmarks, bf16 or int8, for every query head.
#pragma once

#include <span>

#include "cpu/queue.h"
#include "cpu/select_kernel.h"
#include "cpu/select_workspace.h"

namespace tiercel::cpu {

// Scores of candidates range * kRangeLandmarks .. of one KV head into the workspaces, for all heads
// of its group, with their maximum and sum; where the group's maximum is wanted, column maxima too.
// all: selections with the same candidates, at most kScoredTogether.
void scan_range(std::span<const SelectParams> all, Isa isa, int64_t kv_head, int64_t range,
                const Worker& worker);

// Column maxima of one head over scores at .. at + n - 1, which begin at a segment: cleared, or
// raised. What is behind the scores, up to a whole group of 16, becomes -inf.
void clear_columns(const Columns& columns, int64_t at, int64_t n, float* maxima);
void fold_columns(const Columns& columns, const SelectKernel& kernel, int64_t at, int64_t n,
                  float* scores, float* maxima);

// n int16 elements of a query, at most kMaxCode each, into the layout of the level's score_codes;
// packed has 2 bytes for each, up to a whole block. Returns what its sums have in excess.
int32_t pack_code_query(const SelectKernel& kernel, const int16_t* q, int32_t n, char* packed);

}  // namespace tiercel::cpu
