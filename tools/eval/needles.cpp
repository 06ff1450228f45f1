// Needles in prose.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "engine/base/check.h"
#include "tools/eval/generators.h"
#include "tools/haystack.h"
#include "tools/unique_names.h"

namespace tiercel {
namespace {

constexpr const char* kIntroduction =
    "Special magic numbers are hidden in the text below. Remember them: at its end some of them "
    "will "
    "be asked for.\n\n";
constexpr const char* kVariableIntroduction =
    "A chain of variable assignments is hidden in the text below. Follow it: at its end you will "
    "be "
    "asked which variables have a value.\n\n";
constexpr size_t kNeedles = 4;    // of the multi-something tasks
constexpr size_t kVariables = 5;  // of a chain: four hops

bool asks_recall(const SampleRequest& request) {
  return request.style == EvalStyle::kRecall && has_form(request.style, request.task);
}

// What is hidden, and what is asked about it.
struct Plot {
  std::string introduction;
  std::vector<HiddenLine> lines;
  std::vector<EvalQuestion> questions;
};

class NeedlePlots {
 public:
  explicit NeedlePlots(const SampleRequest& request)
      : request_(request),
        random_(request.seed),
        names_(random_, request.text ? &*request.text : nullptr) {
    if (!recall()) plot_.introduction = kIntroduction;
  }

  Plot make() {
    switch (request_.task) {
      case EvalTask::kMultiKey1: many_keys(); break;
      case EvalTask::kMultiValue: many_values(); break;
      case EvalTask::kMultiQuery: many_queries(); break;
      case EvalTask::kVariables: variables(); break;
      default: one_key(request_.depths.at(0)); break;
    }
    std::stable_sort(plot_.lines.begin(), plot_.lines.end(),
                     [](const HiddenLine& a, const HiddenLine& b) { return a.depth < b.depth; });
    return std::move(plot_);
  }

 private:
  bool recall() const { return asks_recall(request_); }
  double any_depth() { return static_cast<double>(random_.below(1001)) / 1000; }

  Fact fact() {
    const auto form = recall() ? FactForm::kMagic : FactForm::kSpecial;
    return {.form = form, .key = names_.key(), .value = names_.value(recall() ? 0 : 7)};
  }

  void one_key(double depth) {
    const Fact needle = fact();
    plot_.lines.push_back({needle.sentence(), depth});
    plot_.questions.push_back({needle.question(),
                               {needle.value},
                               recall() ? Scoring::kFirstLine : Scoring::kShare,
                               depth});
  }

  void many_keys() {
    for (const double depth : request_.depths) one_key(depth);
    while (plot_.lines.size() < kNeedles) plot_.lines.push_back({fact().sentence(), any_depth()});
  }

  void many_values() {
    const std::string key = names_.key();
    EvalQuestion question{
        fmt::format("What are all the special magic numbers for {0} in the text above? The special "
                    "magic numbers for {0} are",
                    key),
        {},
        Scoring::kShare,
        {}};
    while (plot_.lines.size() < kNeedles) {
      const Fact needle{.form = FactForm::kSpecial, .key = key, .value = names_.value(7)};
      plot_.lines.push_back({needle.sentence(), any_depth()});
      question.expected.push_back(needle.value);
    }
    plot_.questions = {question};
  }

  void many_queries() {
    std::vector<std::string> keys, values;
    while (plot_.lines.size() < kNeedles) {
      const Fact needle = fact();
      const double depth = any_depth();
      keys.push_back(needle.key);
      values.push_back(needle.value);
      plot_.lines.push_back({needle.sentence(), depth});
      if (recall()) {
        plot_.questions.push_back({needle.question(), {needle.value}, Scoring::kFirstLine, {}});
      }
    }
    if (recall()) return;
    const std::string all = fmt::format("{}", fmt::join(keys, ", "));
    plot_.questions.push_back(
        {fmt::format(
             "What are the special magic numbers for {0} in the text above? The special magic "
             "numbers for {0} are",
             all),
         values,
         Scoring::kShare,
         {}});
  }

  void variables() {
    plot_.introduction = kVariableIntroduction;
    const std::string value = names_.value(5);
    std::vector<double> depths;
    while (depths.size() < kVariables) depths.push_back(any_depth());
    std::sort(depths.begin(), depths.end());
    std::vector<std::string> variables;
    for (const double depth : depths) {
      const std::string name = names_.letters(5, "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
      plot_.lines.push_back({variables.empty()
                                 ? fmt::format("VAR {} = {}", name, value)
                                 : fmt::format("VAR {} = VAR {}", name, variables.back()),
                             depth});
      variables.push_back(name);
    }
    plot_.questions.push_back(
        {fmt::format("Question: Which variables have the value {0}, directly or through other "
                     "variables?\nAnswer: The {1} variables that have the value {0} are",
                     value, kVariables),
         variables,
         Scoring::kShare,
         {}});
  }

  const SampleRequest& request_;
  RandomBits random_;
  UniqueNames names_;
  Plot plot_;
};

}  // namespace

EvalSample make_needles(const SampleRequest& request) {
  Plot plot = NeedlePlots(request).make();
  const HayRequest hay_request{
      .n_tokens = room_for_body(request, plot.introduction, plot.questions),
      .seed = request.seed,
      .text = request.text,
      .count = request.count,
      .n_lead = 0};
  HayRequest fitted = hay_request;
  Hay hay = hide_lines(fitted, plot.lines);
  // Prose is met to 0.5 %, the length of a sample never exceeded.
  if (hay.n_tokens > hay_request.n_tokens) {
    fitted.n_tokens -= hay.n_tokens - hay_request.n_tokens + hay_request.n_tokens / 400;
    hay = hide_lines(fitted, plot.lines);
  }
  const bool recall = asks_recall(request);
  EvalSample sample;
  sample.context = plot.introduction + hay.text;
  sample.questions = std::move(plot.questions);
  sample.in_turn = recall && request.task == EvalTask::kMultiQuery;
  sample.max_new = recall ? 16 : request.task == EvalTask::kVariables ? 60 : 128;
  return sample;
}

}  // namespace tiercel
