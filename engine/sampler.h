// Picks the next token from fp32 logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/options.h"

namespace tiercel {

// Order of the filters: repeat penalty, then temperature, top-k, top-p, min-p. Greedy when
// temperature is 0 (ties: lowest id). The same seed gives the same tokens on every machine.
// Allocates in the constructor only; one call costs O(vocab_size), nothing is sorted.
class Sampler {
 public:
  // Throws Error(kUsage) for an option out of range.
  Sampler(const SamplingOptions& options, int64_t vocab_size);

  // Whether the most likely token is what sample gives, whatever came before.
  bool is_argmax() const { return options_.temperature == 0 && options_.repeat_penalty == 1; }
  // What else sample depends on, for others who give the same tokens: the tokens that the repeat penalty
  // applies to, and the state of the generator (splitmix64), which a draw moves on.
  const SamplingOptions& options() const { return options_; }
  std::span<const int32_t> recent_of(std::span<const int32_t> history) const;
  uint64_t generator() const { return state_; }
  void set_generator(uint64_t state) { state_ = state; }

  // history: all tokens so far, newest last. Throws Error(kRuntime) when every logit is NaN, or any
  // is.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> history);

 private:
  struct Candidate {
    float logit;  // after the repeat penalty
    int32_t id;
  };
  // Fills candidates_ in the order of the ids and returns the most likely.
  Candidate collect(std::span<const float> logits);
  // Least likely candidate that top-k and top-p keep. Reorders candidates_.
  Candidate least_kept(float best_logit);
  int32_t draw(float best_logit, Candidate least);
  uint64_t weight_of(float logit, float best_logit) const;
  void mark(std::span<const int32_t> tokens, uint8_t value);

  SamplingOptions options_;
  std::vector<Candidate> candidates_;
  std::vector<uint8_t> seen_;  // 1: the repeat penalty applies
  uint64_t state_;             // of the generator (splitmix64)
};

}  // namespace tiercel
