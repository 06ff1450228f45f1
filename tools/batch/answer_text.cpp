#include "tools/batch/answer_text.h"

#include <algorithm>

namespace tiercel {

AnswerText::AnswerText(const Tokenizer& tokenizer, const BatchRequest& request, std::span<const int32_t> ends)
    : decoder_(tokenizer, /*skip_special=*/true), stop_(request.stops) {
  if (!request.ignore_eos) ends_.assign(ends.begin(), ends.end());
}

bool AnswerText::push(int32_t token) {
  if (std::ranges::find(ends_, token) != ends_.end()) {
    ended_ = true;
    return true;
  }
  if (!stop_.push(decoder_.push(token), &text_)) return true;
  ended_ = true;
  return false;
}

void AnswerText::finish() { stop_.finish(decoder_.finish(), &text_); }

}  // namespace tiercel
