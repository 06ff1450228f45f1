// translate_pattern: from Oniguruma's syntax to PCRE2's.
//
// Accepted: literal characters; escapes of punctuation and \r \n \t \f \v \a \e \xHH \x{H..}
// \uHHHH; \s \S \d \D \w \W; \p{..} \P{..} \p{^..} with a general category or Han, Hiragana,
// Katakana, Hangul; classes without nesting or &&; groups ( (?: (?i: (?-i: (?= (?! (?<= (?<! (?>; |
// ^ $ . and quantifiers ? * + {n} {n,} {n,m} {,m}, lazy or (except braces) possessive. Where the
// two dialects differ, the emitted form spells the meaning out:
//   \s      White_Space; PCRE2's also has U+180E
//   \v      one vertical tab; in PCRE2 a class
//   \p{Han} the script; in PCRE2 10.40+ the script extensions
//   {,m}    {0,m}; PCRE2 10.42 takes it literally
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/split.h"
#include "engine/text/unicode_additions.h"

namespace tiercel {
namespace {

constexpr std::string_view kSupported =
    "supported: literals, escapes of punctuation, \\r \\n \\t \\f \\v \\a \\e \\xHH \\x{H} "
    "\\uHHHH, "
    "\\s \\S \\d \\D \\w \\W, \\p{category} \\p{Han|Hiragana|Katakana|Hangul}, classes without "
    "nesting, groups (?: (?i: (?= (?! (?<= (?<! (?>, alternation, quantifiers";

constexpr std::string_view kSpaceItems =
    R"(\t-\r\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// The ranges that categories starting with `prefix` ("L", "Nd") have gained, as class items.
std::string added_items(std::string_view prefix) {
  std::string items;
  for (const CategoryRange& range : kNewCharacters) {
    if (!std::string_view(range.category).starts_with(prefix)) continue;
    items += range.first == range.last
                 ? fmt::format("\\x{{{:x}}}", range.first)
                 : fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", range.first, range.last);
  }
  return items;
}

// Items of a class equivalent to \p{name}; empty if the name is not supported.
std::string property_items(std::string_view name) {
  constexpr std::array<std::string_view, 34> kCategories = {
      "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N", "Nd",
      "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm",
      "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "Cc", "Cf", "Co"};
  if (name.empty()) return {};
  if (std::find(kCategories.begin(), kCategories.end(), name) != kCategories.end()) {
    // ASCII spelled out first goes to the bitmap of the class: most text never asks the properties.
    const std::string_view ascii = name == "L"                   ? "A-Za-z"
                                   : name == "N" || name == "Nd" ? "0-9"
                                                                 : "";
    return fmt::format("{}\\p{{{}}}{}", ascii, name, added_items(name));
  }
  if (name == "Han") return R"(\p{sc:Han}\x{2b739}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})";
  if (name == "Hiragana") return R"(\p{sc:Hiragana}\x{1b132})";
  if (name == "Katakana") return R"(\p{sc:Katakana}\x{1b155})";
  if (name == "Hangul") return R"(\p{sc:Hangul})";
  return {};
}

// Letters, marks and digits; Oniguruma also takes the six numeric characters of Latin-1.
std::string word_items() {
  return fmt::format("0-9A-Za-z_\\p{{Alphabetic}}\\p{{M}}\\p{{Nd}}\\p{{Pc}}{}{}{}{}",
                     added_items("L"), added_items("M"), added_items("Nd"),
                     R"(\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})");
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where)
      : pattern_(pattern), where_(where) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape(false);
      } else if (c == '[') {
        character_class();
      } else if (c == '(') {
        group();
      } else if (c == ')') {
        if (caseless_.size() == 1) refuse("an unmatched )", at_);
        caseless_.pop_back();
        copy(1);
      } else if (c == '{') {
        braces();
      } else if (c == '}' || c == ']') {
        output_ += '\\';
        copy(1);
      } else {
        copy(1);
      }
    }
    return std::move(output_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what, size_t offset) const {
    fail("{}: expected a supported regular expression, found {} at byte {} of `{}`; {}", where_,
         what, offset, pattern_, kSupported);
  }
  void copy(size_t n) {
    output_ += pattern_.substr(at_, n);
    at_ += n;
  }
  bool follows(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }

  void group() {
    constexpr std::array<std::string_view, 6> kPlain = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    bool caseless = caseless_.back();
    size_t length = 1;
    if (follows("(?i:")) {
      caseless = true;
      length = 4;
    } else if (follows("(?-i:")) {
      caseless = false;
      length = 5;
    } else if (follows("(?")) {
      const auto plain = std::find_if(kPlain.begin(), kPlain.end(),
                                      [&](std::string_view text) { return follows(text); });
      if (plain == kPlain.end()) refuse("a group of an unknown kind", at_);
      length = plain->size();
    } else if (follows("(*")) {
      refuse("(*", at_);
    }
    caseless_.push_back(caseless);
    copy(length);
  }

  // A brace is a quantifier if it has the form of one, else a literal.
  void braces() {
    size_t i = at_ + 1;
    const auto digits = [&] {
      const size_t start = i;
      while (i < pattern_.size() && pattern_[i] >= '0' && pattern_[i] <= '9') ++i;
      return pattern_.substr(start, i - start);
    };
    const std::string_view low = digits();
    bool comma = false;
    std::string_view high;
    if (i < pattern_.size() && pattern_[i] == ',') {
      comma = true;
      ++i;
      high = digits();
    }
    if (i >= pattern_.size() || pattern_[i] != '}' || (low.empty() && high.empty())) {
      output_ += '\\';
      copy(1);
      return;
    }
    output_ += fmt::format("{{{}{}{}}}", low.empty() ? "0" : low, comma ? "," : "", high);
    at_ = i + 1;
    // In Oniguruma {n,m}+ repeats the repetition; in PCRE2 it is possessive. And {n}? is "n or
    // none".
    if (follows("+") || (follows("?") && !comma)) refuse("a quantifier after {...}", at_);
  }

  void character_class() {
    const size_t start = at_;
    copy(1);
    if (follows("^")) copy(1);
    if (follows("]")) refuse("an empty class or a leading ]", at_);
    while (at_ < pattern_.size() && pattern_[at_] != ']') {
      if (pattern_[at_] == '[') refuse("a class inside a class", at_);
      if (follows("&&")) refuse("&& in a class", at_);
      if (pattern_[at_] == '\\') {
        escape(true);
      } else {
        copy(1);
      }
    }
    if (at_ == pattern_.size()) refuse("a class without its ]", start);
    copy(1);
  }

  void emit_items(const std::string& items, bool negated, bool in_class, size_t offset) {
    if (!in_class) {
      output_ += fmt::format("[{}{}]", negated ? "^" : "", items);
    } else if (negated) {
      refuse("a negated property inside a class", offset);
    } else {
      output_ += items;
    }
  }

  void property(bool in_class, size_t offset) {
    bool negated = pattern_[offset + 1] == 'P';
    const size_t close = pattern_.find('}', offset);
    if (!pattern_.substr(offset + 2).starts_with("{") || close == std::string_view::npos) {
      refuse("\\p without braces", offset);
    }
    std::string_view name = pattern_.substr(offset + 3, close - offset - 3);
    if (name.starts_with("^")) {
      negated = !negated;
      name.remove_prefix(1);
    }
    if (caseless_.back() && (name == "Lu" || name == "Ll" || name == "Lt")) {
      refuse(fmt::format("the property {} inside (?i:", name), offset);
    }
    const std::string items = property_items(name);
    if (items.empty()) refuse(fmt::format("the property `{}`", name), offset);
    emit_items(items, negated, in_class, offset);
    at_ = close + 1;
  }

  // \xHH, \x{H..}, \uHHHH: the digits start at `from`.
  void hexadecimal(size_t offset, size_t from, size_t n_min, size_t n_max, bool braces) {
    uint32_t value = 0;
    size_t n = 0;
    for (; n < n_max && from + n < pattern_.size(); ++n) {
      const char c = pattern_[from + n];
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) break;
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    at_ = from + n;
    if (n < n_min || value > 0x10FFFF || (braces && !follows("}"))) {
      refuse("a malformed hexadecimal escape", offset);
    }
    // \x80 and above is a raw byte in Oniguruma, not a character.
    if (!braces && n_max == 2 && value >= 0x80) refuse("a raw byte", offset);
    if (braces) ++at_;
    output_ += fmt::format("\\x{{{:x}}}", value);
  }

  void escape(bool in_class) {
    const size_t offset = at_;
    if (offset + 1 == pattern_.size()) refuse("a lone backslash", offset);
    const char c = pattern_[offset + 1];
    at_ += 2;
    switch (c) {
      case 'p':
      case 'P': return property(in_class, offset);
      case 's': return emit_items(std::string(kSpaceItems), false, in_class, offset);
      case 'S':
        if (in_class) {
          output_ += "\\S\\x{180e}";
          return;
        }
        return emit_items(std::string(kSpaceItems), true, false, offset);
      case 'd':
      case 'D': return emit_items(property_items("Nd"), c == 'D', in_class, offset);
      case 'w':
      case 'W': return emit_items(word_items(), c == 'W', in_class, offset);
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e': output_ += {'\\', c}; return;
      case 'v': output_ += "\\x{b}"; return;
      case 'x':
        if (follows("{")) return hexadecimal(offset, at_ + 1, 1, 6, true);
        return hexadecimal(offset, at_, 1, 2, false);
      case 'u': return hexadecimal(offset, at_, 4, 4, false);
      default: break;
    }
    const bool alphanumeric =
        (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (alphanumeric) refuse(fmt::format("the escape \\{}", c), offset);
    // A backslash before a non-ASCII character means nothing; PCRE2 would accept it as well.
    if (static_cast<uint8_t>(c) < 0x80) output_ += '\\';
    output_ += c;
  }

  std::string_view pattern_;
  const std::string& where_;
  size_t at_ = 0;
  std::string output_;
  std::vector<bool> caseless_ = {false};  // one entry per open group
};

}  // namespace

std::string translate_pattern(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

SplitRule gpt2_split_rule() {
  return {.pattern =
              R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"};
}

SplitRule digits_split_rule(bool individual_digits) {
  // Hugging Face asks Rust's char::is_numeric here, which already knows Unicode 17.
  return {.pattern = R"([\p{N}\x{11de0}-\x{11de9}\x{16ff4}-\x{16ff6}])",
          .behavior = individual_digits ? SplitBehavior::kIsolated : SplitBehavior::kContiguous};
}

}  // namespace tiercel
