// What options may be asked for: by themselves, together, and of a model. Part of make_plan
// (engine/session_plan.h). All throw Error(kUsage) naming the flag, what was expected and what would help.
#pragma once

#include <string>
#include <vector>

#include "engine/session_plan.h"

namespace tiercel {

void check_ranges(const SessionOptions& options);
// Selections of a dense attention are dropped; notes say which of them were asked for.
void drop_selection(SessionOptions& options, std::vector<std::string>& notes);
// What changes nothing is said: asked for, and in use.
void note_unused(const SessionOptions& asked, const SessionOptions& used, std::vector<std::string>& notes);
void check_composition(const SelectionOptions& selection);
void check_codecs(const SelectionOptions& selection, const ModelConfig& config);
void check_host_attention(const PlanRequest& request, const SessionPlan& plan);
// Of contexts that dual chunk attention matters for.
void check_dual_chunk(const PlanRequest& request, const SessionPlan& plan);
void check_prefill_budget(const PlanRequest& request, const SessionPlan& plan);
// Tokens that a block of a prompt's queries may select.
int64_t most_prefill_budget(const ModelConfig& config, const SelectionOptions& selection);

}  // namespace tiercel
