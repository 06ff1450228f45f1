// Log probabilities of tokens, from fp32 logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tiercel {

inline constexpr int64_t kMaxTopLogprobs = 100;

// Of logits, in fp64: what makes a logit a log probability.
struct Softmax {
  double largest = 0, log_sum = 0;  // log_sum: the logarithm of the sum of exp(logit - largest)
  double logprob(float logit) const { return logit - largest - log_sum; }
};
Softmax softmax_of(std::span<const float> logits);

struct TokenLogprob {
  int32_t token = 0;
  double logprob = 0;  // natural logarithm
};

// Of a token that was picked, and of the most likely ones in its place, most likely first (ties: lowest
// id). The model's own distribution: before penalties, biases and temperature.
struct TokenLogprobs {
  double logprob = 0;
  std::vector<TokenLogprob> top;
};

// Throws Error(kRuntime) for a prompt's log probabilities, of its second token and all behind it, when any is
// NaN.
void check_logprobs(std::span<const double> logprobs);

// n_top: at most kMaxTopLogprobs.
TokenLogprobs logprobs_of(std::span<const float> logits, int32_t token, int64_t n_top);

}  // namespace tiercel
