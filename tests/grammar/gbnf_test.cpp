// GBNF: what grammars of every construct match, and what is refused where.
#include "engine/text/grammar/gbnf.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/grammar/recognizer.h"
#include "tests/grammar/matches.h"

namespace tiercel::test {
namespace {

using grammar::Grammar;
using grammar::matches;
using grammar::parse_gbnf;

std::string error_of(const std::string& text) {
  try {
    parse_gbnf(text, "NAME");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage) << error.what();
    return error.what();
  }
  return "no error";
}

struct Case {
  std::string source;
  std::vector<std::string> matching, others;
};
void check(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    SCOPED_TRACE(c.source);
    const Grammar grammar = parse_gbnf(c.source, "NAME");
    for (const std::string& text : c.matching) EXPECT_TRUE(matches(grammar, text)) << text;
    for (const std::string& text : c.others) EXPECT_FALSE(matches(grammar, text)) << text;
  }
}

TEST(Gbnf, ReadsEveryConstruct) {
  check({
      {R"(root ::= "abc")", {"abc"}, {"", "ab", "abcd"}},
      {R"(root ::= "a" "b" | "c" |)", {"ab", "c", ""}, {"a", "abc"}},
      {R"(root ::= "")", {""}, {"a"}},
      {"root ::=", {""}, {"a"}},
      {R"(root ::= "ab"* "c"+ "d"?)", {"c", "ababccd"}, {"ac", "abbc", "d"}},
      {R"(root ::= "ab" * ("x" | "y") {2})", {"xy", "ababyy"}, {"ab", "x"}},
      {R"(root ::= "a"{2} "b"{1,} "c"{1,2} "d"{,2} "e" { 0 , 1 })",
       {"aabc", "aabbccdde"},
       {"abc", "aac", "aabccc", "aabcddd"}},
      {R"(root ::= "a"{0}"b"{1}{2}"c"+?)", {"bb", "bbcc"}, {"abb", "b"}},
      {R"(root ::= [a-cx] [^a-c] [-a] [a-] [--0])", {"axa-.", "xx-a0", "c\n--/"}, {"dxaa.", "aaaa.", "axba."}},
      {R"(root ::= . .)", {"ab", "é😀", "\n\r"}, {"a", "\xC3\xA9", "abc"}},
      {R"(root ::= [ぁ-ゟ]+ "語")", {"あ語"}, {"ア語", "語"}},
      {R"(root ::= "\n\r\t\\\"\[\]\-\^" [\]\[\^\-\\\n])", {"\n\r\t\\\"[]-^]", "\n\r\t\\\"[]-^\n"}, {}},
      {R"(root ::= "\x41\xe9\u65e5\U0001F600" [\x00-\x1F\u00e9])", {"Aé日😀\x01", "Aé日😀é"}, {"A\xe9日😀\x01"}},
      {R"(root ::= [^"\\\x7F\x00-\x1F])", {"a", "é"}, {"\"", "\\", "\x7f", "\n"}},
      {"root ::= a-1 B_2 03\na-1 ::= \"x\"\nB_2 ::= \"y\"\n03 ::= \"z\"", {"xyz"}, {"xy"}},
      {"later ::= \"a\" root?\nroot ::= later \"b\"", {"ab", "aabb"}, {"aab", "a"}},
      {R"(root ::= ( "a" ( "b" | ( "c" ) )+ | ) "d")", {"d", "abcd"}, {"ad"}},
  });
}

TEST(Gbnf, RulesEndWithLines) {
  for (const std::string end : {"\n", "\r\n", "\n\n  \n"}) {
    const auto lines = [&](std::string text) {
      for (size_t at = 0; (at = text.find('\n', at)) != text.npos; at += end.size()) text.replace(at, 1, end);
      return text;
    };
    check({
        {lines("\n# what\nroot ::= # of\n  \"a\" | # one\n  \"b\" x # other\n\nx ::= \"c\"\n"), {"a", "bc"}, {"b"}},
        {lines("root ::= \"a\"\n  | \"b\"\n# between\n\n  | x\nx ::= \"c\""), {"a", "b", "c"}, {""}},
        {lines("root ::= (\n  \"a\" # first\n  \"b\"\n  | \"c\"\n)\n"), {"ab", "c"}, {"a"}},
        {lines("root ::= (\"a\"\n*)\n"), {"", "aa"}, {}},
        {lines("root ::= |\n  \"a\""), {"", "a"}, {}},
    });
  }
  check({{"root ::= \"a\" # \"b\"", {"a"}, {"ab"}},
         {"root ::= \"#\" [#]", {"##"}, {}},
         {"root ::= \"a\nb\"", {"a\nb"}, {}}});
}

TEST(Gbnf, ReadsWholeGrammars) {
  const std::string json = R"gbnf(
root    ::= ws value ws
value   ::= object | array | string | number | "true" | "false" | "null"
object  ::= "{" ws (member (ws "," ws member)*)? ws "}"
member  ::= string ws ":" ws value
array   ::= "[" ws (value (ws "," ws value)*)? ws "]"
string  ::= "\"" character* "\""
character ::= [^"\\\x00-\x1f]              # as it is
            | "\\" (["\\/bfnrt] | "u" hex{4})  # or escaped
hex     ::= [0-9a-fA-F]
number  ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)?
ws      ::= [ \t\n\r]*
)gbnf";
  const std::string arithmetic = R"gbnf(
root ::= sum
sum ::= product ([-+] product)*
product ::= power ([*/] power)*
power ::= atom ("^" power)?
atom ::= [0-9]+ | [a-z]+ | "(" sum ")" | "-" atom
)gbnf";
  check({
      {json,
       {"{}", " [1, -0.5e+3, {\"a\\n\\u00e9\": [true, null]}] ", "\"日本\"", "[[[[]]]]"},
       {"", "{", "[1,]", "01", "{\"a\" 1}", "\"\n\"", "\"\\x\"", "[1}"}},
      {arithmetic, {"1+2*x", "-(a-b)^2^n/3", "((1))"}, {"", "1+", "(1", "1)", "**"}},
  });
  const std::string nested = std::string(60, '[') + std::string(60, ']');
  EXPECT_TRUE(matches(parse_gbnf(json, "NAME"), nested));
  EXPECT_FALSE(matches(parse_gbnf(json, "NAME"), nested + "]"));
}

TEST(Gbnf, NamesRulesInTheOrderOfTheirMention) {
  const Grammar grammar = parse_gbnf("a ::= c b\nroot ::= a\nb ::= \"b\"\nc ::= \"c\"", "NAME");
  std::vector<std::string> names;
  for (const Grammar::Rule& rule : grammar.rules) names.push_back(rule.name);
  EXPECT_EQ(names, (std::vector<std::string>{"a", "c", "b", "root"}));
  EXPECT_EQ(grammar.root, 3);
}

TEST(Gbnf, ErrorsNameThePlace) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "line 1, column 1: expected a rule 'root', found none"},
      {"a ::= \"x\"\n", "line 2, column 1: expected a rule 'root', found none"},
      {"root ::= \"é\" nope\nb ::= nope", "line 1, column 14: expected a rule 'nope', found none"},
      {"root ::= \"x\"\nroot ::= \"y\"", "line 2, column 1: expected no second rule 'root', found one"},
      {"root = \"x\"", "line 1, column 6: expected '::=', found '='"},
      {"root\n::= \"x\"", "line 1, column 5: expected '::=', found the end of the line"},
      {"\"x\"", "line 1, column 1: expected the name of a rule, found '\"'"},
      {"root ::= \"x\" ::= \"y\"", "line 1, column 14: expected the end of the line, found ':'"},
      {"root ::= \"x\" é", "line 1, column 14: expected the end of the line, found 'é'"},
      {"root ::= \"x\n\ny", "line 1, column 10: expected '\"' for this one, found the end"},
      {"root ::= [x", "line 1, column 10: expected ']' for this '[', found the end"},
      {"root ::= [x-", "line 1, column 10: expected ']' for this '[', found the end"},
      {"root ::= []", "line 1, column 10: expected characters in a class, found none"},
      {"root ::= [^]", "line 1, column 10: expected characters in a class, found none"},
      {"root ::= [az-a]", "line 1, column 12: expected a range that ascends, found 'z-a'"},
      {"root ::= (\"x\"\n", "line 2, column 1: expected ')', found the end"},
      {"root ::= (\"x\"\na ::= \"y\"", "line 2, column 3: expected ')', found ':'"},
      {"root ::= \"x\")", "line 1, column 13: expected the end of the line, found ')'"},
      {"root ::= \"x\"\n*", "line 2, column 1: expected the name of a rule, found '*'"},
      {"root ::= * \"x\"", "line 1, column 10: expected something to repeat, found '*'"},
      {"root ::= (|{2})", "line 1, column 12: expected something to repeat, found '{'"},
      {"root ::= \"x\"{}", "line 1, column 14: expected a number or ',', found '}'"},
      {"root ::= \"x\"{,}", "line 1, column 15: expected a number, found '}'"},
      {"root ::= \"x\"{1", "line 1, column 15: expected '}', found the end"},
      {"root ::= \"x\"{1,a}", "line 1, column 16: expected '}', found 'a'"},
      {"root ::= \"x\"{1\n}", "line 1, column 15: expected '}', found the end of the line"},
      {"root ::= \"x\"{3,2}", "line 1, column 13: expected counts that ascend"},
      {"root ::= \"x\"{100001}", "line 1, column 13: expected counts of at most 100000"},
      {"root ::= \"x\"{,99999999999999999999}", "line 1, column 13: expected counts of at most 100000"},
      {"root ::= \"x\"?????????", "expected at most 8 quantifiers in a row"},
      {"root ::= \"a\\q\"", "line 1, column 13: expected one of nrtxuU\\\"[]-^ behind '\\', found 'q'"},
      {"root ::= \"a\\", "line 1, column 13: expected a character behind '\\', found the end"},
      {"root ::= \"\\x4g\"", "line 1, column 14: expected 2 hexadecimal digits, found 'g'"},
      {"root ::= \"\\u00e", "expected 4 hexadecimal digits, found the end"},
      {"root ::= \"\\U00110000\"", "line 1, column 11: expected the number of a character, found '\\U00110000'"},
      {"root ::= [\\ud800]", "expected the number of a character, found '\\ud800'"},
      {"root ::= <think> \"x\"", "line 1, column 10: expected characters, found a token, which is not supported"},
      {"root ::= \"x\" !<[1000]>", "line 1, column 14: expected characters, found a token"},
      {"root ::= \"é\xff\"", "line 1, column 12: expected UTF-8, found the byte FF"},
      {"root ::= " + std::string(200, '(') + std::string(200, ')'), "expected at most 200 groups"},
      {"root ::= \"" + std::string(1 << 20, 'x') + "\"", "expected at most 1048576 bytes"},
  };
  for (const auto& [source, message] : cases) {
    const std::string found = error_of(source);
    EXPECT_NE(found.find(message), found.npos) << source.substr(0, 60) << "\n" << found;
    EXPECT_TRUE(found.starts_with("NAME: line ")) << found;
  }
}

TEST(Gbnf, TakesWhatIsDeepAndWide) {
  std::string wide = "root ::= ";
  for (int i = 0; i < 500; ++i) wide += "(\"a\")";
  EXPECT_TRUE(matches(parse_gbnf(wide, "NAME"), std::string(500, 'a')));
  const std::string deep = "root ::= " + std::string(199, '(') + "\"a\"" + std::string(199, ')');
  EXPECT_TRUE(matches(parse_gbnf(deep, "NAME"), "a"));
  std::string repeated = "\"a\"";
  for (int i = 0; i < 199; ++i) repeated = "(" + repeated + ")??*?*?*?";
  EXPECT_EQ(error_of("root ::= " + repeated), "no error");
}

}  // namespace
}  // namespace tiercel::test
