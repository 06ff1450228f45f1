// What an answer thinks, apart from what it says: <think> .. </think> at its beginning. Some templates begin the
// thoughts themselves, at the end of a prompt.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace tiercel {

inline constexpr std::string_view kThoughtsBegin = "<think>", kThoughtsEnd = "</think>";

// What a prompt ends with: thoughts that it has begun, or that it has begun and ended.
enum class PromptThoughts : uint8_t { kNone, kBegun, kEnded };
PromptThoughts thoughts_at_end(const Tokenizer& tokenizer, std::span<const int32_t> prompt);
// Special tokens of the two words, which a reader must see; mostly they are none.
std::vector<int32_t> special_tokens_of_thoughts(const Tokenizer& tokenizer);

// Cuts an answer that grows. White space around either part is left out.
class ThoughtReader {
 public:
  // begun: the answer begins within thoughts.
  explicit ThoughtReader(bool begun) : thinks_(begun) {}

  // What is known of an answer: what it was before, and more. ended: there is no more.
  struct Parts {
    std::string_view thoughts, rest;
  };
  Parts read(std::string_view answer, bool ended);

 private:
  bool decided_ = false, thinks_, said_ = false;
  size_t begin_ = 0;           // of the thoughts
  size_t searched_ = 0;        // without their end
  size_t end_ = 0, rest_ = 0;  // of the thoughts, and where the rest begins
};

}  // namespace tiercel
