// Picks the next token from fp32 logits.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/options.h"

namespace tiercel {

// Throws Error(kUsage) for a token that the vocabulary does not have.
void check_biases(const std::vector<LogitBias>& biases, int64_t vocab_size);
// All that is wrong with options. Throws Error(kUsage).
void check_sampling(const SamplingOptions& options, int64_t vocab_size);

// Throws Error(kRuntime) when any is NaN, saying how many are.
void check_logits(std::span<const float> logits);

// Order of the filters: what the constraint does not allow goes; repeat penalty, then presence and frequency penalties
// and biases (one sum), then temperature, top-k, top-p, min-p. Greedy when temperature is 0 (ties: lowest id). The repeat penalty is
// on the last tokens of the history; the other two are on what this sampler has picked. The same seed
// gives the same tokens on every machine. Allocates in the constructor only, but for a constraint, where an
// answer comes to a place for the first time; one call costs O(vocab_size), nothing is sorted.
class Sampler {
 public:
  // Throws Error(kUsage) for an option out of range.
  Sampler(const SamplingOptions& options, int64_t vocab_size);

  // Whether the most likely token is what sample gives, whatever came before.
  bool is_argmax() const { return options_.temperature == 0 && !adjusts() && !options_.constraint; }
  // What else sample depends on, for others who give the same tokens: what becomes of some logits first,
  // valid until the next call, and the state of the generator (splitmix64), which a draw moves on. The
  // token that they drew is picked() then, with the state behind it.
  const SamplingOptions& options() const { return options_; }
  std::span<const LogitAdjustment> adjustments(std::span<const int32_t> history);
  uint64_t generator() const { return state_; }
  // Tokens that the constraint allows now, valid until one is picked; null where there is none. Throws as
  // TokenConstraint.
  const TokenSet* allowed();
  void picked(int32_t token, uint64_t generator);
  // What the constraint expects behind the newest token (TokenConstraint::expected); null: nothing.
  std::shared_ptr<const std::vector<int32_t>> expected();

  // A token that somebody else put there: an answer goes on with it, where it may; else, or where that cannot be told,
  // what is picked next begins one.
  void followed(int32_t token);
  // What is picked next begins an answer, as far as a constraint is concerned; held to another one.
  void begin_answer();
  void begin_answer(ConstraintSource constraint);

  // history: all tokens so far, newest last. Throws Error(kRuntime) when every logit is NaN, or any
  // is, and as allowed().
  int32_t sample(std::span<const float> logits, std::span<const int32_t> history);

 private:
  struct Candidate {
    float logit;  // adjusted
    int32_t id;
  };
  bool adjusts() const { return !place_.empty(); }
  bool counts() const { return !counts_.empty(); }
  LogitAdjustment& adjustment_of(int32_t token);
  TokenConstraint& constraint();
  // Fills candidates_ in the order of the ids and returns the most likely.
  Candidate collect(std::span<const float> logits);
  // Least likely candidate that top-k and top-p keep. Reorders candidates_.
  Candidate least_kept(float best_logit);
  int32_t draw(float best_logit, Candidate least);
  uint64_t weight_of(float logit, float best_logit) const;
  void count(int32_t token);

  SamplingOptions options_;
  int64_t vocab_size_;
  std::vector<Candidate> candidates_;
  std::vector<LogitAdjustment> adjustments_;  // of this call
  std::vector<int32_t> place_;   // [vocab_size] in adjustments_, from 1; 0: none. Empty: nothing adjusts
  std::vector<int32_t> counts_;  // [vocab_size] how often it was picked; empty where nothing asks
  std::vector<int32_t> picked_;  // each once
  uint64_t state_;               // of the generator (splitmix64)
  std::shared_ptr<TokenConstraint> constraint_;  // once it was asked for
  std::optional<int32_t> place_in_answer_;       // of it; none: at the beginning
  std::optional<int32_t> newest_;                // token behind that place, not looked at yet
  std::shared_ptr<const TokenSet> allowed_;  // there, once it was asked for
};

}  // namespace tiercel
