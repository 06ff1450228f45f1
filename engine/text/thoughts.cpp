#include "engine/text/thoughts.h"

#include <algorithm>
#include <string>

namespace tiercel {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

size_t behind_blanks(std::string_view text, size_t from) {
  return std::min(text.find_first_not_of(kBlanks, from), text.size());
}
// Where the blanks begin that `text` up to `end` ends with; not before `begin`.
size_t before_blanks(std::string_view text, size_t begin, size_t end) {
  const size_t last = text.substr(begin, end - begin).find_last_not_of(kBlanks);
  return last == std::string_view::npos ? begin : begin + last + 1;
}

}  // namespace

PromptThoughts thoughts_at_end(const Tokenizer& tokenizer, std::span<const int32_t> prompt) {
  constexpr size_t kEnough = 16;  // tokens of the word and of the white space behind it
  const std::span<const int32_t> last = prompt.last(std::min(prompt.size(), kEnough));
  // A model may have tokens that its tokenizer has not.
  if (std::ranges::any_of(last, [&](int32_t id) { return id >= tokenizer.vocab_size(); })) return PromptThoughts::kNone;
  const std::string decoded = tokenizer.decode(last, /*skip_special=*/false);
  const std::string_view end = std::string_view(decoded).substr(0, before_blanks(decoded, 0, decoded.size()));
  return end.ends_with(kThoughtsBegin) ? PromptThoughts::kBegun
         : end.ends_with(kThoughtsEnd) ? PromptThoughts::kEnded
                                       : PromptThoughts::kNone;
}

std::vector<int32_t> special_tokens_of_thoughts(const Tokenizer& tokenizer) {
  std::vector<int32_t> tokens;
  for (const std::string_view word : {kThoughtsBegin, kThoughtsEnd}) {
    const auto token = tokenizer.id_of(word);
    if (token && tokenizer.is_special(*token)) tokens.push_back(*token);
  }
  return tokens;
}

ThoughtReader::Parts ThoughtReader::read(std::string_view answer, bool ended) {
  if (!decided_) {
    const size_t from = behind_blanks(answer, 0);
    const std::string_view begin = answer.substr(from);
    if (!ended && begin.size() < kThoughtsBegin.size() && kThoughtsBegin.starts_with(begin)) return {};
    decided_ = true;
    if (begin.starts_with(kThoughtsBegin)) {  // begun or not: some models say it once more
      thinks_ = true;
      begin_ = from + kThoughtsBegin.size();
    }
    said_ = !thinks_;
    searched_ = begin_;
  }
  if (!said_) {
    begin_ = std::max(begin_, behind_blanks(answer, begin_));
    const size_t found = answer.find(kThoughtsEnd, searched_);
    if (found == answer.npos) {
      // The end may be the beginning of the word.
      size_t n_held = 0;
      for (size_t n = std::min(kThoughtsEnd.size() - 1, answer.size() - searched_); n > 0 && n_held == 0 && !ended;
           --n) {
        if (answer.ends_with(kThoughtsEnd.substr(0, n))) n_held = n;
      }
      searched_ = answer.size() - n_held;
      const size_t begin = std::min(begin_, searched_);
      return {answer.substr(begin, before_blanks(answer, begin, searched_) - begin), {}};
    }
    said_ = true;
    begin_ = std::min(begin_, found);
    end_ = before_blanks(answer, begin_, found);
    rest_ = found + kThoughtsEnd.size();
  }
  if (thinks_) rest_ = behind_blanks(answer, rest_);
  return {answer.substr(begin_, end_ - begin_), answer.substr(rest_)};
}

}  // namespace tiercel
