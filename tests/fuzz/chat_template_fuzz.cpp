// Arbitrary text as a chat template, and as the words of a conversation. Only Error may come out,
// and no words add a special token.
//
// Input: byte 0 even: the rest is a template; odd: words, for the known style of number byte 0 / 2.
#include <algorithm>
#include <cstdint>
#include <string>

#include "engine/base/check.h"
#include "engine/text/chat_template.h"
#include "engine/text/chat_template_table.h"

namespace {

using namespace tiercel;

std::vector<ChatMessage> conversation(const std::string& words) {
  return {{ChatRole::kUser, words}, {ChatRole::kAssistant, words}, {ChatRole::kUser, words}};
}

int64_t n_tokens(const ChatStyle& style, const std::string& words) {
  const ChatSettings settings{
      .bos = "<s>", .eos = "</s>", .default_system = {"Today is ", "."}, .date = {2026, 1, 2}};
  int64_t n = 0;
  for (const auto& pieces : {write_chat(style, settings, conversation(words), true),
                             write_next_turn(style, settings, words)}) {
    n += std::count_if(pieces.begin(), pieces.end(),
                       [](const ChatPiece& piece) { return piece.kind != ChatPiece::kText; });
  }
  return n;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  try {
    if (data[0] % 2 == 0) {
      const ChatTemplate chat = ChatTemplate::parse(text, "<s>", "</s>", "fuzz");
      const std::string written =
          chat.text(conversation("hello"), {.add_generation_prompt = true, .date = {2026, 1, 2}});
      CHECK(written.find("hello") != written.npos || chat.name() == "Jinja", "{}", chat.name());
    } else {
      const ChatStyle& style = known_templates()[data[0] / 2 % known_templates().size()].style;
      const int64_t n = n_tokens(style, text), usual = n_tokens(style, "hello");
      // Some leave out a message without words.
      CHECK(n == usual || (text.empty() && n < usual), "{}: {} for {}", data[0] / 2, n, usual);
    }
  } catch (const Error&) {
  }
  return 0;
}
