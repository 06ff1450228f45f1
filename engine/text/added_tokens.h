// Tokens that are found in the text itself before it is split: "<|im_end|>" and its like.
//
// The rules are those of Hugging Face's AddedVocabulary, including its corner cases: leftmost
// match, the longest at that place; a match that is refused (special tokens switched off, not a
// single word) still uses up its text.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tiercel {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool single_word = false;  // only between non-word characters
  bool lstrip = false;       // also takes white space to the left
  bool rstrip = false;       // also takes white space to the right
  bool normalized = false;   // looked for in the normalised text, not in the raw text
  bool special = false;      // left out by decode(skip_special)
};

// A part of a text: either text to encode, or what was found to be a token.
struct TextSegment {
  std::string_view text;
  int32_t token;  // -1: text
};

// Immutable after construction; safe to share between threads.
class AddedTokenMatcher {
 public:
  // Where two contents are equal the first counts. Empty contents match nothing.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }
  // Appends the segments of valid UTF-8 `text` in order; none for an empty text.
  // ignore_special: special tokens stay text.
  void split(std::string_view text, bool ignore_special, std::vector<TextSegment>* segments) const;

 private:
  const AddedToken* longest_at(std::string_view text) const;

  std::vector<AddedToken> tokens_;  // sorted by content
  std::array<uint32_t, 257>
      first_byte_{};  // tokens_[first_byte_[b] .. first_byte_[b+1]) begin with b
};

}  // namespace tiercel
