// Which tokens may come next in an answer that is held to a form.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace tiercel {

// A bit for each token of a vocabulary, 32 to a word, the lowest first.
using TokenSet = std::vector<uint32_t>;
constexpr int64_t token_set_words(int64_t vocab) { return (vocab + 31) / 32; }
inline bool contains(const TokenSet& set, int32_t token) {
  return (set[static_cast<size_t>(token) / 32] >> (token % 32) & 1) != 0;
}
inline void insert(TokenSet& set, int32_t token) {
  set[static_cast<size_t>(token) / 32] |= uint32_t{1} << token % 32;
}

// Threads: every call is safe from any thread.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  // Where an answer is, is a number that means the same for every answer: at its beginning, and behind a token
  // that was allowed. An end token leads back to the beginning.
  virtual int32_t start() const = 0;
  virtual int32_t behind(int32_t place, int32_t token) = 0;
  // At least one token. Throws Error(kRuntime) where the vocabulary has none, or the form has too many places.
  virtual std::shared_ptr<const TokenSet> allowed(int32_t place) = 0;
  // Of the text that must come next, whatever the answer, the tokens that a tokenizer makes of it; null where there is
  // none. They are likely, not certain: other tokens may spell the same text. Throws nothing.
  virtual std::shared_ptr<const std::vector<int32_t>> expected(int32_t) { return nullptr; }
};

// Gives one to an answer that begins, as it may take memory that a request which waits need not have. None: any token
// may come.
using ConstraintSource = std::function<std::shared_ptr<TokenConstraint>()>;

}  // namespace tiercel
