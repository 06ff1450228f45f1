// The requests of tiercel batch: JSON lines, an object each.
//
//   {"prompt": "text"}                        or token ids, or a conversation:
//   {"messages": [{"role": "user", "content": "text"}, ...]}
//
// with, where wanted, "id" (text or a number, given back with the answer), "stop" (a text to end
// at, or several), and what the flags of the same names mean, for this request alone: "max_tokens",
// "temperature", "top_k", "top_p", "min_p", "seed", "repeat_penalty", "repeat_last_n",
// "presence_penalty", "frequency_penalty", "logit_bias" (an object: {"15043": 1, "13": -100}),
// "logprobs" and "ignore_eos"; and the form of the answer (tools/batch/structured_output.h).
// A line may also be in OpenAI's batch format (tools/batch/openai.h), which alone can declare tools, and ask for several
// answers ("n").
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/answer_form.h"
#include "engine/config.h"
#include "engine/json.h"
#include "engine/sampling_request.h"
#include "engine/scheduler.h"
#include "engine/text/chat_template.h"
#include "engine/text/tool_calls/tool_format.h"
#include "engine/text/tokenizer.h"

namespace tiercel {

inline constexpr int64_t kMostAnswers = 128;  // to one request, as OpenAI's endpoints have it

// How a line asks, and so how it is answered.
enum class RequestForm : uint8_t { kPlain, kCompletion, kChatCompletion };

// Tools that an answer may call.
struct ToolUse {
  std::shared_ptr<const ToolFormat> format;
  Tools tools;
  bool several = true;           // calls in one answer
  jinja::Text begun;             // what an answer begins with that must call; or empty
  ToolFormat::From from;         // that
  std::string name;              // of the tool, where it is decided
  std::vector<int32_t> visible;  // special tokens that belong to calls
};

struct BatchRequest {
  int64_t line = 0;  // of the file, from 1
  RequestForm form = RequestForm::kPlain;
  std::string id;     // as JSON; empty: none
  std::string model;  // what it calls the model
  SharedPrefix prefix;  // of the prompt, where requests share one; or null
  std::vector<int32_t> prompt;  // what is behind it
  int64_t n_new = 0;  // tokens at most
  bool ignore_eos = false;
  std::vector<std::string> stops;  // the answer ends before any of these texts
  SamplingOptions sampling;
  int64_t n_logprobs = -1;  // as Request has it
  int64_t n_answers = 1;    // of OpenAI's forms; each draws with a seed of its own (tools/batch/choice.h)
  std::shared_ptr<const ToolUse> tools;  // or null
  // Of an answer to a chat: what it thinks is apart from what it says; the prompt has begun its thoughts.
  bool has_thoughts = false, thinks_at_once = false;
  uint64_t hash = 0;  // XXH64 of all of it, but for a seed that was drawn
  std::string refused;  // why it is not answered; empty: it is

  int64_t n_prefix() const { return prefix ? std::ssize(*prefix) : 0; }
  int64_t n_prompt() const { return n_prefix() + std::ssize(prompt); }
};

// What holds for every line that says nothing else.
struct BatchRequestDefaults {
  int64_t n_new = 128;
  bool ignore_eos = false;
  std::vector<std::string> stops;
  SamplingRequest sampling;          // line n draws with seed + n - 1
  int64_t n_logprobs = -1;
  bool bos = true, special = false;  // of prompts that are text
  bool chat = false;                 // a prompt that is text is a user's message
  std::string prefix;                // text in front of every prompt, or of the first user's message
  bool share_prefixes = false;       // BatchRequest::prefix is set where requests begin alike
  ChatDate date;                     // for templates that ask for one
  bool is_dated = false;             // with that of the day on which a request comes
  bool has_thoughts = true;          // BatchRequest's
};

class BatchRequestReader {
 public:
  // chat: the model's template, or null; why it is null, for who needs it.
  BatchRequestReader(const ModelConfig& config, const Tokenizer& tokenizer,
                     const ChatTemplate* chat, std::string no_chat, BatchRequestDefaults defaults);

  // All lines of `text` but the empty ones. Throws Error(kUsage) "NAME:LINE: PLACE: expected ..";
  // also for a text without any. n_saved: tokens that prefixes save, or would save if shared.
  std::vector<BatchRequest> read(std::string_view text, const std::string& name,
                                 int64_t* n_saved = nullptr) const;
  // The body that one of OpenAI's endpoints was sent, as request `number`: its line, from 1; `text` is
  // what it was read from. Throws Error(kUsage) "PLACE: expected ..". Safe from any thread.
  BatchRequest read_body(const nlohmann::json& body, std::string_view text, RequestForm form,
                         int64_t number, const std::string& place) const;

 private:
  BatchRequest read_line(std::string_view line, int64_t number, const std::string& place) const;
  void read_members(const JsonNode& asked, std::string_view text, BatchRequest& request,
                    const std::string& place) const;
  std::vector<int32_t> read_chat(const JsonNode& asked, std::string_view text, BatchRequest& request) const;
  std::vector<int32_t> encode_prompt(const JsonNode& prompt) const;
  std::vector<int32_t> encode_text(const std::string& prompt) const;
  std::vector<int32_t> encode_chat(const ChatTemplate& chat, std::vector<ChatMessage> messages,
                                   const ToolUse* tools = nullptr) const;
  void hold_calls(const JsonNode& asked, const AnswerForm& form, BatchRequest& request) const;
  void set_thoughts(const JsonNode& asked, BatchRequest& request, AnswerForm& form) const;
  std::shared_ptr<const ToolUse> read_tools(const JsonNode& asked, std::string_view text) const;

  const ModelConfig& config_;
  const Tokenizer& tokenizer_;
  const ChatTemplate* chat_;
  const std::string no_chat_;
  std::shared_ptr<const ToolFormat> tool_format_;
  std::vector<int32_t> tool_tokens_;  // ToolUse::visible
  std::string no_tools_;  // why there is none
  const std::unique_ptr<AnswerForms> forms_;
  const BatchRequestDefaults defaults_;
};

}  // namespace tiercel
