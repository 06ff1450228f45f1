// Guesses of what comes next by what came before: where the newest tokens of a sequence stood earlier, what followed
// them there ("prompt lookup decoding", Saxena 2023; n-gram speculation elsewhere). Answers that quote, edit or
// repeat a long prompt are guessed well, others rarely.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/options.h"

namespace tiercel {

// How often guesses of a kind were right: of the last 64 or so. Half of them, as long as none was judged.
class GuessRecord {
 public:
  void add(bool is_right);
  double probability() const { return right_ / seen_; }

 private:
  double right_ = 2, seen_ = 4;
};

class PromptLookup {
 public:
  // Fewer tokens in common say nothing; more than the most say no more.
  static constexpr int64_t kLeastMatch = 2, kMostMatch = 16;

  // Of a sequence of at most so many tokens. Allocates here only, bytes(capacity).
  explicit PromptLookup(int64_t capacity);
  PromptLookup(PromptLookup&&) = default;
  PromptLookup& operator=(PromptLookup&&) = default;
  static int64_t bytes(int64_t capacity);

  // The next token, which also says whether the last guess was right.
  void push(int32_t token);
  // Tokens of a text: no guess is judged by them.
  void append(std::span<const int32_t> tokens);
  // Back to the first n tokens.
  void truncate(int64_t n);
  int64_t n_tokens() const { return static_cast<int64_t>(tokens_.size()); }
  std::span<const int32_t> tokens() const { return tokens_; }

  // Up to `most` tokens, kMaxDraft of them at most, valid until the next call; empty: nothing like the newest tokens
  // stood anywhere before. A text that repeats itself is guessed to go on so.
  std::span<const int32_t> guess(int64_t most);
  // How likely token i of a guess is right where those before it are: as often as such guesses were so far. It is
  // judged by how many tokens its place has in common with the newest ones.
  double probability(int64_t i) const { return records_[class_of(match_ + i)].probability(); }

 private:
  // Earlier places by a hash of the n tokens that end there, newest first.
  struct Chain {
    int64_t n = 0;
    int64_t most_places = 0;  // that a search looks at
    std::vector<int32_t> newest;  // [buckets], -1: none
    std::vector<int32_t> before;  // [capacity]: the next older one
  };
  int64_t bucket_of(const Chain& chain, int64_t end) const;
  void link(int64_t end);
  void search();
  int64_t match_at(int64_t place) const;
  static size_t class_of(int64_t match);

  int64_t capacity_;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> guess_;
  std::array<Chain, 2> chains_;
  int64_t next_ = -1;   // place of the guess; -1: there is none
  int64_t match_ = 0;   // tokens before it that are like the newest ones
  std::array<GuessRecord, 7> records_;
};

}  // namespace tiercel
