// The call that templates are made to write, to see how they do.
#pragma once

#include <fmt/format.h>

#include <string>

namespace tiercel::probe_call {

// Names and values that no template has.
inline constexpr const char *kQuestion = "a question for tiercel", *kAnswer = "=an answer of tiercel=";
inline constexpr const char *kTool = "tiercel_looks_up", *kOther = "tiercel_counts";
inline constexpr const char* kId = "tiercel01";
inline constexpr const char *kTextKey = "tiercel_word", *kText = "a value of tiercel", *kNumberKey = "tiercel_number",
                            *kNumber = "7351846";

inline constexpr const char* kToolsJson = R"([
  {"type": "function", "function": {"name": "tiercel_looks_up", "description": "Looks up.", "parameters": {"type": "object",
    "properties": {"tiercel_word": {"type": "string", "description": "What."}, "tiercel_number": {"type": "integer", "description": "How many."}},
    "required": ["tiercel_word"]}}},
  {"type": "function", "function": {"name": "tiercel_counts", "description": "Counts.", "parameters": {"type": "object",
    "properties": {"tiercel_word": {"type": "string", "description": "What."}, "tiercel_number": {"type": "integer", "description": "How many."}},
    "required": ["tiercel_word"]}}}])";

inline std::string arguments_json() {
  return fmt::format(R"({{"{}": "{}", "{}": {}}})", kTextKey, kText, kNumberKey, kNumber);
}

}  // namespace tiercel::probe_call
