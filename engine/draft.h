// Drafts: tokens that are guessed and computed together with the one that is certain, a weight being read once for
// all. Which of them are right, the caller says by what it steps with; the others are taken back. So the tokens are
// those of steps one by one, whatever the sampler; only how long they take differs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/options.h"
#include "engine/prompt_lookup.h"

namespace tiercel {

// How many tokens to guess, by what steps were measured to take. Costs time only where it is wrong.
class DraftLength {
 public:
  // Seconds of a step of so many tokens.
  void took(int64_t n_tokens, double seconds);
  // Guessed tokens, at most `most`, that make the most tokens per second; 0: a step alone does.
  int64_t best(const PromptLookup& lookup, int64_t most);

 private:
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
  // Certain tokens: those of prompts and appended texts.
  void append(std::span<const int32_t> tokens) { lookup_.append(tokens); }

  // Guessed tokens in the store that nobody has stepped with yet.
  int64_t ahead() const { return n_guessed_ - n_right_; }
  // Whether this token is the first of them: then it is in the store, and row(), that of its logits, moves on.
  bool is_next(int32_t token);
  int64_t row() const { return n_right_; }
  // Gives up those that are left.
  void drop() { n_guessed_ = n_right_; }

  // The next step: this token and, if any, guessed ones behind it, at most `most`. Valid until the next one.
  std::span<const int32_t> begin_step(int32_t token, int64_t most);
  // The seconds that the step begun last has taken, its logits included.
  void took(double seconds);

  const DraftReport& report() const { return report_; }

 private:
  DraftMode mode_;
  int64_t most_;
  PromptLookup lookup_;
  DraftLength length_;
  std::vector<int32_t> tokens_;  // of the step in hand
  int64_t n_guessed_ = 0, n_right_ = 0;
  DraftReport report_;
};

}  // namespace tiercel
