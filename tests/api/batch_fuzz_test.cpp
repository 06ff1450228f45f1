// Random calls on a batch, and on a session beside it, against what a session alone answers: legal
// ones do what the header says, illegal ones throw the kind that it names and change nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <thread>

#include "tests/api/deck.h"
#include "tests/api/model.h"
#include "tests/sanitized.h"
#include "tests/seed.h"

namespace tiercel::test {
namespace {

constexpr int kCalls = kSanitized ? 120 : 800;       // of one thread
constexpr int kSharedCalls = kSanitized ? 80 : 200;  // of each of two
constexpr int kMoreSentences = kSanitized ? 2 : 4;   // from one prompt to the next
constexpr int64_t kNew = kSanitized ? 8 : 16;        // option n-predict
constexpr const char* kBudget = "64";

const Options kSampling[] = {
    {},
    {{"temp", "0.9"}, {"seed", "7"}, {"ignore-eos", "true"}},
    {{"temp", "20"}, {"seed", "1"}, {"repeat-penalty", "1.2"}},
};

// What was submitted, and what may become of it.
struct Sent {
  Request request;
  size_t prompt = 0, sampling = 0;
  int64_t n = 0;
  int64_t stop_after = 0, throw_after = 0;  // pieces; 0: never
  bool cancelled = false;
  std::shared_ptr<std::string> streamed;
};

// An engine, prompts, and what a session alone answers to them.
struct Known {
  Known() : engine(open_demo(kSanitized ? "1" : "2")) {
    for (int i = 0; i < 3; ++i) {
      texts.push_back(prompt_text(1 + kMoreSentences * i, i));
      prompts.push_back(engine.tokenize(texts.back()));
    }
    for (size_t prompt = 0; prompt < prompts.size(); ++prompt) {
      for (size_t sampling = 0; sampling < std::size(kSampling); ++sampling) {
        Session session = open(sampling);
        session.prefill(prompts[prompt]);
        answers[{prompt, sampling}] = session.generate(kNew);
      }
    }
  }
  Session open(size_t sampling) const {
    Options options = kSampling[sampling];
    options.set("budget", kBudget).set("n-predict", std::to_string(kNew));
    return engine.open_session(options);
  }

  Engine engine;
  std::vector<std::string> texts;
  std::vector<std::vector<int32_t>> prompts;
  std::map<std::pair<size_t, size_t>, Generation> answers;
};

class BatchFuzz {
 public:
  BatchFuzz(uint64_t seed, const Known& known) : random_(seed), known_(known) {
    longest_ = static_cast<int64_t>(known.prompts.back().size());
    open();
  }

  void run(int n_calls) {
    Deck<Kind> deck(kinds());
    for (int i = 0; i < n_calls && !::testing::Test::HasFailure(); ++i) {
      const Kind& kind = deck.deal(random_);
      SCOPED_TRACE(std::string(kind.name) + ", call " + std::to_string(i));
      (this->*kind.call)();
      look();
    }
    while (!sent_.empty()) wait();
    const BatchStats stats = batch_->stats();
    EXPECT_EQ(stats.queued + stats.prefilling + stats.decoding, 0);
    EXPECT_EQ(stats.ended, n_submitted_);
    // A fuzz in which nothing is ever answered would pass too.
    EXPECT_GT(n_finished_, 0);
  }

 private:
  struct Kind {
    const char* name;
    int n;  // in a deck
    void (BatchFuzz::*call)();
  };
  static std::span<const Kind> kinds();

  size_t below(size_t n) { return static_cast<size_t>(random_() % n); }

  void open() {
    batch_.emplace(known_.engine.open_batch({{"budget", kBudget},
                                             {"parallel", std::to_string(1 + below(4))},
                                             {"max-gap", below(2) == 0 ? "0" : "0.001"},
                                             {"max-prompt", std::to_string(longest_)},
                                             {"n-predict", std::to_string(kNew)}}));
    n_submitted_ = 0;
  }

  void submit() {
    if (sent_.size() > 12) return wait();
    const size_t prompt = below(3), sampling = below(std::size(kSampling));
    const int64_t n = below(3) == 0 ? -1 : 1 + static_cast<int64_t>(below(kNew));
    const int64_t stop = below(4) == 0 ? 1 + static_cast<int64_t>(below(4)) : 0;
    const int64_t raise = below(6) == 0 ? 1 + static_cast<int64_t>(below(4)) : 0;
    const auto streamed = std::make_shared<std::string>();
    const auto listen = [=, heard = int64_t{0}](const Piece& piece) mutable {
      *streamed += piece.text;
      if (++heard == raise) throw std::out_of_range("the listener is gone");
      return heard != stop;
    };
    const Options& options = kSampling[sampling];
    sent_.push_back({.request = below(3) == 0
                                    ? batch_->submit(known_.texts[prompt], n, options, listen)
                                    : batch_->submit(known_.prompts[prompt], n, options, listen),
                     .prompt = prompt,
                     .sampling = sampling,
                     .n = n,
                     .stop_after = stop,
                     .throw_after = raise,
                     .streamed = streamed});
    ++n_submitted_;
  }

  void cancel() {
    if (sent_.empty()) submit();
    Sent& sent = sent_[below(sent_.size())];
    sent.request.cancel();
    sent.cancelled = true;
  }

  void wait() {
    if (sent_.empty()) submit();
    const size_t which = below(sent_.size());
    verify(sent_[which]);
    sent_.erase(sent_.begin() + static_cast<std::ptrdiff_t>(which));
  }

  void verify(const Sent& sent) {
    const Generation& whole = known_.answers.at({sent.prompt, sent.sampling});
    const auto n_whole = static_cast<int64_t>(whole.tokens.size());
    const int64_t wanted = std::min(sent.n == -1 ? kNew : sent.n, n_whole);
    Generation got;
    try {
      got = sent.request.wait();
    } catch (const std::out_of_range&) {
      EXPECT_GT(sent.throw_after, 0);
      EXPECT_EQ(sent.request.stats().state, RequestState::kFailed);
      EXPECT_EQ(sent.request.stats().generated_tokens, sent.throw_after);
      return;
    }
    const auto n = static_cast<int64_t>(got.tokens.size());
    EXPECT_EQ(got.text, *sent.streamed);
    EXPECT_TRUE(std::equal(got.tokens.begin(), got.tokens.end(), whole.tokens.begin()));
    EXPECT_EQ(sent.request.stats().generated_tokens, n);
    if (got.reason == FinishReason::kStopped) {
      EXPECT_TRUE(sent.cancelled || n == sent.stop_after);
      EXPECT_EQ(sent.request.stats().state, RequestState::kCancelled);
      EXPECT_LE(n, wanted);
      return;
    }
    EXPECT_EQ(n, wanted);
    EXPECT_EQ(sent.request.stats().state, RequestState::kFinished);
    const bool ends = wanted == n_whole && whole.reason == FinishReason::kEndOfText;
    EXPECT_EQ(got.reason, ends ? FinishReason::kEndOfText : FinishReason::kLength);
    if (wanted == n_whole) {
      EXPECT_EQ(got.text, whole.text);
    }
    ++n_finished_;
  }

  void session() {
    const size_t prompt = below(3), sampling = below(std::size(kSampling));
    Session session = known_.open(sampling);
    EXPECT_TRUE(session.prefill(known_.prompts[prompt]));
    EXPECT_EQ(session.generate(kNew).tokens, (known_.answers.at({prompt, sampling}).tokens));
  }

  void reopen() {
    std::thread other;
    if (below(2) == 0) {
      other = std::thread([this] { batch_->close(); });
      batch_->close();
      EXPECT_KIND(batch_->submit(known_.prompts[0]), ErrorKind::kState);
    } else {
      batch_.reset();
    }
    if (other.joinable()) other.join();
    for (Sent& sent : sent_) {
      EXPECT_TRUE(sent.request.done());
      sent.cancelled = true;
    }
    open();
  }

  void illegal() {
    Batch& batch = *batch_;
    const std::vector<int32_t> outside = {1, 2048}, negative = {-1}, some = {1, 2};
    const std::vector<int32_t> too_long(static_cast<size_t>(longest_) + 1, 5);
    const std::span<const int32_t> nothing;
    EXPECT_KIND(batch.submit(nothing), ErrorKind::kUsage);
    EXPECT_KIND(batch.submit("", -1, {{"no-bos", "true"}}), ErrorKind::kUsage);
    EXPECT_KIND(batch.submit(outside), ErrorKind::kUsage);
    EXPECT_KIND(batch.submit(negative), ErrorKind::kUsage);
    EXPECT_KIND(batch.submit(too_long), ErrorKind::kUsage);
    EXPECT_KIND(batch.submit(some, 0), ErrorKind::kUsage);
    EXPECT_KIND(batch.submit(some, -static_cast<int64_t>(2 + below(9))), ErrorKind::kUsage);
    EXPECT_KIND(batch.submit(some, 1, {{"slots", "2"}}), ErrorKind::kUsage);
    EXPECT_KIND(batch.submit(some, 1, {{"ctx-size", "9"}}), ErrorKind::kUsage);
    EXPECT_KIND(known_.engine.open_batch(), ErrorKind::kUsage);
  }

  void look() {
    const BatchStats stats = batch_->stats();
    EXPECT_EQ(stats.queued + stats.prefilling + stats.decoding + stats.ended, n_submitted_);
    if (sent_.empty()) return;
    Sent& sent = sent_[below(sent_.size())];
    const bool done = sent.request.done();
    const RequestStats its = sent.request.stats();
    EXPECT_EQ(its.prompt_tokens, static_cast<int64_t>(known_.prompts[sent.prompt].size()));
    EXPECT_LE(its.generated_tokens, kNew);
    if (done) {
      EXPECT_TRUE(sent.request.wait_for(0));
      EXPECT_GE(its.state, RequestState::kFinished);
    }
  }

  std::mt19937_64 random_;
  const Known& known_;
  int64_t longest_ = 0, n_submitted_ = 0, n_finished_ = 0;
  std::optional<Batch> batch_;
  std::vector<Sent> sent_;
};

std::span<const BatchFuzz::Kind> BatchFuzz::kinds() {
  static constexpr Kind kKinds[] = {
      {"submit", 16, &BatchFuzz::submit},  {"wait", 10, &BatchFuzz::wait},
      {"illegal", 6, &BatchFuzz::illegal}, {"cancel", 4, &BatchFuzz::cancel},
      {"session", 3, &BatchFuzz::session}, {"reopen", 1, &BatchFuzz::reopen},
  };
  return kKinds;
}

TEST(ApiFuzz, RandomRequestsOfABatchDoWhatTheHeaderSays) {
  const Known known;
  BatchFuzz(seed(), known).run(kCalls);
}

TEST(ApiFuzz, TwoBatchesOnOneEngineDisturbNothing) {
  const Known known;
  BatchFuzz one(seed() + 1, known), other(seed() + 2, known);
  std::thread thread([&] { EXPECT_NO_THROW(one.run(kSharedCalls)); });
  EXPECT_NO_THROW(other.run(kSharedCalls));
  thread.join();
}

}  // namespace
}  // namespace tiercel::test
