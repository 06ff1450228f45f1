#include "tools/batch/openai.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/chat_json.h"
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
  if (const auto model = body.find("model")) {
    constexpr size_t kMostBytes = 256;  // it is given back with every event of a stream
    if (model->text().size() > kMostBytes) model->unexpected(fmt::format("{} bytes at most", kMostBytes));
    request.model = model->text();
  }
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

int64_t characters(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

}  // namespace

LogprobsJson::LogprobsJson(const Tokenizer& tokenizer, RequestForm form)
    : tokenizer_(tokenizer), form_(form), decoder_(tokenizer, /*skip_special=*/true) {
  begin();
}

void LogprobsJson::begin() {
  const Json none = Json::array();
  if (form_ == RequestForm::kChatCompletion) {
    json_ = {{"content", none}, {"refusal", nullptr}};
  } else {
    json_ = {{"tokens", none}, {"token_logprobs", none}, {"top_logprobs", none}, {"text_offset", none}};
  }
}

void LogprobsJson::add(int32_t token, const TokenLogprobs& logprobs) {
  if (json_.is_null()) begin();
  if (form_ == RequestForm::kChatCompletion) {
    Json one = chat_logprob(tokenizer_, token, logprobs.logprob);
    one["top_logprobs"] = Json::array();
    for (const auto& [other, logprob] : logprobs.top) {
      one["top_logprobs"].push_back(chat_logprob(tokenizer_, other, logprob));
    }
    json_["content"].push_back(std::move(one));
    return;
  }
  Json top = Json::object();
  for (const auto& [other, logprob] : logprobs.top) top[spelling(tokenizer_, other)] = logprob;
  json_["tokens"].push_back(spelling(tokenizer_, token));
  json_["token_logprobs"].push_back(logprobs.logprob);
  json_["top_logprobs"].push_back(std::move(top));
  // Bytes in front of it that are no character yet count as one.
  json_["text_offset"].push_back(n_said_ + characters(StreamDecoder(decoder_).finish()));
  n_said_ += characters(decoder_.push(token));
}

Json LogprobsJson::take() { return std::exchange(json_, Json()); }

Json to_openai_calls(const std::vector<ToolCall>& calls, const std::string& id, size_t choice, bool in_stream) {
  Json list = Json::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    Json call = {{"id", call_id(id, (choice << 32) + i)},
                 {"type", "function"},
                 {"function", {{"name", calls[i].name}, {"arguments", calls[i].arguments}}}};
    if (in_stream) call["index"] = i;
    list.push_back(std::move(call));
  }
  return list;
}

Json usage_of(std::span<const BatchAnswer> answers, int64_t n) {
  int64_t n_prompt = 0, n_cached = 0, n_generated = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    const RequestReport& r = answers[i].report;
    n_generated += std::ssize(r.tokens);
    if (i % static_cast<size_t>(n) != 0) continue;  // a prompt is read once
    n_prompt += r.prompt_tokens;
    n_cached += r.prefix_tokens;
  }
  return {{"prompt_tokens", n_prompt},
          {"completion_tokens", n_generated},
          {"total_tokens", n_prompt + n_generated},
          {"prompt_tokens_details", {{"cached_tokens", n_cached}}}};
}

namespace {

Json to_choice(const BatchRequest& request, const BatchAnswer& answer, size_t index, const Tokenizer& tokenizer,
               const std::string& id) {
  Json choice = {{"index", index}};
  if (request.form == RequestForm::kChatCompletion) {
    choice["message"] = {{"role", "assistant"}, {"content", answer.text}};
    if (!answer.thoughts.empty()) choice["message"]["reasoning_content"] = answer.thoughts;
    if (!answer.calls.empty()) {
      if (answer.text.empty()) choice["message"]["content"] = nullptr;
      choice["message"]["tool_calls"] = to_openai_calls(answer.calls, id, index, false);
    }
  } else {
    choice["text"] = answer.text;
  }
  choice["logprobs"] = nullptr;
  if (request.n_logprobs >= 0) {
    LogprobsJson logprobs(tokenizer, request.form);
    const RequestReport& r = answer.report;
    for (size_t i = 0; i < r.logprobs.size(); ++i) logprobs.add(r.tokens[i], r.logprobs[i]);
    choice["logprobs"] = logprobs.take();
  }
  choice["finish_reason"] = answer.finish_reason;
  return choice;
}

}  // namespace

Json to_openai_body(const BatchRequest& request, std::span<const BatchAnswer> answers, const Tokenizer& tokenizer,
                    const std::string& id) {
  const bool is_chat = request.form == RequestForm::kChatCompletion;
  Json choices = Json::array();
  for (size_t i = 0; i < answers.size(); ++i) choices.push_back(to_choice(request, answers[i], i, tokenizer, id));
  return {{"id", (is_chat ? "chatcmpl-" : "cmpl-") + id},
          {"object", is_chat ? "chat.completion" : "text_completion"},
          {"created", static_cast<int64_t>(std::time(nullptr))},
          {"model", request.model},
          {"choices", std::move(choices)},
          {"usage", usage_of(answers, request.n_answers)}};
}

Json to_openai_answer(const BatchRequest& request, std::span<const BatchAnswer> answers, const Tokenizer& tokenizer) {
  const RequestReport& r = answers.front().report;
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
      {"status_code", 200}, {"request_id", "req_" + id}, {"body", to_openai_body(request, answers, tokenizer, id)}};
  json["error"] = nullptr;
  return json;
}

}  // namespace tiercel
