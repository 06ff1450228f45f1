// Where a text may be cut before byte-pair encoding without changing its tokens.
//
// A merge across a boundary between two characters has a left token that ends with the one and a
// right token that begins with the other. Where no merge of the vocabulary is like that, what is
// left and what is right of the boundary never meet, and each is merged as it would be in the
// whole. This is what keeps a tokenizer without a pre-tokenizer (SentencePiece's kind) from merging
// a whole prompt as one word: the pieces are short, and found in a cache.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/bpe.h"
#include "engine/text/utf8.h"

namespace tiercel {

// Immutable after construction; safe to share between threads.
class CharacterCuts {
 public:
  // Cuts nowhere.
  CharacterCuts() = default;
  // tokens[id]: the text of the token, valid UTF-8, which is that of a merge's two parts, joined.
  CharacterCuts(std::span<const BpeMerge> merges, std::span<const std::string> tokens);

  // Calls emit for the pieces of a non-empty valid UTF-8 text, in order.
  template <typename Emit>
  void split(std::string_view text, const Emit& emit) const {
    if (joined_.empty()) return emit(text);
    size_t begin = 0, at = 0;
    char32_t before = read_code_point(text, &at);
    while (at < text.size()) {
      const size_t boundary = at;
      const char32_t after = read_code_point(text, &at);
      if (!joins(before, after)) {
        emit(text.substr(begin, boundary - begin));
        begin = boundary;
      }
      before = after;
    }
    emit(text.substr(begin));
  }

  // Whether any merge can cross the boundary between these characters.
  bool joins(char32_t before, char32_t after) const {
    if (before < 128 && after < 128) {
      return (ascii_[before][after / 64] >> (after % 64) & 1) != 0;
    }
    const uint64_t pair = pair_of(before, after);
    for (size_t i = slot_of(pair);; i = (i + 1) & (joined_.size() - 1)) {
      if (joined_[i] == pair) return true;
      if (joined_[i] == kFree) return false;
    }
  }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};
  static uint64_t pair_of(char32_t before, char32_t after) {
    return uint64_t{before} << 32 | uint64_t{after};
  }
  size_t slot_of(uint64_t pair) const {  // Fibonacci hashing
    return static_cast<size_t>((pair ^ pair >> 29) * 0x9E3779B97F4A7C15u >> 32) &
           (joined_.size() - 1);
  }

  std::vector<uint64_t> joined_;  // open addressing, a power of two
  std::array<std::array<uint64_t, 2>, 128> ascii_{};
};

}  // namespace tiercel
