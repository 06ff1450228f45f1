// tiercel::Engine: conversations.
#include "engine/api/state.h"
#include "engine/text/chat_template.h"

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
