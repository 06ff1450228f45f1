#include "engine/text/grammar/regex.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/grammar/character_sets.h"
#include "engine/text/grammar/json_text.h"
#include "engine/text/utf8.h"

namespace tiercel::grammar {
namespace {

constexpr int kMaxDepth = 200;  // of groups: the stack is finite
constexpr int64_t kMaxCount = 100'000, kNever = std::numeric_limits<int64_t>::max();
constexpr size_t kMaxCharacters = 50'000, kMaxQuoted = 40;  // of a pattern; of it in a message

bool is_digit(char32_t c) { return c >= '0' && c <= '9'; }
bool is_letter(char32_t c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

bool is_possible(const Regex& part) { return part.shortest != kNever; }

Regex joined(const std::vector<Regex>& parts) {
  Regex whole;
  std::vector<Expr> expressions;
  std::string bytes;
  const auto end_text = [&] {
    if (!bytes.empty()) expressions.push_back(text(std::exchange(bytes, {})));
  };
  for (const Regex& part : parts) {
    if (!is_possible(part)) return part;
    if (__builtin_add_overflow(whole.shortest, part.shortest, &whole.shortest)) whole.shortest = kNever;
    if (whole.longest == kUnlimited || part.longest == kUnlimited ||
        __builtin_add_overflow(whole.longest, part.longest, &whole.longest)) {
      whole.longest = kUnlimited;
    }
    if (part.expression->kind == Expression::Kind::kText) {
      bytes += part.expression->text;
    } else {
      end_text();
      expressions.push_back(part.expression);
    }
  }
  end_text();
  whole.expression = sequence(std::move(expressions));
  return whole;
}

Regex one_of(const std::vector<Regex>& parts) {
  Regex whole{nullptr, kNever, 0};
  std::vector<Expr> expressions;
  for (const Regex& part : parts) {
    whole.shortest = std::min(whole.shortest, part.shortest);
    whole.longest =
        whole.longest == kUnlimited || part.longest == kUnlimited ? kUnlimited : std::max(whole.longest, part.longest);
    expressions.push_back(part.expression);
  }
  whole.expression = choice(std::move(expressions));
  return whole;
}

Regex repeated(const Regex& part, int64_t least, int64_t most) {
  if (!is_possible(part) && least > 0) return part;
  if (part.longest == 0 || most == 0) return {text(""), 0, 0};
  Regex whole{repeat(part.expression, least, most)};
  if (__builtin_mul_overflow(part.shortest, least, &whole.shortest)) whole.shortest = kNever;
  if (most == kUnlimited || part.longest == kUnlimited || __builtin_mul_overflow(part.longest, most, &whole.longest)) {
    whole.longest = kUnlimited;
  }
  return whole;
}

// What an anchor is in, or what has none and is done.
struct Item {
  enum class Kind { kDone, kGroup, kBegin, kEnd };
  Kind kind = Kind::kDone;
  size_t at = 0;
  Regex done;
  std::vector<std::vector<Item>> alternatives;
};
using Alternatives = std::vector<std::vector<Item>>;

// One end of what is built.
struct Edge {
  bool is_outer = false;  // nothing is beyond it: an anchor may stand there
  bool is_open = false;   // and without one there may be other characters
};

class Parser {
 public:
  Parser(std::u32string pattern, const RegexOptions& options, const std::string& place)
      : pattern_(std::move(pattern)), options_(options), place_(place) {}

  Regex run() {
    if (pattern_.size() > kMaxCharacters) refuse(kMaxCharacters, "expected at most {} characters", kMaxCharacters);
    const Alternatives alternatives = parse_alternatives();
    if (!at_end()) expected(at_, "the end, as no '(' is open");
    const Edge edge{true, !options_.anchored};
    return built(alternatives, edge, edge);
  }

 private:
  using Kind = Item::Kind;

  bool at_end() const { return at_ == pattern_.size(); }
  bool is(char32_t c, size_t ahead = 0) const { return at_ + ahead < pattern_.size() && pattern_[at_ + ahead] == c; }
  bool take(char32_t c) { return is(c) && (++at_, true); }
  bool take(std::u32string_view word) {
    if (pattern_.compare(at_, word.size(), word) != 0) return false;
    at_ += word.size();
    return true;
  }

  template <typename... Args>
  [[noreturn]] void refuse(size_t at, fmt::format_string<Args...> what, Args&&... args) const {
    fail(ErrorKind::kUsage, "{}: character {} of the pattern: {}", place_, at + 1,
         fmt::format(what, std::forward<Args>(args)...));
  }
  std::string written(size_t begin, size_t end) const {
    std::string result;
    for (const char32_t c : pattern_.substr(begin, std::min(end - begin, kMaxQuoted))) {
      if (c < 0x20) {
        result += fmt::format("U+{:04X}", static_cast<uint32_t>(c));
      } else {
        append_code_point(c, &result);
      }
    }
    return result;
  }
  [[noreturn]] void expected(size_t at, std::string_view what) const {
    refuse(at, "expected {}, found {}", what,
           at == pattern_.size() ? "the end" : "'" + written(at, std::max(at + 1, at_)) + "'");
  }
  // From `at` to where we are.
  [[noreturn]] void not_supported(size_t at, std::string_view what, std::string_view help = "") const {
    refuse(at, "expected no {}, found '{}', which is not supported{}{}", what, written(at, at_),
           help.empty() ? "" : "; ", help);
  }

  Alternatives parse_alternatives() {
    if (++depth_ > kMaxDepth) refuse(at_, "expected at most {} groups in each other", kMaxDepth);
    Alternatives alternatives(1);
    while (!at_end() && !is(')')) {
      if (take('|')) {
        alternatives.emplace_back();
      } else {
        alternatives.back().push_back(parse_item());
      }
    }
    --depth_;
    return alternatives;
  }

  Item parse_item() {
    Item item = parse_atom();
    const size_t at = at_;
    const auto count = read_quantifier();
    if (!count) return item;
    if (item.kind != Kind::kDone) refuse(at, "expected no quantifier behind '^' or '$' or a group that has one");
    if (take('+')) not_supported(at, "possessive quantifier");
    take('?');  // lazy: the same texts
    item.done = repeated(item.done, count->first, count->second);
    if (const size_t second = at_; read_quantifier()) expected(second, "no second quantifier");
    return item;
  }

  Item parse_atom() {
    const size_t at = at_;
    if (read_quantifier()) expected(at, "something to repeat");
    char32_t c = pattern_[at_++];
    switch (c) {
      case '^':
        return {Kind::kBegin, at, {}, {}};
      case '$':
        return {Kind::kEnd, at, {}, {}};
      case '(':
        return parse_group(at);
      case '[':
        return {Kind::kDone, at, parse_class(at), {}};
      case '.':
        return {Kind::kDone, at, one_character(dot_set()), {}};
      case '\\':
        break;
      default:
        return {Kind::kDone, at, literal(c), {}};
    }
    auto [ranges, is_set] = read_escape(false);
    if (is_set) return {Kind::kDone, at, one_character(std::move(ranges)), {}};
    c = ranges[0].first;
    if (c >= 0xD800 && c < 0xE000) refuse_half(at);
    return {Kind::kDone, at, literal(c), {}};
  }

  Item parse_group(size_t at) {
    if (take('?')) {
      if (take(U"<=") || take(U"<!")) not_supported(at, "lookbehind");
      if (take('=') || take('!')) not_supported(at, "lookahead");
      if (take('>')) not_supported(at, "atomic group");
      if (take('P')) not_supported(at, "group of Python's", "write (?<name>...)");
      if (take('<')) {
        const size_t end = pattern_.find('>', at_);
        if (end == pattern_.npos || end == at_) expected(at_, "a name and '>'");
        at_ = end + 1;
      } else if (!take(':')) {
        if (!is('-') && (at_end() || !is_letter(pattern_[at_]))) expected(at_, "':' or '<' behind '(?'");
        ++at_;
        not_supported(at, "inline flag");
      }
    }
    Item group{Kind::kGroup, at, {}, parse_alternatives()};
    if (!take(')')) refuse(at, "expected ')' for this '(', found the end");
    for (const std::vector<Item>& items : group.alternatives) {
      if (!std::ranges::all_of(items, [](const Item& item) { return item.kind == Kind::kDone; })) return group;
    }
    return {Kind::kDone, at, built(group.alternatives, {}, {}), {}};
  }

  // How often, if a quantifier begins here.
  std::optional<std::pair<int64_t, int64_t>> read_quantifier() {
    if (take('*')) return std::pair(int64_t{0}, kUnlimited);
    if (take('+')) return std::pair(int64_t{1}, kUnlimited);
    if (take('?')) return std::pair(int64_t{0}, int64_t{1});
    const size_t at = at_;
    if (!take('{')) return std::nullopt;
    const std::optional<int64_t> least = read_count();
    std::optional<int64_t> most = least;
    if (least && take(',')) most = is('}') ? kUnlimited : read_count();
    if (!least || !most || !take('}')) {  // no quantifier: characters (Annex B)
      at_ = at;
      return std::nullopt;
    }
    if (std::max(*least, *most) > kMaxCount) refuse(at, "expected counts of at most {}, found more", kMaxCount);
    if (*most != kUnlimited && *most < *least) expected(at, "counts that ascend");
    return std::pair(*least, *most);
  }
  std::optional<int64_t> read_count() {
    if (at_end() || !is_digit(pattern_[at_])) return std::nullopt;
    int64_t count = 0;
    for (; !at_end() && is_digit(pattern_[at_]); ++at_) {
      count = std::min<int64_t>(count * 10 + pattern_[at_] - '0', kMaxCount + 1);
    }
    return count;
  }

  Regex parse_class(size_t at) {
    const bool is_negated = take('^');
    Ranges ranges;
    while (!take(']')) {
      const size_t first_at = at_;
      auto [first, is_set] = read_class_item(at);
      if (is('-') && !is(']', 1)) {
        ++at_;
        const auto [last, is_last_set] = read_class_item(at);
        if (is_set || is_last_set) {  // the '-' is one (Annex B)
          ranges.push_back({'-', '-'});
          ranges.insert(ranges.end(), last.begin(), last.end());
        } else if (first[0].first > last[0].first) {
          refuse(first_at, "expected a range that ascends, found '{}'", written(first_at, at_));
        } else {
          first[0].last = last[0].last;
        }
      }
      ranges.insert(ranges.end(), first.begin(), first.end());
    }
    const bool has_any = !ranges.empty();
    Regex result = one_character(is_negated ? complement(std::move(ranges)) : std::move(ranges));
    if (!is_negated && has_any && !is_possible(result)) refuse_half(at);
    return result;
  }

  struct Meant {
    Ranges ranges;        // one character, unless
    bool is_set = false;  // it is \d or the like
  };
  Meant read_class_item(size_t class_at) {
    if (at_end()) refuse(class_at, "expected ']' for this '[', found the end");
    const char32_t c = pattern_[at_++];
    return c == '\\' ? read_escape(true) : Meant{{{c, c}}};
  }

  // Behind the backslash.
  Meant read_escape(bool in_class) {
    const size_t at = at_ - 1;
    if (at_end()) expected(at_, "a character behind '\\'");
    const char32_t c = pattern_[at_++];
    const auto character = [](char32_t meant) { return Meant{{{meant, meant}}}; };
    if (std::optional<Ranges> set = escape_set(c)) return {*std::move(set), true};
    switch (c) {
      case 'p':
        return {read_property(at), true};
      case 'P':
        return {complement(read_property(at)), true};
      case 't':
        return character('\t');
      case 'n':
        return character('\n');
      case 'v':
        return character('\v');
      case 'f':
        return character('\f');
      case 'r':
        return character('\r');
      case 'x':
        return character(read_hex(2));
      case 'u':
        return character(read_unicode());
      case 'b':
        if (in_class) return character('\b');
        not_supported(at, "word boundary");
      case 'B':
        not_supported(at, "word boundary");
      case 'k':
        not_supported(at, "back reference");
      case 'A':
        not_supported(at, "escape of this letter", "write ^");
      case 'z':
      case 'Z':
        not_supported(at, "escape of this letter", "write $");
      case 'c':
        if (at_end() || !is_letter(pattern_[at_])) expected(at_, "a letter behind '\\c'");
        return character(pattern_[at_++] & 31);
      case '0':
        if (at_end() || !is_digit(pattern_[at_])) return character(0);
        not_supported(at, "octal escape", "write \\xHH");
      default:
        break;
    }
    if (is_digit(c)) not_supported(at, in_class ? "octal escape" : "back reference");
    if (is_letter(c)) not_supported(at, "escape of this letter");
    return character(c);
  }

  char32_t read_hex(size_t n_digits) {
    char32_t value = 0;
    for (size_t i = 0; i < n_digits; ++i, ++at_) {
      const char32_t c = at_end() ? 0 : pattern_[at_];
      if (!is_digit(c) && !(is_letter(c) && (c | 32) <= 'f')) expected(at_, "a hexadecimal digit");
      value = value * 16 + (is_digit(c) ? c - '0' : (c | 32) - 'a' + 10);
      if (value > kLastCharacter) refuse(at_, "expected a character of at most 10FFFF, found more");
    }
    return value;
  }

  // Behind \u.
  char32_t read_unicode() {
    if (take('{')) {
      const size_t end = pattern_.find('}', at_);
      if (end == pattern_.npos || end == at_) expected(at_, "hexadecimal digits and '}'");
      const char32_t value = read_hex(end - at_);
      ++at_;
      return value;
    }
    const char32_t high = read_hex(4);
    const size_t at = at_;
    if (high >= 0xD800 && high < 0xDC00 && take(U"\\u") && !is('{')) {
      const char32_t low = read_hex(4);
      if (low >= 0xDC00 && low < 0xE000) return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    }
    at_ = at;
    return high;
  }

  Ranges read_property(size_t at) {
    const size_t end = pattern_.find('}', at_);
    if (!take('{') || end == pattern_.npos) expected(at_, "a general category in braces, as \\p{L}");
    const size_t begin = std::exchange(at_, end + 1);
    std::optional<Ranges> ranges = property_set(written(begin, end));
    if (!ranges) not_supported(at, "property but a general category");
    return *std::move(ranges);
  }

  [[noreturn]] void refuse_half(size_t at) const {
    refuse(at, "expected characters, found halves of surrogate pairs only; write them as \\u{{H..}}");
  }

  Regex literal(char32_t c) const {
    std::string utf8;
    append_code_point(c, &utf8);
    if (!options_.json_string) return {text(std::move(utf8)), 1, 1};
    return {c < 0x20 ? json_characters({{c, c}}) : json_string_text(utf8), 1, 1};
  }
  Regex one_character(Ranges ranges) const {
    Ranges others = complement(std::move(ranges));
    others.push_back({0xD800, 0xDFFF});
    Expr any = characters_except(std::move(others));
    if (any->ranges.empty()) return {nothing(), kNever, 0};
    return {options_.json_string ? json_characters(any->ranges) : std::move(any), 1, 1};
  }

  Regex built(const Alternatives& alternatives, Edge begin, Edge end) const {
    std::vector<Regex> choices;
    for (const std::vector<Item>& items : alternatives) choices.push_back(built(items, begin, end));
    return one_of(choices);
  }
  // At an open edge any characters may stand; a group there that has anchors says itself in which alternatives.
  Regex built(const std::vector<Item>& items, Edge begin, Edge end) const {
    size_t first = 0, last = items.size();
    for (; begin.is_outer && first < last && items[first].kind == Kind::kBegin; ++first) begin.is_open = false;
    for (; end.is_outer && first < last && items[last - 1].kind == Kind::kEnd; --last) end.is_open = false;
    const bool is_empty = first == last;
    std::vector<Regex> parts;
    if (begin.is_open && (is_empty || items[first].kind != Kind::kGroup)) parts.push_back(others_);
    for (size_t i = first; i < last; ++i) {
      const Item& item = items[i];
      if (item.kind == Kind::kBegin) refuse(item.at, "expected '^' at the beginning only, found characters before it");
      if (item.kind == Kind::kEnd) refuse(item.at, "expected '$' at the end only, found characters behind it");
      parts.push_back(item.kind == Kind::kDone
                          ? item.done
                          : built(item.alternatives, i == first ? begin : Edge{}, i + 1 == last ? end : Edge{}));
    }
    if (end.is_open && (is_empty ? !begin.is_open : items[last - 1].kind != Kind::kGroup)) parts.push_back(others_);
    return joined(parts);
  }

  std::u32string pattern_;
  const RegexOptions options_;
  const std::string& place_;
  const Regex others_ = repeated(one_character({{0, kLastCharacter}}), 0, kUnlimited);  // than what is matched
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

Regex parse_regex(std::string_view pattern, const RegexOptions& options, const std::string& place) {
  const size_t valid = valid_utf8_prefix(pattern);
  std::u32string characters;
  for (size_t at = 0; at < valid;) characters.push_back(read_code_point(pattern, &at));
  if (valid < pattern.size()) {
    fail(ErrorKind::kUsage, "{}: character {} of the pattern: expected UTF-8, found the byte {:02X}", place,
         characters.size() + 1, static_cast<unsigned char>(pattern[valid]));
  }
  return Parser(std::move(characters), options, place).run();
}

}  // namespace tiercel::grammar
