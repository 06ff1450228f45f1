// Asks the questions of a sample and measures the answers, by themselves or against a reference.
//
//   prompt (prefilled once)  |  question (stepped)  |  answer (greedy)
//
// A single question is part of the prompt, as RULER has it, but for its last token: every compared
// distribution comes from a decode step. Several questions of one prompt are stepped, and the
// session goes back to the prompt's end for each.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "tools/eval/reader.h"
#include "tools/eval/sample.h"
#include "tools/eval/score.h"

namespace tiercel {

// What the steps of an exam cost and covered.
struct Traffic {
  int64_t steps = 0;
  double seconds = 0;  // of the steps, until their logits were there
  int64_t fetched_bytes = 0, selected_chunks = 0, hit_chunks = 0;
  int64_t decisions = 0, reused = 0;
  int64_t audited_steps = 0;
  double mass_sum = 0;                     // mean attention mass of a step, summed over steps
  double mass_p05 = 1;                     // lowest 5th percentile of a sitting
  std::vector<double> layer_mass_sum;      // per layer, as mass_sum
  std::vector<int64_t> layer_audit_steps;  // those in which the layer selected

  void add(const SelectionReport& selection, const AuditReport& audit);
  void merge(const Traffic& other);
  // NaN where nothing was measured.
  double mass() const;
  std::vector<double> layer_mass() const;
  double hit_rate() const;
  double reuse_rate() const;
  double fetched_per_step() const;
};

struct Answer {
  std::vector<int32_t> tokens;
  std::string text;
  double score = 0;
  Fidelity fidelity;  // empty without a reference
  Traffic traffic;    // of its sitting, which may be several questions: on the first of them
  std::vector<float> logits;  // [compared steps][vocab], where they are kept
};

struct ExamRules {
  const Tokenizer& tokenizer;
  std::vector<int64_t> eos_token_ids;
  int64_t compare_steps = 32;  // per answer
  bool own_answers = true;     // false: where there is a reference, it is only compared with
};

// The token ids of a sample.
struct Exam {
  const EvalSample& sample;
  std::vector<int32_t> prompt;                  // what is prefilled
  std::vector<std::vector<int32_t>> questions;  // what is stepped, at least one token each
  std::vector<int32_t> newline;
  int64_t n_new = 0;  // tokens that a session needs room for behind the prompt
};
Exam make_exam(const EvalSample& sample, const Tokenizer& tokenizer);

// Answers per question. With a reference the steps are first taken over its tokens and compared
// with its logits; the answer itself is this session's own. keep_logits: for a reference.
std::vector<Answer> examine(PromptReader& reader, int64_t budget, const Exam& exam,
                            const ExamRules& rules, const std::vector<Answer>* reference,
                            bool keep_logits);

}  // namespace tiercel
