// Texts as they stand between the quotes of a JSON string.
#pragma once

#include <string_view>
#include <vector>

#include "engine/text/grammar/expression.h"

namespace tiercel::grammar {

// One of these characters: as it is where JSON lets it be, else its escape (the short one if it has one, else \u00xx
// with digits of either case).
Expr json_characters(std::vector<CodeRange> ranges);

// This text, written in the one way in which nlohmann::json writes it.
Expr json_string_text(std::string_view utf8);

}  // namespace tiercel::grammar
