// Options that hold answers to a form.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "tests/api/model.h"

namespace tiercel {
namespace {

bool is_five_digits(const std::string& text) {
  return text.size() == 5 && text.find_first_not_of("0123456789") == std::string::npos;
}

TEST(ApiStructured, EachAnswerOfASession) {
  const Engine engine = test::open_demo();
  Session session = engine.open_session({{"regex", "[0-9]{5}"}, {"temperature", "1"}, {"seed", "4"}});
  session.prefill(test::prompt_text(20));
  const Generation whole = session.generate(20);
  EXPECT_TRUE(is_five_digits(whole.text)) << whole.text;
  EXPECT_EQ(whole.reason, FinishReason::kEndOfText);
  // In parts, by a copy, and again: the same.
  session.rewind();
  std::string text = session.generate(1).text;
  Session copy = session.fork();
  EXPECT_EQ(text + copy.generate(20).text, whole.text);
  EXPECT_EQ(text + session.generate(20).text, whole.text);
  // Behind its end, and behind what is appended, another one begins.
  EXPECT_TRUE(is_five_digits(session.generate(20).text));
  copy.rewind();
  copy.generate(1);
  copy.append("\nAnd again:");
  EXPECT_TRUE(is_five_digits(copy.generate(20).text));
}

// What is asked begins thoughts, or does not: each time anew.
TEST(ApiStructured, AnswersComeBehindThoughtsThatHaveBegun) {
  const Engine engine = test::open_demo();
  const Options options = {{"regex", "[0-9]{5}"}};
  const auto tokens_of = [&](const std::string& text) { return engine.tokenize(text, {{"no-bos", "true"}}); };
  Session session = engine.open_session(options);
  session.prefill(test::prompt_text(20));
  EXPECT_TRUE(is_five_digits(session.generate(20).text));
  session.append("\nAnd again: <think>\n");
  EXPECT_FALSE(is_five_digits(session.generate(1).text + session.generate(4).text));
  for (const int32_t token : tokens_of("</think>\n")) session.step(token);
  const std::string answer = session.generate(20).text;  // behind white space, perhaps
  EXPECT_TRUE(is_five_digits(answer.substr(answer.find_first_not_of(" \n")))) << answer;
  session.append("\nAnd again: ");
  EXPECT_TRUE(is_five_digits(session.generate(20).text));
}

TEST(ApiStructured, StepsAreOfTheAnswer) {
  const Engine engine = test::open_demo();
  Session session = engine.open_session({{"regex", "[0-9]{5}"}});
  session.prefill(test::prompt_text(20));
  std::string text = session.generate(1).text;
  session.step(engine.tokenize("7", {{"no-bos", "true"}}).at(0));
  text += "7" + session.generate(20).text;
  EXPECT_TRUE(is_five_digits(text)) << text;
}

TEST(ApiStructured, AFormThatFailsCostsItsAnswerOnly) {
  const Engine engine = test::open_demo();
  // Each of its letters doubles the ways to read what comes.
  Session session =
      engine.open_session({{"grammar", "root ::= \"(\" root? root? root? \")\""}, {"logit-bias", "40+90"}});
  session.prefill(test::prompt_text(20));
  EXPECT_KIND(session.generate(400), ErrorKind::kRuntime);
  EXPECT_GT(session.n_tokens(), 100);  // all of it is still there
  session.append("\nAnd again:");
  EXPECT_GT(session.generate(2).tokens.size(), 0u);
}

TEST(ApiStructured, RequestsHaveFormsOfTheirOwn) {
  const Engine engine = test::open_demo();
  Batch batch = engine.open_batch({{"max-prompt", "500"}, {"n-predict", "60"}, {"regex", "[0-9]{5}"}});
  std::vector<Request> requests;
  for (int i = 0; i < 6; ++i) {
    Options options = {{"temperature", "1"}, {"seed", std::to_string(i)}};
    if (i == 5) options.set("regex", "(yes|no)");
    requests.push_back(batch.submit(test::prompt_text(4 + i), -1, options));
  }
  for (int i = 0; i < 6; ++i) {
    const std::string text = requests[static_cast<size_t>(i)].wait().text;
    EXPECT_TRUE(i == 5 ? text == "yes" || text == "no" : is_five_digits(text)) << text;
  }
}

// What holds an answer is shared by those of the same form, and the last ones are kept for the next.
TEST(ApiStructured, ThreadsShareForms) {
  const Engine engine = test::open_demo();
  std::vector<std::thread> threads;
  std::atomic<int> n_right = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 6; ++i) {
        const int n = 3 + (t + i) % 3;  // digits
        Session session = engine.open_session({{"regex", "[0-9]{" + std::to_string(n) + "}"},
                                               {"temperature", "1"},
                                               {"seed", std::to_string(i)}});
        session.prefill(test::prompt_text(3));
        const std::string text = session.generate(20).text;
        const bool is_right = text.size() == static_cast<size_t>(n) && text.find_first_not_of("0123456789") == text.npos;
        n_right += is_right ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(n_right, 24);
}

TEST(ApiStructured, RefusesFormsAtOnce) {
  const Engine engine = test::open_demo();
  EXPECT_KIND(engine.open_session({{"json-schema", R"({"not": {}})"}}), ErrorKind::kUsage);
  EXPECT_KIND(engine.open_session({{"regex", "("}}), ErrorKind::kUsage);
  EXPECT_KIND(engine.open_session({{"regex", "a"}, {"grammar", "root ::= \"a\""}}), ErrorKind::kUsage);
  EXPECT_KIND(engine.open_session({{"regex", "a"}, {"ignore-eos", "true"}}), ErrorKind::kUsage);
  Batch batch = engine.open_batch({{"max-prompt", "50"}});
  EXPECT_KIND(batch.submit("a", 5, {{"grammar", "root ::= b"}}), ErrorKind::kUsage);
}

}  // namespace
}  // namespace tiercel
