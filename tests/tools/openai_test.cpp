#include "tools/batch/openai.h"

#include <gtest/gtest.h>

#include <string>

namespace tiercel {
namespace {

// Vocabularies are padded: a model's most likely tokens may be none of its tokenizer's.
TEST(OpenAi, TokensThatTheTokenizerHasNot) {
  const Tokenizer tokenizer = Tokenizer::load(TIERCEL_SOURCE_DIR "/tools/demo/recall-4m");
  const int32_t beyond = tokenizer.vocab_size() + 7, known = tokenizer.encode("otter", {})[0];
  RequestReport report;
  report.state = RequestState::kFinished;
  report.prompt_tokens = 5;
  report.tokens = {known};
  report.logprobs = {{.logprob = -0.5, .top = {{known, -0.5}, {beyond, -1.5}}}};
  for (const RequestForm form : {RequestForm::kCompletion, RequestForm::kChatCompletion}) {
    BatchRequest request;
    request.form = form;
    request.n_logprobs = 2;
    const BatchAnswer answer{.text = "o", .finish_reason = "length", .report = report};
    const auto body = to_openai_body(request, {&answer, 1}, tokenizer, "x");
    const std::string text = body.dump();
    EXPECT_NE(text.find("\"token_id:" + std::to_string(beyond) + "\""), std::string::npos) << text;
    EXPECT_EQ(body["usage"]["total_tokens"], 6);
  }
}

}  // namespace
}  // namespace tiercel
