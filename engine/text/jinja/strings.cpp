#include "engine/text/jinja/strings.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstring>

#include "engine/text/utf8.h"

namespace tiercel::jinja {
namespace {

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

// Bytes of the white space at `at`; 0: none is there.
size_t space_at(std::string_view text, size_t at) {
  const auto c = static_cast<unsigned char>(text[at]);
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x1f) ? 1 : 0;
  size_t end = at;
  const char32_t point = read_code_point(text, &end);
  const bool is_space = point == 0x85 || point == 0xa0 || point == 0x1680 || (point >= 0x2000 && point <= 0x200a) ||
                        point == 0x2028 || point == 0x2029 || point == 0x202f || point == 0x205f || point == 0x3000;
  return is_space ? end - at : 0;
}

// Bytes of the line break at `at`; 0: none is there.
size_t line_break_at(std::string_view text, size_t at) {
  const auto c = static_cast<unsigned char>(text[at]);
  if (c == '\r') return at + 1 < text.size() && text[at + 1] == '\n' ? 2 : 1;
  if (c < 0x80) return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) ? 1 : 0;
  size_t end = at;
  const char32_t point = read_code_point(text, &end);
  return point == 0x85 || point == 0x2028 || point == 0x2029 ? end - at : 0;
}

size_t last_character(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && continues(text[at])) --at;
  return at;
}

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }
char32_t upper(char32_t c) { return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))); }
char32_t lower(char32_t c) { return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))); }
char32_t title(char32_t c) { return static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))); }

}  // namespace

bool is_upper(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LL; }
bool is_letter(char32_t c) {
  const utf8proc_category_t of = category(c);
  return of >= UTF8PROC_CATEGORY_LU && of <= UTF8PROC_CATEGORY_LO;
}
bool is_printable(char32_t c) {
  const utf8proc_category_t of = category(c);
  return c == ' ' || !(of == UTF8PROC_CATEGORY_CN || of >= UTF8PROC_CATEGORY_ZS);
}

bool is_decimal(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }
bool is_numeral(char32_t c) { return category(c) == UTF8PROC_CATEGORY_NL || category(c) == UTF8PROC_CATEGORY_NO; }

size_t place_of(std::string_view text, std::string_view part, size_t from, Budget& budget) {
  if (from > text.size()) return std::string_view::npos;
  if (part.empty()) return from;
  if (part.size() > text.size() - from) return std::string_view::npos;
  // Which takes no longer than both are, unlike std::string_view::find.
  const void* found = ::memmem(text.data() + from, text.size() - from, part.data(), part.size());
  const size_t place =
      found == nullptr ? std::string_view::npos : static_cast<size_t>(static_cast<const char*>(found) - text.data());
  budget.step(1 + (std::min(place, text.size()) - from + part.size()) / 16);
  return place;
}

size_t last_place_of(std::string_view text, std::string_view part, Budget& budget) {
  const size_t place = text.rfind(part);
  budget.step(1 + (text.size() - (place == text.npos ? 0 : place)) / 16 * std::max<size_t>(1, part.size() / 8));
  return place;
}

size_t leading_space(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t n = space_at(text, at);
    if (n == 0) break;
    at += n;
  }
  return at;
}

size_t trailing_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const size_t at = last_character(text, end);
    if (space_at(text, at) == 0) break;
    end = at;
  }
  return text.size() - end;
}

size_t n_characters(std::string_view text) {
  return text.size() - static_cast<size_t>(std::ranges::count_if(text, continues));
}

size_t character_size(std::string_view text, size_t at) {
  size_t end = at + 1;
  while (end < text.size() && continues(text[end])) ++end;
  return end - at;
}

size_t offset_of(std::string_view text, size_t index) {
  size_t at = 0;
  for (; index > 0 && at < text.size(); --index) at += character_size(text, at);
  return at;
}

Text stripped(const Text& text, const Text* characters, bool left, bool right, Budget& budget) {
  const std::string_view view = text.view();
  if (characters == nullptr) {
    const size_t begin = left ? leading_space(view) : 0;
    const size_t end = right && begin < view.size() ? view.size() - trailing_space(view) : view.size();
    budget.read_characters(view.size() - (end - begin));
    return part_of(text, begin, end, budget);
  }
  const auto is_stripped = [&](size_t at, size_t end) {
    budget.step(1 + characters->size() / 16);
    return characters->view().find(view.substr(at, end - at)) != std::string_view::npos;
  };
  size_t begin = 0, end = view.size();
  while (left && begin < end && is_stripped(begin, begin + character_size(view, begin)))
    begin += character_size(view, begin);
  while (right && end > begin && is_stripped(last_character(view, end), end)) end = last_character(view, end);
  return part_of(text, begin, end, budget);
}

Value split(const Text& text, const Text* separator, int64_t most, bool from_right, Budget& budget) {
  const std::string_view view = text.view();
  ListMaker parts(budget);
  size_t begin = 0, end = view.size();  // of what is left
  if (separator == nullptr) budget.read_characters(view.size());
  if (separator != nullptr) {
    for (int64_t n = 0; n != most; ++n) {
      const size_t at = from_right ? last_place_of(view.substr(0, end), separator->view(), budget)
                                   : place_of(view, separator->view(), begin, budget);
      if (at == std::string_view::npos) break;
      const size_t behind = at + separator->size();
      parts.push(from_right ? part_of(text, behind, end, budget) : part_of(text, begin, at, budget));
      (from_right ? end : begin) = from_right ? at : behind;
    }
    parts.push(part_of(text, begin, end, budget));
  } else if (!from_right) {
    for (int64_t n = 0;; ++n) {
      begin += leading_space(view.substr(begin));
      if (begin >= end) break;
      size_t at = n == most ? end : begin;
      while (at < end && space_at(view, at) == 0) at += character_size(view, at);
      parts.push(part_of(text, begin, at, budget));
      begin = at;
    }
  } else {
    for (int64_t n = 0;; ++n) {
      end -= trailing_space(view.substr(0, end));
      if (end == 0) break;
      size_t at = n == most ? 0 : end;
      while (at > 0 && space_at(view, last_character(view, at)) == 0) at = last_character(view, at);
      parts.push(part_of(text, at, end, budget));
      end = at;
    }
  }
  if (from_right) std::ranges::reverse(parts.items());
  return parts.take();
}

Value split_lines(const Text& text, bool keep_ends, Budget& budget) {
  const std::string_view view = text.view();
  budget.read_characters(view.size());
  ListMaker lines(budget);
  size_t begin = 0;
  for (size_t at = 0; at < view.size();) {
    const size_t n = line_break_at(view, at);
    if (n == 0) {
      at += character_size(view, at);
      continue;
    }
    lines.push(part_of(text, begin, keep_ends ? at + n : at, budget));
    begin = at += n;
  }
  if (begin < view.size()) lines.push(part_of(text, begin, view.size(), budget));
  return lines.take();
}

Text replaced(const Text& text, const Text& from, const Text& to, int64_t most, Budget& budget) {
  const std::string_view view = text.view();
  const Text by = text.is_markup() ? escaped(to, budget) : to;
  TextWriter result(budget);
  size_t begin = 0;
  for (int64_t n = 0; n != most; ++n) {
    // An empty string is before each character, and at the end.
    const size_t found = !from.empty()         ? place_of(view, from.view(), begin, budget)
                         : n == 0              ? 0
                         : begin < view.size() ? begin + character_size(view, begin)
                                               : std::string_view::npos;
    if (found == std::string_view::npos) break;
    budget.step();
    result.add(text, begin, found);
    result.add(by);
    begin = found + from.size();
  }
  result.add(text, begin);
  return result.take().as_markup(text.is_markup());
}

Text reversed(const Text& text, Budget& budget) {
  TextWriter result(budget);
  for (size_t end = text.size(); end > 0;) {
    const size_t at = last_character(text.view(), end);
    result.add(text, at, end);
    end = at;
  }
  return result.take().as_markup(text.is_markup());
}

Text repeated(const Text& text, int64_t n, Budget& budget) {
  TextWriter result(budget);
  for (int64_t i = 0; i < n && !text.empty(); ++i) {
    budget.step();
    result.add(text);
  }
  return result.take().as_markup(text.is_markup());
}

Text in_case(const Text& text, Case to, Budget& budget) {
  const std::string_view view = text.view();
  budget.step(view.size());
  TextWriter result(budget);
  bool starts = true, inside = false;  // at the first character; behind one that has a case, or is in a word
  for (size_t at = 0; at < view.size();) {
    const size_t begin = at;
    const char32_t c = read_code_point(view, &at);
    char32_t changed = c;
    const bool was_inside = inside;
    switch (to) {
      case Case::kUpper: changed = upper(c); break;
      case Case::kLower: changed = lower(c); break;
      case Case::kSwapped: changed = is_upper(c) ? lower(c) : is_lower(c) ? upper(c) : c; break;
      case Case::kCapital: changed = starts ? title(c) : lower(c); break;
      case Case::kTitle:
        changed = inside ? lower(c) : title(c);
        inside = is_upper(c) || is_lower(c) || category(c) == UTF8PROC_CATEGORY_LT;
        break;
      case Case::kTitleOfWords:
        changed = inside ? lower(c) : upper(c);
        inside = space_at(view, begin) == 0 && std::u32string_view(U"-({[<").find(c) == std::u32string_view::npos;
        break;
    }
    const char* sharp = nullptr;
    if (c == 0xdf) {  // ss, in the case at hand
      if (to == Case::kUpper || to == Case::kSwapped || (to == Case::kTitleOfWords && !was_inside)) sharp = "SS";
      if ((to == Case::kCapital && starts) || (to == Case::kTitle && !was_inside)) sharp = "Ss";
    }
    starts = false;
    if (changed == c && sharp == nullptr) {
      result.add(text, begin, at);
      continue;
    }
    std::string bytes;
    if (sharp != nullptr) {
      bytes = sharp;
    } else {
      append_code_point(changed, &bytes);
    }
    result.add(bytes, text.is_foreign(begin));
  }
  return result.take().as_markup(text.is_markup());
}

}  // namespace tiercel::jinja
