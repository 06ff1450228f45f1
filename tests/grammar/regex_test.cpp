// Regular expressions: tables, what is refused, and PCRE2's verdict on random ones.
#include "engine/text/grammar/regex.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/grammar/json_text.h"
#include "engine/text/grammar/recognizer.h"
#include "tests/grammar/matches.h"
#include "tests/seed.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace tiercel::test {
namespace {

using grammar::CodeRange;
using grammar::Expr;
using grammar::grammar_of;
using grammar::kLastCharacter;
using grammar::kUnlimited;
using grammar::matches;
using grammar::parse_regex;
using grammar::RegexOptions;

constexpr RegexOptions kWhole{}, kAnywhere{.anchored = false}, kJson{.json_string = true};

bool matches_pattern(const std::string& pattern, const std::string& text, const RegexOptions& options = kWhole) {
  return matches(grammar_of(parse_regex(pattern, options, "PLACE").expression), text);
}
std::string error_of(const std::string& pattern, const RegexOptions& options = kWhole) {
  try {
    parse_regex(pattern, options, "PLACE");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage) << error.what();
    return error.what();
  }
  return "no error";
}

struct Case {
  std::string pattern;
  std::vector<std::string> matching, others;
};
void check(const std::vector<Case>& cases, const RegexOptions& options = kWhole) {
  for (const Case& c : cases) {
    for (const std::string& text : c.matching)
      EXPECT_TRUE(matches_pattern(c.pattern, text, options)) << c.pattern << "\n" << text;
    for (const std::string& text : c.others)
      EXPECT_FALSE(matches_pattern(c.pattern, text, options)) << c.pattern << "\n" << text;
  }
}

TEST(Regex, MatchesWholeTexts) {
  check({
      {"", {""}, {"a"}},
      {"abc", {"abc"}, {"", "ab", "abcd", "xabc"}},
      {"a|bc|", {"a", "bc", ""}, {"b", "abc"}},
      {"a*b+c?", {"b", "aab", "bbc"}, {"", "a", "bcc"}},
      {"a{2}", {"aa"}, {"a", "aaa"}},
      {"a{2,}", {"aa", "aaaaa"}, {"a"}},
      {"a{0,2}", {"", "aa"}, {"aaa"}},
      {"a{0}b", {"b"}, {"ab"}},
      {"a+?b*?c??d{1,2}?", {"ad", "aabcdd"}, {"d"}},
      {"(ab)+", {"ab", "abab"}, {"aba"}},
      {"(?:a|b){2}(?<name>c)", {"abc", "bbc"}, {"ac"}},
      {"((a)(b|(c)))*", {"", "abac"}, {"ba"}},
      {"(a*)*|(b?)+", {"", "aaa", "bbb"}, {"ab"}},
      {"日本(語)?", {"日本", "日本語"}, {"日"}},
      {"😀{2}", {"😀😀"}, {"😀"}},
      {"()", {""}, {"a"}},
  });
}

TEST(Regex, Classes) {
  check({
      {"[a-cx]", {"a", "c", "x"}, {"d", "", "ab", "-"}},
      {"[^a-c]", {"d", "\n", "é", "😀"}, {"a", "", "\xC3"}},
      {"[-a]", {"-", "a"}, {"b"}},
      {"[a-]", {"-", "a"}, {"b"}},
      {"[--0]", {"-", ".", "0"}, {"1", ","}},
      {"[a-c-e]", {"a", "b", "-", "e"}, {"d"}},
      {"[\\d-z]", {"5", "-", "z"}, {"y"}},
      {"[a-\\d]", {"a", "-", "7"}, {"b"}},
      {"[^]", {"a", "\n", "]"}, {""}},
      {"x|[]", {"x"}, {"", "]"}},
      {"[\\]\\\\^$.*]", {"]", "\\", "^", "$", ".", "*"}, {"a"}},
      {"[(|)]", {"(", "|", ")"}, {"a"}},
      {"[ぁ-ん]", {"あ"}, {"ア"}},
      {"[\\b]", {"\b"}, {"b"}},
      {"[^\\ud800-\\udfff]", {"a", "😀"}, {"\xED\xA0\x80"}},
      {".", {"a", "é", "😀", "\t", "\xC2\x85"}, {"", "\n", "\r", "\u2028", "\u2029"}},
      {"\\d", {"0", "9"}, {"a", "٣"}},
      {"\\D", {"a", "٣", "\n"}, {"0"}},
      {"\\w", {"a", "Z", "_", "0"}, {"é", "-"}},
      {"\\W", {"é", "-"}, {"a", "_"}},
      {"\\s", {" ", "\t", "\v", "\u00A0", "\u2028", "\u2003", "\u3000", "\uFEFF"}, {"a", "\u200B", "\u0085"}},
      {"[\\S]", {"a", "\u200B"}, {" ", "\u00A0"}},
      {"[^\\s\\S]|q", {"q"}, {"a", " "}},
      {"[\\w.]+", {"a.b"}, {"a-b"}},
  });
}

TEST(Regex, Escapes) {
  check({
      {"\\t\\n\\v\\f\\r", {"\t\n\v\f\r"}, {}},
      {"\\0", {std::string(1, '\0')}, {"0"}},
      {"\\x41\\u00e9\\u{1F600}\\cJ", {"Aé😀\n"}, {}},
      {"\\ud83d\\ude00", {"😀"}, {}},
      {"[\\ud83d\\ude00-\\u{1F602}]", {"😀", "😁"}, {"😃"}},
      {"\\^\\$\\\\\\.\\*\\+\\?\\(\\)\\[\\]\\{\\}\\|\\/\\-\\_\\ ", {"^$\\.*+?()[]{}|/-_ "}, {}},
      // No quantifiers.
      {"a{", {"a{"}, {"a"}},
      {"a{}", {"a{}"}, {}},
      {"a{,3}", {"a{,3}"}, {"aaa"}},
      {"a{1", {"a{1"}, {}},
      {"a{1,x}", {"a{1,x}"}, {}},
      {"{\"k\": 1}", {"{\"k\": 1}"}, {}},
      {"]}", {"]}"}, {}},
  });
}

TEST(Regex, Properties) {
  check({
      {"\\p{L}+", {"aÉ日"}, {"1", "_"}},
      {"\\p{Lu}", {"A", "É"}, {"a", "日"}},
      {"\\p{Lowercase_Letter}", {"é"}, {"É"}},
      {"\\p{gc=Nd}", {"1", "٣"}, {"Ⅷ"}},
      {"\\p{N}", {"1", "Ⅷ", "½"}, {"a"}},
      {"\\p{LC}", {"a", "A", "ǅ"}, {"日"}},
      {"\\P{L}", {"1"}, {"a"}},
      {"[\\p{Lu}\\p{Sc}0-9_]", {"A", "€", "5", "_"}, {"a"}},
      {"[^\\p{L}]", {"1", "€"}, {"a"}},
      {"\\p{General_Category=Connector_Punctuation}", {"_"}, {"-"}},
      {"\\p{ASCII}", {"a", "\x7f"}, {"é"}},
      {"\\p{Any}", {"\n", "😀"}, {""}},
      {"\\p{Assigned}", {"a"}, {"\u0378"}},
      {"x|\\p{Cs}", {"x"}, {}},
  });
}

TEST(Regex, Anchors) {
  check({{"^a$", {"a"}, {"ba", "ab"}}, {"^a|b$", {"a", "b"}, {"ab"}}, {"(^a|b)$", {"a", "b"}, {"aa"}}});
  check(
      {
          {"", {"", "anything\n"}, {}},
          {"b", {"b", "abc", "\nb\n"}, {"", "ac"}},
          {"^b", {"b", "bc"}, {"ab", ""}},
          {"b$", {"b", "ab"}, {"bc", "b\n"}},
          {"^b$", {"b"}, {"ab", "ba", ""}},
          {"^$", {""}, {"a"}},
          {"^", {"", "a"}, {}},
          {"$", {"", "a"}, {}},
          {"^a|b$", {"ax", "xb", "a", "b"}, {"xa", "bx"}},
          {"^(a|b)$", {"a", "b"}, {"ab"}},
          {"(^a|b)c", {"ac", "bc", "xbc", "acx"}, {"xac"}},
          {"c(a|b$)", {"ca", "cb", "xcax", "xcb"}, {"cbx"}},
          {"(^a$|b)", {"a", "xbx"}, {"xa", "ax"}},
          {"((^|,)a(,|$))", {"a", "x,a", "a,x", ",a,", "x,a,x"}, {"xa", "ax", "x,ax"}},
          {"(?:^(?:a|b$))", {"a", "ax", "b"}, {"bx", "xa"}},
          {"^^a$$", {"a"}, {"aa"}},
          {"a|^", {"", "b"}, {}},
          {".b.", {"abc", "xabcx"}, {"b", "\nb\n"}},
      },
      kAnywhere);
  for (const char* pattern : {"a^", "a$b", "(a$|b)c", "a(^b)", "(?:)^", "^*", "(^a)?", "a(b|$)*", "^?a"}) {
    EXPECT_NE(error_of(pattern, kAnywhere), "no error") << pattern;
    EXPECT_NE(error_of(pattern), "no error") << pattern;
  }
}

TEST(Regex, InJsonStrings) {
  check(
      {
          {"a\"b\\\\c", {"a\\\"b\\\\c"}, {"a\"b\\c", "a\\u0022b\\\\c"}},
          {".",
           {"a", "é", "/", "\\\"", "\\\\", "\\t", "\\u0000", "\\u001F", "\\u001f", "\x7f"},
           {"\"", "\\", "\t", "\\n", "\\r", "\\/", "\\u0041", "\\u000a", "\\u0009", "\\u0020", "\\u0022", "\\x"}},
          {"\\n", {"\\n"}, {"\n", "\\u000a", "n"}},
          {"\\u001a", {"\\u001a", "\\u001A"}, {"\\u001b", "\x1a"}},
          {"\\s",
           {" ", "\\n", "\\t", "\\u000b", "\\u000B", "\\f", "\\r", "\u00A0"},
           {"\\u000a", "\\v", "\n", "\\u001b"}},
          {"[\\x00-\\x1f]", {"\\u0000", "\\u0019", "\\u001F", "\\b"}, {"\\u0008", "\\\"", "a"}},
          {"[a\\\\]+", {"a\\\\a", "\\\\\\\\"}, {"\\", "\\\\\\"}},
          {"[^\"]*", {"a\\\\\\n"}, {"\\\""}},
          {"x|[^\\s\\S]", {"x"}, {"\\"}},
      },
      kJson);
  const RegexOptions anywhere{.anchored = false, .json_string = true};
  EXPECT_TRUE(matches_pattern("b$", "\\\"\\u0001é b", anywhere));
  EXPECT_FALSE(matches_pattern("b$", "\"b", anywhere));
  EXPECT_FALSE(matches_pattern("n", "\\n", anywhere));

  EXPECT_EQ(grammar::json_string_text("a\"\\\b\f\n\r\t\x01\x1f\x7f/é")->text,
            "a\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u001f\x7f/é");
  EXPECT_FALSE(matches(grammar_of(grammar::choice({grammar::text("x"), grammar::json_characters({})})), ""));
}

TEST(Regex, Lengths) {
  struct Lengths {
    std::string pattern;
    int64_t shortest, longest;
  };
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  const std::string huge = "(((a{100000}){100000}){100000}){9000}";
  for (const Lengths& c : std::vector<Lengths>{{"", 0, 0},
                                               {"abc", 3, 3},
                                               {"日本|é", 1, 2},
                                               {"[a\\n]{2,5}\\t?", 2, 6},
                                               {"a*b", 1, kUnlimited},
                                               {"(ab?|c{3})+", 1, kUnlimited},
                                               {"(ab|c){2,3}", 2, 6},
                                               {"()*", 0, 0},
                                               {"[]", kNever, 0},
                                               {"a[]|b", 1, 1},
                                               {"[]*", 0, 0},
                                               {"([]+a)?b{3}", 3, 3},
                                               {"(((a{1,100000}){1,100000}){1,100000}){1,100000}", 1, kUnlimited},
                                               {huge, 9'000'000'000'000'000'000, 9'000'000'000'000'000'000},
                                               {huge + "(" + huge + ")?", 9'000'000'000'000'000'000, kUnlimited},
                                               {huge + "a" + huge, kNever, kUnlimited},
                                               {"(" + huge + "){2}", kNever, kUnlimited},
                                               {"(" + huge + "){2}|b{7}", 7, kUnlimited},
                                               {"^a{4}$", 4, 4}}) {
    for (const RegexOptions& options : {kWhole, kJson}) {
      const grammar::Regex regex = parse_regex(c.pattern, options, "PLACE");
      EXPECT_EQ(regex.shortest, c.shortest) << c.pattern;
      EXPECT_EQ(regex.longest, c.longest) << c.pattern;
    }
  }
  EXPECT_EQ(parse_regex("a{4}", kAnywhere, "PLACE").longest, kUnlimited);
  EXPECT_EQ(parse_regex("a{4}", kAnywhere, "PLACE").shortest, 4);
  EXPECT_EQ(parse_regex("^a{4}$|b", kAnywhere, "PLACE").shortest, 1);
}

TEST(Regex, ErrorsNameTheCharacter) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"é(a", "character 2 of the pattern: expected ')' for this '(', found the end"},
      {"a)", "character 2 of the pattern: expected the end, as no '(' is open, found ')'"},
      {"[a", "character 1 of the pattern: expected ']' for this '[', found the end"},
      {"[a-", "expected ']'"},
      {"[z-a]", "character 2 of the pattern: expected a range that ascends, found 'z-a'"},
      {"*a", "character 1 of the pattern: expected something to repeat, found '*'"},
      {"a|{2}", "character 3 of the pattern: expected something to repeat, found '{2}'"},
      {"a**", "character 3 of the pattern: expected no second quantifier, found '*'"},
      {"a++", "character 2 of the pattern: expected no possessive quantifier, found '++', which is not supported"},
      {"a{3,2}", "character 2 of the pattern: expected counts that ascend, found '{3,2}'"},
      {"a{100001}", "expected counts of at most 100000"},
      {"a{1,99999999999999999999}", "expected counts of at most 100000"},
      {"a(?=b)", "character 2 of the pattern: expected no lookahead, found '(?='"},
      {"(?!b)", "expected no lookahead, found '(?!'"},
      {"(?<=b)", "expected no lookbehind, found '(?<='"},
      {"(?<!b)", "expected no lookbehind, found '(?<!'"},
      {"(?>b)", "expected no atomic group"},
      {"(?i)b", "expected no inline flag, found '(?i'"},
      {"(?-i:b)", "expected no inline flag"},
      {"(?P<n>b)", "write (?<name>...)"},
      {"(?<>b)", "expected a name and '>', found '>'"},
      {"(?", "expected ':' or '<' behind '(?', found the end"},
      {"(a)\\1", "character 4 of the pattern: expected no back reference, found '\\1'"},
      {"\\k<a>", "expected no back reference"},
      {"\\bab", "expected no word boundary, found '\\b'"},
      {"\\B", "expected no word boundary"},
      {"\\01", "expected no octal escape, found '\\0'"},
      {"[\\1]", "expected no octal escape"},
      {"\\q", "expected no escape of this letter, found '\\q'"},
      {"\\Aa\\z", "write ^"},
      {"a\\", "character 3 of the pattern: expected a character behind '\\', found the end"},
      {"\\x4g", "character 4 of the pattern: expected a hexadecimal digit, found 'g'"},
      {"\\u12", "expected a hexadecimal digit, found the end"},
      {"\\u{}", "expected hexadecimal digits and '}', found '}'"},
      {"\\u{110000}", "at most 10FFFF"},
      {"\\ud800", "halves of surrogate pairs only; write them as \\u{H..}"},
      {"[\\ud800-\\udbff][\\udc00-\\udfff]", "character 1 of the pattern: expected characters, found halves"},
      {"\\c1", "expected a letter behind '\\c', found '1'"},
      {"\\pL", "expected a general category in braces, as \\p{L}, found 'L'"},
      {"\\p{Han}", "expected no property but a general category, found '\\p{Han}'"},
      {"\\p{Script=Greek}", "expected no property but a general category"},
      {"a\xff", "character 2 of the pattern: expected UTF-8, found the byte FF"},
      {"é\xE6\x97", "character 2 of the pattern: expected UTF-8"},
      {std::string(201, '(') + std::string(201, ')'), "expected at most 200 groups"},
      {std::string(50'001, 'a'), "expected at most 50000 characters"},
      {"ab^", "character 3 of the pattern: expected '^' at the beginning only"},
      {"a$b", "character 2 of the pattern: expected '$' at the end only"},
      {"a(b$|c)d", "character 4 of the pattern: expected '$' at the end only"},
      {"(^a)*", "character 5 of the pattern: expected no quantifier behind"},
  };
  for (const auto& [pattern, message] : cases) {
    const std::string found = error_of(pattern);
    EXPECT_NE(found.find(message), found.npos) << pattern.substr(0, 60) << "\n" << found;
    EXPECT_TRUE(found.starts_with("PLACE: character ")) << found;
  }
}

TEST(Regex, TakesWhatIsDeepAndLong) {
  std::string deep(199, '(');
  deep += "a" + std::string(199, ')');
  EXPECT_TRUE(matches_pattern(deep, "a"));
  EXPECT_TRUE(matches_pattern(deep, "xax", kAnywhere));
  std::string wide;
  for (int i = 0; i < 500; ++i) wide += "(a)";
  EXPECT_TRUE(matches_pattern(wide, std::string(500, 'a')));
  const std::string text(20'000, 'a');
  EXPECT_TRUE(matches_pattern(text, text));
}

// Random patterns over a few characters that both read alike.
class RandomPatterns {
 public:
  explicit RandomPatterns(uint64_t seed) : random_(seed) {}

  size_t below(size_t n) { return random_() % n; }
  std::string pattern(int depth) {
    std::string result;
    for (size_t n = 1 + below(3), i = 0; i < n; ++i) {
      if (i > 0) result += '|';
      if (below(12) == 0) result += '^';
      for (size_t m = below(4), j = 0; j < m; ++j) result += item(depth);
      if (below(12) == 0) result += '$';
    }
    return result;
  }
  std::vector<std::string> text() {
    std::vector<std::string> result(below(9));
    for (std::string& one : result) one = character();
    return result;
  }
  void change(std::vector<std::string>& text) {
    const auto at = text.begin() + static_cast<std::ptrdiff_t>(below(text.size() + 1));
    if (const size_t kind = below(3); kind == 0 || at == text.end()) {
      text.insert(at, character());
    } else if (kind == 1) {
      *at = character();
    } else {
      text.erase(at);
    }
  }

 private:
  std::string character() { return pick({"a", "b", "é", "\"", "\\", "\n", "\t", "1", "\x01"}); }
  std::string pick(const std::vector<std::string>& choices) { return choices[below(choices.size())]; }
  std::string item(int depth) {
    std::string result =
        depth > 0 && below(3) == 0
            ? pick({"(", "(?:"}) + pattern(depth - 1) + ")"
            : pick({"a",   "b",   "é",     "\"",   "\\\\", "\\n",    "a",        "b",         ".",   "\\d", "\\w",
                    "\\s", "\\W", "\\x01", "[ab]", "[^a]", "[a-c1]", "[^\\d\"]", "[\\\\\"n]", "[^]", "a{",  "\\p{L}"});
    if (below(3) == 0) result += pick({"*", "+", "?", "{2}", "{1,}", "{0,2}", "*?", "+?", "{1,2}?"});
    return result;
  }

  std::mt19937_64 random_;
};

class Pcre {
 public:
  Pcre(const std::string& pattern, bool anchored) {
    uint32_t flags = PCRE2_UTF | PCRE2_DOLLAR_ENDONLY | PCRE2_ALLOW_EMPTY_CLASS;
    if (anchored) flags |= PCRE2_ANCHORED | PCRE2_ENDANCHORED;
    int error = 0;
    size_t place = 0;
    code_.reset(
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), flags, &error, &place, nullptr));
    CHECK(code_ != nullptr, "{}: error {} at {}", pattern, error, place);
    match_.reset(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
  }
  // Nothing where it gives up.
  std::optional<bool> matches(const std::string& text) const {
    const int found =
        pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0, match_.get(), nullptr);
    if (found == PCRE2_ERROR_MATCHLIMIT) return std::nullopt;
    CHECK(found >= 0 || found == PCRE2_ERROR_NOMATCH, "error {}", found);
    return found >= 0;
  }

 private:
  template <auto free>
  struct Free {
    void operator()(auto* pointer) const { free(pointer); }
  };
  std::unique_ptr<pcre2_code, Free<pcre2_code_free>> code_;
  std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>> match_;
};

TEST(Regex, AgreesWithPcre2OnRandomPatterns) {
  constexpr int kPatterns = 3000, kTexts = 6;
  RandomPatterns random(seed());
  int n_refused = 0, n_matched = 0;
  for (int i = 0; i < kPatterns; ++i) {
    const std::string pattern = random.pattern(2);
    const RegexOptions options{.anchored = i % 2 == 0, .json_string = i % 4 >= 2};
    Expr expression;
    try {
      expression = parse_regex(pattern, options, "PLACE").expression;
    } catch (const Error& error) {
      ++n_refused;  // an anchor where it can hold for no text or few
      EXPECT_NE(std::string(error.what()).find_first_of("^$"), std::string::npos) << pattern << "\n" << error.what();
      continue;
    }
    const grammar::Grammar grammar = grammar_of(grammar::choice({std::move(expression), grammar::text("never \x02")}));
    const Pcre pcre(pattern, options.anchored);
    std::vector<std::string> characters;
    for (int j = 0; j < kTexts; ++j) {
      if (j % 3 == 0) characters = random.text();
      random.change(characters);
      const std::string text = fmt::format("{}", fmt::join(characters, ""));
      const std::optional<bool> expected = pcre.matches(text);
      if (!expected) continue;
      const std::string written = options.json_string ? grammar::json_string_text(text)->text : text;
      EXPECT_EQ(matches(grammar, written), *expected)
          << fmt::format("{} {}\n{:?}\n{:?}", options.anchored ? "whole" : "anywhere",
                         options.json_string ? "json" : "", pattern, written);
      n_matched += *expected;
    }
  }
  EXPECT_LT(n_refused, kPatterns / 2);
  EXPECT_GT(n_matched, kPatterns);
}

}  // namespace
}  // namespace tiercel::test
