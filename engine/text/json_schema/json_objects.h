// Objects of JSON whose members come in a fixed order, some of which may be missing.
#pragma once

#include <string>
#include <vector>

#include "engine/text/json_schema/json_values.h"

namespace tiercel::grammar {

struct JsonMember {
  std::string name;
  Expr value;
  bool is_required = false;
};
struct JsonObjectForm {
  std::vector<JsonMember> members;
  // Others, behind them: their values (null: there are none), and how many.
  Expr other_value = nullptr;
  int64_t n_least = 0, n_most = kUnlimited;
};

// In time and space linear in the form. label: for the names of rules.
Expr json_object_of(Grammar& grammar, const JsonValues& json, const JsonObjectForm& form, const std::string& label);

// The inside of a string that is none of these, which are UTF-8. Errors (kUsage, LABEL): longer than 250 characters.
Expr json_string_text_except(Grammar& grammar, const JsonValues& json, const std::vector<std::string>& names,
                             const std::string& label);

}  // namespace tiercel::grammar
