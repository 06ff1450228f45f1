#include "engine/text/grammar/gbnf.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/utf8.h"

namespace tiercel::grammar {
namespace {

constexpr size_t kMaxBytes = 1 << 20;
constexpr int kMaxDepth = 200, kMaxQuantifiers = 8;  // the stack is finite
constexpr int64_t kMaxCount = 100'000;
constexpr size_t kMaxQuoted = 40;  // characters in a message

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name(char c) { return is_digit(c) || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '-' || c == '_'; }

class Parser {
 public:
  Parser(std::string_view source, const std::string& name) : source_(source), name_(name) {}

  Grammar run() {
    if (source_.size() > kMaxBytes) refuse(kMaxBytes, fmt::format("expected at most {} bytes, found more", kMaxBytes));
    if (const size_t valid = valid_utf8_prefix(source_); valid < source_.size()) {
      const std::string_view all = std::exchange(source_, source_.substr(0, valid));
      refuse(valid, fmt::format("expected UTF-8, found the byte {:02X}", static_cast<unsigned char>(all[valid])));
    }
    for (skip_space(true); at_ < source_.size(); skip_space(true)) parse_rule();
    for (size_t i = 0; i < grammar_.rules.size(); ++i) {
      const std::string& rule = grammar_.rules[i].name;
      if (grammar_.rules[i].body == nullptr) refuse(places_[i], fmt::format("expected a rule '{}', found none", rule));
    }
    const auto root = indices_.find("root");
    if (root == indices_.end()) refuse(at_, "expected a rule 'root', found none");
    grammar_.root = root->second;
    return std::move(grammar_);
  }

 private:
  [[noreturn]] void refuse(size_t at, const std::string& what) const {
    const std::string_view before = source_.substr(0, at);
    const std::string_view line = before.substr(before.rfind('\n') + 1);  // npos + 1 = 0
    fail(ErrorKind::kUsage, "{}: line {}, column {}: {}", name_, std::ranges::count(before, '\n') + 1,
         std::ranges::count_if(line, [](char c) { return (c & 0xC0) != 0x80; }) + 1, what);
  }
  [[noreturn]] void expected(std::string_view what) const {
    std::string found = "the end";
    if (is('\n') || is('\r')) {
      found = "the end of the line";
    } else if (at_ < source_.size()) {
      size_t end = at_;
      while (end < source_.size() && is_name(source_[end]) && end - at_ < kMaxQuoted) ++end;
      if (end == at_) read_code_point(source_, &end);
      found = quoted(at_, end);
    }
    refuse(at_, fmt::format("expected {}, found {}", what, found));
  }
  std::string quoted(size_t begin, size_t end) const { return fmt::format("'{}'", source_.substr(begin, end - begin)); }

  bool is(char c) const { return at_ < source_.size() && source_[at_] == c; }
  bool take(std::string_view word) {
    if (!source_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }
  void skip_space(bool may_end_line) {
    for (; at_ < source_.size(); ++at_) {
      const bool is_end = is('\n') || is('\r');
      if (is('#')) {
        at_ = std::min(source_.find_first_of("\r\n", at_), source_.size()) - 1;
      } else if (!is(' ') && !is('\t') && !(is_end && may_end_line)) {
        return;
      }
    }
  }
  std::string_view read_name() {
    const size_t begin = at_;
    while (at_ < source_.size() && is_name(source_[at_])) ++at_;
    return source_.substr(begin, at_ - begin);
  }
  // The rule of this name, whose first mention is at `at`.
  size_t index_of(std::string_view name, size_t at) {
    const auto [entry, is_new] = indices_.emplace(name, static_cast<int32_t>(grammar_.rules.size()));
    if (is_new) {
      grammar_.rules.push_back({std::string(name), nullptr});
      references_.push_back(rule(entry->second));
      places_.push_back(at);
    }
    return static_cast<size_t>(entry->second);
  }

  void parse_rule() {
    const size_t at = at_;
    const std::string_view name = read_name();
    if (name.empty()) expected("the name of a rule");
    const size_t index = index_of(name, at);
    if (grammar_.rules[index].body != nullptr) refuse(at, fmt::format("expected no second rule '{}', found one", name));
    skip_space(false);
    if (!take("::=")) expected("'::='");
    skip_space(true);
    Expr body = parse_alternatives(false);
    if (at_ < source_.size() && !is('\n') && !is('\r')) expected("the end of the line");
    grammar_.rules[index].body = std::move(body);
  }

  Expr parse_alternatives(bool is_nested) {
    if (++depth_ > kMaxDepth) refuse(at_, fmt::format("expected at most {} groups in each other", kMaxDepth));
    std::vector<Expr> alternatives;
    do {
      skip_space(true);
      alternatives.push_back(parse_sequence(is_nested));
      if (!is_nested) skip_to_alternative();
    } while (take("|"));
    --depth_;
    return choice(std::move(alternatives));
  }
  // A line that begins with '|' is no new rule.
  void skip_to_alternative() {
    const size_t at = at_;
    skip_space(true);
    if (!is('|')) at_ = at;
  }

  Expr parse_sequence(bool is_nested) {
    std::vector<Expr> parts;
    while (std::optional<Expr> part = parse_item()) {
      skip_space(is_nested);
      for (int n = 0; std::optional<std::pair<int64_t, int64_t>> count = read_quantifier(is_nested); ++n) {
        if (n == kMaxQuantifiers) refuse(at_, fmt::format("expected at most {} quantifiers in a row", kMaxQuantifiers));
        part = repeat(*std::move(part), count->first, count->second);
        skip_space(is_nested);
      }
      parts.push_back(*std::move(part));
    }
    return sequence(std::move(parts));
  }

  std::optional<Expr> parse_item() {
    const size_t at = at_;
    if (take("\"")) return parse_literal(at);
    if (take("[")) return parse_class(at);
    if (take(".")) return any_;
    if (take("(")) {
      Expr group = parse_alternatives(true);
      if (!take(")")) expected("')'");
      return group;
    }
    if (is('<') || is('!')) refuse(at, "expected characters, found a token, which is not supported");
    if (is('*') || is('+') || is('?') || is('{')) expected("something to repeat");
    const std::string_view name = read_name();
    return name.empty() ? std::nullopt : std::optional(references_[index_of(name, at)]);
  }

  // Sequences of one literal are one text, so that what follows repeats all of it.
  Expr parse_literal(size_t begin) {
    std::string bytes;
    while (!take("\"")) {
      if (at_ >= source_.size()) refuse(begin, "expected '\"' for this one, found the end");
      append_code_point(read_character(), &bytes);
    }
    return text(std::move(bytes));
  }

  Expr parse_class(size_t begin) {
    const bool is_negated = take("^");
    std::vector<CodeRange> ranges;
    if (is(']')) refuse(begin, "expected characters in a class, found none");
    while (!take("]")) {
      if (at_ >= source_.size()) refuse(begin, "expected ']' for this '[', found the end");
      const size_t first_at = at_;
      CodeRange range;
      range.first = range.last = read_character();
      if (is('-') && !source_.substr(at_).starts_with("-]")) {
        if (++at_ >= source_.size()) refuse(begin, "expected ']' for this '[', found the end");
        range.last = read_character();
      }
      if (range.first > range.last) refuse(first_at, "expected a range that ascends, found " + quoted(first_at, at_));
      ranges.push_back(range);
    }
    return is_negated ? characters_except(std::move(ranges)) : characters(std::move(ranges));
  }

  // As it is, or its escape. Not at the end.
  char32_t read_character() {
    if (!take("\\")) return read_code_point(source_, &at_);
    if (at_ >= source_.size()) expected("a character behind '\\'");
    constexpr std::string_view kEscapes = "nrt\\\"[]-^", kMeanings = "\n\r\t\\\"[]-^";
    const char c = source_[at_];
    if (c == 'x' || c == 'u' || c == 'U') return read_hex(c == 'x' ? 2 : c == 'u' ? 4 : 8);
    const size_t known = kEscapes.find(c);
    if (known == kEscapes.npos) expected("one of nrtxuU\\\"[]-^ behind '\\'");
    ++at_;
    return static_cast<unsigned char>(kMeanings[known]);
  }
  char32_t read_hex(size_t n_digits) {
    const size_t begin = at_++ - 1;
    char32_t value = 0;
    for (size_t i = 0; i < n_digits; ++i, ++at_) {
      const char c = at_ < source_.size() ? source_[at_] : ' ';
      const char lower = static_cast<char>(c | 32);
      if (!is_digit(c) && !(lower >= 'a' && lower <= 'f')) expected(fmt::format("{} hexadecimal digits", n_digits));
      value = value * 16 + static_cast<char32_t>(is_digit(c) ? c - '0' : lower - 'a' + 10);
    }
    if (value > kLastCharacter || (value >= 0xD800 && value < 0xE000)) {
      refuse(begin, "expected the number of a character, found " + quoted(begin, at_));
    }
    return value;
  }

  // How often, if a quantifier stands here.
  std::optional<std::pair<int64_t, int64_t>> read_quantifier(bool is_nested) {
    if (take("*")) return std::pair(int64_t{0}, kUnlimited);
    if (take("+")) return std::pair(int64_t{1}, kUnlimited);
    if (take("?")) return std::pair(int64_t{0}, int64_t{1});
    const size_t begin = at_;
    if (!take("{")) return std::nullopt;
    const std::optional<int64_t> least = read_count(is_nested);
    std::optional<int64_t> most = least;
    if (take(",")) {
      most = read_count(is_nested);
      if (!least && !most) expected("a number");
    } else if (!least) {
      expected("a number or ','");
    }
    if (!take("}")) expected("'}'");
    if (std::max(least.value_or(0), most.value_or(0)) > kMaxCount) {
      refuse(begin, fmt::format("expected counts of at most {}, found more", kMaxCount));
    }
    if (most && *most < least.value_or(0)) refuse(begin, "expected counts that ascend, found the greater one first");
    return std::pair(least.value_or(0), most.value_or(kUnlimited));
  }
  std::optional<int64_t> read_count(bool is_nested) {
    skip_space(is_nested);
    std::optional<int64_t> count;
    for (; at_ < source_.size() && is_digit(source_[at_]); ++at_) {
      count = std::min<int64_t>(count.value_or(0) * 10 + source_[at_] - '0', kMaxCount + 1);
    }
    skip_space(is_nested);
    return count;
  }

  std::string_view source_;
  const std::string& name_;
  size_t at_ = 0;
  int depth_ = 0;
  Grammar grammar_;
  std::unordered_map<std::string, int32_t> indices_;
  std::vector<Expr> references_;  // to each rule
  std::vector<size_t> places_;    // of its first mention
  const Expr any_ = characters_except({});
};

}  // namespace

Grammar parse_gbnf(std::string_view text, const std::string& name) { return Parser(text, name).run(); }

}  // namespace tiercel::grammar
