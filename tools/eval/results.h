// What an evaluation found, and the forms it is written in.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/eval/compositions.h"
#include "tools/eval/exam.h"
#include "tools/eval/sample.h"

namespace tiercel {

// A composition at one wish for a budget: a line of the charts.
struct EvalSeries {
  std::string name;         // "shadow @ 1,024"
  std::string line;         // "shadow": what is drawn as one line over its budgets
  std::string composition;  // all of it, in words
  bool reference = false;
  BudgetWish wish;
  std::optional<double> swept = {};  // value of the flag that is swept
};

// What a series came to at one length.
struct EvalPlan {
  size_t series = 0;
  int64_t length = 0;
  int64_t selected = 0, always = 0;  // tokens per KV head; kBudgetAll
  std::string budget_text;
  int64_t device_bytes = 0, host_bytes = 0;  // of the sequence
};

// One question under one series.
struct EvalRecord {
  EvalTask task = EvalTask::kSingle;
  int64_t length = 0, n_tokens = 0, sample = 0;
  size_t series = 0;
  std::optional<double> depth;
  std::vector<std::string> expected = {};
  Answer answer = {};            // without logits
  double reference_score = NAN;  // of the same question; NaN without a reference
};

struct EvalResults {
  std::string model, backend, style;
  uint64_t seed = 0;
  std::string swept_flag;  // "slots"; empty: nothing is swept
  std::string reference;   // "dense", "exact keys, all selected"; empty: nothing is compared
  std::vector<EvalSeries> series;
  std::vector<EvalPlan> plans;
  std::vector<EvalRecord> records;
  bool interrupted = false;        // some prompts were not measured
  bool shared_prefill = false;     // several budgets of a composition used one session
  std::vector<double> depths;      // of a grid; empty: depths were drawn
  std::vector<std::string> notes;  // whole sentences

  const EvalPlan* plan_of(size_t series, int64_t length) const;
  std::vector<EvalTask> tasks() const;  // in the order in which they were measured
  std::vector<int64_t> lengths() const;
};

struct EvalSummary {
  int64_t n = 0;  // questions
  double score = NAN;
  double kept = NAN;  // of what the reference scored, the part that is scored too
  Fidelity fidelity;
  Traffic traffic;
};

// Over the records that `keep` returns true for. The score is the mean over questions.
template <typename F>
EvalSummary summarize(const EvalResults& results, F keep) {
  EvalSummary summary;
  double sum = 0, reference_sum = 0, kept_sum = 0;
  for (const EvalRecord& record : results.records) {
    if (!keep(record)) continue;
    ++summary.n;
    sum += record.answer.score;
    if (!std::isnan(record.reference_score)) {
      reference_sum += record.reference_score;
      kept_sum += std::min(record.reference_score, record.answer.score);
    }
    summary.fidelity.merge(record.answer.fidelity);
    summary.traffic.merge(record.answer.traffic);
  }
  if (summary.n > 0) summary.score = sum / static_cast<double>(summary.n);
  if (reference_sum > 0) summary.kept = kept_sum / reference_sum;
  return summary;
}

std::string eval_tables(const EvalResults& results);
std::string eval_json(const EvalResults& results);
// A picture: a grid per series, and lines over the budget where there are several. Self-contained
// SVG.
std::string eval_svg(const EvalResults& results);

}  // namespace tiercel
