// OpenAI's batch format, which clients of many servers write and read: a request around the body that
// the endpoint would be sent, an answer around the body that it would return.
//
//   {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
//    "body": {"model": "any", "messages": [...], "max_completion_tokens": 100}}
//   {"custom_id": "a", "response": {"status_code": 200, "body": {"choices": [...], ...}}, "error": null}
//
// Source: platform.openai.com/docs/api-reference/batch/request-input, .../chat/create
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "engine/json.h"
#include "tools/batch/answers.h"
#include "tools/batch/requests.h"

namespace tiercel {

// Whether a line is in that format, rather than a request by itself.
bool is_openai_request(const nlohmann::json& line);

// What is around the body: sets the form and the id. Throws Error(kUsage) naming the place; also for
// an endpoint that is not one of the two.
JsonNode read_openai_envelope(const JsonNode& line, BatchRequest& request);
// That a body is one for the endpoint of this form; sets the model's name. Throws Error(kUsage).
void check_openai_body(const JsonNode& body, BatchRequest& request);
// The form of an endpoint, "/v1/completions"; none of another one.
std::optional<RequestForm> form_of_endpoint(std::string_view url);

// The name that a line has for a member of a body: both say the same.
std::string plain_name(const std::string& member, RequestForm form);

// A member of a body that changes no answer here, or that may have only one value. False: neither.
// Throws Error(kUsage) for another value, as what it asks for would not be done.
bool accept_openai_member(const std::string& name, RequestForm form, const JsonNode& value);

// "logprobs" of one choice, whole or piece by piece.
class LogprobsJson {
 public:
  // The tokenizer must outlive it. form: of an endpoint.
  LogprobsJson(const Tokenizer& tokenizer, RequestForm form);
  void add(int32_t token, const TokenLogprobs& logprobs);
  // Of the tokens that were added since it was called last. Of none: null, but for the first time.
  nlohmann::ordered_json take();

 private:
  void begin();

  const Tokenizer& tokenizer_;
  const RequestForm form_;
  nlohmann::ordered_json json_;
  StreamDecoder decoder_;
  int64_t n_said_ = 0;  // characters
};

// "tool_calls" of an answer, or of a stream's delta, which says at which place each is. id: of the answer; choice: which
// of its choices calls.
nlohmann::ordered_json to_openai_calls(const std::vector<ToolCall>& calls, const std::string& id, size_t choice,
                                       bool in_stream);
// "usage" of the answers to prompts, each of which has n of them, one behind the other.
nlohmann::ordered_json usage_of(std::span<const BatchAnswer> answers, int64_t n);
// What the endpoint would return. answers: of one prompt, or of several that say the same of everything else, each with as
// many as `request` asks for. id: of the answer, without what says of which endpoint.
nlohmann::ordered_json to_openai_body(const BatchRequest& request, std::span<const BatchAnswer> answers,
                                      const Tokenizer& tokenizer, const std::string& id);
// The members of an answer that its readers look for. answers: all that were asked for, or one that failed.
nlohmann::ordered_json to_openai_answer(const BatchRequest& request, std::span<const BatchAnswer> answers,
                                        const Tokenizer& tokenizer);

}  // namespace tiercel
