// JSON's own grammar, as rules that everything in a Grammar shares.
//
// White space is what models write, with an end: behind ',', ':' and an opening bracket, and before a closing one,
// nothing, a space, or one or two line breaks and up to 20 spaces or tabs. None around the whole text.
#pragma once

#include <string>
#include <vector>

#include "engine/text/grammar/expression.h"

namespace tiercel::grammar {

class JsonValues {
 public:
  // Adds the rules to `grammar`, which must stay where it is, or finds those that are there.
  explicit JsonValues(Grammar& grammar);

  Expr space() const { return rule(space_); }
  Expr character() const { return rule(character_); }  // one, inside a string, written in any way
  Expr string() const { return rule(string_); }
  Expr value() const { return rule(value_); }
  Expr object() const { return rule(object_); }
  Expr array() const { return rule(array_); }

  Expr string_of(Expr inside) const;  // in quotation marks
  Expr member(Expr key, Expr value) const;
  Expr next(Expr element) const;  // behind a comma
  // `content` in brackets; may_be_empty: or nothing.
  Expr in_brackets(char open, char close, Expr content, bool may_be_empty) const;
  // `least` to `most` of `element`, which is copied: a rule, or small.
  Expr list(const Expr& element, int64_t least, int64_t most) const;

 private:
  int32_t find_or_add(const std::string& name);

  Grammar& grammar_;
  int32_t space_, character_, string_, value_, object_, array_;
};

// A rule of its own for what is used more than once.
Expr as_rule(Grammar& grammar, const std::string& name, Expr body);

}  // namespace tiercel::grammar
