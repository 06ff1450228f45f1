#include "tools/eval/tune.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/presets.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

constexpr const char* kDefaultCandidates[] = {
    "dense",
    "shadow",
    "shadow --value-codec int8",
    "shadow --rank-codec int8 --landmark-codec int8 --value-codec int8",
    "shadow --key-codec int8 --value-codec int8",
    "shadow --key-codec int4 --value-codec int4",
    "quest",
    "quest --key-codec int8 --value-codec int8",
    "tokenselect",
    "tokenselect --landmark-codec int8 --value-codec int8",
    "nosa",
    "nosa --key-codec int8 --value-codec int8",
    "delta",
    "mpcache",
    "mpcache --key-codec int8 --value-codec int8",
};

// Flags of tiercel run, the limits included, that ask for what was measured.
std::string flags_of(const EvalComposition& composition, const PlannedBudget& planned) {
  const bool dense = planned.plan.options.attention == AttentionMode::kDense;
  std::string flags = "--attention " + composition.name;
  if (!dense) {
    flags += fmt::format(" --budget {}", planned.selected == kBudgetAll
                                             ? "all"
                                             : std::to_string(planned.selected));
  }
  for (const std::vector<std::string>& flag : composition.given) {
    const bool is_limit = flag[0] == "--device-memory" || flag[0] == "--host-memory";
    if (flag[0] == "--budget" || (dense && !is_limit)) continue;
    for (const std::string& word : flag) flags += " " + word;
  }
  return flags;
}

class Tuning {
 public:
  Tuning(const TuneRequest& request, const Console& console)
      : request_(request),
        console_(console),
        rules_{.tokenizer = request.tokenizer,
               .eos_token_ids = request.model->config().eos_token_ids,
               .compare_steps = request.steps,
               .own_answers = false},
        exam_{sample_, request.prompt, {{request.prompt.back()}}, {}, request.steps + 1} {
    sample_.questions.resize(1);
    sample_.max_new = request.steps;
    exam_.prompt.pop_back();
  }

  TuneResult run() {
    result_.n_prompt = static_cast<int64_t>(request_.prompt.size());
    read_reference();
    std::vector<std::string> specs = request_.compositions;
    if (specs.empty()) specs.assign(default_candidates().begin(), default_candidates().end());
    for (const std::string& spec : specs) measure(parse_composition(spec, request_.base));
    if (result_.candidates.empty()) {
      fail(ErrorKind::kDoesNotFit, "no candidate fits; the first: {}",
           result_.skipped.empty() ? "none was named" : result_.skipped[0]);
    }
    std::stable_sort(result_.candidates.begin(), result_.candidates.end(),
                     [](const TuneCandidate& a, const TuneCandidate& b) {
                       return !std::isnan(a.loss()) && !(a.loss() >= b.loss());
                     });
    // A time that was measured behind another budget's prefill is checked before it decides.
    do {
      result_.best = choose(result_.candidates, request_.max_loss);
    } while (measure_alone(result_.candidates[result_.best]));
    return std::move(result_);
  }

 private:
  PlanInput input() const {
    return {*request_.model, static_cast<int64_t>(exam_.prompt.size()), exam_.n_new};
  }

  void read_reference() {
    SessionOptions unlimited = request_.base.options;
    unlimited.device_memory = unlimited.host_memory = 0;
    const auto plan = [&](ReferenceKind kind) {
      result_.reference = kind;
      return plan_budget(input(), reference_options(kind, unlimited), {}).plan;
    };
    const SessionPlan planned = [&] {
      try {
        return plan(ReferenceKind::kDense);
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kDoesNotFit) throw;
        console_.warn(
            "dense attention does not fit: exact keys, all of them selected, are the "
            "reference");
        return plan(ReferenceKind::kExact);
      }
    }();
    console_.info("tune: reference: {}", describe(result_.reference));
    PromptReader reader(request_.model, planned, exam_.prompt, console_);
    reference_ = examine(reader, kBudgetAll, exam_, rules_, nullptr, /*keep_logits=*/true);
    result_.n_steps = static_cast<int64_t>(reference_[0].tokens.size());
  }

  // All budgets of a composition that fit, behind one prefill.
  void measure(const EvalComposition& composition) {
    const bool dense = composition.options.attention == AttentionMode::kDense;
    std::vector<PlannedBudget> fitting;
    for (const BudgetWish& wish : dense ? std::vector<BudgetWish>{{}} : request_.wishes) {
      plan(composition, wish, fitting);
    }
    // Where none of the budgets fits, whatever does.
    const int64_t limit = composition.options.device_memory;
    if (fitting.empty() && !dense && limit > 0) {
      plan(composition, {BudgetWish::Kind::kBytes, limit}, fitting);
    }
    if (fitting.empty()) return;
    std::stable_sort(fitting.begin(), fitting.end(),
                     [](const PlannedBudget& a, const PlannedBudget& b) {
                       return static_cast<uint64_t>(a.selected) > static_cast<uint64_t>(b.selected);
                     });
    console_.info("tune: {}", composition.name);
    PromptReader reader(request_.model, fitting[0].plan, exam_.prompt, console_);
    for (const PlannedBudget& planned : fitting) {
      stop_if_requested();
      const int64_t budget = &planned == &fitting[0] ? kBudgetAll : planned.selected;
      const Answer answer = examine(reader, budget, exam_, rules_, &reference_, false)[0];
      result_.candidates.push_back({composition.name, flags_of(composition, planned), planned,
                                    answer.fidelity, answer.traffic, /*alone=*/false});
    }
  }

  void plan(const EvalComposition& composition, const BudgetWish& wish,
            std::vector<PlannedBudget>& fitting) {
    try {
      fitting.push_back(plan_budget(input(), composition.options, wish));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kDoesNotFit && error.kind() != ErrorKind::kUsage) throw;
      // Behind the first semicolon stands what would help if this were all there is.
      const std::string why = error.what();
      result_.skipped.push_back(
          fmt::format("{}{}: {}", composition.name, describe(wish), why.substr(0, why.find(';'))));
    }
  }

  // With a selection cache of its own budget, which its speed depends on. False: it has been. Its loss stays as
  // it was: the order by loss does.
  bool measure_alone(TuneCandidate& candidate) {
    if (candidate.alone) return false;
    candidate.alone = true;
    console_.info("tune: {} by itself", candidate.flags);
    PromptReader reader(request_.model, candidate.planned.plan, exam_.prompt, console_);
    const Answer answer = examine(reader, kBudgetAll, exam_, rules_, &reference_, false)[0];
    candidate.traffic = answer.traffic;
    return true;
  }

  const TuneRequest& request_;
  const Console& console_;
  ExamRules rules_;
  EvalSample sample_;
  Exam exam_;
  std::vector<Answer> reference_;
  TuneResult result_;
};

}  // namespace

std::span<const char* const> default_candidates() { return kDefaultCandidates; }

double TuneCandidate::seconds_per_token() const {
  return traffic.steps > 0 ? traffic.seconds / static_cast<double>(traffic.steps) : NAN;
}

size_t choose(const std::vector<TuneCandidate>& candidates, std::optional<double> max_loss) {
  const double lowest = candidates[0].loss();
  const double limit = max_loss ? *max_loss : std::max(1.1 * lowest, lowest + 1e-4);
  size_t n = 1;  // that are good enough; the first one in any case
  while (n < candidates.size() && candidates[n].loss() <= limit) ++n;
  double fastest = candidates[0].seconds_per_token();
  for (size_t i = 1; i < n; ++i) fastest = std::min(fastest, candidates[i].seconds_per_token());
  size_t best = 0;
  while (best + 1 < n && candidates[best].seconds_per_token() > 1.05 * fastest) ++best;
  return best;
}

TuneResult tune(const TuneRequest& request, const Console& console) {
  CHECK(request.prompt.size() >= 2, "{} tokens", request.prompt.size());
  return Tuning(request, console).run();
}

}  // namespace tiercel
