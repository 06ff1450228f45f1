// The demo model with ChatML around messages: its words for the beginning and end of a header serve
// as those of a turn.
#pragma once

#include <string>
#include <utility>

#include "tests/command/process.h"

namespace tiercel::test {

inline constexpr const char* kChatMl =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}";

inline void make_chat_model(const std::string& directory) {
  fs::copy(demo_model(), directory);
  std::string tokens = read_file(directory + "/tokenizer.json");
  for (const auto& [from, to] :
       {std::pair<std::string, std::string>{"<|start_header_id|>", "<|im_start|>"},
        {"<|end_header_id|>", "<|im_end|>"}}) {
    for (size_t at = 0; (at = tokens.find(from, at)) != std::string::npos;) {
      tokens.replace(at, from.size(), to);
    }
  }
  write_file(directory + "/tokenizer.json", tokens);
  write_file(directory + "/chat_template.jinja", kChatMl);
}

}  // namespace tiercel::test
