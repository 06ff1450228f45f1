#include "engine/text/chat_json.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/thoughts.h"

namespace tiercel {
namespace {

// Text, or a list of parts that are: lines of one text, as other servers read them.
std::string content_of(const JsonNode& node) {
  if (!node.raw().is_array()) return node.text();
  std::string text;
  for (size_t i = 0; i < node.size(); ++i) {
    const JsonNode part = node[i];
    if (part.at("type").text() != "text") part.at("type").unexpected("\"text\"");
    if (i > 0) text += "\n";
    text += part.at("text").text();
  }
  return text;
}

// What an answer called: as OpenAI's endpoint gave it, with arguments as a text that is JSON.
std::vector<ToolCall> calls_of(const JsonNode& node) {
  node.expect_array();
  std::vector<ToolCall> calls;
  for (size_t i = 0; i < node.size(); ++i) {
    const JsonNode call = node[i], function = call.at("function"), arguments = function.at("arguments");
    if (const auto type = call.find("type"); type && type->text() != "function") type->unexpected("\"function\"");
    const auto id = call.find("id");
    // An empty text is what some models give a tool that takes nothing.
    const std::string& given = arguments.text();
    calls.push_back({id ? id->text() : "", function.at("name").text(), given.empty() ? "{}" : given});
    const std::string place = arguments.place();
    const nlohmann::json parsed = parse_json(calls.back().arguments, place, {.max_depth = kMostJsonDepth});
    if (!parsed.is_object()) arguments.unexpected("a JSON object, as text");
  }
  return calls;
}

ChatMessage message_of(const JsonNode& message) {
  message.expect_object();
  const JsonNode role = message.at("role");
  std::optional<ChatRole> found;
  for (const ChatRole known : {ChatRole::kSystem, ChatRole::kUser, ChatRole::kAssistant, ChatRole::kTool}) {
    if (role.text() == name_of(known)) found = known;
  }
  if (role.text() == "developer") found = ChatRole::kSystem;  // OpenAI's newer name of it
  if (!found) role.unexpected("\"system\", \"user\", \"assistant\" or \"tool\"");
  ChatMessage result{.role = *found, .content = {}};
  for (const auto& [key, value] : message.raw().items()) {
    // What an endpoint returns comes back as it was, with members that say nothing.
    const bool says_nothing = value.is_null() || key == "annotations" || key == "refusal" || key == "audio";
    if (key == "role" || says_nothing) continue;
    const JsonNode member = message.at(key.c_str());
    const bool is_answer = *found == ChatRole::kAssistant, is_result = *found == ChatRole::kTool;
    if (key == "content") {
      result.content = content_of(member);
    } else if (key == "tool_calls" && is_answer) {
      result.calls = calls_of(member);
    } else if ((key == "reasoning_content" || key == "reasoning") && is_answer) {
      result.reasoning = member.text();
    } else if (key == "tool_call_id" && is_result) {
      result.call_id = member.text();
    } else if (key == "name") {
      result.name = member.text();
    } else {
      message.unexpected(is_answer   ? R"("role", "content", "name", "tool_calls" and "reasoning_content")"
                         : is_result ? R"("role", "content", "name" and "tool_call_id")"
                                     : R"("role", "content" and "name")",
                         "nothing else is supported");
    }
  }
  if (result.calls.empty() && *found != ChatRole::kTool) message.at("content");  // which says that there is none
  return result;
}

}  // namespace

std::vector<ChatMessage> read_messages(const JsonNode& node) {
  node.expect_array();
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < node.size(); ++i) messages.push_back(message_of(node[i]));
  if (messages.empty()) node.unexpected("a message or more");
  return messages;
}

ChatJson read_chat_json(std::string_view text, const std::string& place) try {
  // Deep enough for a schema within a tool's parameters.
  const nlohmann::json json = parse_json(text, place, {.max_bytes = text.size(), .max_depth = kMostJsonDepth + 6});
  const JsonNode root(json, place);
  root.expect_object();
  ChatJson chat{.messages = read_messages(root.at("messages")), .tools = {}, .variables = {}, .date = {}};
  for (const auto& [key, value] : root.raw().items()) {
    if (key == "messages" || value.is_null()) continue;
    const JsonNode node = root.at(key.c_str());
    if (key == "tools") {
      node.expect_array();
      if (node.size() > 0) chat.tools = ordered_member(text, std::array{std::string_view("tools")});
    } else if (key == "chat_template_kwargs") {
      chat.variables = ordered_member(text, std::array{std::string_view("chat_template_kwargs")});
    } else if (key == "date") {
      chat.date = parse_chat_date(node.text());
    } else {
      root.unexpected(R"("messages", "tools", "chat_template_kwargs" and "date")",
                      fmt::format("there is no \"{}\"", printable(key, 40)));
    }
  }
  return chat;
} catch (const Error& error) {  // of whatever kind it would be of a file
  fail(ErrorKind::kUsage, "{}", error.what());
}

std::string call_id(std::string_view answer_id, uint64_t i) {
  constexpr std::string_view kSigns = "0123456789abcdefghijklmnopqrstuvwxyz";
  uint64_t hash = XXH64(answer_id.data(), answer_id.size(), i);
  std::string text;
  for (; text.size() < 9; hash /= kSigns.size()) text += kSigns[hash % kSigns.size()];
  return text;
}

ChatMessage read_answer(const Tokenizer& tokenizer, std::span<const int32_t> prompt, std::span<const int32_t> tokens,
                        const ToolFormat* format, const Tools* tools) {
  const bool thinks_at_once = thoughts_at_end(tokenizer, prompt) == PromptThoughts::kBegun;
  std::vector<int32_t> visible = special_tokens_of_thoughts(tokenizer);
  if (format != nullptr) {
    const std::vector<int32_t> of_calls = format->special_tokens(tokenizer);
    visible.insert(visible.end(), of_calls.begin(), of_calls.end());
  }
  StreamDecoder decoder(tokenizer, /*skip_special=*/true);
  std::string text;
  for (const int32_t token : tokens) {
    if (std::ranges::find(visible, token) == visible.end()) {
      text += decoder.push(token);
    } else {
      text += decoder.finish();
      text += tokenizer.token(token);
    }
  }
  text += decoder.finish();
  ChatMessage answer{.role = ChatRole::kAssistant, .content = {}};
  if (format != nullptr) {
    ToolFormat::Answer parts = format->read(text, *tools, thinks_at_once);
    text = std::move(parts.content);
    answer.calls = std::move(parts.calls);
  }
  // The same call in another turn is another one.
  const std::string id =
      fmt::format("{:x}", XXH64(tokens.data(), tokens.size_bytes(), XXH64(prompt.data(), prompt.size_bytes(), 0)));
  for (size_t i = 0; i < answer.calls.size(); ++i) answer.calls[i].id = call_id(id, i);
  ThoughtReader thoughts(thinks_at_once);
  const ThoughtReader::Parts parts = thoughts.read(text, /*ended=*/true);
  answer.reasoning = parts.thoughts;
  answer.content = parts.rest;
  return answer;
}

std::string to_json(const ChatMessage& answer) {
  using Json = nlohmann::ordered_json;
  Json json = {{"role", name_of(answer.role)}, {"content", answer.content}};
  if (!answer.reasoning.empty()) json["reasoning_content"] = answer.reasoning;
  if (!answer.calls.empty()) {
    if (answer.content.empty()) json["content"] = nullptr;
    for (const ToolCall& call : answer.calls) {
      json["tool_calls"].push_back({{"id", call.id},
                                    {"type", "function"},
                                    {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
    }
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace tiercel
