// What is said in a conversation, and with what a chat template is to write it (engine/text/chat_template.h).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tiercel {

enum class ChatRole { kSystem, kUser, kAssistant, kTool };
std::string_view name_of(ChatRole role);

// What an answer asks to be done.
struct ToolCall {
  std::string id, name;
  std::string arguments;  // a JSON object
};

struct ChatMessage {
  ChatRole role;
  std::string content;  // any bytes; what is not UTF-8 becomes U+FFFD
  std::string reasoning = {};             // of an answer: what was thought before it, where that is said apart
  std::vector<ToolCall> calls = {};       // of an answer
  std::string call_id = {}, name = {};    // of what a tool gave
};

struct ChatDate {
  int year = 0, month = 1, day = 1;
};

// This machine's.
ChatDate chat_date_today();
// "YYYY-MM-DD". Throws Error(kUsage).
ChatDate parse_chat_date(const std::string& text);

struct ChatOptions {
  bool add_generation_prompt = true;
  // Of templates that write a date (as their date_string); none (year 0): what they write where
  // nothing is given and there is no clock.
  ChatDate date = {};
  std::string tools = {};      // that may be called: a JSON array, as OpenAI's; empty: none
  std::string variables = {};  // others of the template ("enable_thinking"): a JSON object, or empty
};

// A piece of a conversation as a template writes it: neighbours that are text are one text to the tokenizer.
struct ChatPiece {
  enum Kind { kText, kSpecial } kind;
  std::string text;  // of a special token its name
};

}  // namespace tiercel
