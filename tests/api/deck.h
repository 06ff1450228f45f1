// Kinds of calls dealt like cards, so that whatever the seed, all of them come soon.
#pragma once

#include <algorithm>
#include <random>
#include <span>
#include <vector>

namespace tiercel::test {

// Kind: a struct with `n`, how many of it are in a deck.
template <typename Kind>
class Deck {
 public:
  explicit Deck(std::span<const Kind> kinds) : kinds_(kinds) {}

  const Kind& deal(std::mt19937_64& random) {
    if (cards_.empty()) {
      for (const Kind& kind : kinds_) {
        cards_.insert(cards_.end(), static_cast<size_t>(kind.n), &kind);
      }
      std::shuffle(cards_.begin(), cards_.end(), random);
    }
    const Kind& kind = *cards_.back();
    cards_.pop_back();
    return kind;
  }

 private:
  std::span<const Kind> kinds_;
  std::vector<const Kind*> cards_;
};

}  // namespace tiercel::test
