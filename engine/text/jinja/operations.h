// What Python's operators, str(), repr() and json.dumps make of values.
#pragma once

#include <string>
#include <string_view>

#include "engine/text/jinja/value.h"

namespace tiercel::jinja {

// All throw Problem where Python would raise. Compared and written values are counted element by element.
bool equal(const Value& a, const Value& b, Budget& budget);
// op: <, >, <= or >=.
bool compare(std::string_view op, const Value& a, const Value& b, Budget& budget);
bool contains(const Value& container, const Value& value, Budget& budget);
// op: + - * / // % or **. Integers of more than 64 bits are refused.
Value arithmetic(std::string_view op, const Value& a, const Value& b, Budget& budget);
// Both texts, one behind the other; where one is markup, the other is escaped.
Text joined(const Text& a, const Text& b, Budget& budget);
Value signed_number(std::string_view sign, const Value& value, Budget& budget);

Text str(const Value& value, Budget& budget);  // undefined: empty; markup stays markup
Text repr(const Value& value, Budget& budget);
std::string python_float(double value);

struct JsonStyle {
  Text indent;
  bool has_lines = false;  // with an indent, be it an empty one
  Text item_separator = Text::native(", "), key_separator = Text::native(": ");
  bool ensure_ascii = false, sort_keys = false;
};
Text to_json(const Value& value, const JsonStyle& style, Budget& budget);

// A printf-style text % values.
Text printed(const Text& format, const Value& values, Budget& budget);

}  // namespace tiercel::jinja
