// UTF-8 in the two directions a tokenizer needs: arbitrary bytes made valid before encoding, and
// token bytes given out while decoding without ever cutting a character.
//
// Invalid input is replaced as Python's bytes.decode("utf-8", errors="replace") does, which is
// also Rust's String::from_utf8_lossy and the Unicode Standard's "substitution of maximal
// subparts" (chapter 3.9, table 3-8): every maximal prefix of a well-formed sequence, or else every
// single byte, becomes one U+FFFD. The one-shot and the incremental form give the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tiercel {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// What starts at the first byte of a text.
enum class Utf8Step {
  kValid,      // a whole character of `length` bytes
  kInvalid,    // `length` bytes that no continuation can make valid: one U+FFFD
  kIncomplete  // all `length` bytes left are a proper prefix of some character
};
struct Utf8Next {
  Utf8Step step;
  int length;  // in bytes, 1..4
};

// Classifies the start of `text`, which must not be empty.
Utf8Next next_utf8(std::string_view text);

// Length in bytes of the longest prefix of `text` that is valid UTF-8.
size_t valid_utf8_prefix(std::string_view text);

// Appends `text` to `*output` with U+FFFD for what is invalid (an incomplete end included). Returns
// how many bytes of `text` were replaced.
int64_t append_valid_utf8(std::string_view text, std::string* output);

// Appends the UTF-8 form of one code point (not a surrogate, at most 0x10FFFF).
void append_code_point(char32_t code_point, std::string* output);

// The code point at `text[*position]` of *valid* UTF-8; advances `*position` past it.
char32_t read_code_point(std::string_view text, size_t* position);

// Cuts a stream of bytes into whole characters. However the bytes are divided into pushes, the
// concatenation of everything appended equals append_valid_utf8 of all of them.
class Utf8Stream {
 public:
  // Appends all that is certain after `bytes`; holds back at most three bytes.
  void push(std::string_view bytes, std::string* output);
  // The stream has ended: what was held back can no longer become a character. Ready for reuse.
  void finish(std::string* output);

 private:
  char held_[4] = {};
  int n_held_ = 0;
};

}  // namespace tiercel
