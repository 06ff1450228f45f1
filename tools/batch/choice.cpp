#include "tools/batch/choice.h"

#include <string>
#include <utility>

namespace tiercel {

std::vector<Choice> choices_of(const Tokenizer& tokenizer, const BatchRequest& request, std::span<const int32_t> ends) {
  std::vector<Choice> choices;
  for (int64_t i = 0; i < request.n_answers; ++i) choices.push_back({.text = {tokenizer, request, ends}});
  return choices;
}

Request wish_of(BatchRequest& request, int64_t i, const std::vector<int32_t>& ends) {
  const bool is_last = i + 1 == request.n_answers;
  Request wish{.prefix = request.prefix,
               .prompt = is_last ? std::move(request.prompt) : request.prompt,
               .n_new = request.n_new,
               .sampling = request.sampling,
               .n_logprobs = request.n_logprobs};
  wish.sampling.seed += static_cast<uint64_t>(i) << 32;
  if (!request.ignore_eos) wish.end_tokens = ends;
  if (is_last) request.prefix = nullptr;
  return wish;
}

BatchAnswer answer_of(AnswerText& text, const RequestReport& report) {
  if (report.state == RequestState::kFinished) text.finish();
  return {.text = std::string(text.said()),
          .finish_reason = report.state == RequestState::kFailed ? "error" : text.finish_reason(),
          .report = report,
          .calls = text.calls(),
          .thoughts = std::string(text.thoughts())};
}

}  // namespace tiercel
