#include "tools/eval/evaluate.h"

#include <algorithm>
#include <set>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/presets.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

class Evaluation {
 public:
  Evaluation(const EvalRequest& request, const Console& console)
      : request_(request),
        console_(console),
        rules_{.tokenizer = request.tokenizer,
               .eos_token_ids = request.model->config().eos_token_ids,
               .compare_steps = request.compare_steps} {
    results_.style = name_of(request.style);
    results_.swept_flag = request.swept_flag;
    results_.seed = request.seed;
    results_.depths = request.depths;
    if (comparing()) results_.reference = describe(request.reference);
    list_series();
  }

  EvalResults run() {
    SampleRequest sample{.style = request_.style, .depths = request_.depths, .text = request_.text};
    sample.n_lead = static_cast<int64_t>(request_.tokenizer.encode("").size());
    sample.count = [this](std::string_view text) {
      stop_if_requested();
      const EncodeOptions going_on{
          .add_special = false, .parse_special = false, .follows = Follows::kText};
      return static_cast<int64_t>(request_.tokenizer.encode(text, going_on).size());
    };
    for (const int64_t length : request_.lengths) {
      if (!may_fit(length)) continue;
      for (const EvalTask task : request_.tasks) {
        for (int64_t i = 0; i < request_.n_samples; ++i) {
          sample.task = task;
          sample.length = length;
          sample.seed = request_.seed + static_cast<uint64_t>(i);
          std::vector<EvalSample> samples;
          if (!finished([&] { samples = make_samples(sample); })) return std::move(results_);
          for (const EvalSample& one : samples) {
            if (!finished([&] { measure(one, i); })) return std::move(results_);
            ++n_prompts_;
          }
        }
      }
    }
    if (results_.records.empty() && !results_.notes.empty()) {
      fail(ErrorKind::kDoesNotFit, "{}", results_.notes[0]);
    }
    return std::move(results_);
  }

 private:
  bool comparing() const { return request_.reference != ReferenceKind::kNone; }

  void list_series() {
    if (comparing()) {
      const std::string name = fmt::format("reference ({})", describe(request_.reference));
      const SessionOptions options = reference_options(request_.reference, request_.base);
      results_.series.push_back({name, name, composition(options), true, {}});
    }
    for (const EvalComposition& c : request_.compositions) {
      for (const BudgetWish& wish : wishes_of(c)) {
        results_.series.push_back(
            {c.name + describe(wish), c.name, composition(c.options), false, wish});
        if (!c.swept_to) continue;
        results_.series.back().line = c.swept_from + describe(wish);
        results_.series.back().swept = c.swept_to;
      }
    }
  }

  // Dense attention has no budget, but may exceed bytes.
  std::vector<BudgetWish> wishes_of(const EvalComposition& c) const {
    const bool dense = c.options.attention == AttentionMode::kDense;
    if (dense && request_.wishes[0].kind != BudgetWish::Kind::kBytes) return {BudgetWish{}};
    return request_.wishes;
  }

  // Before a text of this length is composed, which may take minutes. False: nothing has room for it, and
  // that is noted. Throws where what all are compared with has none.
  bool may_fit(int64_t length) {
    const PlanInput input{*request_.model, length, 1};
    if (comparing()) plan_budget(input, reference_options(request_.reference, request_.base), {});
    std::string reason;
    for (const EvalComposition& c : request_.compositions) {
      SessionOptions options = c.options;
      options.audit = 0;
      for (const BudgetWish& wish : wishes_of(c)) {
        try {
          plan_budget(input, options, wish);
          return true;
        } catch (const Error& error) {
          if (error.kind() != ErrorKind::kDoesNotFit) throw;
          reason = error.what();
        }
      }
    }
    note(fmt::format("{} tokens are left out: {}", format_count(length), reason));
    return false;
  }

  // False: interrupted, behind some results. Only prompts that all have answered are kept, so that scores
  // compare.
  template <typename Work>
  bool finished(const Work& work) {
    const size_t n_before = results_.records.size();
    try {
      work();
      return true;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kInterrupted || n_before == 0) throw;
    }
    results_.records.resize(n_before);
    results_.interrupted = true;
    note(fmt::format("Interrupted: the results are those of the first {} prompt{}.", n_prompts_,
                     n_prompts_ == 1 ? "" : "s"));
    return false;
  }

  void measure(const EvalSample& sample, int64_t index) {
    const Exam exam = make_exam(sample, request_.tokenizer);
    size_t series = 0;
    std::vector<Answer> reference;
    if (comparing()) {
      SessionOptions options = reference_options(request_.reference, request_.base);
      const PlannedBudget planned = plan_budget(input(exam), options, {});
      announce(sample, index, results_.series[0].name);
      PromptReader reader(request_.model, planned.plan, exam.prompt, console_);
      reference = examine(reader, kBudgetAll, exam, rules_, nullptr, /*keep_logits=*/true);
      keep(sample, index, series++, planned, reference, nullptr);
      note_backend(reader);
    }
    for (const EvalComposition& c : request_.compositions) {
      const std::vector<BudgetWish> wishes = wishes_of(c);
      measure_composition(sample, index, exam, c, wishes, series,
                          comparing() ? &reference : nullptr);
      series += wishes.size();
    }
  }

  PlanInput input(const Exam& exam) const {
    return {*request_.model, static_cast<int64_t>(exam.prompt.size()), exam.n_new};
  }

  struct Candidate {
    size_t series;
    PlannedBudget planned;
  };

  void measure_composition(const EvalSample& sample, int64_t index, const Exam& exam,
                           const EvalComposition& composition,
                           const std::vector<BudgetWish>& wishes, size_t first_series,
                           const std::vector<Answer>* reference) {
    std::vector<Candidate> candidates;
    for (size_t i = 0; i < wishes.size(); ++i) {
      try {
        // What an audit keeps to compare with is no part of the composition: planned without.
        SessionOptions options = composition.options;
        options.audit = 0;
        candidates.push_back({first_series + i, plan_budget(input(exam), options, wishes[i])});
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kDoesNotFit) throw;
        note(fmt::format("{} at {} tokens is left out: {}", results_.series[first_series + i].name,
                         format_count(sample.length), error.what()));
      }
    }
    const auto more = [](const Candidate& a, const Candidate& b) {
      const auto rank = [](int64_t n) { return n == kBudgetAll ? INT64_MAX : n; };
      return rank(a.planned.selected) > rank(b.planned.selected);
    };
    std::stable_sort(candidates.begin(), candidates.end(), more);
    std::optional<PromptReader> reader;
    for (const Candidate& candidate : candidates) {
      const bool planned_is_all = !reader || request_.separate;
      if (planned_is_all) {
        announce(sample, index, results_.series[candidate.series].name);
        reader.reset();
        reader.emplace(request_.model, session_plan(exam, composition, candidate.planned),
                       exam.prompt, console_);
        note_backend(*reader);
      }
      const std::vector<Answer> answers =
          examine(*reader, planned_is_all ? kBudgetAll : candidate.planned.selected, exam, rules_,
                  reference, /*keep_logits=*/false);
      keep(sample, index, candidate.series, candidate.planned, answers, reference);
      results_.shared_prefill |= !planned_is_all;
    }
  }

  // The plan of the session itself: with an audit where attention mass is wanted.
  SessionPlan session_plan(const Exam& exam, const EvalComposition& composition,
                           const PlannedBudget& planned) {
    SessionOptions options = planned.plan.options;
    options.audit = comparing() ? 1 : composition.options.audit;
    if (options.audit == 0 || options.attention == AttentionMode::kDense) return planned.plan;
    try {
      return Session::plan(*request_.model, options, static_cast<int64_t>(exam.prompt.size()),
                           exam.n_new);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kDoesNotFit) throw;
      note(
          fmt::format("{}: attention mass is not measured: the keys to measure it with do not fit.",
                      composition.name));
      return planned.plan;
    }
  }

  void keep(const EvalSample& sample, int64_t index, size_t series, const PlannedBudget& planned,
            const std::vector<Answer>& answers, const std::vector<Answer>* reference) {
    if (results_.plan_of(series, sample.length) == nullptr) {
      // With every auto decided.
      results_.series[series].composition = composition(planned.plan.options);
      results_.plans.push_back({series, sample.length, planned.selected, planned.always,
                                planned.budget_text(), sequence_device_bytes(planned.plan.memory),
                                planned.plan.memory.host.total()});
    }
    for (size_t q = 0; q < answers.size(); ++q) {
      EvalRecord record{.task = sample.task,
                        .length = sample.length,
                        .n_tokens = sample.n_tokens,
                        .sample = index,
                        .series = series,
                        .depth = sample.questions[q].depth,
                        .expected = sample.questions[q].expected,
                        .answer = answers[q]};
      if (reference != nullptr) record.reference_score = (*reference)[q].score;
      record.answer.logits.clear();
      record.answer.logits.shrink_to_fit();
      results_.records.push_back(std::move(record));
    }
  }

  void announce(const EvalSample& sample, int64_t index, const std::string& series) const {
    stop_if_requested();
    console_.info("eval: {}, {} tokens, sample {} of {}: {}", name_of(sample.task),
                  format_count(sample.n_tokens), index + 1, request_.n_samples, series);
  }

  void note(const std::string& text) {
    if (!noted_.insert(text).second) return;
    results_.notes.push_back(text);
    console_.warning(text);
  }

  void note_backend(PromptReader& reader) {
    results_.backend = reader.session().backend_description();
  }

  const EvalRequest& request_;
  const Console& console_;
  ExamRules rules_;
  EvalResults results_;
  std::set<std::string> noted_;
  int64_t n_prompts_ = 0;  // measured
};

}  // namespace

const char* describe(ReferenceKind kind) {
  switch (kind) {
    case ReferenceKind::kNone: return "nothing";
    case ReferenceKind::kDense: return "dense";
    case ReferenceKind::kExact: return "exact keys, all selected";
  }
  return "?";
}

SessionOptions reference_options(ReferenceKind kind, const SessionOptions& base) {
  SessionOptions options = base;
  apply_preset(kind == ReferenceKind::kDense ? AttentionMode::kDense : AttentionMode::kShadow,
               options);
  // What decode loses is seen by itself where both prefill alike.
  options.prefill =
      base.prefill == PrefillMode::kSelect ? PrefillMode::kSelect : PrefillMode::kDense;
  options.audit = 0;
  options.strict = false;  // the other options are meant for what is compared with it
  if (kind == ReferenceKind::kExact) {
    options.selection.key_codec = KeyCodec::kExact;
    options.selection.budget = kBudgetAll;
  }
  return options;
}

std::string describe(const BudgetWish& wish) {
  switch (wish.kind) {
    case BudgetWish::Kind::kPlanned: return "";
    case BudgetWish::Kind::kSelected:
      return fmt::format(" @ {}", wish.amount == kBudgetAll ? "all" : format_count(wish.amount));
    case BudgetWish::Kind::kTotal: return fmt::format(" @ {} total", format_count(wish.amount));
    case BudgetWish::Kind::kBytes: return fmt::format(" @ {}", format_bytes(wish.amount));
  }
  return "";
}

EvalResults evaluate(const EvalRequest& request, const Console& console) {
  return Evaluation(request, console).run();
}

}  // namespace tiercel
