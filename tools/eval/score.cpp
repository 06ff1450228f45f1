#include "tools/eval/score.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <string>

#include "engine/base/check.h"
#include "engine/logprobs.h"

namespace tiercel {
namespace {

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin);
}

}  // namespace

double score_answer(const EvalQuestion& question, std::string_view output) {
  if (question.expected.empty()) return 0;
  const std::string text = lower(output);
  if (question.scoring == Scoring::kFirstLine) {
    const std::string_view line = trim(std::string_view(text).substr(0, text.find('\n')));
    return line == lower(question.expected.at(0)) ? 1 : 0;
  }
  int64_t n_found = 0;
  for (const std::string& expected : question.expected) {
    if (text.find(lower(expected)) != std::string::npos) ++n_found;
  }
  return static_cast<double>(n_found) / static_cast<double>(question.expected.size());
}

bool is_settled(const EvalQuestion& question, std::string_view output) {
  if (question.scoring == Scoring::kFirstLine) return output.find('\n') != std::string::npos;
  return score_answer(question, output) == 1;
}

int32_t most_likely(std::span<const float> logits) {
  int32_t best = -1;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) continue;
    if (best < 0 || logits[i] > logits[static_cast<size_t>(best)]) best = static_cast<int32_t>(i);
  }
  return best;
}

double kl_divergence(std::span<const float> p_logits, std::span<const float> q_logits) {
  CHECK(p_logits.size() == q_logits.size(), "{} and {} logits", p_logits.size(), q_logits.size());
  const Softmax p = softmax_of(p_logits), q = softmax_of(q_logits);
  double sum = 0;
  for (size_t i = 0; i < p_logits.size(); ++i) {
    const double log_p = p.logprob(p_logits[i]), log_q = q.logprob(q_logits[i]);
    sum += std::exp(log_p) * (log_p - log_q);
  }
  // Rounding may leave a hair below zero where both are the same; NaN must stay.
  return sum < 0 ? 0 : sum;
}

void Fidelity::add(std::span<const float> reference, std::span<const float> logits) {
  const double kl = kl_divergence(reference, logits);
  ++steps;
  agreed += most_likely(reference) == most_likely(logits) ? 1 : 0;
  kl_sum += kl;
  kl_max = std::isnan(kl) ? kl : std::max(kl_max, kl);
}

void Fidelity::merge(const Fidelity& other) {
  steps += other.steps;
  agreed += other.agreed;
  kl_sum += other.kl_sum;
  kl_max = std::isnan(other.kl_max) ? other.kl_max : std::max(kl_max, other.kl_max);
}

double Fidelity::kl() const { return steps > 0 ? kl_sum / static_cast<double>(steps) : NAN; }

double Fidelity::agreement() const {
  return steps > 0 ? static_cast<double>(agreed) / static_cast<double>(steps) : NAN;
}

}  // namespace tiercel
