#include "engine/logprobs.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"

namespace tiercel {

void check_logprobs(std::span<const double> logprobs) {
  const auto is_nan = [](double logprob) { return std::isnan(logprob); };
  const auto first = std::find_if(logprobs.begin(), logprobs.end(), is_nan);
  if (first == logprobs.end()) return;
  fail(
      "logits: expected numbers, found NaN behind {} of {} tokens of the prompt (first: token {}); the checkpoint "
      "is broken or its activations overflow",
      std::count_if(first, logprobs.end(), is_nan), logprobs.size() + 1, first - logprobs.begin());
}

TokenLogprobs logprobs_of(std::span<const float> logits, int32_t token, int64_t n_top) {
  CHECK(token >= 0 && token < std::ssize(logits), "token {} of {}", token, logits.size());
  CHECK(n_top >= 0 && n_top <= kMaxTopLogprobs, "the {} most likely", n_top);
  const auto most = static_cast<size_t>(std::min(n_top, std::ssize(logits)));
  TokenLogprobs result;
  std::vector<TokenLogprob>& top = result.top;  // their logits for now
  top.reserve(most + 1);
  const float best = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double logit = logits[i];
    sum += std::exp(logit - best);
    if (most == 0 || (top.size() == most && logit <= top.back().logprob)) continue;
    const auto place = std::ranges::upper_bound(top, logit, std::greater<>(), &TokenLogprob::logprob);
    top.insert(place, {static_cast<int32_t>(i), logit});
    if (top.size() > most) top.pop_back();
  }
  const double log_sum = best + std::log(sum);
  for (TokenLogprob& one : top) one.logprob -= log_sum;
  result.logprob = logits[static_cast<size_t>(token)] - log_sum;
  return result;
}

}  // namespace tiercel
