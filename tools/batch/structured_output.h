// What a request says of the form of its answer, in the words of OpenAI's endpoint, of vLLM and of llama.cpp:
//
//   "response_format": {"type": "json_schema", "json_schema": {"schema": {..}}}, {"type": "json_object"} or "text"
//   "structured_outputs": {"json": {..}} or "regex", "choice", "grammar", "json_object"; "guided_json" and so on
//   "json_schema", "grammar", "regex"
#pragma once

#include <string_view>

#include "engine/answer_form.h"
#include "engine/json.h"

namespace tiercel {

// Whether a member of a request is one of them.
bool is_answer_form(std::string_view name);
// That of a request; `otherwise` where it says nothing of it. text: what `asked`, or an object with it as "body",
// was read from: properties of a schema have an order. Throws Error(kUsage) for what it does not know, and
// for two at once.
AnswerForm read_answer_form(const JsonNode& asked, std::string_view text, const AnswerForm& otherwise);

}  // namespace tiercel
