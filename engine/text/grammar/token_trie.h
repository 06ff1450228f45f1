// The tokens of a vocabulary by their bytes: those that begin alike share the way there.
//
// A special token is kSpecialMark and its name: no text has this byte, so that only a grammar that wants special
// tokens, by written_with_special() or as part of a text that it does not look at, has them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace tiercel::grammar {

inline constexpr char kSpecialMark = '\xFF';

// What a token is in texts that grammars read.
std::string bytes_of_token(const Tokenizer& tokenizer, int32_t id);
// Such a text, whose special tokens are tokens.
std::string written_with_special(const Tokenizer& tokenizer, std::string_view text);

// Immutable and safe to share between threads.
class TokenTrie {
 public:
  // Nodes in the order of a walk that goes down first: below a node is what comes behind it, up to `next`.
  struct Node {
    int32_t next = 0;
    int32_t first_token = 0;  // in tokens(): those whose last byte this is
    int32_t n_tokens = 0;
    uint16_t depth = 0;  // bytes from the beginning, with this one
    uint8_t byte = 0;
  };
  static constexpr size_t kLongest = 1024;  // bytes of a token; longer ones are left out

  // Of ids below vocab_size. Those that end a text, and those that stand for nothing, are left out.
  TokenTrie(const Tokenizer& tokenizer, int64_t vocab_size, std::span<const int32_t> end_tokens);

  std::span<const Node> nodes() const { return nodes_; }
  std::span<const int32_t> tokens() const { return tokens_; }
  int64_t longest() const { return longest_; }

 private:
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;
  int64_t longest_ = 0;
};

}  // namespace tiercel::grammar
