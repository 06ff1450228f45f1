// Regular expressions as JSON Schema has them: ECMA-262's, over code points (its flag u), with what Annex B forgives.
//
// What looks around, back or at word boundaries is no regular language or no small one: it is refused by its name.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/text/grammar/expression.h"

namespace tiercel::grammar {

struct RegexOptions {
  // The whole text must match, as if by ^(?:...)$. false: any part of it, as a schema's "pattern" says; ^ and $ still
  // hold.
  bool anchored = true;
  // The texts stand between the quotes of a JSON string (json_text.h).
  bool json_string = false;
};

struct Regex {
  Expr expression;
  // Characters of a text that matches, before JSON escapes them. shortest: INT64_MAX where none matches or none that
  // short; longest: kUnlimited where there is no limit or no such number.
  int64_t shortest = 0, longest = 0;
};

// Throws Error(kUsage) "PLACE: character N of the pattern: expected .., found ..".
Regex parse_regex(std::string_view pattern, const RegexOptions& options, const std::string& place);

}  // namespace tiercel::grammar
