// What the scheduler decides, on a batch that only counts: order, room, ageing, latency.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "engine/base/check.h"

namespace tiercel {
namespace {

// Sequences take a byte per token of context, but for that of a prefix which they share, and one more
// per slot budget and prompt token. The next token of a sequence is the number of tokens in it.
class CountingBatch : public Batch {
 public:
  explicit CountingBatch(int64_t bytes, int64_t n_sequences = 64) : limit_(bytes) {
    plan_.n_sequences = n_sequences;
    config_.vocab_size = 1 << 20;
  }

  SessionPlan plan_sequence(int64_t n_prompt, int64_t n_new, double slots) const override {
    SessionPlan plan;
    plan.n_prompt = n_prompt;
    plan.context = n_prompt + n_new;
    plan.options.selection.slots = slots > 0 ? slots : 4;
    return plan;
  }
  SessionPlan plan_prefix(int64_t n_tokens) const override {
    SessionPlan plan = plan_sequence(n_tokens, 0, 0);
    plan.is_prefix = true;
    return plan;
  }
  SessionPlan plan_behind(const SessionPlan& prefix, int64_t n_prompt, int64_t n_new,
                          double slots) const override {
    SessionPlan plan = plan_sequence(n_prompt, n_new, slots);
    plan.n_prefix = prefix.context;
    plan.context += prefix.context;
    return plan;
  }
  SequenceBytes bytes_of(const SessionPlan& s) const override {
    const auto slots = static_cast<int64_t>(s.options.selection.slots * 10);
    return {.device = s.context - s.n_prefix + (s.is_prefix ? 0 : slots), .prefill = s.n_prompt};
  }
  SequenceWork work_of(const SessionPlan& s) const override {
    return {static_cast<double>(s.n_prompt), 1};
  }
  bool has_room(const SequenceBytes& bytes) const override {
    int64_t n_decoded = 0;
    for (const auto& [name, s] : sequences) n_decoded += s.plan.is_prefix ? 0 : 1;
    return n_decoded < plan_.n_sequences &&
           device_bytes() + bytes.device + bytes.prefill <= limit_;
  }
  int64_t add(const SessionPlan& s, std::span<const int32_t> prompt, int64_t prefix) override {
    EXPECT_TRUE(has_room(bytes_of(s)));
    EXPECT_EQ(prefix >= 0, s.n_prefix > 0);
    if (prefix >= 0) {
      const Sequence& shared = sequences.at(prefix);
      EXPECT_TRUE(shared.plan.is_prefix);
      EXPECT_EQ(shared.prefilled, s.n_prefix);
    }
    log += (s.is_prefix ? "P" : "+") + std::to_string(prompt[0]);
    if (std::ssize(sequences) >= n_really_fit) fail(ErrorKind::kDoesNotFit, "the driver disagrees");
    sequences[next_] = {s, s.n_prefix + s.n_prompt, 0, prefix};
    return next_++;
  }
  // A hundred tokens at a time.
  PrefillProgress advance_prefill(int64_t name) override {
    Sequence& s = sequences.at(name);
    s.prefilled = std::min(s.prefilled + 100, s.plan.n_prompt);
    log += ".";
    return {static_cast<double>(s.prefilled), static_cast<double>(s.plan.n_prompt),
            s.prefilled == s.plan.n_prompt};
  }
  int64_t micro_batches(int64_t) const override { return 1; }
  int64_t step_launches() const override { return 0; }
  void step(std::span<const Step> steps) override {
    log += "s";
    if (fails_next_step) {
      fails_next_step = false;
      fail("the device is gone");
    }
    drafted_ = 1;
    for (const Step& step : steps) ++sequences.at(step.sequence).n_tokens;
  }
  int64_t most_drafted(int64_t) const override { return 5; }
  // Of a step of several tokens the sequence has those up to the row that is shown.
  void step_drafted(int64_t name, std::span<const int32_t> tokens) override {
    log += "d" + std::to_string(tokens.size());
    if (fails_next_step) fail("the device is gone");
    drafted_ = std::ssize(tokens);
    ++sequences.at(name).n_tokens;
  }
  void show(int64_t name, int64_t row) override {
    EXPECT_LE(row, drafted_ - 1);
    if (row > 0) ++sequences.at(name).n_tokens;
  }
  void take_back(int64_t, int64_t n) override {
    EXPECT_LE(n, drafted_ - 1);
    if (n > 0) log += "b" + std::to_string(n);
  }
  int32_t sample(int64_t name, Sampler&, std::span<const int32_t>) override {
    return static_cast<int32_t>(sequences.at(name).n_tokens);
  }
  std::span<const float> logits(int64_t) override { return {}; }
  void remove(int64_t name) override {
    for (const auto& [other, s] : sequences) EXPECT_NE(s.prefix, name) << "it is still read";
    if (sequences.at(name).plan.is_prefix) log += "-";
    sequences.erase(name);
  }
  SelectionReport selection(int64_t) const override {
    if (is_lost) fail("no counters either");
    return selection_;
  }
  int64_t n_tokens(int64_t name) const override { return sequences.at(name).n_tokens; }
  const BatchPlan& plan() const override { return plan_; }
  const ModelConfig& config() const override { return config_; }
  int64_t device_bytes() const override {
    int64_t bytes = 0;
    for (const auto& [name, s] : sequences) {
      bytes += bytes_of(s.plan).device + (s.prefilled < s.plan.n_prompt ? s.plan.n_prompt : 0);
    }
    return bytes;
  }
  int64_t host_bytes() const override { return 0; }
  std::string backend_description() const override { return "a count"; }

  struct Sequence {
    SessionPlan plan;
    int64_t n_tokens = 0, prefilled = 0, prefix = -1;
  };
  std::map<int64_t, Sequence> sequences;
  // "+7", "P7": the request, or the prefix, of sevens came in; ".": prefill; "s": a step; "d3": one of three tokens,
  // "b2": of which two were taken back; "-": a prefix has gone.
  std::string log;
  bool fails_next_step = false, is_lost = false;
  int64_t n_really_fit = 64;
  SelectionReport selection_;

  void draft(int64_t most) {
    plan_.largest.draft = most;
    plan_.largest.options.draft = DraftMode::kAlways;
  }

 private:
  BatchPlan plan_;
  int64_t drafted_ = 1;
  ModelConfig config_;
  int64_t limit_, next_ = 0;
};

struct Bench {
  explicit Bench(int64_t bytes, double max_gap = 0, std::function<bool()> go_on = {}, int64_t n_sequences = 64)
      : scheduler(std::make_unique<CountingBatch>(bytes, n_sequences), {max_gap, std::move(go_on)}),
        batch(static_cast<CountingBatch&>(scheduler.batch())) {}

  Scheduler::RequestId send(int32_t mark, int64_t n_prompt, int64_t n_new, SharedPrefix prefix = {}) {
    return scheduler.submit({.prefix = std::move(prefix),
                             .prompt = std::vector<int32_t>(static_cast<size_t>(n_prompt), mark),
                             .n_new = n_new});
  }
  void run() {
    while (scheduler.turn()) {
    }
  }

  Scheduler scheduler;
  CountingBatch& batch;
};

// Short requests keep coming, and are enough to fill the memory at any time.
TEST(Scheduler, ShortRequestsOvertakeButNoneWaitsForEver) {
  Bench bench(1000);
  for (int i = 0; i < 20; ++i) bench.send(1, 10, 30);
  bench.scheduler.turn();
  const auto longest = bench.send(2, 300, 20);
  int n_sent = 0;
  while (bench.scheduler.report(longest).state == RequestState::kQueued) {
    bench.send(3, 10, 30);
    ASSERT_LT(++n_sent, 200);
    ASSERT_TRUE(bench.scheduler.turn());
  }
  // Some did overtake it.
  EXPECT_GT(bench.scheduler.report().ended, 20);
  bench.run();
  EXPECT_EQ(bench.scheduler.report(longest).state, RequestState::kFinished);
  EXPECT_EQ(bench.scheduler.report().ended, 21 + n_sent);
  EXPECT_TRUE(bench.batch.sequences.empty());
}

TEST(Scheduler, ShortestFirstButWorkDoneCounts) {
  Bench bench(1 << 20);
  bench.send(1, 500, 1);
  bench.send(2, 300, 1);
  bench.send(3, 100, 1);
  bench.run();
  EXPECT_EQ(bench.batch.log, "+3.+2...+1.....");
  // A request that comes later counts the work that was done before it came.
  Bench later(1 << 20);
  later.send(1, 1000, 1);
  later.send(2, 1100, 1);
  later.scheduler.turn();  // both: nothing decodes between them
  later.send(3, 10, 1);
  later.run();
  EXPECT_EQ(later.batch.log, "+1..........+2...........+3.");
}

TEST(Scheduler, PrefillIsPutBetweenSteps) {
  Bench bench(1 << 20, /*max_gap=*/1e-9);
  bench.send(1, 100, 6);
  bench.scheduler.turn();
  bench.send(2, 300, 2);
  bench.run();
  // One run of prefill before each step; its own first token comes with the last of them.
  EXPECT_EQ(bench.batch.log, "+1.s+2.s.s.ss");
  EXPECT_EQ(bench.scheduler.report().most_decoding, 2);
}

// A turn with long prompts is left between two runs of them, and taken up again.
TEST(Scheduler, StopsWithinAPromptWhenAskedTo) {
  int left = 3;
  Bench bench(1 << 20, 0, [&] { return --left > 0; });
  bench.send(1, 800, 2);
  EXPECT_TRUE(bench.scheduler.turn());
  EXPECT_EQ(bench.batch.log, "+1...");
  EXPECT_EQ(bench.scheduler.report().prompt_tokens, 0);
  EXPECT_DOUBLE_EQ(bench.scheduler.report().partial_prompt_tokens, 300);
  left = 1 << 20;
  bench.run();
  EXPECT_EQ(bench.batch.log, "+1........s");
  EXPECT_EQ(bench.scheduler.report().prompt_tokens, 800);
  EXPECT_EQ(bench.scheduler.report().partial_prompt_tokens, 0);
}

TEST(Scheduler, WorkingSetsDecideWhereCachesDoNotFit) {
  // Three sequences of 100 + 40 bytes, one with 50 more, do not fit 450; with a smaller cache they do.
  Bench bench(450);
  bench.batch.selection_ = {.steps = 1, .selected_chunks = 1000, .hit_chunks = 950};
  const auto first = bench.send(1, 50, 50), second = bench.send(2, 50, 50);
  bench.scheduler.turn();
  const auto third = bench.send(3, 50, 50);
  bench.scheduler.turn();
  EXPECT_EQ(bench.scheduler.report(first).slots, 4);
  EXPECT_EQ(bench.scheduler.report(second).slots, 4);
  EXPECT_EQ(bench.scheduler.report(third).state, RequestState::kDecoding);
  EXPECT_DOUBLE_EQ(bench.scheduler.report(third).slots, 1 + 0.05 * kWorkingSetSteps);
  bench.run();
  EXPECT_EQ(bench.scheduler.report().ended, 3);
}

TEST(Scheduler, AFailedStepFailsThoseInItOnly) {
  Bench bench(1 << 20);
  const auto first = bench.send(1, 10, 5);
  bench.scheduler.turn();
  const auto second = bench.send(2, 10, 5);
  bench.batch.fails_next_step = true;
  bench.scheduler.turn();
  EXPECT_EQ(bench.scheduler.report(first).state, RequestState::kFailed);
  EXPECT_EQ(bench.scheduler.report(first).error, "the device is gone");
  EXPECT_EQ(bench.scheduler.report(first).tokens.size(), 2u);
  EXPECT_EQ(bench.scheduler.report(second).state, RequestState::kFailed);
  const auto third = bench.send(3, 10, 5);
  bench.run();
  EXPECT_EQ(bench.scheduler.report(third).state, RequestState::kFinished);
  EXPECT_TRUE(bench.batch.sequences.empty());
}

// n numbers from `first` on. Those of an answer begin with the length of its prompt.
std::vector<int32_t> numbers(int32_t first, int32_t n) {
  std::vector<int32_t> all(static_cast<size_t>(n));
  std::iota(all.begin(), all.end(), first);
  return all;
}

TEST(Scheduler, GuessesForWhoIsAlone) {
  Bench bench(100000);
  bench.batch.draft(4);
  const auto id = bench.scheduler.submit({.prompt = numbers(12, 12), .n_new = 14});
  bench.run();
  const RequestReport report = bench.scheduler.report(id);
  EXPECT_EQ(report.state, RequestState::kFinished);
  EXPECT_EQ(report.tokens, numbers(12, 14));
  // Behind 12 and 13 the prompt is followed; of what it does not have no more is guessed than is wanted.
  EXPECT_EQ(bench.batch.log, "+12.sd5d5d2b1s");
  const SchedulerReport totals = bench.scheduler.report();
  EXPECT_EQ(totals.drafts.guessed, 9);
  EXPECT_EQ(totals.drafts.right, 8);
  EXPECT_EQ(totals.step_tokens, 13);
  EXPECT_EQ(totals.steps, 5);
}

TEST(Scheduler, TakesWrongGuessesBack) {
  Bench bench(100000);
  bench.batch.draft(4);
  const auto id = bench.scheduler.submit({.prompt = {7, 8, 9, 10, 70, 71, 72}, .n_new = 9});
  bench.run();
  EXPECT_EQ(bench.scheduler.report(id).tokens, numbers(7, 9));
  EXPECT_EQ(bench.batch.log, "+7.sd5b2ssss");
}

// Several are not guessed for; who is left alone is, by what stands in its prefix.
TEST(Scheduler, GuessesWhileOneIsLeft) {
  Bench bench(100000);
  bench.batch.draft(4);
  const auto prefix = std::make_shared<const std::vector<int32_t>>(numbers(21, 20));
  const auto first = bench.send(5, 1, 12, prefix), second = bench.send(6, 1, 3, prefix);
  bench.run();
  EXPECT_EQ(bench.scheduler.report(first).tokens, numbers(21, 12));
  EXPECT_EQ(bench.scheduler.report(second).tokens, numbers(21, 3));
  EXPECT_EQ(bench.batch.log, "P21.+6.+5.ssd5d4");
}

// Among right guesses somebody has heard enough, or the answer ends.
TEST(Scheduler, EndsAmongGuesses) {
  for (const bool cancels : {false, true}) {
    Bench bench(100000);
    bench.batch.draft(4);
    Request request = {.prompt = numbers(12, 12), .n_new = 20};
    if (cancels) {
      request.on_token = [](int32_t token, const TokenLogprobs*) { return token < 16; };
    } else {
      request.end_tokens = {16};
    }
    const auto id = bench.scheduler.submit(std::move(request));
    bench.run();
    EXPECT_EQ(bench.scheduler.report(id).state, cancels ? RequestState::kCancelled : RequestState::kFinished);
    EXPECT_EQ(bench.scheduler.report(id).tokens, numbers(12, 5));
    EXPECT_TRUE(bench.batch.sequences.empty());
  }
}

TEST(Scheduler, AFailedGuessFailsItsRequest) {
  Bench bench(100000);
  bench.batch.draft(4);
  const auto id = bench.scheduler.submit({.prompt = numbers(12, 12), .n_new = 20});
  while (bench.batch.log.find('s') == std::string::npos) bench.scheduler.turn();
  bench.batch.fails_next_step = true;
  bench.run();
  EXPECT_EQ(bench.scheduler.report(id).state, RequestState::kFailed);
  EXPECT_EQ(bench.scheduler.report(id).error, "the device is gone");
  EXPECT_TRUE(bench.batch.sequences.empty());
}

// A device that is lost fails everything, and everyone hears of it, with what was said first.
TEST(Scheduler, ALostDeviceEndsEveryRequest) {
  Bench bench(1 << 20);
  const auto first = bench.send(1, 10, 5), second = bench.send(2, 10, 5);
  bench.scheduler.turn();
  bench.batch.fails_next_step = bench.batch.is_lost = true;
  bench.run();
  for (const auto id : {first, second}) {
    EXPECT_EQ(bench.scheduler.report(id).state, RequestState::kFailed);
    EXPECT_EQ(bench.scheduler.report(id).error, "the device is gone");
  }
}

// Where less fits than was planned, nobody tries again before a sequence has gone.
TEST(Scheduler, TriesAgainWhenMemoryMayHaveComeBack) {
  Bench bench(1 << 20);
  bench.batch.n_really_fit = 2;
  std::vector<Scheduler::RequestId> ids;
  for (int32_t i = 1; i <= 4; ++i) ids.push_back(bench.send(i, 10, 3 * i));
  bench.run();
  for (const auto id : ids) {
    EXPECT_EQ(bench.scheduler.report(id).state, RequestState::kFinished);
  }
  // Two came in, and the third in vain; again when the first had gone, and the fourth in vain; and so on.
  EXPECT_EQ(std::count(bench.batch.log.begin(), bench.batch.log.end(), '+'), 4 + 2) << bench.batch.log;
}

TEST(Scheduler, WhatFitsNowhereFailsByItself) {
  Bench bench(500);
  const auto big = bench.send(1, 400, 100), small = bench.send(2, 10, 3);
  bench.run();
  EXPECT_EQ(bench.scheduler.report(big).state, RequestState::kFailed);
  EXPECT_EQ(bench.scheduler.report(big).error_kind, ErrorKind::kDoesNotFit);
  EXPECT_EQ(bench.scheduler.report(small).state, RequestState::kFinished);
}

TEST(Scheduler, CancelledAtAnyStage) {
  Bench bench(700, 1e-9);
  const auto running = bench.send(1, 100, 50);
  bench.scheduler.turn();
  const auto prefilling = bench.send(2, 200, 50);
  bench.scheduler.turn();
  EXPECT_EQ(bench.scheduler.report(prefilling).state, RequestState::kPrefilling);
  const auto queued = bench.send(3, 500, 50);
  bench.scheduler.turn();
  EXPECT_EQ(bench.scheduler.report(queued).state, RequestState::kQueued);
  const auto unseen = bench.send(4, 10, 1);
  for (const auto id : {running, prefilling, queued, unseen}) {
    bench.scheduler.cancel(id);
    bench.scheduler.cancel(id);
  }
  EXPECT_FALSE(bench.scheduler.turn());
  for (const auto id : {running, prefilling, queued, unseen}) {
    EXPECT_EQ(bench.scheduler.report(id).state, RequestState::kCancelled) << id;
  }
  bench.scheduler.cancel(running);  // nothing to do any more
  EXPECT_FALSE(bench.scheduler.turn());
  EXPECT_TRUE(bench.batch.sequences.empty());
}

SharedPrefix prefix_of(int32_t mark, size_t n) {
  return std::make_shared<const std::vector<int32_t>>(n, mark);
}

TEST(Scheduler, APrefixIsPrefilledOnce) {
  Bench bench(1 << 20);
  auto prefix = prefix_of(9, 300);
  std::vector<Scheduler::RequestId> ids;
  for (int32_t mark = 1; mark <= 3; ++mark) ids.push_back(bench.send(mark, 100, 2, prefix));
  prefix.reset();  // the requests hold it
  bench.run();
  EXPECT_EQ(bench.batch.log, "P9...+1.+2.+3.s-");
  EXPECT_TRUE(bench.batch.sequences.empty());
  for (const auto id : ids) {
    const RequestReport report = bench.scheduler.report(id);
    EXPECT_EQ(report.state, RequestState::kFinished);
    EXPECT_EQ(report.prompt_tokens, 400);
    EXPECT_EQ(report.prefix_tokens, 300);
    // Of the tokens in it, the prefix's included.
    EXPECT_EQ(report.tokens, (std::vector<int32_t>{400, 401}));
  }
  EXPECT_EQ(bench.scheduler.report().prompt_tokens, 300 + 3 * 100);
  EXPECT_THROW(bench.send(1, 10, 1, prefix_of(9, 0)), Error);
  EXPECT_THROW(bench.send(1, 0, 1, prefix_of(9, 10)), Error);
}

// What somebody holds stays for those that come later, until its room is wanted.
TEST(Scheduler, APrefixStaysWhileItIsHeldAndThereIsRoom) {
  Bench bench(1000);
  auto prefix = prefix_of(9, 300);
  bench.send(1, 100, 1, prefix);
  bench.run();
  bench.send(2, 100, 1, prefix);
  bench.run();
  EXPECT_EQ(bench.batch.log, "P9...+1.+2.");
  bench.send(3, 400, 1);  // 841 bytes
  bench.run();
  EXPECT_EQ(bench.batch.log, "P9...+1.+2.-+3....");
  bench.send(4, 100, 1, prefix);
  bench.run();
  EXPECT_EQ(bench.batch.log, "P9...+1.+2.-+3....P9...+4.");
  prefix.reset();
  bench.run();
  EXPECT_TRUE(bench.batch.sequences.empty());
}

// That as many decode as may is no reason to give memory back.
TEST(Scheduler, AFullBatchKeepsItsPrefixes) {
  Bench bench(1 << 20, 0, {}, /*n_sequences=*/1);
  const SharedPrefix prefix = prefix_of(9, 300);
  const auto first = bench.send(1, 100, 2, prefix);
  bench.run();
  bench.send(2, 100, 5);
  bench.send(3, 100, 5);
  bench.run();
  const auto second = bench.send(4, 100, 2, prefix);
  EXPECT_EQ(bench.scheduler.prefilled_tokens(second), 0);
  bench.run();
  EXPECT_EQ(bench.batch.log, "P9...+1.s+2.ssss+3.ssss+4.s");
  EXPECT_EQ(bench.scheduler.report(first).cached_tokens, 0);
  EXPECT_EQ(bench.scheduler.report(second).cached_tokens, 300);
}

// Those that were used longest ago go first, and only where that makes room.
TEST(Scheduler, WhichPrefixMakesWay) {
  Bench bench(1500);
  const SharedPrefix a = prefix_of(7, 300), b = prefix_of(8, 300), c = prefix_of(9, 300);
  for (const SharedPrefix& prefix : {a, b, c, a}) {
    bench.send(1, 10, 1, prefix);
    bench.run();
  }
  EXPECT_EQ(bench.batch.log, "P7...+1.P8...+1.P9...+1.+1.");
  bench.batch.log.clear();
  bench.send(2, 300, 1);  // 641 bytes while it is prefilled
  bench.run();
  EXPECT_EQ(bench.batch.log, "-+2...");
  bench.batch.log.clear();
  for (const SharedPrefix& prefix : {c, a, b}) {
    bench.send(1, 10, 1, prefix);
    bench.run();
  }
  EXPECT_EQ(bench.batch.log, "+1.+1.P8...+1.");
  // Beside one that decodes there is no room for it whatever goes.
  bench.batch.log.clear();
  bench.send(3, 10, 30);
  bench.scheduler.turn();
  bench.send(4, 710, 1);  // 1,461
  for (int i = 0; i < 5; ++i) bench.scheduler.turn();
  EXPECT_EQ(bench.batch.log, "+3.ssssss");
  bench.run();
  EXPECT_NE(bench.batch.log.find("+4"), std::string::npos);
}

// One that nobody waits for does not keep out who would do with a smaller cache.
TEST(Scheduler, APrefixMakesWayForASmallCache) {
  Bench bench(700);
  bench.batch.selection_.selected_chunks = bench.batch.selection_.hit_chunks = 100;
  const SharedPrefix prefix = prefix_of(9, 300);
  bench.send(1, 10, 1, prefix);
  bench.run();
  bench.batch.log.clear();
  const auto first = bench.send(2, 10, 340);  // 390 bytes
  bench.scheduler.turn();
  const auto second = bench.send(3, 140, 3);  // 323 with its prompt; with one slot 293
  bench.scheduler.turn();
  EXPECT_EQ(bench.scheduler.report(second).state, RequestState::kDecoding) << bench.batch.log;
  EXPECT_EQ(bench.scheduler.report(second).slots, 1);
  EXPECT_EQ(bench.scheduler.report(first).state, RequestState::kDecoding);
}

// Where less fits than was planned, a prefix that is only held makes way too.
TEST(Scheduler, APrefixMakesWayWhenTheDriverDisagrees) {
  Bench bench(1 << 20);
  bench.batch.n_really_fit = 2;
  const SharedPrefix a = prefix_of(8, 100), b = prefix_of(9, 100);
  bench.send(1, 10, 1, a);
  bench.run();
  const auto behind = bench.send(2, 10, 1, b);
  bench.run();
  EXPECT_EQ(bench.scheduler.report(behind).state, RequestState::kFinished);
  // In vain, and again when the first prefix had gone.
  EXPECT_EQ(bench.batch.log, "P8.+1.P9.+2-+2.");
}

// Its own work and that of its prefix decide where a request stands; those behind one that is there go
// first.
TEST(Scheduler, PrefixesCountInTheOrder) {
  Bench bench(1 << 20);
  const SharedPrefix longer = prefix_of(8, 500), shorter = prefix_of(9, 200);
  bench.send(1, 100, 1, longer);
  bench.send(2, 100, 1, shorter);
  bench.send(3, 250, 1);
  bench.send(4, 100, 1, longer);
  bench.send(5, 100, 1, shorter);
  bench.run();
  EXPECT_EQ(bench.batch.log, "+3...P9..+2.+5.P8.....+1.+4.");
}

// Room for one of two prefixes at a time: neither makes way while somebody waits for it, but where nothing
// runs the first in order does not wait.
TEST(Scheduler, PrefixesTakeTurns) {
  Bench bench(900);
  std::vector<Scheduler::RequestId> ids;
  {
    const SharedPrefix a = prefix_of(8, 400), b = prefix_of(9, 400);
    for (int i = 0; i < 3; ++i) {
      ids.push_back(bench.send(1, 50, 4, a));
      ids.push_back(bench.send(2, 50, 4, b));
    }
  }
  bench.run();
  for (const auto id : ids) {
    EXPECT_EQ(bench.scheduler.report(id).state, RequestState::kFinished)
        << bench.scheduler.report(id).error;
  }
  EXPECT_EQ(std::count(bench.batch.log.begin(), bench.batch.log.end(), 'P'), 2) << bench.batch.log;
  EXPECT_TRUE(bench.batch.sequences.empty());
  // More than all of the memory.
  const auto never = bench.send(3, 50, 1, prefix_of(7, 600)), other = bench.send(4, 50, 1);
  bench.run();
  EXPECT_EQ(bench.scheduler.report(never).state, RequestState::kFailed);
  EXPECT_EQ(bench.scheduler.report(never).error_kind, ErrorKind::kDoesNotFit);
  EXPECT_EQ(bench.scheduler.report(other).state, RequestState::kFinished);
}

TEST(Scheduler, APrefixThatNobodyWaitsForIsLeft) {
  Bench bench(1 << 20, 1e-9);
  bench.send(1, 10, 50);
  bench.scheduler.turn();
  const SharedPrefix prefix = prefix_of(9, 900);
  const auto first = bench.send(2, 10, 5, prefix), second = bench.send(3, 10, 5, prefix);
  bench.scheduler.turn();
  bench.scheduler.turn();
  EXPECT_EQ(bench.batch.log, "+1.sP9.s.s");
  EXPECT_DOUBLE_EQ(bench.scheduler.report().partial_prompt_tokens, 200);
  bench.scheduler.cancel(first);
  bench.scheduler.turn();
  EXPECT_EQ(bench.scheduler.report(second).state, RequestState::kQueued);
  bench.scheduler.cancel(second);
  bench.scheduler.turn();
  EXPECT_EQ(bench.scheduler.report().partial_prompt_tokens, 0);
  EXPECT_EQ(bench.batch.sequences.size(), 1u);
  bench.run();
  EXPECT_TRUE(bench.batch.sequences.empty());
}

// on_end may forget its own request.
TEST(Scheduler, ForgottenAtItsEnd) {
  Bench bench(1 << 20);
  int ended = 0;
  for (int i = 0; i < 5; ++i) {
    auto id = std::make_shared<Scheduler::RequestId>();
    *id = bench.scheduler.submit({.prompt = {1, 2, 3},
                                  .n_new = 1 + i,
                                  .on_end = [&, id](const RequestReport& report) {
                                    EXPECT_EQ(report.state, RequestState::kFinished);
                                    bench.scheduler.forget(*id);
                                    ++ended;
                                  }});
  }
  bench.run();
  EXPECT_EQ(ended, 5);
  EXPECT_THROW(bench.scheduler.report(0), Error);
  // Cancelled twice before it was seen once.
  auto id = std::make_shared<Scheduler::RequestId>();
  *id = bench.scheduler.submit(
      {.prompt = {1}, .n_new = 9, .on_end = [&, id](const RequestReport& report) {
         EXPECT_EQ(report.state, RequestState::kCancelled);
         bench.scheduler.forget(*id);
         ++ended;
       }});
  bench.scheduler.cancel(*id);
  bench.scheduler.cancel(*id);
  bench.run();
  EXPECT_EQ(ended, 6);
}

}  // namespace
}  // namespace tiercel
