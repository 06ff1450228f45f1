// Random compositions, models and lengths: whatever way a sequence takes through the engine, its logits
// are those of the plain way, a prompt and steps behind it. TIERCEL_CASES=N tries so many cases of each kind.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/append_pass.h"
#include "engine/base/check.h"
#include "engine/batch.h"
#include "engine/presets.h"
#include "engine/saved_session.h"
#include "engine/session.h"
#include "tests/engine/add_prefilled.h"
#include "tests/engine/backend.h"
#include "tests/engine/rms.h"
#include "tests/sanitized.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

namespace fs = std::filesystem;

using test::kBackend;
#if defined(TIERCEL_EMULATED)
constexpr int kCases = 5, kMembers = 3;
constexpr int64_t kLongestPrompt = 140, kLongestRest = 40, kLongestText = 330;
#else
constexpr int kCases = test::kSanitized ? 10 : 150, kMembers = 8;
constexpr int64_t kLongestPrompt = 700, kLongestRest = 220, kLongestText = 2500;
#endif

int n_cases() {
  const char* text = std::getenv("TIERCEL_CASES");
  return text != nullptr ? std::atoi(text) : kCases;
}

class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}

  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1));
  }
  bool chance(double p) { return static_cast<double>(random_() >> 11) * 0x1p-53 < p; }
  template <typename T>
  T one_of(std::initializer_list<T> all) {
    return all.begin()[between(0, static_cast<int64_t>(all.size()) - 1)];
  }

 private:
  std::mt19937_64 random_;
};

// Where inputs of a router are rounded otherwise, an expert that is as good as another one may be chosen.
bool has_experts(const Model& model) { return model.config().experts.n > 0; }

constexpr const char* kModels[] = {"llama",         "llama_biases",  "llama_eviction_head",
                                   "llama_head128", "llama_head96",  "llama_rope_yarn",
                                   "llama_tied",    "mistral_window", "qwen2",
                                   "qwen2_window",  "qwen3",         "qwen3_dual_chunk",
                                   "mixtral",       "qwen3_moe",     "llama_gptq",
                                   "phi3_w4a16",    "qwen3_moe_w4a16"};

std::shared_ptr<Model> open_model(const std::string& name, BackendKind backend = kBackend, int n_threads = 2,
                                  int64_t host_layers = 0) {
  return Model::open(std::string(TIERCEL_SOURCE_DIR "/tests/golden/models/") + name,
                     {.backend = backend, .n_threads = n_threads, .host_layers = host_layers});
}

// Where weights are is no matter of what is computed.
int64_t draw_host_layers(Draw& draw) {
  return kBackend == BackendKind::kCpu ? 0 : draw.one_of<int64_t>({0, 1, kAllLayers});
}

// A preset with small windows, of which each setting may be another one: not every draw is legal.
SessionOptions draw_options(Draw& draw) {
  const auto modes = attention_modes();
  SessionOptions o = preset(modes[static_cast<size_t>(draw.between(0, std::ssize(modes) - 1))]);
  SelectionOptions& s = o.selection;
  const double often = draw.one_of({0.0, 0.1, 0.4});
  if (draw.chance(often)) s.chunk_size = draw.one_of({1, 2, 3, 5, 7, 8, 16, 32});
  s.budget = draw.chance(0.2) ? kBudgetAll : draw.one_of({32, 48, 64, 128});
  s.sinks = draw.one_of({0, 1, 8, 16});
  s.recent = draw.one_of({1, 8, 24, 48, 100});
  s.outliers = std::min<int64_t>(s.outliers, draw.one_of({0, 1, 3}));
  s.slots = draw.one_of({1.0, 1.3, 3.0, 100.0});
  s.static_budget = std::min<int64_t>(s.static_budget, draw.one_of({8, 32}));
  if (draw.chance(often)) s.coarse_chunk = s.chunk_size * draw.one_of({0, 2, 4});
  if (draw.chance(often)) s.coarse_share = draw.one_of({0.1, 0.5, 1.0});
  if (draw.chance(often)) s.group = draw.one_of({GroupScore::kMax, GroupScore::kMean, GroupScore::kSum});
  if (draw.chance(often)) s.scope = draw.one_of({SelectScope::kKvHead, SelectScope::kLayer});
  if (draw.chance(often)) s.top_p = draw.one_of({0.0, 0.5, 0.95});
  if (draw.chance(often)) s.reuse = draw.one_of({0.0, 0.2, 0.9});
  if (draw.chance(often)) s.reuse_steps = draw.one_of({0, 2, 5});
  if (draw.chance(often)) s.share_layers = draw.one_of({1, 2});
  if (draw.chance(often)) s.miss_cap = draw.one_of({-1, 0, 1, 4});
  if (draw.chance(often)) s.estimate = draw.chance(0.5);
  if (draw.chance(often)) s.index = draw.one_of({IndexKind::kMean, IndexKind::kMinMax});
  if (draw.chance(often)) s.drop_share = draw.one_of({0.0, 0.3});
  if (draw.chance(often)) {
    s.key_codec = draw.one_of({KeyCodec::kExact, KeyCodec::kLowRank, KeyCodec::kInt8, KeyCodec::kInt4});
  }
  s.rank = draw.one_of({16, 32, 160});
  if (draw.chance(often)) s.rank_codec = draw.one_of({RowCodec::kBf16, RowCodec::kInt8});
  if (draw.chance(often)) s.landmark_codec = draw.one_of({RowCodec::kBf16, RowCodec::kInt8});
  if (draw.chance(often)) s.value_codec = draw.one_of({RowCodec::kBf16, RowCodec::kInt8, RowCodec::kInt4});
  o.prefill = draw.one_of({PrefillMode::kDense, PrefillMode::kSelect});
  o.prefill_budget = draw.one_of<int64_t>({32, 128, kBudgetAll});
  o.no_graphs = draw.chance(0.3);
  o.value_home = draw.one_of({ValueHome::kHost, ValueHome::kHost, ValueHome::kAuto, ValueHome::kDevice});
  if (kBackend != BackendKind::kCpu && draw.chance(0.3)) o.hidden_home = HiddenHome::kHost;
  if (draw.chance(0.15)) o.host_attention = HostAttention::kOn;
  if (draw.chance(0.15)) o.audit = 3;
  return o;
}

// No key is left out, in the prompt or behind it.
bool attends_all(const SessionOptions& o) {
  const SelectionOptions& s = o.selection;
  if (o.prefill == PrefillMode::kSelect && o.prefill_budget != kBudgetAll) return false;
  if (o.attention == AttentionMode::kDense) return true;
  return s.budget == kBudgetAll && s.top_p == 0 && s.miss_cap < 0 && s.drop_share == 0 &&
         (s.coarse_chunk == 0 || s.coarse_share == 1) && !s.reuses();
}
bool keeps_all(const SessionOptions& o) {
  return o.attention == AttentionMode::kDense ||
         (o.selection.key_codec == KeyCodec::kExact && o.selection.value_codec == RowCodec::kBf16);
}

std::vector<int32_t> random_ids(Draw& draw, const Model& model, int64_t n) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = static_cast<int32_t>(draw.between(0, model.config().vocab_size - 1));
  return ids;
}

std::span<const int32_t> part(const std::vector<int32_t>& ids, int64_t first, int64_t n) {
  return std::span(ids).subspan(static_cast<size_t>(first), static_cast<size_t>(n));
}

using Logits = std::vector<float>;

Logits copy_of(std::span<const float> logits) { return {logits.begin(), logits.end()}; }

// Relative to the size of what is expected.
double distance(std::span<const float> found, std::span<const float> expected) {
  return test::rms_difference(found, expected) / test::rms(expected);
}

// A legal case: what draw_options gives until a plan of it can be made.
struct Case {
  std::string name;
  std::shared_ptr<Model> model;
  SessionPlan plan;
  int64_t n_prompt = 0, n_rest = 0;
  std::vector<int32_t> ids;  // of the prompt, and those behind it

  std::string text() const {
    return fmt::format("{}, {} + {} tokens: {}; prefill {} {}, home {}, host attention {}, audit {}{}", name, n_prompt,
                       n_rest, composition(plan.options), name_of(plan.options.prefill),
                       plan.options.prefill_budget, name_of(plan.options.value_home),
                       name_of(plan.options.host_attention), plan.options.audit,
                       plan.states_on_host ? ", hidden states on the host" : "");
  }
};

// What a plan says no to is no case; whatever else is thrown is a failure. all: mostly one that attends all.
std::optional<Case> draw_case(Draw& draw, bool all = false, int64_t longest_rest = kLongestRest) {
  Case c;
  c.name = kModels[draw.between(0, std::ssize(kModels) - 1)];
  c.model = open_model(c.name);
  c.n_prompt = draw.between(1, draw.chance(0.2) ? 20 : kLongestPrompt);
  c.n_rest = draw.between(2, longest_rest);
  c.ids = random_ids(draw, *c.model, c.n_prompt + c.n_rest);
  try {
    SessionOptions options = draw_options(draw);
    if (all) {
      options.selection.budget = options.prefill_budget = kBudgetAll;
      options.selection.drop_share = options.selection.top_p = 0;
    }
    c.plan = Session::plan(*c.model, options, c.n_prompt, c.n_rest);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage) << error.what();
    return std::nullopt;
  }
  return c;
}

std::unique_ptr<Session> prefilled(const std::shared_ptr<Model>& model, const Case& c) {
  auto session = Session::open(model, c.plan);
  EXPECT_TRUE(session->prefill(part(c.ids, 0, c.n_prompt), {}));
  return session;
}

// Logits behind the prompt and behind each of the others: [n_rest + 1].
std::vector<Logits> plain_way(const Case& c) {
  const auto session = prefilled(c.model, c);
  std::vector<Logits> all = {copy_of(session->logits())};
  for (int64_t i = 0; i < c.n_rest; ++i) {
    session->step(c.ids[static_cast<size_t>(c.n_prompt + i)]);
    all.push_back(copy_of(session->logits()));
  }
  return all;
}

// A sequence that is stepped, appended to, forked, saved and restored, and taken back and led again.
class Walk {
 public:
  Walk(Draw& draw, const Case& c, const std::vector<Logits>& expected)
      : draw_(draw),
        case_(c),
        expected_(expected),
        file_((fs::temp_directory_path() / fmt::format("tiercel-walk-{}", ::getpid())).string()),
        session_(prefilled(another(draw, c.name), c)) {}
  ~Walk() { fs::remove(file_); }

  void run() {
    check("prefill");
    while (done_ < case_.n_rest && !::testing::Test::HasFailure()) {
      switch (draw_.between(0, 9)) {
        case 0: fork(); break;
        case 1: save_and_restore(); break;
        case 2: rewind(); break;
        case 3:
        case 4: append(draw_.between(1, std::min<int64_t>(case_.n_rest - done_, 90))); break;
        default: steps(draw_.between(1, std::min<int64_t>(case_.n_rest - done_, 30))); break;
      }
    }
  }

 private:
  static std::shared_ptr<Model> another(Draw& draw, const std::string& name) {
    const auto n_threads = static_cast<int>(draw.between(1, 3));
    return open_model(name, kBackend, n_threads, draw_host_layers(draw));
  }

  int64_t at() const { return case_.n_prompt + done_; }

  void check(const char* behind) {
    way_ += fmt::format(" {} to {};", behind, done_);
    ASSERT_EQ(session_->n_tokens(), at()) << way_;
    const Logits& expected = expected_[static_cast<size_t>(done_)];
    ASSERT_TRUE(std::ranges::equal(session_->logits(), expected))
        << way_ << " " << distance(session_->logits(), expected) << " of their size away";
  }

  void steps(int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      session_->step(case_.ids[static_cast<size_t>(at())]);
      ++done_;
      if (draw_.chance(0.3)) check("step");
    }
    check("step");
  }

  // Behind a selected prompt the first of many tokens share their lists, and where all is attended they are
  // prefilled: another way, on purpose.
  void append(int64_t n) {
    if (case_.plan.options.prefill == PrefillMode::kSelect) n = std::min<int64_t>(n, 64);
    n = std::min(n, least_segments(case_.plan.options) - 1);
    ASSERT_TRUE(session_->append(part(case_.ids, at(), n), {}));
    done_ += n;
    check("append");
  }

  void fork() {
    auto copy = session_->fork();
    const bool origin_lives = draw_.chance(0.5);
    if (origin_lives) copy.swap(session_);
    if (draw_.chance(0.5)) copy->append(random_ids(draw_, *case_.model, std::min<int64_t>(case_.n_rest - done_, 3)), {});
    check("fork");
  }

  void save_and_restore() {
    session_->save(file_, part(case_.ids, 0, at()), {});
    check("save");
    const auto saved = SavedSession::open(file_);
    const auto model = open_model(case_.name);
    SessionOptions options = saved->options();
    options.host_attention = case_.plan.options.host_attention;  // how, not what: it is not in the file
    options.draft = case_.plan.options.draft;
    options.draft_max = case_.plan.options.draft_max;
    const SessionPlan plan = Session::plan(*model, options, *saved, case_.n_rest - done_);
    session_ = Session::open(model, plan);
    session_->restore(*saved, {});
    check("restore");
  }

  // Back to the prompt, from where it has been or from somewhere else.
  void rewind() {
    if (draw_.chance(0.5)) {
      const int64_t n = draw_.between(0, std::min<int64_t>(case_.n_rest - done_, 5));
      for (const int32_t id : random_ids(draw_, *case_.model, n)) session_->step(id);
    }
    try {
      session_->rewind();
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::kRuntime) << error.what();
      session_ = prefilled(case_.model, case_);
    }
    const int64_t before = std::exchange(done_, 0);
    check("rewind");
    steps(before);
  }

  Draw& draw_;
  const Case& case_;
  const std::vector<Logits>& expected_;
  const std::string file_;
  std::unique_ptr<Session> session_;
  int64_t done_ = 0;
  std::string way_;  // what led here
};

TEST(Differential, SessionThatIsLedAround) {
  int n_legal = 0;
  for (int i = 0; i < n_cases() && !HasFailure(); ++i) {
    Draw draw(test::seed() + static_cast<uint64_t>(i));
    const std::optional<Case> c = draw_case(draw);
    if (!c) continue;
    ++n_legal;
    SCOPED_TRACE(fmt::format("case {}: {}", i, c->text()));
    Walk(draw, *c, plain_way(*c)).run();
  }
  EXPECT_TRUE(HasFailure() || 4 * n_legal > n_cases()) << n_legal;
}

// What of a sequence comes behind the prompt: pieces of what came before, now and then with another token.
void repeat_pieces(Draw& draw, Case& c) {
  const int64_t vocab = c.model->config().vocab_size;
  for (int64_t i = c.n_prompt; i < std::ssize(c.ids);) {
    const int64_t n = std::min(draw.between(3, 20), std::ssize(c.ids) - i), from = draw.between(0, i - 1);
    for (int64_t j = 0; j < n; ++j, ++i) {
      const bool copies = draw.chance(0.9);
      c.ids[static_cast<size_t>(i)] = copies ? c.ids[static_cast<size_t>(std::min(from + j, i - 1))]
                                             : static_cast<int32_t>(draw.between(0, vocab - 1));
    }
  }
}

// Nothing is fetched into a cache.
void attend_at_home(SessionOptions& options) {
  options.value_home = ValueHome::kDevice;
  options.selection.key_codec = KeyCodec::kExact;
  options.selection.value_codec = RowCodec::kBf16;
  options.host_attention = HostAttention::kOff;
}

// Guesses change nothing, whether they are right or not, where what they select brings nothing into a cache.
TEST(Differential, SessionThatGuesses) {
  int n_compared = 0;
  for (int i = 0; i < n_cases() && !HasFailure(); ++i) {
    Draw draw(test::seed() * 7 + static_cast<uint64_t>(i));
    std::optional<Case> c = draw_case(draw);
    if (!c) continue;
    repeat_pieces(draw, *c);
    SessionOptions options = c->plan.options;
    attend_at_home(options);
    options.audit = 0;
    Case guessing = *c;
    c->plan = Session::plan(*c->model, options, c->n_prompt, c->n_rest);
    options.draft = DraftMode::kAlways;
    options.draft_max = draw.one_of({1, 3, 15, 31});
    guessing.plan = Session::plan(*c->model, options, c->n_prompt, c->n_rest);
    if (guessing.plan.draft == 0) continue;
    ++n_compared;
    SCOPED_TRACE(fmt::format("case {}: {}; {} guesses", i, guessing.text(), guessing.plan.draft));
    Walk(draw, guessing, plain_way(*c)).run();
  }
  EXPECT_TRUE(HasFailure() || 8 * n_compared > n_cases()) << n_compared << " of " << n_cases();
}

// A text behind the prompt, in one piece, and some steps. From a session that was forked, or saved and restored, if
// restores.
Logits long_way(Draw& draw, const Case& c, bool restores) {
  constexpr int64_t kLastSteps = 3;
  const std::string file = (fs::temp_directory_path() / fmt::format("tiercel-text-{}", ::getpid())).string();
  auto session = prefilled(c.model, c);
  const int64_t n_before = std::min<int64_t>(draw.between(0, 2), c.n_rest - 1);
  for (int64_t i = 0; i < n_before; ++i) session->step(c.ids[static_cast<size_t>(c.n_prompt + i)]);
  if (restores && draw.chance(0.5)) {
    session = session->fork();
  } else if (restores) {
    session->save(file, part(c.ids, 0, c.n_prompt + n_before), {});
    const auto saved = SavedSession::open(file);
    SessionOptions options = saved->options();
    options.host_attention = c.plan.options.host_attention;
    session = Session::open(c.model, Session::plan(*c.model, options, *saved, c.n_rest - n_before));
    session->restore(*saved, {});
    fs::remove(file);
  }
  const int64_t n_text = std::max<int64_t>(c.n_rest - n_before - kLastSteps, 1);
  EXPECT_TRUE(session->append(part(c.ids, c.n_prompt + n_before, n_text), {}));
  for (int64_t i = n_before + n_text; i < c.n_rest; ++i) session->step(c.ids[static_cast<size_t>(c.n_prompt + i)]);
  EXPECT_EQ(session->n_tokens(), c.n_prompt + c.n_rest);
  return copy_of(session->logits());
}

// The same wherever the session comes from; and where every key is attended as it is, one prompt of everything.
TEST(Differential, LongTexts) {
  int n_compared = 0;
  const int n_texts = std::max(n_cases() / 2, 1);  // each takes twice as long
  for (int i = 0; i < n_texts && !HasFailure(); ++i) {
    Draw draw(test::seed() * 5 + static_cast<uint64_t>(i));
    const std::optional<Case> c = draw_case(draw, draw.chance(0.5), kLongestText);
    if (!c) continue;
    ++n_compared;
    SCOPED_TRACE(fmt::format("case {}: {}", i, c->text()));
    Draw again = draw;
    const Logits logits = long_way(draw, *c, false);
    ASSERT_TRUE(std::isfinite(test::rms(logits)));
    ASSERT_EQ(long_way(again, *c, true), logits);
    const bool scaled = c->model->config().dual_chunk.scaled_from > 0;  // by the length when a token is read
    if (!attends_all(c->plan.options) || !keeps_all(c->plan.options) || has_experts(*c->model) || scaled) continue;
    SessionOptions dense;
    dense.attention = AttentionMode::kDense;
    dense.prefill = PrefillMode::kDense;
    const auto whole = Session::open(c->model, Session::plan(*c->model, dense, std::ssize(c->ids), 1));
    ASSERT_TRUE(whole->prefill(c->ids, {}));
    ASSERT_LT(distance(logits, whole->logits()), 0.1);
  }
  EXPECT_TRUE(HasFailure() || 4 * n_compared > n_texts) << n_compared;
}

// A batch's sequence: a prompt, behind a prefix or not, and the tokens behind it.
struct Member {
  SessionPlan plan;
  std::vector<int32_t> prompt, rest;
  std::vector<Logits> expected;  // behind the prompt and behind each of the rest
  int64_t name = -1, done = -1;  // done: tokens of the rest; -1: the prompt is on its way
};

// Sequences that come, are prefilled between each other's steps, and go.
class Crowd {
 public:
  Crowd(Draw& draw, const std::shared_ptr<Model>& model, const BatchPlan& plan, int64_t n_prefix)
      : draw_(draw), model_(model), plan_(plan), prefix_ids_(random_ids(draw, *model, n_prefix)) {
    plan_.micro_batches = draw.one_of({MicroBatches::kOne, MicroBatches::kTwo});
    batch_ = Batch::open(model_, plan_);
    prefix_ = add_prefix(*batch_);
  }

  void run(int n_members) {
    while ((n_members > 0 || !members_.empty()) && !::testing::Test::HasFailure()) {
      const bool full = std::ssize(members_) == plan_.n_sequences;
      if (n_members > 0 && !full && (members_.empty() || draw_.chance(0.2))) {
        members_.push_back(join());
        --n_members;
      } else if (draw_.chance(0.5)) {
        advance();
      } else {
        step();
      }
    }
  }

 private:
  // -1: there is none.
  int64_t add_prefix(Batch& batch) const {
    if (prefix_ids_.empty()) return -1;
    return test::add_prefilled(batch, batch.plan_prefix(std::ssize(prefix_ids_)), prefix_ids_);
  }

  // By itself in a batch of the same plan.
  void expect(Member& m) const {
    const auto batch = Batch::open(model_, plan_);
    const int64_t name = test::add_prefilled(*batch, m.plan, m.prompt, add_prefix(*batch));
    m.expected = {copy_of(batch->logits(name))};
    for (const int32_t token : m.rest) {
      const Batch::Step step{name, token};
      batch->step({&step, 1});
      m.expected.push_back(copy_of(batch->logits(name)));
    }
    compare_with_session(m);
  }

  // A session of its own takes the same steps. To a sequence behind a prefix its window begins elsewhere, which
  // matters where not everything is attended, and sums are rounded otherwise.
  void compare_with_session(const Member& m) const {
    Case c{.name = {}, .model = model_, .plan = {}, .n_prompt = 0, .n_rest = std::ssize(m.rest), .ids = prefix_ids_};
    for (const auto* more : {&m.prompt, &m.rest}) c.ids.insert(c.ids.end(), more->begin(), more->end());
    c.n_prompt = std::ssize(c.ids) - c.n_rest;
    SessionOptions options = m.plan.options;
    options.context = 0;
    const bool is_same = attends_all(options) && keeps_all(options) && !has_experts(*model_);
    if (!prefix_ids_.empty() && !is_same) return;
    c.plan = Session::plan(*model_, options, c.n_prompt, c.n_rest);
    const std::vector<Logits> session = plain_way(c);
    for (size_t i = 0; i < session.size(); ++i) {
      const double apart = distance(session[i], m.expected[i]);
      ASSERT_LE(apart, prefix_ids_.empty() ? 0 : 0.1) << "a session, " << i << " tokens behind the prompt";
    }
  }

  Member join() {
    Member m;
    const int64_t n_prefix = std::ssize(prefix_ids_);
    const int64_t most = plan_.largest.context - n_prefix;
    const int64_t n_prompt = draw_.between(1, std::min(plan_.largest.n_prompt, most - 1));
    const int64_t n_rest = draw_.between(1, std::min(most - n_prompt, kLongestRest / 2));
    m.prompt = random_ids(draw_, *model_, n_prompt);
    m.rest = random_ids(draw_, *model_, n_rest);
    m.plan = prefix_ < 0 ? batch_->plan_sequence(n_prompt, n_rest)
                         : batch_->plan_behind(batch_->plan_prefix(n_prefix), n_prompt, n_rest);
    expect(m);
    m.name = batch_->add(m.plan, m.prompt, prefix_);
    return m;
  }

  void check(const Member& m) {
    const Logits& expected = m.expected[static_cast<size_t>(m.done)];
    ASSERT_TRUE(std::ranges::equal(batch_->logits(m.name), expected))
        << "sequence " << m.name << " of " << members_.size() << ", " << m.prompt.size() << " + " << m.done
        << " tokens: " << distance(batch_->logits(m.name), expected) << " of their size away";
  }

  void advance() {
    for (Member& m : members_) {
      if (m.done >= 0) continue;
      if (!batch_->advance_prefill(m.name).finished) return;
      m.done = 0;
      check(m);
      return;
    }
  }

  void step() {
    const bool some = draw_.chance(0.3);  // all of them: what may be replayed
    std::vector<Batch::Step> steps;
    std::vector<Member*> stepped;
    for (Member& m : members_) {
      if (m.done < 0 || (some && draw_.chance(0.3))) continue;
      steps.push_back({m.name, m.rest[static_cast<size_t>(m.done)]});
      stepped.push_back(&m);
    }
    if (steps.empty()) return;
    Member& first = *stepped.front();
    if (draw_.chance(0.3) && batch_->most_drafted(first.name) > 1) {
      step_drafted(first);
    } else {
      batch_->step(steps);
      for (Member* m : stepped) {
        ++m->done;
        check(*m);
      }
    }
    std::erase_if(members_, [&](const Member& m) {
      if (m.done < std::ssize(m.rest)) return false;
      batch_->remove(m.name);
      return true;
    });
  }

  // The first of the guesses are right, and the others leave no trace.
  void step_drafted(Member& m) {
    const int64_t most = batch_->most_drafted(m.name);
    const int64_t left = std::ssize(m.rest) - m.done;
    const int64_t n = draw_.between(2, most), n_right = draw_.between(1, std::min(n, left));
    std::vector<int32_t> tokens(m.rest.begin() + m.done, m.rest.begin() + m.done + n_right);
    const std::vector<int32_t> wrong = random_ids(draw_, *model_, n - n_right);
    tokens.insert(tokens.end(), wrong.begin(), wrong.end());
    batch_->step_drafted(m.name, tokens);
    for (int64_t row = 0; row < n_right; ++row) {
      batch_->show(m.name, row);
      ++m.done;
      check(m);
    }
    batch_->take_back(m.name, n - n_right);
    n_guesses += n - 1;
  }

 public:
  static inline int64_t n_guesses = 0;

 private:
  Draw& draw_;
  std::shared_ptr<Model> model_;
  BatchPlan plan_;
  std::unique_ptr<Batch> batch_;
  std::vector<int32_t> prefix_ids_;
  int64_t prefix_ = -1;
  std::vector<Member> members_;
};

TEST(Differential, SequencesAmongOthers) {
  int n_legal = 0;
  for (int i = 0; i < n_cases() && !HasFailure(); ++i) {
    Draw draw(~test::seed() + static_cast<uint64_t>(i));
    const std::string name = kModels[draw.between(0, std::ssize(kModels) - 1)];
    const auto model = open_model(name, kBackend, 2, draw_host_layers(draw));
    SessionOptions options = draw_options(draw);
    if (draw.chance(0.5)) {
      attend_at_home(options);
      options.draft = DraftMode::kAlways;
      options.draft_max = draw.one_of({1, 5, 15});
    }
    const int64_t n_sequences = draw.between(1, 10);
    const int64_t n_prefix = draw.chance(0.5) ? draw.between(1, kLongestPrompt) : 0;
    const int64_t max_prompt = std::max(n_prefix, draw.between(2, kLongestPrompt / 2));
    std::optional<BatchPlan> plan;
    try {
      plan = Batch::plan(*model, options, n_sequences, max_prompt, n_prefix + kLongestRest);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage) << error.what();
      continue;
    }
    ++n_legal;
    SCOPED_TRACE(fmt::format("case {}: {}, {} sequences of up to {} tokens behind {}: {}; prefill {} {}", i, name,
                             n_sequences, plan->largest.n_prompt, n_prefix, composition(plan->largest.options),
                             name_of(options.prefill), options.prefill_budget));
    Crowd(draw, model, *plan, n_prefix).run(kMembers);
  }
  EXPECT_TRUE(HasFailure() || Crowd::n_guesses > n_cases()) << Crowd::n_guesses;
  EXPECT_TRUE(HasFailure() || 4 * n_legal > n_cases()) << n_legal;
}

// Where keys and values live, and what attends them: sums are rounded otherwise. On another backend inputs of
// a selection are too, and a list that is as good as another one is another one: what attends all tells more.
TEST(Differential, TiersAndBackends) {
  constexpr bool kOther = kBackend != BackendKind::kCpu;
  int n_compared = 0;
  for (int i = 0; i < n_cases() && !HasFailure(); ++i) {
    Draw draw(test::seed() * 3 + static_cast<uint64_t>(i));
    const std::optional<Case> c = draw_case(draw, kOther);
    if (!c) continue;
    SessionOptions options = c->plan.options;
    options.context = 0;
    options.value_home = draw.one_of({ValueHome::kHost, ValueHome::kDevice});
    // What is at home on the device is not fetched, and nothing of it is left out.
    const bool same_keys = kOther ? attends_all(options) : options.selection.miss_cap < 0;
    if (!same_keys || has_experts(*c->model)) continue;
    if (keeps_all(options)) options.host_attention = draw.one_of({HostAttention::kOff, HostAttention::kOn});
    SCOPED_TRACE(fmt::format("case {}: {}; beside home {}, host attention {}", i, c->text(),
                             name_of(options.value_home), name_of(options.host_attention)));
    Case other = *c;
    if (kOther) other.model = open_model(c->name, BackendKind::kCpu);
    other.plan = Session::plan(*other.model, options, c->n_prompt, c->n_rest);
    const std::vector<Logits> expected = plain_way(other), found = plain_way(*c);
    for (size_t j = 0; j < found.size(); ++j) {
      ASSERT_LT(distance(found[j], expected[j]), 0.1) << j << " tokens behind the prompt";
    }
    ++n_compared;
  }
  EXPECT_TRUE(HasFailure() || 8 * n_compared > n_cases()) << n_compared;
}

}  // namespace
}  // namespace tiercel
