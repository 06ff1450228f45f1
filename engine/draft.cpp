#include "engine/draft.h"

#include <algorithm>

namespace tiercel {
namespace {

// Of a new measurement in what is thought of all.
constexpr double kNewShare = 0.2;
// So many steps with guesses, and then one without, to see what that takes.
constexpr int64_t kStepsBetween = 32;
// What an estimate loses of itself for each step that does not test it: a moment's noise must not end drafts for ever.
constexpr double kForgotten = 0.02;

void blend(double& mean, double value) { mean += kNewShare * (value - mean); }

}  // namespace

void DraftLength::took(int64_t n_tokens, double seconds) {
  if (n_tokens == 1) {
    if (n_steps_++ == 0) return;
    if (step_ == 0) step_ = seconds;
    blend(step_, seconds);
    if (extra_ > 0) extra_ *= 1 - kForgotten;
    return;
  }
  // More of them take longer: it was an overestimate, which would make guesses seem to cost nothing.
  if (step_ > 0) step_ = std::min(step_, seconds);
  const double extra = std::max(0.0, (seconds - step_) / static_cast<double>(n_tokens - 1));
  if (extra_ < 0) extra_ = extra;
  blend(extra_, extra);
}

Drafts::Drafts(DraftMode mode, int64_t most, int64_t capacity) : mode_(mode), most_(most), lookup_(capacity) {
  tokens_.reserve(static_cast<size_t>(most) + 1);
}

bool Drafts::is_next(int32_t token) {
  if (ahead() == 0) return false;
  const bool right = tokens_[static_cast<size_t>(n_right_) + 1] == token;
  if (by_form_) form_.add(right);
  if (!right) return false;
  ++n_right_;
  ++report_.right;
  lookup_.push(token);
  return true;
}

// What the form says, but where a place goes on in this way, too: that may know more.
std::span<const int32_t> Drafts::guess_behind(int32_t token, int64_t most) {
  const std::span<const int32_t> found = lookup_.guess(most);
  by_form_ = false;
  if (expected_ == nullptr || expected_behind_ != token) return found;
  const std::span<const int32_t> expected = std::span(*expected_).first(
      std::min(expected_->size(), static_cast<size_t>(most)));
  by_form_ = !std::ranges::equal(found.first(std::min(found.size(), expected.size())), expected);
  return by_form_ ? expected : found;
}

std::span<const int32_t> Drafts::begin_step(int32_t token, int64_t most) {
  lookup_.push(token);
  std::span<const int32_t> guess = guess_behind(token, std::min(most, most_));
  if (mode_ == DraftMode::kAuto) {
    const int64_t n = length_.best(std::ssize(guess), [&](int64_t i) {
      return by_form_ ? form_.probability() : lookup_.probability(i);
    });
    guess = guess.first(n_guessing_ < kStepsBetween ? static_cast<size_t>(n) : 0);
    n_guessing_ = guess.empty() ? 0 : n_guessing_ + 1;
  }
  tokens_.assign(1, token);
  tokens_.insert(tokens_.end(), guess.begin(), guess.end());
  expected_.reset();
  n_guessed_ = std::ssize(guess);
  n_right_ = 0;
  ++report_.steps;
  report_.guessed += n_guessed_;
  return tokens_;
}

void Drafts::cancel_step() {
  drop();
  lookup_.truncate(lookup_.n_tokens() - 1);
}

void Drafts::took(double seconds) { length_.took(std::ssize(tokens_), seconds); }

}  // namespace tiercel
