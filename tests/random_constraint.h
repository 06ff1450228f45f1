// Allows some tokens of each place, drawn by a seed; a place is how many tokens there are.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "engine/token_constraint.h"

namespace tiercel::test {

class RandomConstraint : public TokenConstraint {
 public:
  RandomConstraint(uint64_t seed, int64_t vocab) : seed_(seed), vocab_(vocab) {}

  int32_t start() const override { return 0; }
  int32_t behind(int32_t place, int32_t) override { return place + 1; }
  std::shared_ptr<const TokenSet> allowed(int32_t place) override {
    std::mt19937_64 random(seed_ + static_cast<uint64_t>(place));
    auto set = std::make_shared<TokenSet>(static_cast<size_t>(token_set_words(vocab_)));
    const uint64_t one_in = uint64_t{1} << place % 4;
    for (int32_t token = 0; token < static_cast<int32_t>(vocab_); ++token) {
      if (random() % one_in == 0) insert(*set, token);
    }
    insert(*set, static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_)));
    return set;
  }

  // Logits of which only those of allowed tokens are left.
  template <typename Logits>
  Logits masked(Logits logits, int32_t place) {
    const auto set = allowed(place);
    for (size_t i = 0; i < logits.size(); ++i) {
      if (!contains(*set, static_cast<int32_t>(i))) logits[i] = -std::numeric_limits<float>::infinity();
    }
    return logits;
  }

 private:
  uint64_t seed_;
  int64_t vocab_;
};

inline ConstraintSource source_of(std::shared_ptr<TokenConstraint> constraint) {
  return [constraint = std::move(constraint)] { return constraint; };
}

}  // namespace tiercel::test
