// A request of the server that is being answered: its choices, and what its client is sent.
#pragma once

#include <chrono>
#include <cstdint>
#include <ctime>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/scheduler.h"
#include "engine/text/tokenizer.h"
#include "tools/batch/choice.h"
#include "tools/batch/openai.h"
#include "tools/batch/requests.h"
#include "tools/serve/http_server.h"

namespace tiercel {

// How an answer is wanted.
struct Delivery {
  bool streams = false;
  bool with_usage = false;     // at the end of a stream
  bool with_progress = false;  // before its first token
};

class LiveRequest {
 public:
  // prompts: one or more, that say the same of everything else. id: of the answer. The tokenizer must outlive it.
  LiveRequest(std::vector<BatchRequest> prompts, const Delivery& delivery, std::shared_ptr<HttpReply> reply,
              std::string id, const Tokenizer& tokenizer, std::span<const int32_t> ends);

  int64_t number() const { return prompts_.front().line; }
  const Delivery& delivery() const { return delivery_; }
  HttpReply& reply() const { return *reply_; }
  std::vector<BatchRequest>& prompts() { return prompts_; }

  // Over what follows: tokens may come before it is known under which name.
  std::mutex& mutex() { return mutex_; }

  // Choice i of prompt p is number p n + i.
  size_t n_choices() const { return choices_.size(); }
  Choice& choice(size_t c) { return choices_[c].said; }
  BatchRequest& prompt_of(size_t c) { return prompts_[c / n_per_prompt()]; }
  int64_t index_in_prompt(size_t c) const { return static_cast<int64_t>(c % n_per_prompt()); }

  // Its client is sent a stream from now on, if it wants one.
  void begin();
  // False: the choice has said what it stops at.
  bool push(size_t c, int32_t token, const TokenLogprobs* logprobs);
  // A choice has ended as it should; after the last one the client has its answer.
  void end(size_t c, const RequestReport& report);
  // How far its prompts are: n_done tokens of them, n_cached that were there.
  void tell_progress(int64_t n_done, int64_t n_cached);
  bool streams() const { return delivery_.streams; }
  bool wants_progress() const { return delivery_.with_progress && n_told_ < n_prompt_; }
  // There will be no answer: the client is told so, or has gone.
  void refuse(const HttpAnswer& why);
  void give_up() { over_ = true; }
  // Whether it is answered, or will not be. What is still said to it is not sent.
  bool is_over() const { return over_; }

 private:
  struct Stream {
    Choice said;
    LogprobsJson logprobs;
    size_t n_sent = 0, n_thoughts_sent = 0;  // bytes
  };
  size_t n_per_prompt() const { return static_cast<size_t>(prompts_.front().n_answers); }
  bool is_chat() const { return prompts_.front().form == RequestForm::kChatCompletion; }
  bool has_logprobs() const { return prompts_.front().n_logprobs >= 0; }
  void stream_text(size_t c);
  // delta: of a chat; or text.
  nlohmann::ordered_json choice_json(size_t c, nlohmann::ordered_json delta);
  void say(size_t c, nlohmann::ordered_json delta);
  void event(nlohmann::ordered_json choices, const nlohmann::ordered_json& usage,
             const nlohmann::ordered_json& prompt_progress = {});

  std::vector<BatchRequest> prompts_;  // scheduler's requests take their tokens
  const Delivery delivery_;
  const std::shared_ptr<HttpReply> reply_;
  const std::string id_;
  const Tokenizer& tokenizer_;
  const int64_t created_ = std::time(nullptr);
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  int64_t n_prompt_ = 0;
  int64_t n_told_ = -1;  // of it, that are said to be prefilled

  std::mutex mutex_;
  std::vector<Stream> choices_;
  size_t n_left_;
  bool begun_ = false, over_ = false;
};

// What the server sends.
std::string dump(const nlohmann::ordered_json& json);

}  // namespace tiercel
