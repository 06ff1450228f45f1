// A batch and its scheduler: every sequence gets the tokens that it gets by itself, whatever comes,
// goes, fails or waits beside it.
#include "engine/batch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <new>
#include <random>
#include <set>
#include <stdexcept>

#include "engine/base/check.h"
#include "engine/presets.h"
#include "engine/scheduler.h"
#include "engine/text/tokenizer.h"
#include "tests/engine/add_prefilled.h"
#include "tests/engine/rms.h"
#include "tests/engine/two_tiers.h"
#include "tests/random_constraint.h"
#include "tests/sanitized.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

constexpr const char* kModel = TIERCEL_SOURCE_DIR "/tools/demo/recall-4m";

std::shared_ptr<Model> model(int threads = 2) {
  return Model::open(kModel, {.backend = BackendKind::kCpu, .n_threads = threads});
}

// A fact among filler, and the question for it; n tokens, give or take.
std::vector<int32_t> prompt(int64_t n, int64_t number) {
  static const Tokenizer tokenizer = Tokenizer::load(kModel);
  std::string text;
  for (int64_t i = 0; i < n / 18; ++i) {
    text += fmt::format("Step {} of the guide explains how part {} of the machine is cleaned. ", i,
                        (i * 37 + number) % 101);
    if (i == n / 54) text += fmt::format("\nThe magic number for silver-harbor is {}.\n", number);
  }
  text += "\nWhat is the magic number for silver-harbor? The magic number for silver-harbor is";
  return tokenizer.encode(text);
}

struct Case {
  std::vector<int32_t> prompt;
  int64_t n_new = 8;
  SamplingOptions sampling = {};
};

// What a session of its own says.
std::vector<int32_t> alone(const std::shared_ptr<Model>& m, const Case& c,
                           const SessionOptions& options) {
  const auto n = static_cast<int64_t>(c.prompt.size());
  const auto session = Session::open(m, Session::plan(*m, options, n, c.n_new));
  EXPECT_TRUE(session->prefill(c.prompt, {}));
  Sampler sampler(c.sampling, m->config().vocab_size);
  std::vector<int32_t> history = c.prompt, tokens;
  for (int64_t i = 0; i < c.n_new; ++i) {
    tokens.push_back(session->sample(sampler, history));
    history.push_back(tokens.back());
    if (i + 1 < c.n_new) session->step(tokens.back());
  }
  return tokens;
}

ConstraintSource some_constraint(uint64_t seed) {
  return test::source_of(std::make_shared<test::RandomConstraint>(seed, model()->config().vocab_size));
}

std::vector<Case> some_cases(int64_t longest) {
  std::vector<Case> cases;
  for (int64_t i = 0; i < 9; ++i) {
    Case c{.prompt = prompt(40 + longest * i / 9, 10000 + 7 * i)};
    c.n_new = 3 + i * 5 % 14;
    if (i % 3 == 1) c.sampling = {.temperature = 0.8, .seed = static_cast<uint64_t>(i)};
    if (i % 2 == 0) c.sampling.constraint = some_constraint(static_cast<uint64_t>(i));
    cases.push_back(std::move(c));
  }
  cases.push_back({.prompt = {42}, .n_new = 5});
  return cases;
}

int64_t longest_of(const std::vector<Case>& cases) {
  int64_t n = 0;
  for (const Case& c : cases) n = std::max(n, static_cast<int64_t>(c.prompt.size()));
  return n;
}

// Sessions decide about codecs by themselves; a batch decides once for all.
SessionOptions decided(AttentionMode mode) {
  SessionOptions options = test::two_tiers(preset(mode));
  options.selection.budget = 256;
  options.selection.slots = 2;
  if (options.selection.key_codec == KeyCodec::kAuto) options.selection.key_codec = KeyCodec::kInt8;
  return options;
}

TEST(Batch, EverySequenceSaysWhatItSaysAlone) {
  const auto m = model();
  const std::vector<Case> cases = some_cases(test::kSanitized ? 400 : 1200);
  // Prompts first and then steps in two parts, or steps between them.
  for (const auto& [mode, max_gap] :
       {std::pair{AttentionMode::kDense, 0.001}, std::pair{AttentionMode::kShadow, 0.0},
        std::pair{AttentionMode::kTokenSelect, 0.001}, std::pair{AttentionMode::kDelta, 0.0}}) {
    if (test::kSanitized && max_gap != 0.0) continue;
    const SessionOptions options = decided(mode);
    BatchPlan plan = Batch::plan(*m, options, 4, longest_of(cases), 32);
    if (max_gap == 0) plan.micro_batches = MicroBatches::kTwo;
    Scheduler scheduler(Batch::open(m, plan), {max_gap});
    std::vector<Scheduler::RequestId> ids;
    for (const Case& c : cases) {
      ids.push_back(
          scheduler.submit({.prompt = c.prompt, .n_new = c.n_new, .sampling = c.sampling}));
    }
    while (scheduler.turn()) {
    }
    const SchedulerReport total = scheduler.report();
    EXPECT_EQ(total.ended, static_cast<int64_t>(cases.size()));
    EXPECT_LE(total.most_decoding, 4);
    EXPECT_GE(total.most_decoding, max_gap == 0 ? 4 : 2);
    for (size_t i = 0; i < cases.size(); ++i) {
      const RequestReport report = scheduler.report(ids[i]);
      EXPECT_EQ(report.state, RequestState::kFinished) << report.error;
      EXPECT_EQ(report.tokens, alone(m, cases[i], options)) << name_of(mode) << " " << i;
    }
  }
}

// Two sequences share the memory of ops: what one writes there must not be what the other comes back for.
// A prompt of two runs is indexed behind the second; between them others let chunks out of their windows.
TEST(Batch, StepsBetweenTheRunsOfAPromptLeaveItsIndexAlone) {
  const auto m = model();
  SessionOptions options = decided(AttentionMode::kShadow);
  options.prefill = PrefillMode::kSelect;
  options.selection.landmark_codec = RowCodec::kInt8;
  options.selection.budget = 64;
  options.selection.recent = 16;
  const Case longer{.prompt = prompt(4300, 10001), .n_new = 4};
  const auto n = static_cast<int64_t>(longer.prompt.size());
  const auto batch = Batch::open(m, Batch::plan(*m, options, 2, n, 1500));
  const std::vector<int32_t> shorter = prompt(200, 10002);
  const auto add = [&](const std::vector<int32_t>& tokens, int64_t n_new) {
    return batch->add(batch->plan_sequence(static_cast<int64_t>(tokens.size()), n_new, 2), tokens);
  };
  const int64_t talker = add(shorter, 1500);
  test::prefill(*batch, talker);
  const int64_t listener = add(longer.prompt, longer.n_new);
  int n_runs = 1;
  for (int32_t token = 100; !batch->advance_prefill(listener).finished; ++n_runs) {
    for (int i = 0; i < 60; ++i) batch->step(std::array{Batch::Step{talker, token++}});
  }
  EXPECT_GE(n_runs, 2 * m->config().n_layers);
  const auto session = Session::open(m, batch->plan_sequence(n, longer.n_new, 2));
  ASSERT_TRUE(session->prefill(longer.prompt, {}));
  for (int64_t i = 0; i < longer.n_new; ++i) {
    const std::span<const float> expected = session->logits(), found = batch->logits(listener);
    ASSERT_TRUE(std::equal(expected.begin(), expected.end(), found.begin())) << "token " << i;
    const auto token = static_cast<int32_t>(1000 + i);
    session->step(token);
    batch->step(std::array{Batch::Step{listener, token}});
  }
}

// What one scheduler says to some requests; each ends with all of its tokens.
std::vector<std::vector<int32_t>> said(const std::shared_ptr<Model>& m, const BatchPlan& plan,
                                       const std::vector<Case>& cases, const SharedPrefix& prefix) {
  Scheduler scheduler(Batch::open(m, plan), {});
  std::vector<Scheduler::RequestId> ids;
  for (const Case& c : cases) {
    ids.push_back(scheduler.submit(
        {.prefix = prefix, .prompt = c.prompt, .n_new = c.n_new, .sampling = c.sampling}));
  }
  while (scheduler.turn()) {
  }
  std::vector<std::vector<int32_t>> tokens;
  for (const auto id : ids) {
    const RequestReport report = scheduler.report(id);
    EXPECT_EQ(report.state, RequestState::kFinished) << report.error;
    tokens.push_back(report.tokens);
  }
  return tokens;
}

// Questions about one document.
struct Shared {
  SharedPrefix document;
  std::vector<Case> questions;  // behind the document
  std::vector<Case> whole;      // the same with the document in front
  int64_t longest_behind = 0;   // with the answer
};

Shared shared_document(int64_t n) {
  static const Tokenizer tokenizer = Tokenizer::load(kModel);
  std::string text;
  const std::array<const char*, 3> names{"silver-harbor", "amber-valley", "quiet-forest"};
  for (int64_t i = 0; i < n / 18; ++i) {
    text += fmt::format("Step {} of the guide explains how part {} of the machine is cleaned. ", i,
                        (i * 37) % 101);
    for (int64_t k = 0; k < 3; ++k) {
      if (i == (k + 1) * n / 80) {
        text += fmt::format("\nThe magic number for {} is {}.\n", names[static_cast<size_t>(k)], 30123 + 11111 * k);
      }
    }
  }
  Shared shared;
  const std::vector<int32_t> ids = tokenizer.encode(text);
  shared.document = std::make_shared<const std::vector<int32_t>>(ids);
  for (const char* name : names) {
    const std::string question = fmt::format(
        "\nWhat is the magic number for {}? The magic number for {} is", name, name);
    Case c{.prompt = tokenizer.encode(question, {.add_special = false, .follows = Follows::kText})};
    c.n_new = 6 + std::ssize(shared.questions);
    Case whole = c;
    whole.prompt.insert(whole.prompt.begin(), ids.begin(), ids.end());
    shared.longest_behind =
        std::max(shared.longest_behind, static_cast<int64_t>(c.prompt.size()) + c.n_new);
    shared.questions.push_back(std::move(c));
    shared.whole.push_back(std::move(whole));
  }
  return shared;
}

// A document that is prefilled once answers what it answers when it is prefilled for each question.
TEST(Batch, QuestionsShareADocument) {
  const auto m = model();
  const Shared shared = shared_document(test::kSanitized ? 500 : 1200);
  const int64_t longest = longest_of(shared.whole);
  for (const AttentionMode mode :
       {AttentionMode::kDense, AttentionMode::kShadow, AttentionMode::kTokenSelect}) {
    SessionOptions options = decided(mode);
    const BatchPlan plan = Batch::plan(*m, options, 4, longest, 8, shared.longest_behind);
    const auto together = said(m, plan, shared.questions, shared.document);
    EXPECT_EQ(together, said(m, plan, shared.whole, nullptr)) << name_of(mode);
    for (size_t i = 0; mode == AttentionMode::kShadow && i < shared.questions.size(); ++i) {
      EXPECT_EQ(said(m, plan, {shared.questions[i]}, shared.document).front(), together[i]);
    }
  }
}

// As a session that prefilled the document and appended the question, where that one selects
// everything too; and in the memory that was planned.
TEST(Batch, BehindAPrefixAsAppended) {
  const auto m = model();
  const Shared shared = shared_document(800);
  const std::vector<int32_t>& document = *shared.document;
  const std::vector<int32_t>& question = shared.questions[0].prompt;
  const auto n_document = static_cast<int64_t>(document.size());
  const auto n_question = static_cast<int64_t>(question.size());
  for (const KeyCodec codec : {KeyCodec::kExact, KeyCodec::kInt8, KeyCodec::kLowRank}) {
    SessionOptions options = decided(AttentionMode::kShadow);
    options.selection.key_codec = codec;
    options.selection.budget = kBudgetAll;
    const auto batch =
        Batch::open(m, Batch::plan(*m, options, 2, n_document + n_question, 8, n_question + 8));
    const auto session = Session::open(m, Session::plan(*m, options, n_document, n_question + 8));
    ASSERT_TRUE(session->prefill(document, {}));
    ASSERT_TRUE(session->append(question, {}));
    const int64_t device_before = batch->device_bytes(), host_before = batch->host_bytes();
    const SessionPlan prefix_plan = batch->plan_prefix(n_document);
    const int64_t prefix = test::add_prefilled(*batch, prefix_plan, document);
    const SequenceBytes prefix_bytes = batch->bytes_of(prefix_plan);
    EXPECT_EQ(batch->device_bytes() - device_before, prefix_bytes.device);
    EXPECT_EQ(batch->host_bytes() - host_before, prefix_bytes.host);
    const SessionPlan plan = batch->plan_behind(prefix_plan, n_question, 8);
    const int64_t behind = test::add_prefilled(*batch, plan, question, prefix);
    const SequenceBytes bytes = batch->bytes_of(plan);
    EXPECT_EQ(batch->device_bytes() - device_before, prefix_bytes.device + bytes.device);
    EXPECT_EQ(batch->host_bytes() - host_before, prefix_bytes.host + bytes.host);
    EXPECT_EQ(batch->n_tokens(behind), n_document + n_question);
    for (int i = 0; i < 8; ++i) {
      const std::span<const float> expected = session->logits(), found = batch->logits(behind);
      EXPECT_LT(test::rms_difference(found, expected), 0.02 * test::rms(expected))
          << name_of(codec) << ", token " << i;
      const auto token = static_cast<int32_t>(500 + 7 * i);
      session->step(token);
      batch->step(std::array{Batch::Step{behind, token}});
    }
    batch->remove(behind);
    batch->remove(prefix);
    EXPECT_EQ(batch->device_bytes(), device_before);
    EXPECT_EQ(batch->host_bytes(), host_before);
    EXPECT_THROW(batch->plan_behind(prefix_plan, n_question + 1, 8), Error);
  }
}

// A sequence takes what its own length takes, not what the longest takes.
TEST(Batch, SequencesTakeTheirOwnContext) {
  const auto m = model();
  const auto batch =
      Batch::open(m, Batch::plan(*m, decided(AttentionMode::kShadow), 4, 20000, 200));
  const SessionPlan shorter = batch->plan_sequence(4000, 40), longer = batch->plan_sequence(20000, 200);
  EXPECT_EQ(shorter.context, 4040);
  EXPECT_LT(3 * batch->bytes_of(shorter).host, batch->bytes_of(longer).host);
}

// A batch in which calls fail now and then, as they do where memory or a device gives way.
class FlakyBatch : public Batch {
 public:
  FlakyBatch(std::unique_ptr<Batch> batch, uint64_t seed) : batch_(std::move(batch)), random_(seed) {}

  SessionPlan plan_sequence(int64_t n_prompt, int64_t n_new, double slots) const override {
    return batch_->plan_sequence(n_prompt, n_new, slots);
  }
  SessionPlan plan_prefix(int64_t n_tokens) const override { return batch_->plan_prefix(n_tokens); }
  SessionPlan plan_behind(const SessionPlan& prefix, int64_t n_prompt, int64_t n_new,
                          double slots) const override {
    return batch_->plan_behind(prefix, n_prompt, n_new, slots);
  }
  SequenceBytes bytes_of(const SessionPlan& s) const override { return batch_->bytes_of(s); }
  SequenceWork work_of(const SessionPlan& s) const override { return batch_->work_of(s); }
  bool has_room(const SequenceBytes& b) const override { return batch_->has_room(b); }
  int64_t add(const SessionPlan& s, std::span<const int32_t> prompt, int64_t prefix) override {
    if (fails(20)) throw std::bad_alloc();
    if (fails(20)) fail(ErrorKind::kDoesNotFit, "no memory today");
    return batch_->add(s, prompt, prefix);
  }
  PrefillProgress advance_prefill(int64_t s) override {
    if (fails(80)) fail("a fault in prefill");
    return batch_->advance_prefill(s);
  }
  void step(std::span<const Step> steps) override { batch_->step(steps); }
  int64_t most_drafted(int64_t name) const override { return batch_->most_drafted(name); }
  void step_drafted(int64_t name, std::span<const int32_t> tokens) override { batch_->step_drafted(name, tokens); }
  void show(int64_t name, int64_t row) override { batch_->show(name, row); }
  void take_back(int64_t name, int64_t n) override { batch_->take_back(name, n); }
  int64_t micro_batches(int64_t n) const override { return batch_->micro_batches(n); }
  int64_t step_launches() const override { return batch_->step_launches(); }
  int32_t sample(int64_t s, Sampler& sampler, std::span<const int32_t> history) override {
    if (fails(300)) fail("no token can be named");
    return batch_->sample(s, sampler, history);
  }
  std::span<const float> logits(int64_t s) override { return batch_->logits(s); }
  void remove(int64_t s) override { batch_->remove(s); }
  SelectionReport selection(int64_t s) const override { return batch_->selection(s); }
  int64_t n_tokens(int64_t s) const override { return batch_->n_tokens(s); }
  const BatchPlan& plan() const override { return batch_->plan(); }
  const ModelConfig& config() const override { return batch_->config(); }
  int64_t device_bytes() const override { return batch_->device_bytes(); }
  int64_t host_bytes() const override { return batch_->host_bytes(); }
  std::string backend_description() const override { return batch_->backend_description(); }

 private:
  bool fails(int one_in) { return std::uniform_int_distribution(1, one_in)(random_) == 1; }

  std::unique_ptr<Batch> batch_;
  std::mt19937_64 random_;
};

constexpr int kRequests = test::kSanitized ? 40 : 200;

TEST(Batch, RandomRequestsOnASmallDeviceNeverDisturbEachOther) {
  std::mt19937_64 random(test::seed());
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const auto m = model();
  SessionOptions options = decided(AttentionMode::kShadow);
  options.selection.budget = 64;
  options.selection.recent = 32;
  options.selection.outliers = 4;
  options.selection.slots = 4;
  std::vector<Case> cases;
  std::vector<std::vector<int32_t>> expected;
  const Shared shared = shared_document(400);
  for (int i = 0; i < 24; ++i) {
    Case c{.prompt = prompt(pick(1, i % 8 == 0 && !test::kSanitized ? 1500 : 300), pick(10000, 99999))};
    c.n_new = pick(1, 24);
    if (i % 2 == 1) c.sampling = {.temperature = 1, .seed = static_cast<uint64_t>(i)};
    if (i % 3 == 0) c.sampling.constraint = some_constraint(static_cast<uint64_t>(i));
    expected.push_back(alone(m, c, options));
    cases.push_back(std::move(c));
  }
  // Room for about three of the largest, of up to eight.
  const int64_t longest = std::max(longest_of(cases), longest_of(shared.whole));
  BatchPlan plan = Batch::plan(*m, options, 8, longest, 24);
  const size_t n_whole = cases.size();
  const auto behind = said(m, plan, shared.questions, shared.document);
  expected.insert(expected.end(), behind.begin(), behind.end());
  cases.insert(cases.end(), shared.questions.begin(), shared.questions.end());
  {
    const auto probe = Batch::open(m, plan);
    const SequenceBytes largest = probe->bytes_of(probe->plan_sequence(longest, 24));
    options.device_memory = plan.shared_device + 3 * largest.device + largest.prefill;
    plan = Batch::plan(*m, options, 8, longest, 24);
    plan.micro_batches = MicroBatches::kTwo;
  }
  auto opened = Batch::open(m, plan);
  const int64_t device_before = opened->device_bytes(), host_before = opened->host_bytes();
  Scheduler scheduler(std::make_unique<FlakyBatch>(std::move(opened), random()), {0.002});

  struct Sent {
    Scheduler::RequestId id;
    size_t which;
    int64_t stop_after;  // tokens; -1: never
    bool throws;
    bool end_seen = false;
  };
  std::vector<std::unique_ptr<Sent>> sent;
  std::set<RequestState> states;
  int64_t most = 0;
  // Some requests hold the same one, others one of their own.
  SharedPrefix copy;
  const auto copy_of_document = [&] {
    if (!copy || pick(0, 3) == 0) {
      copy = std::make_shared<const std::vector<int32_t>>(*shared.document);
    }
    return copy;
  };
  const auto send = [&] {
    auto one = std::make_unique<Sent>();
    one->which = static_cast<size_t>(pick(0, std::ssize(cases) - 1));
    one->stop_after = pick(0, 5) == 0 ? pick(1, 8) : -1;
    one->throws = pick(0, 1) == 0;
    const Case& c = cases[one->which];
    auto on_token = [s = one.get(), n = int64_t{0}](int32_t, const TokenLogprobs*) mutable {
      if (++n != s->stop_after) return true;
      if (s->throws) throw std::runtime_error("the listener is gone");
      return false;
    };
    one->id = scheduler.submit(
        {.prefix = one->which < n_whole ? nullptr : copy_of_document(),
         .prompt = c.prompt,
         .n_new = c.n_new,
         .sampling = c.sampling,
         .on_token = on_token,
         .on_end = [s = one.get()](const RequestReport&) { s->end_seen = true; }});
    sent.push_back(std::move(one));
  };
  while (std::ssize(sent) < kRequests || scheduler.turn()) {
    if (std::ssize(sent) < kRequests && pick(0, 2) > 0) send();
    if (pick(0, 9) == 0 && !sent.empty()) {
      scheduler.cancel(sent[static_cast<size_t>(pick(0, std::ssize(sent) - 1))]->id);
    }
    if (std::ssize(sent) < kRequests) scheduler.turn();
    most = std::max(most, scheduler.batch().device_bytes());
  }
  copy.reset();
  EXPECT_FALSE(scheduler.turn());
  EXPECT_LE(most, options.device_memory);
  EXPECT_EQ(scheduler.batch().device_bytes(), device_before);
  EXPECT_EQ(scheduler.batch().host_bytes(), host_before);
  for (const auto& one : sent) {
    const RequestReport report = scheduler.report(one->id);
    states.insert(report.state);
    EXPECT_TRUE(one->end_seen);
    const std::vector<int32_t>& want = expected[one->which];
    ASSERT_LE(report.tokens.size(), want.size());
    EXPECT_TRUE(std::equal(report.tokens.begin(), report.tokens.end(), want.begin()))
        << "request " << one->id << ", " << name_of(report.state);
    EXPECT_TRUE(report.tokens.size() == want.size() || report.state != RequestState::kFinished);
    EXPECT_EQ(report.state == RequestState::kFailed, !report.error.empty()) << report.error;
  }
  EXPECT_EQ(states, (std::set{RequestState::kFinished, RequestState::kFailed,
                              RequestState::kCancelled}));
  const SchedulerReport total = scheduler.report();
  EXPECT_EQ(total.ended, kRequests);
  EXPECT_EQ(total.queued + total.prefilling + total.decoding, 0);
  EXPECT_GE(total.most_decoding, 3);
}

TEST(Batch, RefusesWhatItWasNotPlannedFor) {
  const auto m = model();
  SessionOptions options = decided(AttentionMode::kShadow);
  EXPECT_THROW(Batch::plan(*m, options, 0, 100, 10), Error);
  Scheduler scheduler(Batch::open(m, Batch::plan(*m, options, 2, 100, 10)), {});
  const std::vector<int32_t> ids(100, 7);
  EXPECT_THROW(scheduler.submit({.prompt = {}}), Error);
  EXPECT_THROW(scheduler.submit({.prompt = std::vector<int32_t>(101, 7), .n_new = 1}), Error);
  EXPECT_THROW(scheduler.submit({.prompt = ids, .n_new = 11}), Error);
  EXPECT_THROW(scheduler.submit({.prompt = ids, .n_new = 0}), Error);
  EXPECT_THROW(scheduler.submit({.prompt = ids, .n_new = 1, .sampling = {.temperature = -1}}),
               Error);
  const auto wrong = scheduler.submit({.prompt = {1, 2, 1 << 20}, .n_new = 1});
  const auto right = scheduler.submit({.prompt = ids, .n_new = 10});
  while (scheduler.turn()) {
  }
  EXPECT_EQ(scheduler.report(wrong).state, RequestState::kFailed);
  EXPECT_NE(scheduler.report(wrong).error.find("index 2"), std::string::npos);
  EXPECT_EQ(scheduler.report(right).state, RequestState::kFinished);
  scheduler.forget(wrong);
  EXPECT_THROW(scheduler.report(wrong), Error);
  EXPECT_THROW(scheduler.report(99), Error);
  options.device_memory = 1 << 20;
  EXPECT_THROW(Batch::plan(*m, options, 2, 100, 10), Error);
}

}  // namespace
}  // namespace tiercel
