// The sets of characters that a regular expression has names for, as sorted ranges.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "engine/text/grammar/expression.h"

namespace tiercel::grammar {

using Ranges = std::vector<CodeRange>;

Ranges complement(Ranges ranges);

// What \d \w \s and \D \W \S match in ECMA-262 without its flag i.
std::optional<Ranges> escape_set(char32_t letter);

// What '.' matches there: no end of a line.
Ranges dot_set();

// What \p{name} matches, if it is a general category, Any, ASCII or Assigned.
std::optional<Ranges> property_set(std::string_view name);

}  // namespace tiercel::grammar
