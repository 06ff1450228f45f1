#include "tools/batch/answer_text.h"

#include <algorithm>

namespace tiercel {

AnswerText::AnswerText(const Tokenizer& tokenizer, const BatchRequest& request, std::span<const int32_t> ends)
    : decoder_(tokenizer, /*skip_special=*/true), stop_(request.stops), tokenizer_(tokenizer), tools_(request.tools) {
  if (tools_ != nullptr) all_ = tools_->begun.view();
  if (!request.ignore_eos) ends_.assign(ends.begin(), ends.end());
}

bool AnswerText::push(int32_t token) {
  if (std::ranges::find(ends_, token) != ends_.end()) {
    ended_ = true;
    return true;
  }
  std::string said;
  if (tools_ != nullptr && std::ranges::find(tools_->visible, token) != tools_->visible.end()) {
    said = decoder_.finish() + std::string(tokenizer_.token(token));
  } else {
    said = decoder_.push(token);
  }
  ended_ = stop_.push(said, tools_ != nullptr ? &all_ : &text_);
  if (tools_ != nullptr && ended_) take_calls();
  if (tools_ != nullptr && !ended_) {
    tools_->format->follow(all_, tools_->tools, progress_);
    text_.append(all_, text_.size(), progress_.n_before - text_.size());
  }
  return !ended_;
}

void AnswerText::finish() {
  if (tools_ == nullptr) return stop_.finish(decoder_.finish(), &text_);
  stop_.finish(decoder_.finish(), &all_);
  take_calls();
}

void AnswerText::take_calls() {
  ToolFormat::Answer answer = tools_->format->read(all_, tools_->tools);
  text_ = std::move(answer.content);
  calls_ = std::move(answer.calls);
  if (!tools_->several && calls_.size() > 1) calls_.resize(1);
}

}  // namespace tiercel
