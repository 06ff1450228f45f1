// How good an answer is, and how close one next-token distribution is to another.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "tools/eval/sample.h"

namespace tiercel {

// 0..1; 0 when nothing is expected. Strings are compared without regard to the case of ASCII
// letters.
double score_answer(const EvalQuestion& question, std::string_view output);
// Whether no continuation of `output` can score higher.
bool is_settled(const EvalQuestion& question, std::string_view output);

// The most likely token; ties: lowest id. -1 when every logit is NaN.
int32_t most_likely(std::span<const float> logits);
// KL(p || q) in nats of the softmax distributions, in fp64: 0 or more; NaN or infinite where a
// logit is.
double kl_divergence(std::span<const float> p_logits, std::span<const float> q_logits);

// Agreement with a reference over steps on the same tokens.
struct Fidelity {
  int64_t steps = 0, agreed = 0;  // the most likely token is the same
  double kl_sum = 0, kl_max = 0;  // nats; KL(reference || this)

  void add(std::span<const float> reference, std::span<const float> logits);
  void merge(const Fidelity& other);
  double kl() const;         // mean; NaN without steps
  double agreement() const;  // share; NaN without steps
};

}  // namespace tiercel
