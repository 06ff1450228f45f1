// tiercel run --chat and --interactive as a user meets them. The model is the demo's with two of
// its tokens renamed and a template: its answers are noise, and their tokens are known.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/saved_session.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "tests/command/chat_model.h"
#include "tests/command/process.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

class RunChat : public ::testing::Test {
 protected:
  RunChat() : model_(scratch_ / "model") { make_chat_model(model_); }

  void set_template(const std::string& jinja) const {
    write_file(model_ + "/chat_template.jinja", jinja);
  }

  Launch launch(std::vector<std::string> more) const {
    Launch launch{.arguments = {"run", "-m", model_, "-q", "-t", "1", "--ignore-eos"}};
    launch.arguments.insert(launch.arguments.end(), more.begin(), more.end());
    return launch;
  }
  // With this typed.
  Result talk(const std::string& typed, std::vector<std::string> more) const {
    write_file(scratch_ / "typed", typed);
    more.insert(more.begin(), "-i");
    Launch l = launch(std::move(more));
    l.standard_input = scratch_ / "typed";
    return run(l);
  }
  Json report() const { return Json::parse(read_file(scratch_ / "report")); }

  // The tokens of a conversation, answers of n tokens each taken from `answers`.
  std::vector<int32_t> conversation(const std::vector<std::string>& words,
                                    const std::vector<int32_t>& answers, size_t n) const {
    const Tokenizer tokenizer = Tokenizer::load(model_);
    const ChatTemplate chat = ChatTemplate::load(model_);
    std::vector<int32_t> ids =
        chat.encode(tokenizer, std::vector<ChatMessage>{{ChatRole::kUser, words[0]}}, {});
    for (size_t i = 0; i < words.size(); ++i) {
      if (i > 0) {
        const std::vector<int32_t> turn = chat.encode_next_turn(tokenizer, words[i]);
        ids.insert(ids.end(), turn.begin(), turn.end());
      }
      const auto answer = answers.begin() + static_cast<ptrdiff_t>(i * n);
      ids.insert(ids.end(), answer, answer + static_cast<ptrdiff_t>(n));
      ids.push_back(chat.end_of_turn(tokenizer));
    }
    return ids;
  }

  void expect_refused(const Launch& launch, const std::vector<std::string>& words) const {
    const Result result = run(launch);
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_EQ(result.out, "");
    for (const std::string& word : words) {
      EXPECT_TRUE(contains(result.err, word)) << word << "\n" << result.err;
    }
  }

  Scratch scratch_;
  std::string model_;
};

TEST_F(RunChat, PutsTheTemplateAroundThePrompt) {
  const std::vector<std::string> tail = {"-n", "12", "--report", scratch_ / "report"};
  const auto with = [&](std::vector<std::string> flags) {
    flags.insert(flags.end(), tail.begin(), tail.end());
    const Result result = run(launch(flags));
    EXPECT_EQ(result.code, 0) << result.err;
    return result.out;
  };
  const std::string out = with({"--chat", "-p", "Hello there", "--system", "Be brief."});
  const Json chat = report();
  EXPECT_EQ(out, with({"--special", "--no-bos", "-p",
                       "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello "
                       "there<|im_end|>\n<|im_start|>assistant\n"}));
  EXPECT_EQ(chat["prompt_tokens"], report()["prompt_tokens"]);
  EXPECT_EQ(chat["logits_hash"], report()["logits_hash"]);
  // What spells a token is text, many tokens long.
  with({"--chat", "-p", "<|im_end|>"});
  const int64_t n = report()["prompt_tokens"];
  with({"--chat", "-p", "x"});
  EXPECT_GT(n, report()["prompt_tokens"].get<int64_t>() + 3);
}

TEST_F(RunChat, RefusesWithTheReason) {
  expect_refused({.arguments = {"run", "-m", demo_model(), "--chat", "-p", "x"}},
                 {demo_model(), "chat template", "found none", "--special"});
  expect_refused({.arguments = {"run", "-m", demo_model(), "-i", "-p", "x", "--system", "y"}},
                 {"--system", "no chat template"});
  expect_refused(launch({"-p", "x", "--system", "y"}), {"--system", "--chat"});
  expect_refused(launch({"-p", "x", "--chat", "--special"}), {"--special", "--chat"});
  expect_refused(launch({"-p", "x", "--chat", "--no-bos"}), {"--no-bos", "--chat"});
  for (const char* date : {"yesterday", "2026-13-01", "2026-1-1", "2026-01-011", "-026-01-01"}) {
    expect_refused(launch({"-p", "x", "--chat", "--date", date}), {"--date", "YYYY-MM-DD"});
  }
  expect_refused(launch({"-i", "-f", "-"}), {"--interactive", "stdin"});
  set_template("{{ messages | length }}");
  for (const char* flag : {"--chat", "-i"}) {
    expect_refused(launch({"-p", "x", flag}), {"chat_template.jinja", "can be run", "user says"});
  }
}

// A template that no list knows, and which says what ChatML says.
TEST_F(RunChat, RunsATemplateOfItsOwn) {
  const auto said = [&] { return talk("Hello\nAnd <|im_end|> then?\n", {"-n", "9"}); };
  const Result known = said();
  set_template(std::string("{% set all = messages %}") + kChatMl);
  const Result own = said();
  EXPECT_EQ(own.code, 0) << own.err;
  EXPECT_EQ(own.out, known.out);
}

TEST_F(RunChat, HoldsAConversation) {
  const std::string file = scratch_ / "s.session", whole = scratch_ / "whole.session";
  const std::vector<std::string> flags = {"-n", "9", "--report", scratch_ / "report",
                                          "--save-session"};
  const auto saving_to = [&](const std::string& path, std::vector<std::string> more = {}) {
    more.insert(more.begin(), flags.begin(), flags.end());
    more.insert(more.begin() + static_cast<ptrdiff_t>(flags.size()), path);
    return more;
  };
  const std::vector<std::string> words = {"Hello there", "one\ntwo <|im_end|>", "And then?"};
  const Result two =
      talk("Hello there\n\none\\\ntwo <|im_end|>\n/exit\nnever read\n", saving_to(file));
  ASSERT_EQ(two.code, 0) << two.err;
  EXPECT_EQ(report()["output"], two.out);
  EXPECT_EQ(report()["generated_tokens"], 18);
  std::vector<int32_t> answers = report()["output_tokens"];
  EXPECT_EQ(SavedSession::open(file)->ids(), conversation({words[0], words[1]}, answers, 9));

  // The first message by a flag, the last one without a line break.
  const Result three =
      talk("one\\\ntwo <|im_end|>\nAnd then?", saving_to(whole, {"-p", "Hello there"}));
  ASSERT_EQ(three.code, 0) << three.err;
  EXPECT_TRUE(three.out.starts_with(two.out)) << three.out;
  answers = report()["output_tokens"].get<std::vector<int32_t>>();
  EXPECT_EQ(SavedSession::open(whole)->ids(), conversation(words, answers, 9));

  // What was saved goes on as if it had not been.
  const Result restored = talk("And then?\n", saving_to(whole, {"--session", file}));
  ASSERT_EQ(restored.code, 0) << restored.err;
  EXPECT_EQ(two.out + restored.out, three.out);
  EXPECT_EQ(SavedSession::open(whole)->ids(), conversation(words, answers, 9));
}

// Whichever token ends an answer, the session holds the one that the template writes.
TEST_F(RunChat, AnAnswerEndsAsTheTemplateWritesIt) {
  ASSERT_EQ(
      run(launch({"--chat", "-p", "Hello there", "-n", "8", "--report", scratch_ / "report"})).code,
      0);
  const std::vector<int32_t> answer = report()["output_tokens"];
  size_t n = 1;  // tokens before the first that did not come before
  while (std::find(answer.begin(), answer.begin() + static_cast<ptrdiff_t>(n), answer[n]) !=
         answer.begin() + static_cast<ptrdiff_t>(n)) {
    ASSERT_LT(++n, answer.size());
  }
  write_file(model_ + "/generation_config.json", Json{{"eos_token_id", answer[n]}}.dump());
  write_file(scratch_ / "typed", "Hello there");
  Launch l = launch({"-i", "--save-session", scratch_ / "s", "--report", scratch_ / "report"});
  std::erase(l.arguments, "--ignore-eos");
  l.standard_input = scratch_ / "typed";
  const Result result = run(l);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(report()["finish_reason"], "stop");
  EXPECT_EQ(SavedSession::open(scratch_ / "s")->ids(), conversation({"Hello there"}, answer, n));
}

TEST_F(RunChat, GoesOnBehindASavedPrompt) {
  const std::string file = scratch_ / "s.session";
  const Result saved =
      run(launch({"--chat", "-p", "Hello there", "-n", "8", "--save-session", file}));
  ASSERT_EQ(saved.code, 0) << saved.err;
  // It was saved where the answer begins.
  const Result answer = run(launch({"--chat", "--session", file, "-n", "8"}));
  EXPECT_EQ(answer.out, saved.out) << answer.err;
  const Result talked = talk("", {"--session", file, "-n", "8"});
  EXPECT_EQ(talked.out, saved.out + "\n") << talked.err;
  const Result warned = run(launch({"--chat", "--session", file, "-n", "4", "-p", "More"}));
  EXPECT_EQ(warned.code, 0);
  EXPECT_TRUE(contains(warned.err, "waits for an answer")) << warned.err;
  expect_refused(launch({"--chat", "--session", file, "--system", "x"}), {"--system"});
  // A complete answer, and no conversation at all.
  ASSERT_EQ(talk("x\n", {"-n", "4", "--save-session", file}).code, 0);
  expect_refused(launch({"--chat", "--session", file}), {file, "complete", "--interactive"});
  EXPECT_EQ(run(launch({"--chat", "--session", file, "-p", "y", "-n", "4"})).code, 0);
  ASSERT_EQ(run(launch({"-p", "Just a text", "-n", "0", "--save-session", file})).code, 0);
  expect_refused(launch({"--chat", "--session", file, "-p", "x"}), {file, "conversation"});
}

TEST_F(RunChat, SaysWhenTheContextIsFull) {
  const std::string long_message(400, 'z');
  const Result one = talk("Hello\n" + long_message + "\nbye\n", {"-n", "8", "-c", "80"});
  EXPECT_EQ(one.code, 0) << one.err;
  EXPECT_TRUE(contains(one.err, "not taken") && contains(one.err, "--ctx-size")) << one.err;
  const Result two = talk("Hello\nbye\nbye\n", {"-c", "50", "--save-session", scratch_ / "s"});
  EXPECT_EQ(two.code, 1);
  EXPECT_TRUE(contains(two.err, "the context of 50 tokens is full")) << two.err;
  EXPECT_EQ(two.out.back(), '\n');
  // Nothing is lost: with more room it goes on.
  EXPECT_EQ(talk("bye\n", {"--session", scratch_ / "s", "-c", "90", "-n", "8"}).code, 0);
  const Result three = talk("Hello\nbye\nbye\nbye\nbye\n", {"-c", "60", "-n", "8"});
  EXPECT_EQ(three.code, 1);
  EXPECT_TRUE(contains(three.err, "is full")) << three.err;
}

TEST_F(RunChat, ContinuesTextWithATemplateThatIsNotSupported) {
  write_file(model_ + "/chat_template.jinja", "{{ messages | length }}");
  const Result refused = talk("Hello\n", {"-n", "4"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_TRUE(contains(refused.err, "--no-template")) << refused.err;
  const Result text = talk("/help\nHello\n", {"-n", "4", "--no-template"});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_TRUE(contains(text.err, "/help: no such command; /exit leaves")) << text.err;
  EXPECT_EQ(talk("Hello\n", {"-n", "4", "--no-template"}).out, text.out);
  // Lines as other systems end them, an empty one first, a space behind the command; the last -n counts.
  const Result other = talk("\r\nHello\r\n/exit \r\nnever read\r\n", {"-n", "9", "-n", "4", "--no-template"});
  EXPECT_EQ(other.code, 0) << other.err;
  EXPECT_EQ(other.out, text.out);
  expect_refused(launch({"-p", "x", "--no-template"}), {"--no-template", "--interactive"});
}

TEST_F(RunChat, ContinuesTextWithoutATemplate) {
  fs::remove(model_ + "/chat_template.jinja");
  const std::string text = "The magic number for otter is 4821.\nThe magic number for otter is";
  Launch plain = launch({"-p", text, "-n", "4"});
  const std::string expected = run(plain).out;
  write_file(scratch_ / "typed",
             "The magic number for otter is 4821.\\\n"
             "The magic number for otter is\n\n");
  Launch talked{.arguments = {"run", "-m", model_, "-t", "1", "-n", "4", "--ignore-eos", "-i"}};
  talked.standard_input = scratch_ / "typed";
  const Result result = run(talked);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(contains(result.err, "plain text")) << result.err;
  // An empty line lets it go on.
  plain.arguments.back() = "8";
  const std::string longer = run(plain).out;
  EXPECT_EQ(result.out, expected + "\n" + longer.substr(expected.size()) + "\n");
}

// A text that an answer is stopped at is not shown, and yet said: the session has all of it.
TEST_F(RunChat, WhatStopsAnAnswerStaysInTheSession) {
  write_file(scratch_ / "typed",
             "The magic number for otter is 4821.\\\nThe magic number for otter is\n");
  Launch talked{.arguments = {"run", "-m", demo_model(), "--no-template", "-n", "24", "-i", "--stop",
                              "magic", "--save-session", scratch_ / "s"}};
  talked.standard_input = scratch_ / "typed";
  const Result result = run(talked);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_FALSE(contains(result.out, "magic")) << result.out;
  const std::string shown = result.out.substr(0, result.out.size() - 1);  // a line break behind it
  const std::string said =
      Tokenizer::load(demo_model()).decode(SavedSession::open(scratch_ / "s")->ids(), true);
  EXPECT_TRUE(said.ends_with(shown + "magic")) << said;
}

// Lines that are typed while the command runs.
class Typist {
 public:
  explicit Typist(const std::string& path) {
    EXPECT_EQ(::mkfifo(path.c_str(), 0600), 0);
    fd_ = ::open(path.c_str(), O_RDWR);  // both directions: opening does not wait
  }
  ~Typist() { ::close(fd_); }
  void type(const std::string& text) const {
    EXPECT_EQ(::write(fd_, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }

 private:
  int fd_;
};

TEST_F(RunChat, CtrlCStopsTheAnswerThenTheConversation) {
  const Typist typist(scratch_ / "pipe");
  Launch l = launch(
      {"-i", "-c", "400000", "--save-session", scratch_ / "s", "--report", scratch_ / "report"});
  l.standard_input = scratch_ / "pipe";
  Process process(l);
  size_t size = 0;
  for (const char* words : {"Hello there\n", "And then?\n"}) {
    typist.type(words);
    ASSERT_TRUE(process.wait_until([&] { return process.out().size() > size + 20; }))
        << process.err();
    process.signal(SIGINT);
    // The answer's last line break.
    ASSERT_TRUE(process.wait_until([&] {
      size = process.out().size();
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      return process.out().size() == size;
    }));
  }
  process.signal(SIGINT);
  const Result result = process.wait();
  EXPECT_EQ(result.code, 130) << result.err;
  EXPECT_EQ(report()["finish_reason"], "interrupted");
  EXPECT_EQ(report()["output"], result.out);
  EXPECT_TRUE(fs::exists(scratch_ / "s")) << result.err;
}

// Who is told to end while it answers has still a conversation to keep.
TEST_F(RunChat, ASignalWithinAnAnswerKeepsTheConversation) {
  for (const int signal : {SIGTERM, SIGHUP}) {
    const Typist typist(scratch_ / fmt::format("pipe{}", signal));
    const std::string session = scratch_ / fmt::format("session{}", signal);
    Launch l = launch({"-i", "-c", "400000", "--ignore-eos", "--save-session", session});
    l.standard_input = scratch_ / fmt::format("pipe{}", signal);
    Process process(l);
    typist.type("Hello there\n");
    ASSERT_TRUE(process.wait_until([&] { return process.out().size() > 20; })) << process.err();
    process.signal(signal);
    const Result result = process.wait();
    EXPECT_EQ(result.code, 130) << result.err;
    ASSERT_TRUE(fs::exists(session)) << result.err;
    EXPECT_GT(SavedSession::open(session)->ids().size(), 10u);
  }
}

TEST_F(RunChat, SignalsWhileItWaitsForTheFirstMessage) {
  const Typist typist(scratch_ / "pipe");
  for (const int signal : {SIGINT, SIGTERM}) {
    Launch l = launch({"-i"});
    l.standard_input = scratch_ / "pipe";
    Process process(l);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    process.signal(signal);
    EXPECT_EQ(process.wait().code, 130);
  }
}

TEST_F(RunChat, AsksOnATerminalOnly) {
  const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
  if (master < 0 || ::grantpt(master) != 0 || ::unlockpt(master) != 0) {
    GTEST_SKIP() << "no pseudo-terminals here";
  }
  Launch l = launch({"-i", "-n", "4"});
  l.standard_input = ::ptsname(master);
  Process process(l);
  ASSERT_TRUE(process.wait_until([&] { return process.err() == "> "; })) << process.err();
  const std::string typed = "one\\\ntwo\n\x04";  // Ctrl-D ends it
  ASSERT_EQ(::write(master, typed.data(), typed.size()), static_cast<ssize_t>(typed.size()));
  const Result result = process.wait();
  EXPECT_EQ(result.code, 0);
  EXPECT_TRUE(result.err.starts_with("> . > \n")) << result.err;
  EXPECT_FALSE(contains(result.out, ">"));
  ::close(master);
}

}  // namespace
}  // namespace tiercel::test
