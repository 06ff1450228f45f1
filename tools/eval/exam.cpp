#include "tools/eval/exam.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "tools/signals.h"
#include "tools/stopwatch.h"

namespace tiercel {
namespace {

double ratio(double sum, int64_t n) { return n > 0 ? sum / static_cast<double>(n) : NAN; }

// Questions that are asked one after the other without going back: [first, last).
class Sitting {
 public:
  Sitting(PromptReader& reader, const Exam& exam, const ExamRules& rules, size_t first, size_t last)
      : session_(reader.session()), exam_(exam), rules_(rules), first_(first), last_(last) {}

  // guide: the answers whose tokens are taken instead of this session's own.
  std::vector<Answer> hold(const std::vector<Answer>* guide, bool keep_logits) {
    std::vector<Answer> answers;
    for (size_t q = first_; q < last_; ++q) {
      for (const int32_t id : lead_in(answers)) step(id);
      for (const int32_t id : exam_.questions[q]) step(id);
      answers.push_back(answer(q, guide != nullptr ? &(*guide)[q] : nullptr, keep_logits));
    }
    traffic_.add(session_.selection(), session_.audit());
    answers[0].traffic = traffic_;
    return answers;
  }

 private:
  void step(int32_t token) {
    stop_if_requested();
    const Stopwatch watch;
    session_.step(token);
    traffic_.seconds += watch.seconds();
    ++traffic_.steps;
  }

  // Waits for the step.
  std::span<const float> logits() {
    const Stopwatch watch;
    const std::span<const float> logits = session_.logits();
    traffic_.seconds += watch.seconds();
    return logits;
  }

  // What stands between the answers so far and the next question: the last answer's last token,
  // which nobody has stepped yet, and the end of its line.
  std::vector<int32_t> lead_in(const std::vector<Answer>& answers) const {
    if (answers.empty()) return {};
    std::vector<int32_t> ids = {answers.back().tokens.back()};
    if (!answers.back().text.ends_with('\n')) {
      ids.insert(ids.end(), exam_.newline.begin(), exam_.newline.end());
    }
    return ids;
  }

  // How many tokens of an answer are generated or, with a guide, followed.
  size_t most_tokens(const Answer* guide) const {
    if (guide == nullptr) return static_cast<size_t>(exam_.sample.max_new);
    const size_t n = guide->tokens.size();
    // The next question needs all of the answer in front of it.
    return exam_.sample.in_turn ? n : std::min(n, static_cast<size_t>(rules_.compare_steps));
  }

  Answer answer(size_t q, const Answer* guide, bool keep_logits) {
    Answer result;
    StreamDecoder decoder(rules_.tokenizer, /*skip_special=*/true);
    const size_t most = most_tokens(guide);
    for (size_t i = 0; i < most; ++i) {
      const std::span<const float> logits = this->logits();
      check_logits(logits);
      const int32_t best = most_likely(logits);
      if (i < static_cast<size_t>(rules_.compare_steps)) {
        if (guide != nullptr) {
          result.fidelity.add(std::span(guide->logits).subspan(i * logits.size(), logits.size()),
                              logits);
        }
        if (keep_logits) result.logits.insert(result.logits.end(), logits.begin(), logits.end());
      }
      const int32_t token = guide != nullptr ? guide->tokens[i] : best;
      result.tokens.push_back(token);
      result.text += decoder.push(token);
      if (i + 1 == most || (guide == nullptr && ends(q, token, result.text))) break;
      step(token);
    }
    result.text += decoder.finish();
    result.score = score_answer(exam_.sample.questions[q], result.text);
    return result;
  }

  bool ends(size_t q, int32_t token, const std::string& text) const {
    const auto& eos = rules_.eos_token_ids;
    return std::find(eos.begin(), eos.end(), token) != eos.end() ||
           is_settled(exam_.sample.questions[q], text);
  }

  Session& session_;
  const Exam& exam_;
  const ExamRules& rules_;
  size_t first_, last_;
  Traffic traffic_;
};

// Whether the session, left to itself, says what the guide said.
bool same_as_guide(const std::vector<Answer>& guided, const std::vector<Answer>& guide,
                   size_t first) {
  for (size_t i = 0; i < guided.size(); ++i) {
    const Fidelity& fidelity = guided[i].fidelity;
    if (fidelity.agreed != static_cast<int64_t>(guide[first + i].tokens.size())) return false;
  }
  return true;
}

}  // namespace

void Traffic::add(const SelectionReport& selection, const AuditReport& audit) {
  Traffic one;
  one.fetched_bytes = selection.fetched_bytes;
  one.selected_chunks = selection.selected_chunks;
  one.hit_chunks = selection.hit_chunks;
  one.decisions = selection.decisions;
  one.reused = selection.reused;
  one.audited_steps = audit.steps;
  if (audit.steps > 0) {
    one.mass_sum = audit.mass_mean * static_cast<double>(audit.steps);
    one.mass_p05 = audit.mass_p05;
    for (const double mass : audit.layer_mass) {
      const bool selected = !std::isnan(mass);
      one.layer_mass_sum.push_back(selected ? mass * static_cast<double>(audit.steps) : 0);
      one.layer_audit_steps.push_back(selected ? audit.steps : 0);
    }
  }
  merge(one);
}

void Traffic::merge(const Traffic& other) {
  steps += other.steps;
  seconds += other.seconds;
  fetched_bytes += other.fetched_bytes;
  selected_chunks += other.selected_chunks;
  hit_chunks += other.hit_chunks;
  decisions += other.decisions;
  reused += other.reused;
  audited_steps += other.audited_steps;
  mass_sum += other.mass_sum;
  mass_p05 = std::min(mass_p05, other.mass_p05);
  const size_t n_layers = std::max(layer_mass_sum.size(), other.layer_mass_sum.size());
  layer_mass_sum.resize(n_layers);
  layer_audit_steps.resize(n_layers);
  for (size_t i = 0; i < other.layer_mass_sum.size(); ++i) {
    layer_mass_sum[i] += other.layer_mass_sum[i];
    layer_audit_steps[i] += other.layer_audit_steps[i];
  }
}

double Traffic::mass() const { return ratio(mass_sum, audited_steps); }

std::vector<double> Traffic::layer_mass() const {
  std::vector<double> masses;
  for (size_t i = 0; i < layer_mass_sum.size(); ++i) {
    masses.push_back(ratio(layer_mass_sum[i], layer_audit_steps[i]));
  }
  return masses;
}

double Traffic::hit_rate() const { return ratio(static_cast<double>(hit_chunks), selected_chunks); }

double Traffic::reuse_rate() const {
  return decisions > 0 ? static_cast<double>(reused) / static_cast<double>(decisions) : NAN;
}
double Traffic::fetched_per_step() const {
  return ratio(static_cast<double>(fetched_bytes), steps);
}

Exam make_exam(const EvalSample& sample, const Tokenizer& tokenizer) {
  const EncodeOptions going_on{
      .add_special = false, .parse_special = false, .follows = Follows::kText};
  const EncodeOptions leading{.add_special = true, .parse_special = false};
  Exam exam{sample, {}, {}, tokenizer.encode("\n", going_on), 0};
  if (sample.questions.size() == 1) {
    exam.prompt = tokenizer.encode(sample.context + sample.questions[0].text, leading);
    exam.questions = {{exam.prompt.back()}};
    exam.prompt.pop_back();
  } else {
    exam.prompt = tokenizer.encode(sample.context, leading);
    for (const EvalQuestion& question : sample.questions) {
      exam.questions.push_back(tokenizer.encode(question.text, going_on));
    }
  }
  for (const auto& question : exam.questions) {
    const auto n = static_cast<int64_t>(question.size() + exam.newline.size()) + sample.max_new;
    exam.n_new = sample.in_turn ? exam.n_new + n : std::max(exam.n_new, n);
  }
  return exam;
}

std::vector<Answer> examine(PromptReader& reader, int64_t budget, const Exam& exam,
                            const ExamRules& rules, const std::vector<Answer>* reference,
                            bool keep_logits) {
  const size_t n = exam.questions.size(), per_sitting = exam.sample.in_turn ? n : 1;
  std::vector<Answer> answers;
  for (size_t first = 0; first < n; first += per_sitting) {
    const auto sit = [&](const std::vector<Answer>* guide) {
      reader.restart(budget);
      return Sitting(reader, exam, rules, first, first + per_sitting).hold(guide, keep_logits);
    };
    std::vector<Answer> sitting = sit(reference);
    if (reference != nullptr && rules.own_answers && !same_as_guide(sitting, *reference, first)) {
      const std::vector<Answer> guided = std::move(sitting);
      sitting = sit(nullptr);
      for (size_t i = 0; i < sitting.size(); ++i) {
        sitting[i].fidelity = guided[i].fidelity;
        sitting[i].traffic = guided[i].traffic;
      }
    }
    std::move(sitting.begin(), sitting.end(), std::back_inserter(answers));
  }
  return answers;
}

}  // namespace tiercel
