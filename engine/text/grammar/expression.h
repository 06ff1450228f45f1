// What a text may be: expressions over bytes, and rules that name them and refer to each other.
//
// Schemas (engine/text/json_schema), patterns (regex.h) and grammars (gbnf.h) become these; recognizer.h reads texts by
// them. Knows nothing of tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tiercel::grammar {

struct Expression;
using Expr = std::shared_ptr<const Expression>;

// Code points first .. last. What is no character (surrogates, above U+10FFFF) is never matched.
struct CodeRange {
  char32_t first = 0, last = 0;
};
inline constexpr char32_t kLastCharacter = 0x10FFFF;
inline constexpr int64_t kUnlimited = -1;

struct Expression {
  enum class Kind : uint8_t {
    kText,        // these bytes; none: the empty text
    kCharacters,  // one character of these, as UTF-8
    kSequence,    // all parts, one behind the other
    kChoice,      // one of the parts; of none: no text at all
    kRepeat,      // the part, `least` to `most` times
    kRule,        // what a rule matches
    kWithout,     // any bytes in which `text` does not occur
    kUpTo         // any bytes that end with `text` and have it nowhere before
  };
  Kind kind = Kind::kText;
  std::string text = {};
  std::vector<CodeRange> ranges = {};  // sorted, apart from each other
  std::vector<Expr> parts = {};
  int64_t least = 0, most = 0;  // kUnlimited: as often as one likes
  int32_t rule = -1;            // its place in Grammar::rules
};

// While one is in scope, its thread makes expressions of so much at most: what is asked for in a few words may be much.
// Then they throw Error(kUsage). One within another one counts for both.
class ExpressionBudget {
 public:
  static constexpr int64_t kOfAForm = 3'000'000;  // expressions, their parts and ranges
  explicit ExpressionBudget(int64_t most = kOfAForm);
  ~ExpressionBudget();
  ExpressionBudget(const ExpressionBudget&) = delete;
  ExpressionBudget& operator=(const ExpressionBudget&) = delete;
  static void spend(int64_t n);

 private:
  ExpressionBudget* outer_;
  int64_t left_;
};

Expr text(std::string bytes);                    // "": the empty text
Expr nothing();                                  // no text at all
Expr characters(std::vector<CodeRange> ranges);  // in any order
Expr characters_except(std::vector<CodeRange> ranges);
Expr sequence(std::vector<Expr> parts);
Expr choice(std::vector<Expr> parts);
Expr repeat(Expr part, int64_t least, int64_t most);
Expr optional(Expr part);
Expr rule(int32_t index);
Expr without(std::string text);  // not empty
Expr up_to(std::string text);

struct Grammar {
  struct Rule {
    std::string name;  // for messages
    Expr body;
  };
  std::vector<Rule> rules;
  int32_t root = 0;
};

// A grammar of this expression alone, which refers to no rule.
Grammar grammar_of(Expr expression);

}  // namespace tiercel::grammar
