// Arbitrary text as an answer that may call tools, in each form; only answers and calls come out, and what is said of
// an answer that goes on is what it says in the end.
//
// Input: byte 0: which form; the rest is the answer.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/tool_calls/tool_format.h"

namespace {

using namespace tiercel;

// An answer's calls in a template that writes a user's words.
ToolFormat format_of(const std::string& calls) {
  return ToolFormat(ChatProgram("{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}" + calls +
                                    "{% else %}{{ m.content }}{% endif %}<end>\n{% endfor %}"
                                    "{% if add_generation_prompt %}<assistant>{% endif %}",
                                "", "", "fuzz"));
}

const std::vector<ToolFormat>& formats() {
  static const std::vector<ToolFormat> kFormats = {
      format_of("{% for c in m.tool_calls %}<call>\n{{ c.function | tojson }}\n</call>{% endfor %}"),
      format_of("[CALLS] [{% for c in m.tool_calls %}{{ c.function | tojson }}{% if not loop.last %}, {% endif %}{% "
                "endfor %}]"),
      format_of("{{ m.tool_calls[0].function | tojson }}"),
      format_of("<calls>{% for c in m.tool_calls %}<call>{{ c.function.name }}[ID]{{ c.id }}[ARGS]{{ "
                "c.function.arguments | tojson }}"
                "</call>{% endfor %}</calls>"),
      format_of("{{ m.tool_calls[0].function.name }}\n{{ m.tool_calls[0].function.arguments | tojson }}"),
      format_of("{% for c in m.tool_calls %}<call>\n<f={{ c.function.name }}>\n{% for k, v in c.function.arguments | "
                "items %}<p={{ k }}>\n{{ v }}\n"
                "</p>\n{% endfor %}</f>\n</call>{% endfor %}")};
  return kFormats;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  static const Tools kTools(
      R"([{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}},
                                {"type": "function", "function": {"name": "fg"}}])");
  const ToolFormat& format = formats()[(data[0] & 0x7f) % formats().size()];
  const bool thinks = (data[0] & 0x80) != 0;
  const std::string answer(reinterpret_cast<const char*>(data + 1), size - 1);
  const ToolFormat::Answer read = format.read(answer, kTools, thinks);
  for (const ToolCall& call : read.calls)
    CHECK(nlohmann::json::parse(call.arguments).is_object(), "{}", call.arguments);
  CHECK(!read.calls.empty() || read.content == answer, "{}", read.content);
  ToolFormat::Progress progress;
  for (size_t n = 0; n <= answer.size(); n += 1 + n / 16) {
    format.follow(std::string_view(answer).substr(0, n), kTools, thinks, progress);
    CHECK(read.content.starts_with(answer.substr(0, progress.n_before)), "{} of {}", progress.n_before, n);
  }
  return 0;
}
