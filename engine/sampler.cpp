#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <unordered_set>

#include "engine/base/check.h"

namespace tiercel {
namespace {

// A probability as an integer: its ratio to the most likely token's, times 2^40. Integer sums do
// not depend on their order, so neither do the filters nor the drawn token. What is below 1e-12 of
// the most likely token is never drawn. A vocabulary of 2^23 tokens still fits 63 bits.
constexpr uint64_t kWeightOne = uint64_t{1} << 40;
constexpr int64_t kMaxVocabulary = int64_t{1} << 23;

uint64_t next_random(uint64_t& state) {  // splitmix64
  uint64_t z = (state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Uniform in [0, bound): the high half of a 64 x 64 bit product, in 32-bit pieces.
uint64_t scale_to(uint64_t random, uint64_t bound) {
  const uint64_t a = random >> 32, b = random & 0xFFFFFFFFu;
  const uint64_t c = bound >> 32, d = bound & 0xFFFFFFFFu;
  const uint64_t middle = a * d + ((b * d) >> 32);
  const uint64_t low_middle = (middle & 0xFFFFFFFFu) + b * c;
  return a * c + (middle >> 32) + (low_middle >> 32);
}

// exp(x) for x <= 0 from additions and multiplications only: libm's last bit differs between
// versions, this one's does not. Relative error below 2^-41; 0 where the result is below 2^-40.
double exp_negative(double x) {
  if (!(x > -27.8)) return 0.0;
  constexpr double kInverse[] = {1.0,     1.0,     1.0 / 2, 1.0 / 3, 1.0 / 4, 1.0 / 5,
                                 1.0 / 6, 1.0 / 7, 1.0 / 8, 1.0 / 9, 1.0 / 10};
  const double n = std::floor(x * 1.4426950408889634 + 0.5);
  const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double sum = 1.0;  // Taylor, Horner form; |r| <= ln(2) / 2, so r^11 / 11! < 3e-13
  for (int k = 10; k >= 1; --k) sum = 1.0 + sum * r * kInverse[k];
  return sum * std::bit_cast<double>(static_cast<uint64_t>(1023 + static_cast<int64_t>(n)) << 52);
}

// Most likely first; ties: lowest id. A total order, so that a prefix of it is one definite set.
constexpr auto kPrecedes = [](const auto& a, const auto& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
};

// The candidate at which the sum of weights, most likely first, reaches `target`. Quickselect:
// every round halves the undecided range and sums its likelier half. Reorders [first, last).
template <typename Iterator, typename Weight>
auto reach(Iterator first, Iterator last, uint64_t target, Weight weight) {
  while (last - first > 1) {
    const Iterator middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, kPrecedes);
    uint64_t likelier = 0;
    for (Iterator i = first; i != middle; ++i) likelier += weight(i->logit);
    if (likelier >= target) {
      last = middle;
    } else {
      target -= likelier;
      first = middle;
    }
  }
  return *first;
}

float adjusted(float logit, const LogitAdjustment& adjustment) {
  const float factor = adjustment.factor;
  return (logit > 0 ? logit / factor : logit * factor) + adjustment.addend;
}

void demand(bool good, const char* name, const char* range, double found) {
  if (!good) fail(ErrorKind::kUsage, "{}: expected {}, found {}", name, range, found);
}

}  // namespace

void check_logits(std::span<const float> logits) {
  const auto is_nan = [](float logit) { return std::isnan(logit); };
  const auto first = std::find_if(logits.begin(), logits.end(), is_nan);
  if (first == logits.end()) return;
  fail(
      "logits: expected numbers, found NaN for {} of {} tokens (first: token {}); the checkpoint is broken or "
      "its activations overflow",
      std::count_if(first, logits.end(), is_nan), logits.size(), first - logits.begin());
}

void check_biases(const std::vector<LogitBias>& biases, int64_t vocab_size) {
  for (const LogitBias& bias : biases) {
    if (bias.token >= 0 && bias.token < vocab_size) continue;
    fail(ErrorKind::kUsage, "logit-bias: expected a token from 0 to {}, found {}", vocab_size - 1, bias.token);
  }
}

void check_sampling(const SamplingOptions& o, int64_t vocab_size) {
  CHECK(vocab_size > 0 && vocab_size < kMaxVocabulary, "vocab_size {}", vocab_size);
  demand(o.temperature >= 0 && std::isfinite(o.temperature), "temperature", "a number from 0 up",
         o.temperature);
  demand(o.top_k >= 0, "top-k", "0 (off) or more", static_cast<double>(o.top_k));
  demand(o.top_p >= 0 && o.top_p <= 1, "top-p", "a number from 0 to 1", o.top_p);
  demand(o.min_p >= 0 && o.min_p <= 1, "min-p", "a number from 0 to 1", o.min_p);
  demand(o.repeat_penalty > 0 && std::isfinite(o.repeat_penalty), "repeat-penalty",
         "a number above 0", o.repeat_penalty);
  demand(o.repeat_last_n >= 0, "repeat-last-n", "0 or more", static_cast<double>(o.repeat_last_n));
  demand(std::isfinite(o.presence_penalty), "presence-penalty", "a number", o.presence_penalty);
  demand(std::isfinite(o.frequency_penalty), "frequency-penalty", "a number", o.frequency_penalty);
  check_biases(o.logit_bias, vocab_size);
  std::unordered_set<int32_t> biased;
  for (const LogitBias& bias : o.logit_bias) {
    demand(bias.bias < std::numeric_limits<double>::infinity(), "logit-bias", "a finite number or -inf", bias.bias);
    demand(biased.insert(bias.token).second, "logit-bias", "every token once", bias.token);
  }
}

Sampler::Sampler(const SamplingOptions& options, int64_t vocab_size)
    : options_(options), vocab_size_(vocab_size), state_(options.seed) {
  check_sampling(options, vocab_size);
  const SamplingOptions& o = options;
  const auto n = static_cast<size_t>(vocab_size);
  candidates_.reserve(n);
  const bool is_counting = o.presence_penalty != 0 || o.frequency_penalty != 0;
  if (is_counting) {
    counts_.resize(n);
    picked_.reserve(n);
  }
  if (!is_counting && o.repeat_penalty == 1 && o.logit_bias.empty()) return;
  place_.resize(n);
  adjustments_.reserve(n);
}

LogitAdjustment& Sampler::adjustment_of(int32_t token) {
  DCHECK(token >= 0 && token < vocab_size_, "token {}", token);
  int32_t& place = place_[static_cast<size_t>(token)];
  if (place == 0) {
    adjustments_.push_back({.token = token});
    place = static_cast<int32_t>(adjustments_.size());
  }
  return adjustments_[static_cast<size_t>(place - 1)];
}

std::span<const LogitAdjustment> Sampler::adjustments(std::span<const int32_t> history) {
  for (const LogitAdjustment& last : adjustments_) place_[static_cast<size_t>(last.token)] = 0;
  adjustments_.clear();
  for (const LogitBias& bias : options_.logit_bias) {
    adjustment_of(bias.token).addend = static_cast<float>(bias.bias);
  }
  const size_t n_biased = options_.logit_bias.size();
  for (const int32_t token : picked_) {
    LogitAdjustment& its = adjustment_of(token);
    const auto place = static_cast<size_t>(&its - adjustments_.data());
    const double bias = place < n_biased ? options_.logit_bias[place].bias : 0;
    const int32_t count = counts_[static_cast<size_t>(token)];
    its.addend = static_cast<float>(bias - (options_.presence_penalty + options_.frequency_penalty * count));
  }
  if (options_.repeat_penalty != 1) {
    const size_t n = std::min(history.size(), static_cast<size_t>(options_.repeat_last_n));
    for (const int32_t token : history.last(n)) {
      adjustment_of(token).factor = static_cast<float>(options_.repeat_penalty);
    }
  }
  return adjustments_;
}

TokenConstraint& Sampler::constraint() {
  if (constraint_ == nullptr) constraint_ = options_.constraint();
  if (!place_in_answer_) place_in_answer_ = constraint_->start();
  if (newest_) place_in_answer_ = constraint_->behind(*place_in_answer_, *newest_);
  newest_.reset();
  return *constraint_;
}

const TokenSet* Sampler::allowed() {
  if (!options_.constraint) return nullptr;
  if (allowed_ == nullptr) allowed_ = constraint().allowed(*place_in_answer_);
  return allowed_.get();
}

std::shared_ptr<const std::vector<int32_t>> Sampler::expected() {
  if (!options_.constraint) return nullptr;
  try {
    TokenConstraint& its = constraint();
    return its.expected(*place_in_answer_);
  } catch (const Error&) {
    return nullptr;  // allowed() says why
  }
}

void Sampler::followed(int32_t token) {
  if (!options_.constraint) return;
  bool may_come = false;
  try {
    may_come = contains(*allowed(), token);
  } catch (const Error&) {
    // The answer has no further tokens.
  }
  if (!may_come) return begin_answer();
  newest_ = token;
  allowed_.reset();
}

void Sampler::begin_answer(ConstraintSource constraint) {
  options_.constraint = std::move(constraint);
  constraint_.reset();
  begin_answer();
}

void Sampler::begin_answer() {
  place_in_answer_.reset();
  newest_.reset();
  allowed_.reset();
}

void Sampler::count(int32_t token) {
  if (options_.constraint) {
    newest_ = token;
    allowed_.reset();
  }
  if (counts() && counts_[static_cast<size_t>(token)]++ == 0) picked_.push_back(token);
}

void Sampler::picked(int32_t token, uint64_t generator) {
  state_ = generator;
  count(token);
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> history) {
  CHECK(std::ssize(logits) == vocab_size_, "logits {} vocabulary {}", logits.size(), vocab_size_);
  adjustments(history);
  const Candidate best = collect(logits);
  if (options_.temperature == 0) {
    count(best.id);
    return best.id;
  }
  // Top-k and top-p each keep a prefix of the order "most likely first": its least likely member
  // describes the kept set without a sort. Drawing then goes by id, which no library's way of
  // partitioning influences; the candidates are collected again because selecting shuffled them.
  Candidate least{-std::numeric_limits<float>::infinity(), std::numeric_limits<int32_t>::max()};
  if (options_.top_k > 0 || options_.top_p < 1) {
    least = least_kept(best.logit);
    collect(logits);
  }
  const int32_t token = draw(best.logit, least);
  count(token);
  return token;
}

Sampler::Candidate Sampler::collect(std::span<const float> logits) {
  candidates_.clear();
  const TokenSet* const allowed = this->allowed();
  const bool adjusting = !adjustments_.empty();
  bool any_nan = false;
  Candidate best{-std::numeric_limits<float>::infinity(), -1};
  for (size_t i = 0; i < logits.size(); ++i) {
    float logit = logits[i];
    if (std::isnan(logit)) {
      any_nan = true;
      continue;
    }
    if (allowed != nullptr && !contains(*allowed, static_cast<int32_t>(i))) continue;
    if (adjusting && place_[i] != 0) logit = adjusted(logit, adjustments_[static_cast<size_t>(place_[i] - 1)]);
    candidates_.push_back({logit, static_cast<int32_t>(i)});
    if (logit > best.logit) best = candidates_.back();
  }
  if (any_nan) check_logits(logits);
  if (best.id < 0)
    fail("logits: expected a finite one, found minus infinity in all {}{}", logits.size(),
         allowed != nullptr ? " that may come next" : "");
  return best;
}

uint64_t Sampler::weight_of(float logit, float best_logit) const {
  if (logit == best_logit) return kWeightOne;  // also where both are infinite
  const double scaled = (static_cast<double>(logit) - best_logit) / options_.temperature;
  return static_cast<uint64_t>(exp_negative(scaled) * static_cast<double>(kWeightOne));
}

Sampler::Candidate Sampler::least_kept(float best_logit) {
  const auto weight = [&](float logit) { return weight_of(logit, best_logit); };
  auto end = candidates_.end();
  Candidate least{-std::numeric_limits<float>::infinity(), std::numeric_limits<int32_t>::max()};
  if (options_.top_k > 0 && options_.top_k < static_cast<int64_t>(candidates_.size())) {
    const auto last_kept = candidates_.begin() + (options_.top_k - 1);
    std::nth_element(candidates_.begin(), last_kept, end, kPrecedes);
    least = *last_kept;
    end = last_kept + 1;
  }
  if (options_.top_p < 1) {
    uint64_t total = 0;
    for (auto i = candidates_.begin(); i != end; ++i) total += weight(i->logit);
    const double target = std::ceil(options_.top_p * static_cast<double>(total));
    least = reach(candidates_.begin(), end, static_cast<uint64_t>(target), weight);
  }
  return least;
}

int32_t Sampler::draw(float best_logit, Candidate least) {
  const double smallest = std::ceil(options_.min_p * static_cast<double>(kWeightOne));
  const auto kept_weight = [&](const Candidate& candidate) -> uint64_t {
    if (kPrecedes(least, candidate)) return 0;
    const uint64_t weight = weight_of(candidate.logit, best_logit);
    return weight >= static_cast<uint64_t>(smallest) ? weight : 0;
  };
  uint64_t total = 0;
  for (const Candidate& candidate : candidates_) total += kept_weight(candidate);
  uint64_t left = scale_to(next_random(state_), total);
  for (const Candidate& candidate : candidates_) {
    const uint64_t weight = kept_weight(candidate);
    if (left < weight) return candidate.id;
    left -= weight;
  }
  CHECK(false, "a draw below the total ends at a token");
  return -1;
}

}  // namespace tiercel
