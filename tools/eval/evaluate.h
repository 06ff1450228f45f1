// Runs tasks x lengths x depths x samples under every composition and budget.
//
// A sample is read once per composition: its budgets share the prefill, each starts from the
// prompt's end. One session is open at a time; a reference comes first and leaves its tokens and
// logits behind.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "tools/console.h"
#include "tools/eval/results.h"

namespace tiercel {

enum class ReferenceKind : uint8_t {
  kNone,
  kDense,  // dense decode behind a dense prefill
  kExact   // all tokens selected, with exact keys: where dense attention does not fit
};
const char* describe(ReferenceKind kind);
SessionOptions reference_options(ReferenceKind kind, const SessionOptions& base);

struct EvalRequest {
  std::shared_ptr<Model> model;
  const Tokenizer& tokenizer;
  std::vector<EvalTask> tasks = {};
  std::vector<int64_t> lengths = {};
  std::vector<double> depths = {};
  int64_t n_samples = 1;
  uint64_t seed = 0;
  EvalStyle style = EvalStyle::kPlain;
  std::optional<std::string> text = {};  // prose to hide needles in
  SessionOptions base = {};              // of the reference
  std::vector<EvalComposition> compositions = {};
  std::string swept_flag = {};
  std::vector<BudgetWish> wishes = {};
  ReferenceKind reference = ReferenceKind::kNone;
  int64_t compare_steps = 32;
  bool separate = false;  // every budget prefills by itself, with a selection cache of its own size
};

// "@ 1,024", "@ 1,024 total", "@ 64 MiB" or nothing.
std::string describe(const BudgetWish& wish);

// Throws Error(kDoesNotFit) when nothing of what was asked for fits.
EvalResults evaluate(const EvalRequest& request, const Console& console);

}  // namespace tiercel
