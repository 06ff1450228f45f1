// What is compared: compositions of selection, each at several budgets.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/session.h"
#include "tools/flags.h"

namespace tiercel {

struct EvalComposition {
  std::string name;  // as it was asked for: "quest --chunk-size 32"
  SessionOptions options;
  std::vector<std::vector<std::string>> given = {};  // of the base, where the name says nothing else
  std::string swept_from = {};          // what a sweep changed: "quest"
  std::optional<double> swept_to = {};  // the value
};

// What compositions have in common: the limits, and flags of selection that were given beside them.
struct CompositionBase {
  SessionOptions options;
  std::vector<std::vector<std::string>> given = {};  // {"--name", "value"}
};
// Of a command whose flags have been parsed.
std::vector<std::vector<std::string>> given_for_compositions(const Flags& flags);

// "quest", or a preset with flags that change it: "shadow --key-codec int8". A flag of the base beats the
// preset, a flag of the spec both. Throws Error(kUsage).
EvalComposition parse_composition(std::string_view spec, const CompositionBase& base);

// A budget that was asked for, as one of three equalities.
struct BudgetWish {
  enum class Kind : uint8_t {
    kPlanned,   // as the composition says
    kSelected,  // tokens selected per KV head; kBudgetAll: all
    kTotal,     // selected and protected tokens together
    kBytes      // device bytes of the sequence
  } kind = Kind::kPlanned;
  int64_t amount = 0;
};

// A composition at one budget, planned.
struct PlannedBudget {
  BudgetWish wish;
  SessionPlan plan;
  int64_t selected = 0;             // tokens per KV head; kBudgetAll: all
  int64_t always = 0;               // sinks, window, outliers, static part
  std::string budget_text() const;  // "1,024 + 656", "all"
};

// Bytes of the sequence on the device: what its length and its composition cost.
int64_t sequence_device_bytes(const MemoryReport& memory);

struct PlanInput {
  const Model& model;
  int64_t n_prompt = 0, n_new = 0;
};
// Throws as Session::plan does, and Error(kDoesNotFit) when the wish leaves nothing to select.
PlannedBudget plan_budget(const PlanInput& input, SessionOptions options, const BudgetWish& wish);

}  // namespace tiercel
