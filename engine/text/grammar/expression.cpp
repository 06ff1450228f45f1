#include "engine/text/grammar/expression.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"

namespace tiercel::grammar {
namespace {

thread_local ExpressionBudget* innermost = nullptr;

Expr made(Expression expression) {
  ExpressionBudget::spend(1 + std::ssize(expression.parts) + std::ssize(expression.ranges) +
                          std::ssize(expression.text) / 16);
  return std::make_shared<const Expression>(std::move(expression));
}

bool is_empty_text(const Expr& part) { return part->kind == Expression::Kind::kText && part->text.empty(); }
bool is_nothing(const Expr& part) { return part->kind == Expression::Kind::kChoice && part->parts.empty(); }

std::vector<CodeRange> in_order(std::vector<CodeRange> ranges) {
  std::erase_if(ranges, [](const CodeRange& range) { return range.first > range.last; });
  std::ranges::sort(ranges, {}, &CodeRange::first);
  std::vector<CodeRange> apart;
  for (const CodeRange& range : ranges) {
    if (!apart.empty() && range.first <= apart.back().last + 1) {
      apart.back().last = std::max(apart.back().last, range.last);
    } else {
      apart.push_back(range);
    }
  }
  return apart;
}

}  // namespace

ExpressionBudget::ExpressionBudget(int64_t most) : outer_(innermost), left_(most) { innermost = this; }
ExpressionBudget::~ExpressionBudget() { innermost = outer_; }

void ExpressionBudget::spend(int64_t n) {
  for (ExpressionBudget* budget = innermost; budget != nullptr; budget = budget->outer_) {
    budget->left_ -= n;
    if (budget->left_ < 0) fail(ErrorKind::kUsage, "the form asked for is too large; make it simpler");
  }
}

Expr text(std::string bytes) { return made({.kind = Expression::Kind::kText, .text = std::move(bytes)}); }

Expr nothing() { return made({.kind = Expression::Kind::kChoice}); }

Expr characters(std::vector<CodeRange> ranges) {
  return made({.kind = Expression::Kind::kCharacters, .ranges = in_order(std::move(ranges))});
}

Expr characters_except(std::vector<CodeRange> ranges) {
  std::vector<CodeRange> others;
  char32_t next = 0;
  for (const CodeRange& range : in_order(std::move(ranges))) {
    if (range.first > next) others.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastCharacter) others.push_back({next, kLastCharacter});
  return characters(std::move(others));
}

Expr sequence(std::vector<Expr> parts) {
  if (std::ranges::any_of(parts, is_nothing)) return nothing();
  std::erase_if(parts, is_empty_text);
  if (parts.empty()) return text("");
  if (parts.size() == 1) return std::move(parts.front());
  return made({.kind = Expression::Kind::kSequence, .parts = std::move(parts)});
}

Expr choice(std::vector<Expr> parts) {
  std::erase_if(parts, is_nothing);
  if (parts.size() == 1) return std::move(parts.front());
  return made({.kind = Expression::Kind::kChoice, .parts = std::move(parts)});
}

Expr repeat(Expr part, int64_t least, int64_t most) {
  CHECK(least >= 0 && (most == kUnlimited || most >= least), "{} to {} times", least, most);
  if (most == 0 || is_empty_text(part)) return text("");
  if (is_nothing(part)) return least == 0 ? text("") : part;
  if (least == 1 && most == 1) return part;
  return made({.kind = Expression::Kind::kRepeat, .parts = {std::move(part)}, .least = least, .most = most});
}

Expr optional(Expr part) { return repeat(std::move(part), 0, 1); }

Expr rule(int32_t index) { return made({.kind = Expression::Kind::kRule, .rule = index}); }

Expr without(std::string text) {
  CHECK(!text.empty());
  return made({.kind = Expression::Kind::kWithout, .text = std::move(text)});
}

Expr up_to(std::string text) {
  CHECK(!text.empty());
  return made({.kind = Expression::Kind::kUpTo, .text = std::move(text)});
}

Grammar grammar_of(Expr expression) { return {.rules = {{"root", std::move(expression)}}, .root = 0}; }

}  // namespace tiercel::grammar
