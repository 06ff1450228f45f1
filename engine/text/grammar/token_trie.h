// The tokens of a vocabulary by their bytes: those that begin alike share the way there.
//
// A special token is kSpecialMark and its name: no text has this byte, so that only a grammar that wants special
// tokens, by written_with_special() or as part of a text that it does not look at, has them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/tokenizer.h"
#include "engine/token_constraint.h"

namespace tiercel::grammar {

inline constexpr char kSpecialMark = '\xFF';

// What a token is in texts that grammars read.
std::string bytes_of_token(const Tokenizer& tokenizer, int32_t id);
// Such a text, whose special tokens are tokens.
std::string written_with_special(const Tokenizer& tokenizer, std::string_view text);

// Text as it stands in most places where any text may: characters but ", \ and those below a space. States of what was
// read of it: 0 between characters, others within one.
inline constexpr int kNotPlain = -1;
int plain_step(int state, uint8_t byte);

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

  // In order.
  explicit TokenTrie(std::span<const std::pair<std::string, int32_t>> spelled);

  std::span<const Node> nodes() const { return nodes_; }
  std::span<const int32_t> tokens() const { return tokens_; }

 private:
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;
};

// The tokens of a model, but for those that end a text, and those that stand for nothing. Immutable and safe to share
// between threads.
class VocabularyTries {
 public:
  static constexpr size_t kLongest = 1024;  // bytes of a token; longer ones are left out

  // Of ids below vocab_size.
  VocabularyTries(const Tokenizer& tokenizer, int64_t vocab_size, std::span<const int32_t> end_tokens);

  const TokenTrie& all() const { return all_; }
  // Those that are plain text of at most kPlainCharacters, whole or begun, and the others.
  static constexpr int kPlainCharacters = 16;
  const TokenSet& plain() const { return plain_; }
  const TokenTrie& others() const { return others_; }
  int64_t longest() const { return longest_; }

 private:
  struct Spelled;
  explicit VocabularyTries(const Spelled& spelled);

  TokenTrie all_, others_;
  TokenSet plain_;
  int64_t longest_;
};

}  // namespace tiercel::grammar
