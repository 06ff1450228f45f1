// What an answer says, token by token, and why it ends.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/thoughts.h"
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

  // Valid UTF-8, without calls of tools, and what may be the beginning of one.
  const std::string& text() const { return text_; }
  // Of it, where the request has them apart, what was thought and what was said; else all of it was said. Valid until
  // more comes.
  std::string_view thoughts() const { return parts_.thoughts; }
  std::string_view said() const { return parts_.rest; }
  // Behind finish; ids are none.
  const std::vector<ToolCall>& calls() const { return calls_; }
  // "stop": it said all that it wanted to; "tool_calls": and calls tools; "length": the tokens ended first.
  const char* finish_reason() const { return !ended_ ? "length" : calls_.empty() ? "stop" : "tool_calls"; }
  bool ended() const { return ended_; }

 private:
  void take_calls();
  void cut(bool ended);

  StreamDecoder decoder_;
  StopText stop_;
  std::vector<int32_t> ends_;
  const Tokenizer& tokenizer_;
  std::shared_ptr<const ToolUse> tools_;  // or null
  std::vector<int32_t> visible_;          // special tokens that say something
  bool has_thoughts_, thinks_at_once_;
  ThoughtReader thought_reader_;
  ThoughtReader::Parts parts_;
  std::string text_, all_;                // all_: with calls
  std::vector<ToolCall> calls_;
  ToolFormat::Progress progress_;
  bool ended_ = false;
};

}  // namespace tiercel
