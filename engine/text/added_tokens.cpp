#include "engine/text/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>

#include "engine/text/split.h"
#include "engine/text/unicode_additions.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

// \w of Rust's regex crate: Alphabetic, marks, decimal digits, connectors, joiners (UTS 18).
bool is_word_character(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
  }
  if (c == 0x200C || c == 0x200D) return true;
  // Circled and squared Latin letters are symbols (So) with the Alphabetic property.
  if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
      (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189)) {
    return true;
  }
  return std::any_of(
      std::begin(kNewCharacters), std::end(kNewCharacters), [c](const CategoryRange& range) {
        const char major = range.category[0];
        const char minor = range.category[1];
        const bool word = major == 'L' || major == 'M' || (major == 'N' && minor != 'o') ||
                          (major == 'P' && minor == 'c');
        return word && range.first <= c && c <= range.last;
      });
}

// Start of the character that ends at `end` > 0.
size_t previous_start(std::string_view text, size_t end) {
  do {
    --end;
  } while ((static_cast<uint8_t>(text[end]) & 0xC0) == 0x80);
  return end;
}

bool is_single_word(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    size_t before = previous_start(text, begin);
    if (is_word_character(read_code_point(text, &before))) return false;
  }
  return end == text.size() || !is_word_character(read_code_point(text, &end));
}

size_t skip_space_left(std::string_view text, size_t begin, size_t stop) {
  while (begin > stop) {
    const size_t start = previous_start(text, begin);
    size_t at = start;
    if (!is_white_space(read_code_point(text, &at))) break;
    begin = start;
  }
  return begin;
}

size_t skip_space_right(std::string_view text, size_t end) {
  while (end < text.size()) {
    size_t at = end;
    if (!is_white_space(read_code_point(text, &at))) break;
    end = at;
  }
  return end;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  const auto last =
      std::unique(tokens_.begin(), tokens_.end(),
                  [](const AddedToken& a, const AddedToken& b) { return a.content == b.content; });
  tokens_.erase(last, tokens_.end());
  for (const AddedToken& token : tokens_) {
    ++first_byte_[static_cast<size_t>(static_cast<uint8_t>(token.content[0])) + 1];
  }
  for (size_t byte = 0; byte < 256; ++byte) first_byte_[byte + 1] += first_byte_[byte];
}

// Narrows the sorted tokens to those that share ever more bytes with the text. Within a range of
// equal prefixes the token that is the prefix itself comes first.
const AddedToken* AddedTokenMatcher::longest_at(std::string_view text) const {
  const size_t byte = static_cast<uint8_t>(text[0]);
  auto first = tokens_.begin() + first_byte_[byte];
  auto last = tokens_.begin() + first_byte_[byte + 1];
  const AddedToken* longest = nullptr;
  for (size_t length = 1; first != last; ++length) {
    if (first->content.size() == length) longest = &*first++;
    if (length == text.size()) break;
    const auto next = static_cast<uint8_t>(text[length]);
    const auto at = [length](const AddedToken& t) {
      return static_cast<uint8_t>(t.content[length]);
    };
    first = std::partition_point(first, last, [&](const AddedToken& t) { return at(t) < next; });
    last = std::partition_point(first, last, [&](const AddedToken& t) { return at(t) == next; });
  }
  return longest;
}

void AddedTokenMatcher::split(std::string_view text, bool ignore_special,
                              std::vector<TextSegment>* segments) const {
  size_t done = 0;  // everything before is in a segment (or in a token that took it as white space)
  size_t space_begin = 0, space_end = 0;  // the last run of white space that was looked through
  const auto skip_right = [&](size_t end) {
    if (end < space_begin || end > space_end) {
      space_begin = end;
      space_end = skip_space_right(text, end);
    }
    return space_end;
  };
  for (size_t at = 0; at < text.size();) {
    const auto byte = static_cast<uint8_t>(text[at]);
    const AddedToken* token =
        first_byte_[byte] == first_byte_[byte + 1u] ? nullptr : longest_at(text.substr(at));
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + token->content.size();
    at = end;
    if (ignore_special && token->special) continue;
    if (token->single_word && !is_single_word(text, begin, end)) continue;
    const bool is_taken = token->lstrip && end <= done;  // itself white space, the token before has it
    if (token->lstrip) begin = skip_space_left(text, begin, done);
    if (token->rstrip) end = skip_right(end);
    if (done < begin) segments->push_back({text.substr(done, begin - done), -1});
    if (!is_taken) segments->push_back({text.substr(begin, end - begin), token->id});
    done = is_taken ? std::max(done, end) : end;
  }
  if (done < text.size()) segments->push_back({text.substr(done), -1});
}

}  // namespace tiercel
