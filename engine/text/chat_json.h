// Conversations in the JSON of OpenAI's endpoint.
//
// Source: platform.openai.com/docs/api-reference/chat/create
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/json.h"
#include "engine/text/chat_message.h"
#include "engine/text/tokenizer.h"
#include "engine/text/tool_calls/tool_format.h"
#include "engine/text/tool_calls/tools.h"

namespace tiercel {

// An array of messages, one or more. Throws Error(kUsage) naming the place.
std::vector<ChatMessage> read_messages(const JsonNode& array);

// A conversation by itself: {"messages": [..]} and, where wanted, "tools", "chat_template_kwargs" and "date".
struct ChatJson {
  std::vector<ChatMessage> messages;
  std::string tools, variables;  // JSON, with members in the order in which they were written; empty: none
  std::optional<ChatDate> date;
};
// place: what it is called in errors. Throws Error(kUsage).
ChatJson read_chat_json(std::string_view text, const std::string& place);

// The answer to a prompt, whole: what its tokens say, of which those that end it say nothing. format, tools: with
// which it may call; or null.
ChatMessage read_answer(const Tokenizer& tokenizer, std::span<const int32_t> prompt, std::span<const int32_t> tokens,
                        const ToolFormat* format, const Tools* tools);
// A name for call i of an answer, the same for the same answer_id: nine letters and digits, as Mistral's templates take no
// others.
std::string call_id(std::string_view answer_id, uint64_t i);
// {"role": .., "content": ..}, with what was thought ("reasoning_content") and what is called ("tool_calls"), as
// read_messages reads it.
std::string to_json(const ChatMessage& answer);

}  // namespace tiercel
