#include "engine/draft.h"

#include <algorithm>

namespace tiercel {
namespace {

// Of a new measurement in what is thought of all.
constexpr double kNewShare = 0.2;
// Of a step that another token costs, as long as nobody has measured it.
constexpr double kFirstExtra = 0.15;
// What an estimate loses of itself for each step that does not test it: a moment's noise must not end drafts for ever.
constexpr double kForgotten = 0.02;

void blend(double& mean, double value) { mean += kNewShare * (value - mean); }

}  // namespace

void DraftLength::took(int64_t n_tokens, double seconds) {
  if (n_tokens == 1) {
    if (step_ == 0) step_ = seconds;
    blend(step_, seconds);
    if (extra_ > 0) extra_ *= 1 - kForgotten;
    return;
  }
  const double extra = std::max(0.0, (seconds - step_) / static_cast<double>(n_tokens - 1));
  if (extra_ < 0) extra_ = extra;
  blend(extra_, extra);
}

int64_t DraftLength::best(const PromptLookup& lookup, int64_t most) {
  if (step_ == 0) return 0;
  const double extra = extra_ < 0 ? kFirstExtra * step_ : extra_;
  double expected = 1;  // tokens
  double reached = 1;   // how likely all before are right
  double best_rate = 1 / step_;
  int64_t best = 0;
  for (int64_t n = 1; n <= most; ++n) {
    reached *= lookup.probability(n - 1);
    expected += reached;
    const double rate = expected / (step_ + extra * static_cast<double>(n));
    if (rate <= best_rate) continue;
    best_rate = rate;
    best = n;
  }
  return best;
}

Drafts::Drafts(DraftMode mode, int64_t most, int64_t capacity) : mode_(mode), most_(most), lookup_(capacity) {
  tokens_.reserve(static_cast<size_t>(most) + 1);
}

bool Drafts::is_next(int32_t token) {
  if (ahead() == 0 || tokens_[static_cast<size_t>(n_right_) + 1] != token) return false;
  ++n_right_;
  ++report_.right;
  lookup_.push(token);
  return true;
}

std::span<const int32_t> Drafts::begin_step(int32_t token, int64_t most) {
  lookup_.push(token);
  std::span<const int32_t> guess = lookup_.guess(std::min(most, most_));
  if (mode_ == DraftMode::kAuto) guess = guess.first(static_cast<size_t>(length_.best(lookup_, std::ssize(guess))));
  tokens_.assign(1, token);
  tokens_.insert(tokens_.end(), guess.begin(), guess.end());
  n_guessed_ = std::ssize(guess);
  n_right_ = 0;
  ++report_.steps;
  report_.guessed += n_guessed_;
  return tokens_;
}

void Drafts::took(double seconds) { length_.took(std::ssize(tokens_), seconds); }

}  // namespace tiercel
