#include "tools/serve/live_request.h"

#include <utility>

namespace tiercel {

using Json = nlohmann::ordered_json;

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

LiveRequest::LiveRequest(std::vector<BatchRequest> prompts, const Delivery& delivery, std::shared_ptr<HttpReply> reply,
                         std::string id, const Tokenizer& tokenizer, std::span<const int32_t> ends)
    : prompts_(std::move(prompts)),
      delivery_(delivery),
      reply_(std::move(reply)),
      id_(std::move(id)),
      tokenizer_(tokenizer) {
  for (const BatchRequest& prompt : prompts_) {
    n_prompt_ += prompt.n_prompt();
    for (Choice& choice : choices_of(tokenizer_, prompt, ends)) {
      choices_.push_back({.said = std::move(choice), .logprobs = {tokenizer_, prompt.form}});
    }
  }
  n_left_ = choices_.size();
}

void LiveRequest::begin() {
  if (!delivery_.streams || over_) return;
  begun_ = true;
  reply_->begin_events();
  for (size_t c = 0; c < choices_.size(); ++c) {
    event(Json::array({choice_json(c, is_chat() ? Json{{"role", "assistant"}, {"content", ""}} : Json(""))}), {});
  }
}

bool LiveRequest::push(size_t c, int32_t token, const TokenLogprobs* logprobs) {
  Stream& stream = choices_[c];
  const bool goes_on = stream.said.text.push(token);
  if (delivery_.streams && !over_) {
    if (logprobs != nullptr) stream.logprobs.add(token, *logprobs);
    stream_text(c);
  }
  return goes_on;
}

void LiveRequest::end(size_t c, const RequestReport& report) {
  if (over_) return;
  Choice& choice = choices_[c].said;
  choice.answer = answer_of(choice.text, report);
  choice.ended = true;
  if (delivery_.streams) {
    stream_text(c);
    if (const auto& calls = choice.answer.calls; !calls.empty()) {
      say(c, {{"tool_calls", to_openai_calls(calls, id_, c, true)}});
    }
    Json last = choice_json(c, is_chat() ? Json::object() : Json(""));
    if (has_logprobs()) last["logprobs"] = choices_[c].logprobs.take();
    last["finish_reason"] = choice.answer.finish_reason;
    event(Json::array({std::move(last)}), {});
  }
  if (--n_left_ > 0) return;
  over_ = true;
  std::vector<BatchAnswer> answers;
  for (Stream& one : choices_) {
    answers.push_back(std::move(one.said.answer));
    answers.back().report.prefix_tokens = answers.back().report.cached_tokens;  // what clients are told of
  }
  if (delivery_.streams) {
    if (delivery_.with_usage) event(Json::array(), usage_of(answers, prompts_.front().n_answers));
    reply_->event("[DONE]");
    reply_->end_events();
  } else {
    reply_->respond(200, dump(to_openai_body(prompts_.front(), answers, tokenizer_, id_)));
  }
}

// What was said since it was called last.
void LiveRequest::stream_text(size_t c) {
  Stream& stream = choices_[c];
  const std::string_view thoughts = stream.said.text.thoughts(), said = stream.said.text.said();
  if (thoughts.size() > stream.n_thoughts_sent) {
    say(c, {{"reasoning_content", thoughts.substr(stream.n_thoughts_sent)}});
  }
  if (said.size() > stream.n_sent) {
    const std::string_view more = said.substr(stream.n_sent);
    say(c, is_chat() ? Json{{"content", more}} : Json(more));
  }
  stream.n_thoughts_sent = thoughts.size();
  stream.n_sent = said.size();
}

Json LiveRequest::choice_json(size_t c, Json delta) {
  return {{"index", c},
          {is_chat() ? "delta" : "text", std::move(delta)},
          {"logprobs", nullptr},
          {"finish_reason", nullptr}};
}

// Log probabilities come beside the text that the tokens say, or the next one where they say nothing yet.
void LiveRequest::say(size_t c, Json delta) {
  Json choice = choice_json(c, std::move(delta));
  if (has_logprobs()) choice["logprobs"] = choices_[c].logprobs.take();
  event(Json::array({std::move(choice)}), {});
}

void LiveRequest::event(Json choices, const Json& usage, const Json& prompt_progress) {
  Json json = {{"id", (is_chat() ? "chatcmpl-" : "cmpl-") + id_},
               {"object", is_chat() ? "chat.completion.chunk" : "text_completion"},
               {"created", created_},
               {"model", prompts_.front().model},
               {"choices", std::move(choices)}};
  if (delivery_.with_usage) json["usage"] = usage;
  if (!prompt_progress.is_null()) json["prompt_progress"] = prompt_progress;
  reply_->event(dump(json));
}

void LiveRequest::tell_progress(int64_t n_done, int64_t n_cached) {
  if (over_ || n_done <= n_told_) return;
  n_told_ = n_done;
  const auto elapsed = std::chrono::steady_clock::now() - began_;
  const Json progress = {{"total", n_prompt_},
                         {"cache", n_cached},
                         {"processed", n_done},
                         {"time_ms", std::chrono::duration_cast<std::chrono::milliseconds>(elapsed).count()}};
  const Json nothing = is_chat() ? Json{{"role", "assistant"}, {"content", nullptr}} : Json("");
  event(Json::array({choice_json(0, nothing)}), {}, progress);
}

void LiveRequest::refuse(const HttpAnswer& why) {
  if (std::exchange(over_, true)) return;
  if (!begun_) return reply_->respond(why.status, why.body, why.type);
  reply_->event(why.body);
  reply_->end_events();
}

}  // namespace tiercel
