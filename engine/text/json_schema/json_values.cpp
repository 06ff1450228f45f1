#include "engine/text/json_schema/json_values.h"

#include <algorithm>
#include <utility>

#include "engine/text/json_schema/json_numbers.h"

namespace tiercel::grammar {
namespace {

Expr space_body() {
  return choice({text(""), text(" "),
                 sequence({text("\n"), optional(text("\n")), repeat(characters({{' ', ' '}, {'\t', '\t'}}), 0, 20)})});
}

Expr character_body() {
  const auto hex = [](int64_t n) { return repeat(characters({{'0', '9'}, {'a', 'f'}, {'A', 'F'}}), n, n); };
  const Expr d = characters({{'d', 'd'}, {'D', 'D'}});
  const Expr one = choice({sequence({characters({{'0', '9'}, {'a', 'c'}, {'e', 'f'}, {'A', 'C'}, {'E', 'F'}}), hex(3)}),
                           sequence({d, characters({{'0', '7'}}), hex(2)})});
  const Expr high = sequence({d, characters({{'8', '9'}, {'a', 'b'}, {'A', 'B'}}), hex(2)});
  const Expr low = sequence({text("\\u"), d, characters({{'c', 'f'}, {'C', 'F'}}), hex(2)});
  const Expr unicode = sequence({text("u"), choice({one, sequence({high, low})})});
  const Expr letter =
      characters({{'"', '"'}, {'\\', '\\'}, {'/', '/'}, {'b', 'b'}, {'f', 'f'}, {'n', 'n'}, {'r', 'r'}, {'t', 't'}});
  return choice(
      {characters_except({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}}), sequence({text("\\"), choice({letter, unicode})})});
}

}  // namespace

Expr as_rule(Grammar& grammar, const std::string& name, Expr body) {
  if (body->kind == Expression::Kind::kRule) return body;
  grammar.rules.push_back({name, std::move(body)});
  return rule(static_cast<int32_t>(grammar.rules.size()) - 1);
}

JsonValues::JsonValues(Grammar& grammar)
    : grammar_(grammar),
      space_(find_or_add("JSON's white space")),
      character_(find_or_add("a character of JSON")),
      string_(find_or_add("a string of JSON")),
      value_(find_or_add("a value of JSON")),
      object_(find_or_add("an object of JSON")),
      array_(find_or_add("an array of JSON")) {
  if (grammar.rules[static_cast<size_t>(space_)].body != nullptr) return;  // they were found
  const auto define = [&](int32_t index, const Expr& body) { grammar.rules[static_cast<size_t>(index)].body = body; };
  define(space_, space_body());
  const Expr character = character_body();
  define(character_, character);
  define(string_, string_of(repeat(character, 0, kUnlimited)));
  define(value_, choice({object(), array(), string(), json_number({}), text("true"), text("false"), text("null")}));
  const Expr any_member = as_rule(grammar, "a member of JSON", member(string(), value()));
  define(object_, in_brackets('{', '}', list(any_member, 1, kUnlimited), true));
  define(array_, in_brackets('[', ']', list(value(), 1, kUnlimited), true));
}

int32_t JsonValues::find_or_add(const std::string& name) {
  const auto found = std::ranges::find(grammar_.rules, name, &Grammar::Rule::name);
  if (found != grammar_.rules.end()) return static_cast<int32_t>(found - grammar_.rules.begin());
  grammar_.rules.push_back({name, nullptr});
  return static_cast<int32_t>(grammar_.rules.size()) - 1;
}

Expr JsonValues::string_of(Expr inside) const { return sequence({text("\""), std::move(inside), text("\"")}); }

Expr JsonValues::member(Expr key, Expr value) const {
  return sequence({std::move(key), text(":"), space(), std::move(value)});
}

Expr JsonValues::next(Expr element) const { return sequence({text(","), space(), std::move(element)}); }

Expr JsonValues::in_brackets(char open, char close, Expr content, bool may_be_empty) const {
  const Expr inside = sequence({std::move(content), space()});
  return sequence(
      {text(std::string(1, open)), space(), may_be_empty ? optional(inside) : inside, text(std::string(1, close))});
}

Expr JsonValues::list(const Expr& element, int64_t least, int64_t most) const {
  if (most == 0) return text("");
  const Expr some = sequence(
      {element, repeat(next(element), std::max<int64_t>(least - 1, 0), most == kUnlimited ? kUnlimited : most - 1)});
  return least == 0 ? optional(some) : some;
}

}  // namespace tiercel::grammar
