// A batch through the public interface: every request gets what a session would give it, whatever
// is submitted, cancelled, thrown or closed beside it.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <ctime>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>

#include "tests/api/model.h"
#include "tests/sanitized.h"

namespace tiercel::test {
namespace {

constexpr int kSentences = kSanitized ? 2 : 4, kStep = kSanitized ? 1 : 9;
constexpr int kRequests = kSanitized ? 4 : 8, kNew = kSanitized ? 6 : 24;
constexpr int64_t kLongest = 40 * (kSentences + kRequests * kStep) + 60;

Options session_options(const char* attention, Options options = {}) {
  return options.set("attention", attention)
      .set("budget", "64")
      .set("recent", "64")
      .set("n-predict", std::to_string(kNew));
}

Options batch_options(const char* attention, const char* parallel = "3") {
  return session_options(
      attention,
      {{"parallel", parallel}, {"max-gap", "0.002"}, {"max-prompt", std::to_string(kLongest)}});
}

Options sampling(int i) {
  if (i % 2 == 0) return {};
  return {{"temp", "0.9"}, {"seed", std::to_string(i)}, {"ignore-eos", "true"}};
}

std::string text_of(int i) { return prompt_text(kSentences + i * kStep, i); }

Generation alone(const Engine& engine, const char* attention, int i) {
  Session session = engine.open_session(session_options(attention, sampling(i)));
  session.prefill(text_of(i));
  return session.generate(kNew);
}

void expect_same(const Generation& got, const Generation& want) {
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_EQ(got.text, want.text);
  EXPECT_EQ(got.reason, want.reason);
}

// A batch in which the first request is decoding, and stays so until it is cancelled.
struct Occupied {
  explicit Occupied(const Engine& engine, const char* parallel = "2") {
    Options options = batch_options("shadow", parallel);
    options.set("ctx-size", "30000");
    batch.emplace(engine.open_batch(options));
    first.emplace(batch->submit("Once upon a time", 20000, {{"ignore-eos", "true"}}));
    await(*first, RequestState::kDecoding);
  }
  static void await(const Request& request, RequestState state) {
    while (request.stats().state < state) std::this_thread::yield();
    EXPECT_EQ(request.stats().state, state);
  }
  std::optional<Batch> batch;
  std::optional<Request> first;
};

// Questions on a document that is prefilled once: the answers are those to the whole prompts.
TEST(ApiBatch, QuestionsBehindAPrefix) {
  const Engine engine = open_demo();
  const std::string whole = text_of(kRequests - 1);
  const size_t end = whole.rfind("\nWhat is");
  const std::string document = whole.substr(0, end), question = whole.substr(end);
  Batch batch = engine.open_batch(batch_options("dense"));
  std::optional<Prefix> prefix = batch.share(document);
  const std::vector<int32_t> tokens = engine.tokenize(document);
  EXPECT_EQ(prefix->n_tokens(), std::ssize(tokens));
  EXPECT_EQ(batch.stats().prompt_tokens, 0);
  const Generation expected = batch.submit(whole, kNew).wait();
  const int64_t n_before = batch.stats().prompt_tokens;
  std::vector<Request> requests;
  for (int i = 0; i < 3; ++i) {
    const Prefix copy = *prefix;
    requests.push_back(batch.submit(copy, question, kNew));
  }
  // The same tokens, and others, of which none is in the prefix.
  requests.push_back(batch.submit(batch.share(tokens), question, kNew));
  const int64_t n_whole = requests[0].stats().prompt_tokens;
  const int64_t n_behind = n_whole - prefix->n_tokens();
  for (const Request& request : requests) {
    expect_same(request.wait(), expected);
    EXPECT_EQ(request.stats().prefix_tokens, prefix->n_tokens());
    EXPECT_EQ(request.stats().prompt_tokens, n_whole);
  }
  // Twice: the second one is another.
  EXPECT_EQ(batch.stats().prompt_tokens - n_before, 2 * prefix->n_tokens() + 4 * n_behind);
  // It is still there.
  expect_same(batch.submit(*prefix, question, kNew).wait(), expected);
  EXPECT_EQ(batch.stats().prompt_tokens - n_before, 2 * prefix->n_tokens() + 5 * n_behind);

  EXPECT_KIND(batch.share("", {{"no-bos", "true"}}), ErrorKind::kUsage);
  EXPECT_KIND(batch.share(std::vector<int32_t>{}), ErrorKind::kUsage);
  EXPECT_KIND(batch.share(std::vector<int32_t>{1, 1 << 20}), ErrorKind::kUsage);
  EXPECT_KIND(batch.share(std::vector<int32_t>(kLongest, 5)), ErrorKind::kUsage);
  EXPECT_KIND(batch.submit(*prefix, ""), ErrorKind::kUsage);
  EXPECT_KIND(batch.submit(*prefix, std::vector<int32_t>{-1}), ErrorKind::kUsage);
  EXPECT_KIND(batch.submit(*prefix, std::vector<int32_t>(kLongest, 5)), ErrorKind::kUsage);
  Batch other = engine.open_batch(batch_options("dense"));
  EXPECT_KIND(other.submit(*prefix, question), ErrorKind::kUsage);
  const Prefix moved = std::move(*prefix);
  EXPECT_KIND(batch.submit(*prefix, question), ErrorKind::kState);
  EXPECT_KIND(prefix->n_tokens(), ErrorKind::kState);
  prefix.reset();
  // While a request runs behind it, a prefix may be given up, and outlive its batch.
  std::optional<Prefix> brief = batch.share(document);
  const Request running = batch.submit(*brief, question, kNew);
  brief.reset();
  expect_same(running.wait(), expected);
  batch.close();
  EXPECT_EQ(moved.n_tokens(), std::ssize(tokens));
  EXPECT_KIND(batch.share(document), ErrorKind::kState);
  EXPECT_KIND(batch.submit(moved, question), ErrorKind::kState);
}

TEST(ApiBatch, EveryRequestGetsWhatASessionSays) {
  const Engine engine = open_demo();
  for (const char* attention : {"dense", "shadow"}) {
    SCOPED_TRACE(attention);
    Batch batch = engine.open_batch(batch_options(attention));
    std::vector<Request> requests;
    std::vector<std::string> streamed(kRequests);
    for (int i = 0; i < kRequests; ++i) {
      const auto listen = [&, i](const Piece& piece) {
        streamed[static_cast<size_t>(i)] += piece.text;
        return true;
      };
      // As text or as tokens; so many, or as many as the batch says.
      const int64_t n = i % 3 == 0 ? -1 : kNew;
      requests.push_back(i % 2 == 0
                             ? batch.submit(text_of(i), n, sampling(i), listen)
                             : batch.submit(engine.tokenize(text_of(i)), n, sampling(i), listen));
    }
    for (int i = 0; i < kRequests; ++i) {
      SCOPED_TRACE(i);
      const Request& request = requests[static_cast<size_t>(i)];
      expect_same(request.wait(), alone(engine, attention, i));
      expect_same(request.wait(), request.wait());
      EXPECT_EQ(streamed[static_cast<size_t>(i)], request.wait().text);
      const RequestStats stats = request.stats();
      EXPECT_EQ(stats.state, RequestState::kFinished);
      EXPECT_EQ(stats.prompt_tokens, static_cast<int64_t>(engine.tokenize(text_of(i)).size()));
      EXPECT_EQ(stats.generated_tokens, static_cast<int64_t>(request.wait().tokens.size()));
      EXPECT_GT(stats.first_token_seconds, 0);
      EXPECT_EQ(stats.seed, i % 2 == 0 ? 0 : static_cast<uint64_t>(i));
      EXPECT_EQ(stats.selections > 0, std::string(attention) != "dense");
    }
    const BatchStats stats = batch.stats();
    EXPECT_EQ(stats.ended, kRequests);
    EXPECT_EQ(stats.queued + stats.prefilling + stats.decoding, 0);
    EXPECT_GE(stats.most_decoding, 2);
    EXPECT_LE(stats.most_decoding, 3);
    EXPECT_GT(stats.step_tokens, stats.steps);
  }
}

TEST(ApiBatch, CancelledAtEveryStage) {
  const Engine engine = open_demo();
  Occupied one(engine, "1");
  Request queued = one.batch->submit(text_of(0));
  queued.cancel();
  EXPECT_EQ(queued.wait().reason, FinishReason::kStopped);
  EXPECT_TRUE(queued.wait().tokens.empty());
  EXPECT_EQ(queued.stats().state, RequestState::kCancelled);
  EXPECT_FALSE(one.first->done());
  EXPECT_FALSE(one.first->wait_for(0.01));
  EXPECT_FALSE(one.first->wait_for(-INFINITY));
  EXPECT_FALSE(one.first->wait_for(NAN));
  one.first->cancel();
  one.first->cancel();
  const Generation some = one.first->wait();
  EXPECT_EQ(some.reason, FinishReason::kStopped);
  EXPECT_FALSE(some.tokens.empty());
  EXPECT_TRUE(one.first->wait_for(0));
  // Cancelled before the batch has seen it, in prefill or later; and after the end.
  const Generation whole = alone(engine, "shadow", kRequests - 1);
  for (int i = 0; i < 12; ++i) {
    Request request = one.batch->submit(text_of(kRequests - 1), kNew, sampling(kRequests - 1));
    std::this_thread::sleep_for(std::chrono::microseconds(i * i * 300));
    request.cancel();
    const Generation got = request.wait();
    EXPECT_TRUE(got.reason == FinishReason::kStopped || got.tokens == whole.tokens);
    EXPECT_TRUE(std::equal(got.tokens.begin(), got.tokens.end(), whole.tokens.begin()));
    request.cancel();
    EXPECT_EQ(request.wait().tokens, got.tokens);
  }
  EXPECT_EQ(one.batch->stats().ended, 14);
}

TEST(ApiBatch, WhatACallbackMayDo) {
  const Engine engine = open_demo();
  Occupied one(engine);
  Session session = engine.open_session();
  session.prefill(text_of(0));
  std::optional<Request> second;
  int n_heard = 0;
  const Request request = one.batch->submit(text_of(0), kNew, {}, [&](const Piece&) {
    if (++n_heard > 1) return true;
    second = one.batch->submit(text_of(2), kNew);
    EXPECT_FALSE(second->done());
    EXPECT_EQ(second->stats().state, RequestState::kQueued);
    EXPECT_EQ(one.batch->stats().queued, 1);
    EXPECT_GT(one.batch->memory().device_total, 0);
    one.first->cancel();
    EXPECT_KIND(second->wait(), ErrorKind::kBusy);
    EXPECT_KIND(second->wait_for(1), ErrorKind::kBusy);
    EXPECT_FALSE(second->wait_for(0));
    EXPECT_KIND(one.batch->close(), ErrorKind::kBusy);
    EXPECT_KIND(session.generate(1), ErrorKind::kBusy);
    EXPECT_KIND(session.save("/nowhere/x"), ErrorKind::kBusy);
    EXPECT_KIND(engine.plan(5), ErrorKind::kBusy);
    EXPECT_KIND(engine.open_batch(batch_options("dense")), ErrorKind::kBusy);
    EXPECT_FALSE(engine.tokenize("x").empty());
    EXPECT_GT(session.n_tokens(), 1);
    return true;
  });
  expect_same(request.wait(), alone(engine, "shadow", 0));
  expect_same(second->wait(), alone(engine, "shadow", 2));
  EXPECT_EQ(one.first->wait().reason, FinishReason::kStopped);
  EXPECT_EQ(session.generate(2).tokens.size(), 2u);
  // A progress callback holds the engine that a batch waits for; one of generate does not.
  const Request third = one.batch->submit(text_of(0), kNew);
  session.reset();
  EXPECT_TRUE(session.prefill(text_of(0), [&](const Progress&) {
    if (!third.done()) {
      EXPECT_KIND(third.wait(), ErrorKind::kBusy);
    }
    EXPECT_KIND(one.batch->close(), ErrorKind::kBusy);
    one.batch->submit("x", 1);
    return true;
  }));
  session.generate(2, [&](const Piece&) {
    expect_same(third.wait(), request.wait());
    return true;
  });
}

TEST(ApiBatch, WhatACallbackThrowsOrStopsIsItsRequestsOnly) {
  struct Mine {
    int value;
  };
  const Engine engine = open_demo();
  Batch batch = engine.open_batch(batch_options("dense"));
  const auto held = std::make_shared<int>(0);
  const Request other = batch.submit(text_of(0), kNew, {}, [held](const Piece&) { return true; });
  const Request mine = batch.submit(text_of(0), kNew, {}, [held](const Piece&) -> bool {
    if (++*held < 3) return true;
    throw Mine{7};
  });
  const Request standard = batch.submit(text_of(0), kNew, {}, [](const Piece&) -> bool {
    throw std::runtime_error("the listener is gone");
  });
  int n_heard = 0;
  const Request stopped =
      batch.submit(text_of(0), kNew, {}, [&](const Piece&) { return ++n_heard < 2; });
  EXPECT_THROW(mine.wait(), Mine);
  EXPECT_THROW(mine.wait(), Mine);  // as often as asked
  EXPECT_EQ(mine.stats().state, RequestState::kFailed);
  EXPECT_EQ(mine.stats().generated_tokens, 3);
  EXPECT_THROW(standard.wait(), std::runtime_error);
  const Generation whole = alone(engine, "dense", 0);
  EXPECT_EQ(stopped.wait().reason, FinishReason::kStopped);
  EXPECT_EQ(stopped.wait().tokens, std::vector(whole.tokens.begin(), whole.tokens.begin() + 2));
  expect_same(other.wait(), whole);
  EXPECT_EQ(held.use_count(), 1);  // callbacks are gone once their requests are done
}

TEST(ApiBatch, EightThreadsSubmitWhileSessionsRun) {
  const Engine engine = open_demo();
  std::vector<Generation> expected;
  for (int i = 0; i < kRequests; ++i) expected.push_back(alone(engine, "shadow", i));
  Batch batch = engine.open_batch(batch_options("shadow"));
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = t % 2; i < kRequests; i += 2) {
        const auto which = static_cast<size_t>((i + t) % kRequests);
        const int at = static_cast<int>(which);
        if (t >= 6) {
          expect_same(alone(engine, "shadow", at), expected[which]);
          continue;
        }
        Request request = batch.submit(text_of(at), kNew, sampling(at));
        if (t == 5) request.cancel();
        const Generation got = request.wait();
        if (t != 5) expect_same(got, expected[which]);
        EXPECT_TRUE(request.done());
        batch.stats();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(batch.stats().decoding, 0);
}

// Prefixes that threads share, copy and give up while requests behind them run, wait or are cancelled.
TEST(ApiBatch, ThreadsShareAndGiveUpPrefixes) {
  const Engine engine = open_demo();
  const std::string whole = text_of(kStep > 1 ? 2 : 1);
  const size_t end = whole.rfind("\nWhat is");
  const std::string document = whole.substr(0, end), question = whole.substr(end);
  Batch batch = engine.open_batch(batch_options("dense"));
  const Generation expected = batch.submit(whole, kNew).wait();
  std::optional<Prefix> common = batch.share(document);
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t, mine = std::optional<Prefix>(*common)]() mutable {
      for (int i = 0; i < 3; ++i) {
        if ((t + i) % 3 == 0) mine = batch.share(document);
        Request request = batch.submit(*mine, question, kNew);
        if (i == 2) mine.reset();
        if (t == 5) request.cancel();
        const Generation got = request.wait();
        if (t != 5) expect_same(got, expected);
      }
    });
  }
  common.reset();
  for (std::thread& thread : threads) thread.join();
  const BatchStats stats = batch.stats();
  EXPECT_EQ(stats.queued + stats.prefilling + stats.decoding, 0);
  EXPECT_EQ(stats.ended, 1 + 6 * 3);
}

TEST(ApiBatch, ClosedWithWorkInFlight) {
  auto engine = std::make_unique<Engine>(open_demo());
  std::vector<Request> left;
  {
    Occupied one(*engine);
    left.push_back(*one.first);
    for (int i = 0; i < 4; ++i) left.push_back(one.batch->submit(text_of(i)));
    if (left.size() > 5) one.batch->close();
  }
  for (Request& request : left) {
    EXPECT_TRUE(request.done());
    EXPECT_EQ(request.wait().reason, FinishReason::kStopped);
    request.cancel();
  }
  {
    Occupied one(*engine);
    std::thread other([&] { one.batch->close(); });
    one.batch->close();
    other.join();
    one.batch->close();
    EXPECT_KIND(one.batch->submit("x", 1), ErrorKind::kState);
    EXPECT_EQ(one.batch->stats().ended, 1);
    Batch moved = std::move(*one.batch);
    EXPECT_KIND(one.batch->submit("x", 1), ErrorKind::kState);
    EXPECT_KIND(one.batch->close(), ErrorKind::kState);
    moved = engine->open_batch(batch_options("dense"));
    const Request request = moved.submit(text_of(0), 1);
    engine.reset();  // the batch keeps what it needs
    EXPECT_EQ(request.wait().tokens.size(), 1u);
    Request away = request;
    const Request there = std::move(away);
    EXPECT_KIND(away.wait(), ErrorKind::kState);
    EXPECT_TRUE(there.done());
  }
}

TEST(ApiBatch, GivenUpInItsOwnCallback) {
  const Engine engine = open_demo();
  for (int round = 0; round < 3; ++round) {
    auto batch = std::make_unique<Batch>(engine.open_batch(batch_options("shadow")));
    int n_heard = 0;
    // Before it may be called.
    Session session = engine.open_session();
    std::optional<Request> request, other;
    EXPECT_TRUE(session.prefill("x", [&](const Progress&) {
      if (request) return true;
      other = batch->submit(text_of(1), kNew, {}, [&](const Piece&) { return ++n_heard, true; });
      request = batch->submit(text_of(0), kNew, {}, [&](const Piece&) {
        batch.reset();
        n_heard = -1000;  // nothing comes any more
        return true;
      });
      return true;
    }));
    EXPECT_EQ(request->wait().reason, FinishReason::kStopped);
    EXPECT_EQ(request->wait().tokens.size(), 1u);
    other->wait();
    EXPECT_EQ(n_heard, -1000);
    EXPECT_EQ(session.generate(1).tokens.size(), 1u);
  }
}

TEST(ApiBatch, SleepsWhenThereIsNothingToDo) {
  const Engine engine = open_demo();
  Batch batch = engine.open_batch(batch_options("dense"));
  batch.submit("x", 1).wait();
  const std::clock_t begin = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, 0.1);
}

}  // namespace
}  // namespace tiercel::test
