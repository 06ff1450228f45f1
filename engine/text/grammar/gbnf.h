// Grammars as llama.cpp writes them (GBNF): rules `name ::= alternatives`, of which `root` is the whole text.
//
// Beyond what llama.cpp reads: `_` in names, the escape \^, {,n}, and a line that begins with '|' goes on with the rule
// before it. Tokens (<[1000]>, <think>) are refused: a grammar here knows bytes only.
#pragma once

#include <string>
#include <string_view>

#include "engine/text/grammar/expression.h"

namespace tiercel::grammar {

// Throws Error(kUsage) "NAME: line L, column C: expected .., found ..". Left recursion is the recognizer's to find.
Grammar parse_gbnf(std::string_view text, const std::string& name);

}  // namespace tiercel::grammar
