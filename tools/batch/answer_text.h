// What an answer says, token by token, and why it ends.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "tools/batch/requests.h"
#include "tools/stop_text.h"

namespace tiercel {

class AnswerText {
 public:
  // ends: tokens that end a text, unless the request ignores them.
  AnswerText(const Tokenizer& tokenizer, const BatchRequest& request, std::span<const int32_t> ends);

  // Adds what one more token says. False: with it a text came that the request stops at.
  bool push(int32_t token);
  // No token follows: adds what was held back.
  void finish();

  const std::string& text() const { return text_; }  // valid UTF-8
  // "stop": it said all that it wanted to; "length": the tokens ended first.
  const char* finish_reason() const { return ended_ ? "stop" : "length"; }
  bool ended() const { return ended_; }

 private:
  StreamDecoder decoder_;
  StopText stop_;
  std::vector<int32_t> ends_;
  std::string text_;
  bool ended_ = false;
};

}  // namespace tiercel
