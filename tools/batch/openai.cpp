#include "tools/batch/openai.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <ctime>

#include "engine/base/check.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

struct Endpoint {
  const char* url;
  RequestForm form;
};
constexpr Endpoint kEndpoints[] = {{"/v1/chat/completions", RequestForm::kChatCompletion},
                                   {"/v1/completions", RequestForm::kCompletion}};

struct Member {
  const char* name;
  const char* value;  // the only one, as JSON; null: any
};
constexpr Member kMembers[] = {
    // who asks, and for what; where and when it is computed
    {"user", nullptr},
    {"metadata", nullptr},
    {"store", nullptr},
    {"service_tier", nullptr},
    {"safety_identifier", nullptr},
    {"prompt_cache_key", nullptr},
    {"prompt_cache_retention", nullptr},
    {"stream_options", nullptr},
    // other values would give other answers
    {"stream", "false"},
    {"n", "1"},
    {"best_of", "1"},
    {"echo", "false"},
    {"suffix", "\"\""},
    {"modalities", R"(["text"])"},
    {"min_tokens", "0"},
    {"skip_special_tokens", "true"},
    {"add_generation_prompt", "true"},
    {"include_stop_str_in_output", "false"},
};

}  // namespace

bool is_openai_request(const nlohmann::json& line) {
  return line.is_object() && (line.contains("body") || line.contains("custom_id"));
}

JsonNode read_openai_envelope(const JsonNode& line, BatchRequest& request) {
  for (const auto& [key, value] : line.raw().items()) {
    if (key != "custom_id" && key != "method" && key != "url" && key != "body") {
      line.unexpected(R"("custom_id", "method", "url" and "body")",
                      fmt::format("there is no \"{}\"", printable(key, 40)));
    }
  }
  const JsonNode id = line.at("custom_id"), url = line.at("url"), body = line.at("body");
  request.id = nlohmann::json(id.text()).dump(-1, ' ', false,
                                              nlohmann::json::error_handler_t::replace);
  if (const auto method = line.find("method"); method && method->text() != "POST") {
    method->unexpected("\"POST\"");
  }
  const std::optional<RequestForm> form = form_of_endpoint(url.text());
  if (!form) url.unexpected(R"("/v1/chat/completions" or "/v1/completions")");
  request.form = *form;
  check_openai_body(body, request);
  return body;
}

std::optional<RequestForm> form_of_endpoint(std::string_view url) {
  const auto endpoint = std::ranges::find_if(kEndpoints, [&](const Endpoint& known) { return url == known.url; });
  if (endpoint == std::end(kEndpoints)) return std::nullopt;
  return endpoint->form;
}

void check_openai_body(const JsonNode& body, BatchRequest& request) {
  const bool is_chat = request.form == RequestForm::kChatCompletion;
  const char* input = is_chat ? "messages" : "prompt";
  if (!body.has(input)) body.unexpected(fmt::format("\"{}\"", input), "as the url says");
  if (body.has(is_chat ? "prompt" : "messages")) {
    body.unexpected(fmt::format("\"{}\" alone", input), "as the url says");
  }
  if (const auto model = body.find("model")) request.model = model->text();
}

std::string plain_name(const std::string& member, RequestForm form) {
  if (member == "top_logprobs" && form == RequestForm::kChatCompletion) return "logprobs";
  if (member == "max_completion_tokens") return "max_tokens";
  if (member == "repetition_penalty") return "repeat_penalty";
  return member;
}

bool accept_openai_member(const std::string& name, RequestForm form, const JsonNode& value) {
  if (name == "model") return true;  // given back
  constexpr std::string_view kOfChat[] = {"tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs",
                                           "reasoning_format"};
  if (std::ranges::find(kOfChat, name) != std::end(kOfChat)) return form == RequestForm::kChatCompletion;  // read elsewhere
  const auto member =
      std::ranges::find_if(kMembers, [&](const Member& known) { return name == known.name; });
  if (member == std::end(kMembers)) return false;
  if (member->value != nullptr && value.raw() != nlohmann::json::parse(member->value)) {
    value.unexpected(member->value, "nothing else is supported");
  }
  return true;
}

namespace {

using Json = nlohmann::ordered_json;

// Of a token that a model has and its tokenizer has not (vocabularies are padded): none.
std::string_view bytes_of(const Tokenizer& tokenizer, int32_t token) {
  return token < tokenizer.vocab_size() ? tokenizer.token_bytes(token) : std::string_view();
}

// A token by itself; bytes that are no text are spelled out.
std::string spelling(const Tokenizer& tokenizer, int32_t token) {
  if (token >= tokenizer.vocab_size()) return fmt::format("token_id:{}", token);
  const std::string_view bytes = tokenizer.token_bytes(token);
  if (valid_utf8_prefix(bytes) == bytes.size()) return std::string(bytes);
  std::string text = "bytes:";
  for (const char byte : bytes) text += fmt::format("\\x{:02x}", static_cast<uint8_t>(byte));
  return text;
}

Json chat_logprob(const Tokenizer& tokenizer, int32_t token, double logprob) {
  Json bytes = Json::array();
  for (const char byte : bytes_of(tokenizer, token)) bytes.push_back(static_cast<uint8_t>(byte));
  return {{"token", spelling(tokenizer, token)}, {"logprob", logprob}, {"bytes", bytes}};
}

Json chat_logprobs(const RequestReport& report, const Tokenizer& tokenizer) {
  Json content = Json::array();
  for (size_t i = 0; i < report.logprobs.size(); ++i) {
    Json one = chat_logprob(tokenizer, report.tokens[i], report.logprobs[i].logprob);
    one["top_logprobs"] = Json::array();
    for (const auto& [token, logprob] : report.logprobs[i].top) {
      one["top_logprobs"].push_back(chat_logprob(tokenizer, token, logprob));
    }
    content.push_back(one);
  }
  return {{"content", content}, {"refusal", nullptr}};
}

Json completion_logprobs(const RequestReport& report, const Tokenizer& tokenizer) {
  Json json = {{"tokens", Json::array()},
               {"token_logprobs", Json::array()},
               {"top_logprobs", Json::array()},
               {"text_offset", Json::array()}};
  StreamDecoder decoder(tokenizer, /*skip_special=*/true);
  const auto characters = [](std::string_view text) {
    return std::ranges::count_if(text, [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
  };
  int64_t said = 0;  // characters
  for (size_t i = 0; i < report.logprobs.size(); ++i) {
    Json top = Json::object();
    for (const auto& [token, logprob] : report.logprobs[i].top) top[spelling(tokenizer, token)] = logprob;
    json["tokens"].push_back(spelling(tokenizer, report.tokens[i]));
    json["token_logprobs"].push_back(report.logprobs[i].logprob);
    json["top_logprobs"].push_back(top);
    // Bytes in front of it that are no character yet count as one.
    json["text_offset"].push_back(said + characters(StreamDecoder(decoder).finish()));
    said += characters(decoder.push(report.tokens[i]));
  }
  return json;
}

}  // namespace

Json to_openai_calls(const std::vector<ToolCall>& calls, const std::string& id, bool in_stream) {
  // Nine letters and digits: Mistral's templates take no others.
  const auto id_of = [&](size_t i) {
    constexpr std::string_view kSigns = "0123456789abcdefghijklmnopqrstuvwxyz";
    uint64_t hash = XXH64(id.data(), id.size(), i);
    std::string text;
    for (; text.size() < 9; hash /= kSigns.size()) text += kSigns[hash % kSigns.size()];
    return text;
  };
  Json list = Json::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    Json call = {{"id", id_of(i)},
                 {"type", "function"},
                 {"function", {{"name", calls[i].name}, {"arguments", calls[i].arguments}}}};
    if (in_stream) call["index"] = i;
    list.push_back(std::move(call));
  }
  return list;
}

Json usage_of(const RequestReport& r) {
  const int64_t n_generated = std::ssize(r.tokens);
  return {{"prompt_tokens", r.prompt_tokens},
          {"completion_tokens", n_generated},
          {"total_tokens", r.prompt_tokens + n_generated},
          {"prompt_tokens_details", {{"cached_tokens", r.prefix_tokens}}}};
}

Json to_openai_body(const BatchRequest& request, const BatchAnswer& answer, const Tokenizer& tokenizer,
                    const std::string& id) {
  const RequestReport& r = answer.report;
  const bool is_chat = request.form == RequestForm::kChatCompletion;
  Json choice = {{"index", 0}};
  if (is_chat) {
    choice["message"] = {{"role", "assistant"}, {"content", answer.text}};
    if (!answer.thoughts.empty()) choice["message"]["reasoning_content"] = answer.thoughts;
    if (!answer.calls.empty()) {
      if (answer.text.empty()) choice["message"]["content"] = nullptr;
      choice["message"]["tool_calls"] = to_openai_calls(answer.calls, id, false);
    }
  } else {
    choice["text"] = answer.text;
  }
  choice["logprobs"] = request.n_logprobs < 0 ? Json(nullptr)
                       : is_chat              ? chat_logprobs(r, tokenizer)
                                              : completion_logprobs(r, tokenizer);
  choice["finish_reason"] = answer.finish_reason;
  return {{"id", (is_chat ? "chatcmpl-" : "cmpl-") + id},
          {"object", is_chat ? "chat.completion" : "text_completion"},
          {"created", static_cast<int64_t>(std::time(nullptr))},
          {"model", request.model},
          {"choices", Json::array({choice})},
          {"usage", usage_of(r)}};
}

Json to_openai_answer(const BatchRequest& request, const BatchAnswer& answer, const Tokenizer& tokenizer) {
  const RequestReport& r = answer.report;
  const std::string id = fmt::format("{:016x}-{}", request.hash, request.line);
  Json json = {{"id", "batch_req_" + id}, {"custom_id", Json::parse(request.id)}};
  if (r.state == RequestState::kFailed) {
    const bool is_request = r.error_kind == ErrorKind::kUsage;
    json["response"] = nullptr;
    json["error"] = {{"code", is_request ? "invalid_request" : "server_error"},
                     {"message", r.error}};
    return json;
  }
  json["response"] = {
      {"status_code", 200}, {"request_id", "req_" + id}, {"body", to_openai_body(request, answer, tokenizer, id)}};
  json["error"] = nullptr;
  return json;
}

}  // namespace tiercel
