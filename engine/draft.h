// Drafts: tokens that are guessed and computed together with the one that is certain, a weight being read once for
// all. Which of them are right, the caller says by what it steps with; the others are taken back. So logits are those of
// steps one by one, and with them the tokens of any sampler; only how long they take differs. But where a selection
// cache fetches, guesses bring chunks into it, which changes rounding.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/options.h"
#include "engine/prompt_lookup.h"

namespace tiercel {

// How many tokens to guess, by what steps were measured to take. Costs time only where it is wrong.
class DraftLength {
 public:
  // Seconds of a step of so many tokens.
  void took(int64_t n_tokens, double seconds);
  // Guessed tokens, at most `most`, that make the most tokens per second; 0: a step alone does. probability(i): that
  // of token i, where those before it are right.
  template <typename Probability>
  int64_t best(int64_t most, const Probability& probability) const;

 private:
  // Of a step that another token costs, as long as nobody has measured it.
  static constexpr double kFirstExtra = 0.15;

  int64_t n_steps_ = 0;  // of one token; in the first one much happens once
  double step_ = 0;    // seconds of one token; 0: not known yet
  double extra_ = -1;  // of each more in the same step; negative: not known yet
};

// What a session drafts, and which of it is still to be judged.
class Drafts {
 public:
  // capacity: tokens of the sequence; at most `most` of them are guessed at once.
  Drafts(DraftMode mode, int64_t most, int64_t capacity);

  // Back to the first n tokens; nothing is reported of the others.
  void rewind(int64_t n) {
    lookup_.truncate(n);
    report_ = {};
  }
  std::span<const int32_t> tokens() const { return lookup_.tokens(); }
  // What was measured of steps, for another sequence to begin with.
  const DraftLength& length() const { return length_; }
  void begin_with(const DraftLength& length) { length_ = length; }
  // Certain tokens: those of prompts and appended texts.
  void append(std::span<const int32_t> tokens) { lookup_.append(tokens); }

  // Guessed tokens in the store that nobody has stepped with yet.
  int64_t ahead() const { return n_guessed_ - n_right_; }
  // Whether this token is the first of them: then it is in the store, and row(), that of its logits, moves on.
  bool is_next(int32_t token);
  int64_t row() const { return n_right_; }
  // Gives up those that are left.
  void drop() { n_guessed_ = n_right_; }

  // Behind this token, the newest that was picked, the answer's form makes these likely (Sampler::expected); or null.
  void expect(int32_t behind, std::shared_ptr<const std::vector<int32_t>> tokens) {
    expected_behind_ = behind;
    expected_ = std::move(tokens);
  }
  // The next step: this token and, if any, guessed ones behind it, at most `most`. Valid until the next one.
  std::span<const int32_t> begin_step(int32_t token, int64_t most);
  // It was not taken.
  void cancel_step();
  // The seconds that the step begun last has taken, its logits included.
  void took(double seconds);

  const DraftReport& report() const { return report_; }

 private:
  std::span<const int32_t> guess_behind(int32_t token, int64_t most);

  DraftMode mode_;
  int64_t most_;
  PromptLookup lookup_;
  DraftLength length_;
  std::vector<int32_t> tokens_;  // of the step in hand
  int64_t n_guessed_ = 0, n_right_ = 0;
  int64_t n_guessing_ = 0;  // steps since the last one that guessed nothing
  int32_t expected_behind_ = -1;
  std::shared_ptr<const std::vector<int32_t>> expected_;
  bool by_form_ = false;  // what was guessed last
  GuessRecord form_;      // of such guesses
  DraftReport report_;
};

template <typename Probability>
int64_t DraftLength::best(int64_t most, const Probability& probability) const {
  if (step_ == 0) return 0;
  const double extra = extra_ < 0 ? kFirstExtra * step_ : extra_;
  double expected = 1;  // tokens
  double reached = 1;   // how likely all before are right
  double best_rate = 1 / step_;
  int64_t best = 0;
  for (int64_t n = 1; n <= most; ++n) {
    reached *= probability(n - 1);
    expected += reached;
    const double rate = expected / (step_ + extra * static_cast<double>(n));
    if (rate <= best_rate) continue;
    best_rate = rate;
    best = n;
  }
  return best;
}

}  // namespace tiercel
