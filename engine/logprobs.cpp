#include "engine/logprobs.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

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

Softmax softmax_of(std::span<const float> logits) {
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const float logit : logits) largest = std::max(largest, static_cast<double>(logit));
  for (const float logit : logits) sum += std::exp(logit - largest);
  return {largest, std::log(sum)};
}

TokenLogprobs logprobs_of(std::span<const float> logits, int32_t token, int64_t n_top) {
  CHECK(token >= 0 && token < std::ssize(logits), "token {} of {}", token, logits.size());
  CHECK(n_top >= 0 && n_top <= kMaxTopLogprobs, "the {} most likely", n_top);
  const auto logit = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
  const auto most = static_cast<size_t>(std::min(n_top, std::ssize(logits)));
  std::vector<int32_t> best;  // most likely first
  best.reserve(most + 1);
  for (int32_t id = 0; most > 0 && id < std::ssize(logits); ++id) {
    if (best.size() == most && logit(id) <= logit(best.back())) continue;
    best.insert(std::ranges::upper_bound(best, logit(id), std::greater<>(), logit), id);
    if (best.size() > most) best.pop_back();
  }
  const Softmax softmax = softmax_of(logits);
  TokenLogprobs result{softmax.logprob(logit(token)), {}};
  for (const int32_t id : best) result.top.push_back({id, softmax.logprob(logit(id))});
  return result;
}

}  // namespace tiercel
