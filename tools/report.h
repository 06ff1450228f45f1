// What a run says about itself: the plan's memory table before it, the closing block and the JSON
// report after it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "engine/answer_form.h"
#include "engine/session.h"
#include "tools/console.h"
#include "tools/generation.h"

namespace tiercel {

const char* version();

struct RunReport {
  std::string model;    // the directory, as given
  std::string backend;  // Session::backend_description
  double load_seconds = 0;
  double tokenize_seconds = 0;
  int64_t prompt_tokens = 0;
  SessionPlan plan;
  SamplingOptions sampling;
  AnswerForm form;  // that the answer was held to
  Generation generation;
  SelectionReport selection;
  AuditReport audit;
  DraftReport drafts;
  int64_t device_bytes_in_use = 0;      // Session::device_bytes_in_use
  std::vector<double> residual_energy;  // per layer
  double key_coding_seconds = 0;        // Session::key_coding_seconds
  int64_t peak_rss_bytes = 0;
};

// One JSON object, with a final newline. Numbers that do not exist (a rate over no time) are null.
std::string to_json(const RunReport& report);

// For each token {"token", "logprob", "top": [[token, logprob], ..]}.
nlohmann::ordered_json logprobs_json(const std::vector<int32_t>& tokens,
                                     const std::vector<TokenLogprobs>& logprobs);
// Null over no time.
nlohmann::ordered_json rate_json(double count, double seconds);
nlohmann::ordered_json drafts_json(const SessionPlan& plan, const DraftReport& drafts);
std::string text_of(const DraftReport& drafts);  // of one step or more

// Attention, selection and their settings, as the report has them.
nlohmann::ordered_json attention_json(const SessionPlan& plan);
// Planned bytes by tier and purpose.
nlohmann::ordered_json planned_memory_json(const MemoryReport& memory);

// Timings, memory planned and used, selection, audit, hash.
void print_summary(const RunReport& report, const Console& console);

// The options that matter and the memory table, before anything is allocated.
void print_plan(const SessionPlan& plan, int64_t n_prompt, const Console& console);

}  // namespace tiercel
