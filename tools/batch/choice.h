// One of the answers that a request asks for, and what the scheduler is asked for it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/scheduler.h"
#include "tools/batch/answer_text.h"
#include "tools/batch/answers.h"
#include "tools/batch/requests.h"

namespace tiercel {

struct Choice {
  AnswerText text;
  Scheduler::RequestId id = -1;  // once it was submitted
  bool ended = false;
  BatchAnswer answer = {};       // of one that has ended
};

// As many as a request asks for. ends: as AnswerText.
std::vector<Choice> choices_of(const Tokenizer& tokenizer, const BatchRequest& request, std::span<const int32_t> ends);
// What a choice needs beside who hears of it; the last one takes the request's prompt. Choice i draws with the
// request's seed + i 2^32: seeds that follow each other are those of requests.
Request wish_of(BatchRequest& request, int64_t i, const std::vector<int32_t>& ends);
// It has ended, at whatever it says: to be read once.
BatchAnswer answer_of(AnswerText& text, const RequestReport& report);

}  // namespace tiercel
