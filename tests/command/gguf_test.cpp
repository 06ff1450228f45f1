// A GGUF file as the model: the demo model, and one with a chat template in it.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/command/chat_model.h"
#include "tests/command/process.h"
#include "tests/gguf_of_model.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

class Gguf : public ::testing::Test {
 protected:
  std::string make(const Quantiser* matrices) const {
    write_gguf(demo_model(), scratch_ / "model.gguf", matrices, matrices == nullptr ? nullptr : &kQ8_0);
    return scratch_ / "model.gguf";
  }
  Scratch scratch_;
};

TEST_F(Gguf, AnswersAsTheOriginalDoes) {
  const std::string prompt = scratch_ / "prompt", model = make(nullptr);
  const auto haystack = [&](const std::string& of, const std::string& out) {
    const Result made = run({{"haystack", "-m", of, "--tokens", "3000", "--facts", "3", "--ask", "2", "-o", out,
                              "--answers", scratch_ / "answers"}});
    EXPECT_EQ(made.code, 0) << made.err;
    return read_file(out);
  };
  EXPECT_EQ(haystack(model, prompt), haystack(demo_model(), scratch_ / "prompt2"));
  const auto answer = [&](const std::string& of) {
    const Result result = run({{"run", "-m", of, "-f", prompt, "-n", "8", "-q", "-t", "1", "--report", scratch_ / "report"}});
    EXPECT_EQ(result.code, 0) << result.err;
    return result.out + Json::parse(read_file(scratch_ / "report"))["logits_hash"].dump();
  };
  const std::string expected = answer(demo_model());
  EXPECT_EQ(answer(model), expected);
  const std::string fact = Json::parse(read_file(scratch_ / "answers"))["facts"][2]["answer"];
  EXPECT_TRUE(contains(expected, fact)) << expected;
  EXPECT_TRUE(contains(answer(make(&kQ8_0)), fact));
}

TEST_F(Gguf, EveryCommandTakesOne) {
  const std::string model = make(&kQ8_0);
  EXPECT_EQ(run({{"tokenize", "-m", model, "-p", "two words", "--json"}}).out,
            run({{"tokenize", "-m", demo_model(), "-p", "two words", "--json"}}).out);
  const Result estimate = run({{"estimate", "-m", model, "--tokens", "100000"}});
  EXPECT_EQ(estimate.code, 0) << estimate.err;
  EXPECT_TRUE(contains(estimate.out + estimate.err, "in 8 bits, groups of 32, as the checkpoint has them"))
      << estimate.out << estimate.err;
  write_file(scratch_ / "text", "one two three four five six seven eight");
  EXPECT_EQ(run({{"perplexity", "-m", model, "-f", scratch_ / "text"}}).code, 0);
  EXPECT_EQ(run({{"bench", "-m", model, "-p", "64", "-n", "2", "-r", "1"}}).code, 0);
  write_file(scratch_ / "jobs", R"({"prompt": "one two"})");
  const Result batch = run({{"batch", "-m", model, "-f", scratch_ / "jobs", "-n", "2"}});
  EXPECT_EQ(batch.code, 0) << batch.err;
  // A session of it, taken up again.
  const std::string session = scratch_ / "session";
  EXPECT_EQ(run({{"run", "-m", model, "-p", "one two", "-n", "2", "--save-session", session}}).code, 0);
  EXPECT_EQ(run({{"run", "-m", model, "--session", session, "-n", "2"}}).code, 0);
  EXPECT_EQ(run({{"run", "-m", demo_model(), "--session", session, "-n", "2"}}).code, 2);  // other weights
}

TEST_F(Gguf, ChatsByItsOwnTemplate) {
  const std::string folder = scratch_ / "chat", file = scratch_ / "chat.gguf";
  make_chat_model(folder);
  write_gguf(folder, file, nullptr, nullptr, kChatMl);
  const auto said = [&](const std::string& model) {
    const Result result = run({{"run", "-m", model, "--chat", "-p", "Hello", "-n", "6", "-q", "-t", "1"}});
    EXPECT_EQ(result.code, 0) << result.err;
    return result.out;
  };
  EXPECT_EQ(said(file), said(folder));
}

TEST_F(Gguf, IsNotWrittenOver) {
  const std::string model = make(nullptr), before = read_file(model);
  for (const std::string& target : {model, scratch_ / "other.gguf"}) {
    if (target != model) write_file(target, "a part");
    const Result result = run({{"run", "-m", model, "-p", "Hi", "-n", "1", "--save-session", target}});
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_TRUE(contains(result.err, "no part of the model")) << result.err;
  }
  EXPECT_EQ(read_file(model), before);
}

TEST_F(Gguf, WhatIsWrongIsSaid) {
  const auto refused = [&](const std::string& model, int code, const std::string& what) {
    const Result result = run({{"run", "-m", model, "-p", "Hi", "-n", "1"}});
    EXPECT_EQ(result.code, code) << result.err;
    EXPECT_TRUE(contains(result.err, what)) << result.err;
    EXPECT_EQ(result.out, "");
  };
  const std::string model = make(&kQ8_0), all = read_file(model);
  fs::create_directory(scratch_ / "folder");
  fs::copy(model, scratch_ / "folder/model.gguf");
  refused(scratch_ / "folder", 1, "the folder holds model.gguf: give -m that file");
  write_file(model, all.substr(0, all.size() / 2));
  refused(model, 1, "truncated: fetch it again");
  write_file(model, "GGUF");
  refused(model, 1, "truncated");
  std::string damaged = all;  // a scale that is infinite
  damaged[all.size() - 32 * 34 + 1] = 0x7c;
  damaged[all.size() - 32 * 34 + 0] = 0;
  write_file(model, damaged);
  refused(model, 1, "is NaN or infinite");
}

}  // namespace
}  // namespace tiercel::test
