// Which composition loses least on the user's own prompt within the given memory.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "tools/console.h"
#include "tools/eval/compositions.h"
#include "tools/eval/evaluate.h"
#include "tools/eval/exam.h"

namespace tiercel {

struct TuneRequest {
  std::shared_ptr<Model> model;
  const Tokenizer& tokenizer;
  std::vector<int32_t> prompt;                 // at least two tokens
  int64_t steps = 64;                          // greedy tokens of the reference that are compared
  CompositionBase base = {};                   // with the limits
  std::vector<std::string> compositions = {};  // parse_composition; empty: default_candidates
  std::vector<BudgetWish> wishes = {};
  std::optional<double> max_loss = {};  // nats
};

std::span<const char* const> default_candidates();

struct TuneCandidate {
  std::string composition, flags;  // flags of tiercel run that ask for it
  PlannedBudget planned;
  Fidelity fidelity;
  Traffic traffic;
  bool alone = false;  // measured by itself, with a selection cache of its own budget
  double loss() const { return fidelity.kl(); }
  double seconds_per_token() const;
};

struct TuneResult {
  ReferenceKind reference = ReferenceKind::kDense;
  int64_t n_prompt = 0, n_steps = 0;
  std::vector<TuneCandidate> candidates;  // by loss, NaN last
  size_t best = 0;                        // index into candidates
  std::vector<std::string> skipped;       // "quest @ 512: why"; whole lines
};

// The reference ignores the limits: it is what the machine can do to judge the candidates, which
// keep to them. Throws Error(kDoesNotFit) when no candidate fits.
TuneResult tune(const TuneRequest& request, const Console& console);

// The candidate to use: of those within max_loss, or of those whose loss is within 10 % or 0.0001 nats of
// the lowest, the fastest; of those nearly as fast (5 %: times vary), the one of least loss. Candidates are
// ordered by loss.
size_t choose(const std::vector<TuneCandidate>& candidates, std::optional<double> max_loss);

std::string tune_table(const TuneResult& result, const std::string& model);
std::string tune_json(const TuneResult& result, const std::string& model);

}  // namespace tiercel
