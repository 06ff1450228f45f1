// The memory plan of a batch: what all sequences share, what each of them takes, what there is room
// for.
#pragma once

#include "engine/batch.h"
#include "engine/session_plan.h"

namespace tiercel {

// Rows of a step: beyond it, a step takes longer than anyone waits for a token.
inline constexpr int64_t kMaxSequences = 1024;

// As Batch::plan, for a request with everything that the backend knows filled in.
BatchPlan plan_batch(PlanRequest request, const SessionOptions& options, int64_t n_sequences,
                     int64_t max_prompt, int64_t max_new, int64_t max_behind = 0);

// As Batch::plan_sequence.
SessionPlan plan_in_batch(PlanRequest request, const BatchPlan& plan, int64_t n_prompt,
                          int64_t n_new, double slots = 0);
// As Batch::plan_prefix.
SessionPlan plan_prefix_in_batch(const PlanRequest& request, const BatchPlan& plan,
                                 int64_t n_tokens);
// As Batch::plan_behind.
SessionPlan plan_behind_prefix(const PlanRequest& request, const BatchPlan& plan,
                               const SessionPlan& prefix, int64_t n_prompt, int64_t n_new,
                               double slots);

// As Batch::largest.
int64_t largest_in_batch(const PlanRequest& request, const BatchPlan& plan, int64_t n_prompt,
                         int64_t n_new, int64_t n_prefix = 0);

// Whether a sequence fits beside those that have taken so many bytes of the tiers.
bool room_for(const BatchPlan& plan, const SequenceBytes& bytes, int64_t device_taken,
              int64_t host_taken);

}  // namespace tiercel
