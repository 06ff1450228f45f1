// Grammars of any shape over a few letters, and the texts that they match by the definition of their expressions.
#pragma once

#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/grammar/expression.h"

namespace tiercel::test {

inline constexpr std::string_view kLetters = "abc";

class RandomGrammar {
 public:
  explicit RandomGrammar(std::mt19937_64& random) : random_(random) {
    const int n = 1 + pick(3);
    for (int i = 0; i < n; ++i) {
      grammar_.rules.push_back({"r" + std::to_string(i), expression(3, i)});
    }
  }
  const grammar::Grammar& grammar() const { return grammar_; }

 private:
  int pick(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }
  std::string letters(int n) {
    std::string text;
    for (int i = 0; i < n; ++i) text += kLetters[static_cast<size_t>(pick(3))];
    return text;
  }
  grammar::Expr expression(int depth, int rule) {
    if (depth == 0 || pick(4) == 0) {
      const int what = pick(6);
      if (what == 0) return grammar::without(letters(1 + pick(3)));
      if (what == 1) return grammar::up_to(letters(1 + pick(3)));
      if (what == 2) return grammar::characters({{U'a', static_cast<char32_t>(U'a' + pick(3))}});
      return grammar::text(letters(pick(3)));
    }
    std::vector<grammar::Expr> parts;
    for (int i = 1 + pick(3); i > 0; --i) parts.push_back(expression(depth - 1, rule));
    switch (pick(5)) {
      case 0:
      case 1:
        return grammar::sequence(parts);
      case 2:
        return grammar::choice(parts);
      case 3: {
        const int least = pick(3), more = pick(4);
        return grammar::repeat(parts[0], least, more == 3 ? grammar::kUnlimited : least + more);
      }
      default:  // behind a letter, so that no rule begins with itself
        return grammar::sequence({grammar::text(letters(1)), grammar::rule(pick(rule + 1)), parts[0]});
    }
  }

  std::mt19937_64& random_;
  grammar::Grammar grammar_;
};

// Where texts that an expression matches end, of those that begin at `from`.
class Definition {
 public:
  Definition(const grammar::Grammar& grammar, std::string_view text) : grammar_(grammar), text_(text) {}

  bool matches() const { return ends(grammar::rule(grammar_.root), 0).contains(text_.size()); }

 private:
  using Ends = std::set<size_t>;

  Ends ends(const grammar::Expr& expression, size_t from) const {
    using Kind = grammar::Expression::Kind;
    const grammar::Expression& e = *expression;
    Ends found;
    switch (e.kind) {
      case Kind::kText:
        if (text_.substr(from).starts_with(e.text)) found.insert(from + e.text.size());
        break;
      case Kind::kCharacters:  // of one byte
        for (const grammar::CodeRange& range : e.ranges) {
          if (from < text_.size() && static_cast<char32_t>(text_[from]) >= range.first &&
              static_cast<char32_t>(text_[from]) <= range.last) {
            found.insert(from + 1);
          }
        }
        break;
      case Kind::kSequence: {
        found = {from};
        for (const grammar::Expr& part : e.parts) found = behind(part, found);
        break;
      }
      case Kind::kChoice:
        for (const grammar::Expr& part : e.parts) found.merge(ends(part, from));
        break;
      case Kind::kRepeat: {
        Ends at = {from};
        for (int64_t i = 0; !at.empty(); ++i) {
          if (i >= e.least) {
            const size_t before = found.size();
            found.insert(at.begin(), at.end());
            if (i > e.least && found.size() == before) break;
          }
          if (i == e.most) break;
          at = behind(e.parts[0], at);
        }
        break;
      }
      case Kind::kRule:
        return ends(grammar_.rules[static_cast<size_t>(e.rule)].body, from);
      case Kind::kWithout:
        for (size_t to = from; to <= text_.size(); ++to) {
          if (text_.substr(from, to - from).find(e.text) == std::string_view::npos) found.insert(to);
        }
        break;
      case Kind::kUpTo:
        if (const size_t at = text_.find(e.text, from); at != std::string_view::npos) found.insert(at + e.text.size());
        break;
    }
    return found;
  }
  Ends behind(const grammar::Expr& part, const Ends& all) const {
    Ends found;
    for (const size_t from : all) found.merge(ends(part, from));
    return found;
  }

  const grammar::Grammar& grammar_;
  std::string_view text_;
};

}  // namespace tiercel::test
