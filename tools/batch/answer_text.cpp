#include "tools/batch/answer_text.h"

#include <algorithm>

namespace tiercel {

AnswerText::AnswerText(const Tokenizer& tokenizer, const BatchRequest& request, std::span<const int32_t> ends)
    : decoder_(tokenizer, /*skip_special=*/true),
      stop_(request.stops),
      tokenizer_(tokenizer),
      tools_(request.tools),
      has_thoughts_(request.has_thoughts),
      thinks_at_once_(request.thinks_at_once),
      thought_reader_(request.thinks_at_once) {
  if (tools_ != nullptr) {
    all_ = tools_->begun.view();
    visible_ = tools_->visible;
  }
  if (has_thoughts_ || tools_ != nullptr) {  // what is thought calls nothing
    const std::vector<int32_t> words = special_tokens_of_thoughts(tokenizer);
    visible_.insert(visible_.end(), words.begin(), words.end());
  }
  if (!request.ignore_eos) ends_.assign(ends.begin(), ends.end());
}

bool AnswerText::push(int32_t token) {
  if (std::ranges::find(ends_, token) != ends_.end()) {
    ended_ = true;
    return true;
  }
  std::string more;
  if (std::ranges::find(visible_, token) != visible_.end()) {
    more = decoder_.finish() + std::string(tokenizer_.token(token));
  } else {
    more = decoder_.push(token);
  }
  ended_ = stop_.push(more, tools_ != nullptr ? &all_ : &text_);
  if (tools_ != nullptr && ended_) take_calls();
  if (tools_ != nullptr && !ended_) {
    tools_->format->follow(all_, tools_->tools, thinks_at_once_, progress_);
    text_.append(all_, text_.size(), progress_.n_before - text_.size());
  }
  cut(ended_);
  return !ended_;
}

void AnswerText::finish() {
  if (tools_ == nullptr) {
    stop_.finish(decoder_.finish(), &text_);
  } else {
    stop_.finish(decoder_.finish(), &all_);
    take_calls();
  }
  cut(true);
}

void AnswerText::take_calls() {
  ToolFormat::Answer answer = tools_->format->read(all_, tools_->tools, thinks_at_once_);
  text_ = std::move(answer.content);
  calls_ = std::move(answer.calls);
  if (!tools_->several && calls_.size() > 1) calls_.resize(1);
}

void AnswerText::cut(bool ended) {
  if (!has_thoughts_) {
    parts_ = {{}, text_};
    return;
  }
  if (ended) thought_reader_ = ThoughtReader(thinks_at_once_);  // calls are no part of the text any more
  parts_ = thought_reader_.read(text_, ended);
}

}  // namespace tiercel
