#include "tools/eval/compositions.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/presets.h"
#include "tools/session_flags.h"

namespace tiercel {
namespace {

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    if (end > begin) words.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return words;
}

// Not more than the budget may be: there is nothing else to select.
int64_t most_selected(const PlanInput& input) { return input.n_prompt + input.n_new; }

SessionPlan plan_with(const PlanInput& input, SessionOptions options, int64_t budget) {
  options.selection.budget = budget;
  options.selection.budget_share = 0;
  return Session::plan(input.model, options, input.n_prompt, input.n_new);
}

// The largest budget whose sequence takes at most so many bytes of the device. Bytes grow with it.
int64_t largest_within(const PlanInput& input, const SessionOptions& options, int64_t bytes) {
  const int64_t chunk = options.selection.chunk_size;
  const auto fits = [&](int64_t chunks) {
    try {
      return sequence_device_bytes(plan_with(input, options, chunks * chunk).memory) <= bytes;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kDoesNotFit) throw;
      return false;
    }
  };
  int64_t low = 0, high = most_selected(input) / chunk + 1;  // low fits or is none, high does not
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low * chunk;
}

}  // namespace

std::vector<std::vector<std::string>> given_for_compositions(const Flags& flags) {
  SessionOptions ignored;
  Flags ours("eval", "One composition.");
  ours.without_twin([&] { add_session_flags(ours, ignored); });
  std::vector<std::vector<std::string>> given = flags.given_of(ours);
  // The first is what compositions are instead, the others the command's own.
  std::erase_if(given, [](const std::vector<std::string>& flag) {
    return flag[0] == "--attention" || flag[0] == "--audit" || flag[0] == "--strict";
  });
  return given;
}

EvalComposition parse_composition(std::string_view spec, const CompositionBase& base) {
  std::vector<std::string> words = words_of(spec);
  if (words.empty()) fail(ErrorKind::kUsage, "expected the name of a preset, found nothing");
  EvalComposition composition{std::string(spec), base.options};
  composition.name = fmt::format("{}", words[0]);
  for (size_t i = 1; i < words.size(); ++i) composition.name += fmt::format(" {}", words[i]);
  std::vector<std::string> given;
  for (const std::vector<std::string>& flag : base.given) {
    const bool in_spec = std::any_of(words.begin(), words.end(), [&](const std::string& word) {
      return word == flag[0] || word.starts_with(flag[0] + "=");
    });
    if (in_spec) continue;
    given.insert(given.end(), flag.begin(), flag.end());
    composition.given.push_back(flag);
  }
  words.insert(words.begin() + 1, given.begin(), given.end());
  words.insert(words.begin(), {"eval", "--attention"});
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  Flags flags("eval", "One composition.");
  flags.without_log();
  flags.without_twin([&] { add_session_flags(flags, composition.options); });
  if (!flags.parse(static_cast<int>(arguments.size()), arguments.data())) {
    fail(ErrorKind::kUsage, "expected a preset and its flags, found '{}'", spec);
  }
  return composition;
}

std::string PlannedBudget::budget_text() const {
  if (plan.options.attention == AttentionMode::kDense) return "all";
  return fmt::format("{} + {}", selected == kBudgetAll ? "all" : format_count(selected),
                     format_count(always));
}

int64_t sequence_device_bytes(const MemoryReport& memory) {
  return memory.device.total() - memory.device.weights - memory.device.activations;
}

PlannedBudget plan_budget(const PlanInput& input, SessionOptions options, const BudgetWish& wish) {
  PlannedBudget planned{wish, {}, 0, 0};
  const bool dense = options.attention == AttentionMode::kDense;
  if (dense) options.strict = false;  // what it has no use for is meant for the others
  const int64_t beside = dense ? 0 : protected_tokens(options.selection);
  const int64_t chunk = options.selection.chunk_size;
  switch (dense ? BudgetWish::Kind::kPlanned : wish.kind) {
    case BudgetWish::Kind::kPlanned:
      planned.plan = Session::plan(input.model, options, input.n_prompt, input.n_new);
      break;
    case BudgetWish::Kind::kSelected: planned.plan = plan_with(input, options, wish.amount); break;
    case BudgetWish::Kind::kTotal:
      if (wish.amount - beside < chunk) {
        fail(ErrorKind::kDoesNotFit,
             "{} tokens are protected, which leaves nothing of {} to select", format_count(beside),
             format_count(wish.amount));
      }
      planned.plan = plan_with(input, options, wish.amount - beside);
      break;
    case BudgetWish::Kind::kBytes: {
      const int64_t budget = largest_within(input, options, wish.amount);
      if (budget < chunk) {
        fail(ErrorKind::kDoesNotFit, "what a sequence of {} tokens keeps on the device exceeds {}",
             format_count(input.n_prompt), format_bytes(wish.amount));
      }
      planned.plan = plan_with(input, options, budget);
      break;
    }
  }
  if (dense && wish.kind == BudgetWish::Kind::kBytes &&
      sequence_device_bytes(planned.plan.memory) > wish.amount) {
    fail(ErrorKind::kDoesNotFit, "dense attention keeps {} on the device",
         format_bytes(sequence_device_bytes(planned.plan.memory)));
  }
  planned.selected = dense ? kBudgetAll : planned.plan.options.selection.budget;
  planned.always = dense ? 0 : protected_tokens(planned.plan.options.selection);
  return planned;
}

}  // namespace tiercel
