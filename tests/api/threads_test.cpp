// What the public header says of threads.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "tests/api/model.h"
#include "tests/sanitized.h"

namespace tiercel::test {
namespace {

constexpr int kSentences = kSanitized ? 3 : 40, kNew = kSanitized ? 4 : 32;
constexpr int kThreads = 8;

Options options_of(int i) {
  const char* attention[] = {"dense", "shadow", "quest", "tokenselect"};
  Options options{{"attention", attention[i % 4]}, {"budget", "128"}};
  if (i >= 4) options.set("temp", "0.8").set("seed", std::to_string(i));
  return options;
}

struct Answer {
  std::vector<int32_t> tokens;
  std::string text;
  std::vector<double> scores;
  bool operator==(const Answer&) const = default;
};

Answer answer(const Engine& engine, int i) {
  Session session = engine.open_session(options_of(i));
  session.prefill(prompt_text(kSentences + i, i), [](const Progress&) { return true; });
  Answer result;
  result.tokens = session
                      .generate(kNew,
                                [&](const Piece& piece) {
                                  result.text += piece.text;
                                  return true;
                                })
                      .tokens;
  session.rewind();
  result.scores = session.score(result.tokens);
  return result;
}

TEST(Threads, EightShareAnEngineAndAnswerAsOne) {
  const Engine engine = open_demo();
  std::vector<Answer> alone(kThreads), together(kThreads);
  for (int i = 0; i < kThreads; ++i) alone[static_cast<size_t>(i)] = answer(engine, i);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int other = 0; other < i; ++other) engine.tokenize(prompt_text(5, other));
      if (engine.plan(1000).context <= 1000) std::abort();
      together[static_cast<size_t>(i)] = answer(engine, i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < kThreads; ++i) EXPECT_EQ(together[i], alone[i]) << i;
  EXPECT_NE(alone[0].tokens, alone[5].tokens);
}

// Threads of this process that would take this signal.
std::set<std::string> threads_that_take(int signal) {
  std::set<std::string> names;
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream status(thread.path() / "status");
    for (std::string line; std::getline(status, line);) {
      if (!line.starts_with("SigBlk:")) continue;
      const uint64_t blocked = std::stoull(line.substr(7), nullptr, 16);
      if ((blocked >> (signal - 1) & 1) == 0) names.insert(thread.path().filename());
    }
  }
  return names;
}

TEST(Threads, ThoseOfTheLibraryTakeNoSignals) {
  const std::set<std::string> before = threads_that_take(SIGINT);
  const auto new_ones = [&] {
    std::set<std::string> names = threads_that_take(SIGINT);
    std::erase_if(names, [&](const std::string& name) { return before.contains(name); });
    return names;
  };
  const Engine engine = open_demo("4");
  Session session = engine.open_session({{"n-predict", "100000"}});
  ASSERT_TRUE(session.prefill(prompt_text(5)));
  const Batch batch = engine.open_batch({{"max-prompt", "100"}});
  // One that TBB has made and never called yet still would.
  for (int i = 0; i < 1000 && !new_ones().empty(); ++i) session.generate(4);
  EXPECT_EQ(new_ones(), std::set<std::string>{});
  // There are such threads: the batch's at least. What goes wrong in them is not hidden.
  EXPECT_GT(threads_that_take(SIGSEGV).size(), threads_that_take(SIGINT).size());
}

// What an old callback holds goes when nobody holds the log.
TEST(Threads, ALogCallbackMayHoldASession) {
  Engine engine = open_demo();
  std::atomic<bool> done = false, stop = false;
  std::thread prefills([&] {
    while (!stop) engine.open_session().prefill("Once upon a time");  // each logs its plan
  });
  std::thread sets([&] {
    for (int i = 0; i < 50; ++i) {
      auto held = std::make_shared<Session>(engine.open_session());
      held->prefill("Once upon a time");
      engine.set_log([held](LogLevel, std::string_view) {});
      held.reset();
      engine.set_log({});
    }
    done = true;
  });
  for (int i = 0; i < 600 && !done; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  if (!done) std::abort();  // neither of them can be joined
  stop = true;
  sets.join();
  prefills.join();
}

TEST(Threads, TurnsComeRound) {
  // While one session generates, another one must get in between its tokens.
  const Engine engine = open_demo();
  Session longer = engine.open_session({{"n-predict", "100000"}}), shorter = engine.open_session();
  ASSERT_TRUE(longer.prefill(prompt_text(5)));
  ASSERT_TRUE(shorter.prefill(prompt_text(5)));
  std::atomic<bool> stop{false}, began{false};
  std::thread thread([&] {
    longer.generate(90000, [&](const Piece&) {
      began = true;
      return !stop;
    });
  });
  while (!began) std::this_thread::yield();
  EXPECT_EQ(shorter.generate(kNew).tokens.size(), static_cast<size_t>(kNew));
  EXPECT_KIND(longer.stats(), ErrorKind::kBusy);
  stop = true;
  thread.join();
}

TEST(Threads, ASessionServesOneCallAtATime) {
  const Engine engine = open_demo();
  Session session = engine.open_session();
  ASSERT_TRUE(session.prefill(prompt_text(5)));
  std::atomic<int64_t> n_done{0}, n_busy{0};
  const auto hammer = [&] {
    for (int i = 0; i < 30; ++i) {
      const int kind = kind_of([&] { session.step(100); });
      if (kind == 0) ++n_done;
      if (kind == static_cast<int>(ErrorKind::kBusy)) ++n_busy;
    }
  };
  std::thread other(hammer);
  hammer();
  other.join();
  EXPECT_EQ(n_done + n_busy, 60);
  EXPECT_EQ(session.stats().generated_tokens, n_done);
  EXPECT_EQ(session.stats().decode_steps, n_done);
}

TEST(Threads, SessionsComeAndGo) {
  const Engine engine = open_demo();
  std::vector<std::thread> threads;
  std::atomic<int> n_right{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 3; ++round) {
        Session session = engine.open_session(options_of(i));
        const bool stopped =
            !session.prefill(prompt_text(4), [](const Progress&) { return false; });
        session.prefill(prompt_text(3));
        session.reset();
        session.prefill(prompt_text(2));
        if (stopped && session.generate(1).tokens.size() == 1) ++n_right;
        if (round == 1) session.close();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(n_right, 12);
}

}  // namespace
}  // namespace tiercel::test
