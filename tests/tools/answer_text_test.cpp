// Answers token by token: thoughts apart, with and without calls and texts to stop at.
#include "tools/batch/answer_text.h"

#include <gtest/gtest.h>

#include <string>

namespace tiercel {
namespace {

const std::string kTokenizer = std::string(TIERCEL_SOURCE_DIR) + "/tests/golden/tokenizer/qwen2/tokenizer.json";

struct Said {
  std::string thoughts, rest;
  const char* finish_reason;
};

Said say(const std::string& text, const BatchRequest& request) {
  const Tokenizer tokenizer = Tokenizer::load(kTokenizer);
  AnswerText answer(tokenizer, request, std::vector<int32_t>{});
  std::string thoughts, rest;
  bool goes_on = true;
  for (const int32_t token : tokenizer.encode(text, {.add_special = false})) {
    if (!(goes_on = answer.push(token))) break;
    EXPECT_TRUE(answer.thoughts().starts_with(thoughts));
    EXPECT_TRUE(answer.said().starts_with(rest));
    thoughts = answer.thoughts();
    rest = answer.said();
  }
  if (goes_on) answer.finish();
  EXPECT_TRUE(answer.thoughts().starts_with(thoughts));
  EXPECT_TRUE(answer.said().starts_with(rest));
  return {std::string(answer.thoughts()), std::string(answer.said()), answer.finish_reason()};
}

TEST(AnswerText, ThoughtsAreApartWhereARequestHasThem) {
  const std::string text = "<think>\nA wide word.\n</think>\n\nIt is so.";
  const Said whole = say(text, {});
  EXPECT_EQ(whole.thoughts, "");
  EXPECT_EQ(whole.rest, text);
  BatchRequest request;
  request.has_thoughts = true;
  const Said apart = say(text, request);
  EXPECT_EQ(apart.thoughts, "A wide word.");
  EXPECT_EQ(apart.rest, "It is so.");
  EXPECT_EQ(say("Plain <think>.", request).rest, "Plain <think>.");
  request.stops = {"is so"};
  const Said stopped = say(text, request);
  EXPECT_EQ(stopped.thoughts, "A wide word.");
  EXPECT_EQ(stopped.rest, "It ");
  EXPECT_STREQ(stopped.finish_reason, "stop");
  request.stops = {"wide"};
  EXPECT_EQ(say(text, request).thoughts, "A");
  request.stops.clear();
  request.thinks_at_once = true;
  const Said begun = say("hm\n</think>\nYes", request);
  EXPECT_EQ(begun.thoughts, "hm");
  EXPECT_EQ(begun.rest, "Yes");
  EXPECT_EQ(say("cut off", request).thoughts, "cut off");
}

}  // namespace
}  // namespace tiercel
