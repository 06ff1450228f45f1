// tiercel::Engine: conversations.
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/api/state.h"
#include "engine/text/chat_json.h"
#include "engine/text/chat_template.h"
#include "engine/text/tool_calls/tool_format.h"

namespace tiercel {
namespace detail {
namespace {

ChatRole role_of(const std::string& name) {
  for (const ChatRole role : {ChatRole::kSystem, ChatRole::kUser, ChatRole::kAssistant}) {
    if (name == name_of(role)) return role;
  }
  refuse(v0::ErrorKind::kUsage, "role: expected system, user or assistant, found '{}'", name);
}

// Throws Error(kUsage) saying why there is none.
ChatTemplate template_of(const EngineState& engine) {
  return engine.chat ? *engine.chat : ChatTemplate::load(engine.directory);
}

}  // namespace
}  // namespace detail

namespace v0 {

std::vector<int32_t> Engine::tokenize_chat(std::span<const ChatMessage> messages,
                                           const std::string& date) const {
  const detail::EngineState& engine = detail::opened_engine(state_);
  return detail::translated([&] {
    std::vector<tiercel::ChatMessage> inner;
    for (const ChatMessage& m : messages) inner.push_back({detail::role_of(m.role), m.content});
    const ChatTemplate chat = detail::template_of(engine);
    ChatOptions options;
    options.date = date.empty() ? chat_date_today() : parse_chat_date(date);
    return chat.encode(engine.tokenizer, inner, options);
  });
}

std::vector<int32_t> Engine::tokenize_chat_json(std::string_view conversation) const {
  const detail::EngineState& engine = detail::opened_engine(state_);
  return detail::translated([&] {
    const ChatJson json = read_chat_json(conversation, "conversation");
    ChatTemplate chat = detail::template_of(engine);
    if (!json.variables.empty()) chat = chat.with_variables(json.variables);
    if (!json.tools.empty()) {
      const Tools tools(json.tools);              // what is wrong with them is said now
      const ToolFormat format(chat.program());
    }
    const ChatOptions options{.date = json.date.value_or(chat_date_today()), .tools = json.tools};
    return chat.encode(engine.tokenizer, json.messages, options);
  });
}

ChatAnswer Engine::read_answer(std::span<const int32_t> prompt, std::span<const int32_t> answer,
                               std::string_view tools) const {
  const detail::EngineState& engine = detail::opened_engine(state_);
  detail::check_tokens(engine, prompt);
  detail::check_decodable(engine, answer);
  return detail::translated([&] {
    std::optional<Tools> declared;
    std::optional<ToolFormat> format;
    // As a conversation may have it: none is an empty array too.
    if (!tools.empty() && !nlohmann::json::parse(tools, nullptr, /*allow_exceptions=*/false).empty()) {
      declared.emplace(std::string(tools));
      format.emplace(detail::template_of(engine).program());
    }
    const tiercel::ChatMessage read = tiercel::read_answer(engine.tokenizer, prompt, answer, format ? &*format : nullptr,
                                                           declared ? &*declared : nullptr);
    ChatAnswer result{.content = read.content, .reasoning = read.reasoning, .calls = {}, .message_json = to_json(read)};
    for (const tiercel::ToolCall& call : read.calls) result.calls.push_back({call.id, call.name, call.arguments});
    return result;
  });
}

std::vector<int32_t> Engine::tokenize_next_turn(std::span<const int32_t> sequence,
                                                std::string_view user) const {
  const detail::EngineState& engine = detail::opened_engine(state_);
  return detail::translated([&] {
    const ChatTemplate chat = detail::template_of(engine);
    std::vector<int32_t> tokens = chat.encode_next_turn(engine.tokenizer, user);
    const int32_t end = chat.end_of_turn(engine.tokenizer);
    if (sequence.empty() || sequence.back() != end) tokens.insert(tokens.begin(), end);
    return tokens;
  });
}

}  // namespace v0
}  // namespace tiercel
