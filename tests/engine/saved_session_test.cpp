// A restored session is the saved one: the same logits and the same steps from there on, for every
// kind of state that a composition keeps; and what it was not saved with is refused with the
// reason.
#include "engine/saved_session.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>

#include "engine/base/check.h"
#include "engine/presets.h"
#include "engine/text/tokenizer.h"
#include "tests/engine/backend.h"
#include "tests/engine/random_ids.h"
#include "tests/engine/two_tiers.h"
#include "tests/sanitized.h"

namespace tiercel {
namespace {

using test::random_ids;

namespace fs = std::filesystem;

using test::kBackend;
#if defined(TIERCEL_EMULATED)
constexpr int64_t kPrompt = 150, kSteps = 70, kMore = 3;
#else
constexpr int64_t kPrompt = 600, kSteps = 90, kMore = 40;
#endif
constexpr int64_t kNew = kSteps + kMore + 2;

class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "tiercel-saved-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

std::string golden(const std::string& name) {
  return std::string(TIERCEL_SOURCE_DIR "/tests/golden/models/") + name;
}

std::shared_ptr<Model> open_model(const std::string& directory) {
  return Model::open(directory, {.backend = kBackend, .n_threads = 2});
}

std::vector<float> logits_of(Session& session) {
  const auto logits = session.logits();
  return {logits.begin(), logits.end()};
}

// Logits after each of n forced tokens.
std::vector<float> walk(Session& session, std::span<const int32_t> ids) {
  std::vector<float> all;
  for (const int32_t id : ids) {
    session.step(id);
    const auto logits = session.logits();
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, square = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    square += std::pow(static_cast<double>(a[i]), 2);
  }
  return std::sqrt(difference / square);
}

// The message of the Error that `action` throws; empty when it throws none.
template <typename F>
std::string complaint(F action, ErrorKind* kind = nullptr) {
  try {
    action();
  } catch (const Error& error) {
    if (kind != nullptr) *kind = error.kind();
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// A session of kPrompt random tokens and `steps` more, and its file.
struct Saved {
  Saved(const std::string& directory, const SessionOptions& options, int64_t steps)
      : model(open_model(directory)), ids(random_ids(*model, kPrompt + kNew)) {
    plan = Session::plan(*model, options, kPrompt, kNew);
    session = Session::open(model, plan);
    EXPECT_TRUE(session->prefill(std::span(ids).first(kPrompt), {}));
    n = kPrompt + steps;
    walk(*session, std::span(ids).subspan(kPrompt, static_cast<size_t>(steps)));
    session->save(file, std::span(ids).first(static_cast<size_t>(n)), {});
  }
  std::unique_ptr<Session> restored(const SessionOptions& options, int64_t n_new) const {
    const auto saved = SavedSession::open(file);
    auto copy = Session::open(model, Session::plan(*model, options, *saved, n_new));
    copy->restore(*saved, {});
    return copy;
  }
  std::unique_ptr<Session> restored() const {
    return restored(SavedSession::open(file)->options(), kPrompt + kNew - n);
  }
  std::span<const int32_t> next() const {
    return std::span(ids).subspan(static_cast<size_t>(n), kMore);
  }

  Folder folder;
  std::string file = folder / "a.session";
  std::shared_ptr<Model> model;
  std::vector<int32_t> ids;
  SessionPlan plan;
  std::unique_ptr<Session> session;
  int64_t n = 0;
};

SessionOptions small(AttentionMode mode) {
  SessionOptions options = test::two_tiers(preset(mode));
  SelectionOptions& s = options.selection;
  s.budget = 64;
  s.recent = 32;
  s.outliers = std::min<int64_t>(s.outliers, 2);
  s.static_budget = std::min<int64_t>(s.static_budget, 32);
  s.rank = 32;
  if (s.key_codec == KeyCodec::kAuto && mode == AttentionMode::kShadow) {
    s.key_codec = KeyCodec::kLowRank;
  }
  return options;
}

void expect_same_session(const std::string& model, const SessionOptions& options,
                         const std::string& what) {
  SCOPED_TRACE(what);
  for (const int64_t steps : {int64_t{0}, kSteps}) {
    SCOPED_TRACE(steps);
    Saved saved(golden(model), options, steps);
    if (steps == 0) {
      EXPECT_EQ(Session::saved_bytes(*saved.model, saved.plan, kPrompt),
                static_cast<int64_t>(fs::file_size(saved.file)));
    }
    const auto copy = saved.restored();
    EXPECT_EQ(copy->n_tokens(), saved.n);
    EXPECT_EQ(logits_of(*copy), logits_of(*saved.session));
    const std::vector<float> expected = walk(*saved.session, saved.next());
    EXPECT_EQ(walk(*copy, saved.next()), expected);
    // Both can, or both cannot, go back.
    const auto rewound = [](Session& session) {
      const std::string why = complaint([&] { session.rewind(); });
      return why.empty() ? logits_of(session) : std::vector<float>();
    };
    EXPECT_EQ(rewound(*copy), rewound(*saved.session));
  }
}

TEST(SavedSession, EveryPresetGoesOnAsIfNothingHadHappened) {
  for (const AttentionMode mode : attention_modes()) {
    expect_same_session("llama", small(mode), name_of(mode));
  }
}

TEST(SavedSession, EveryCodecAndHome) {
  SessionOptions options = small(AttentionMode::kShadow);
  options.selection.key_codec = KeyCodec::kInt8;
  options.selection.value_codec = RowCodec::kInt8;
  options.selection.landmark_codec = RowCodec::kInt8;
  options.audit = 3;
  expect_same_session("llama", options, "int8 everywhere, audited");
  options = small(AttentionMode::kShadow);
  options.selection.rank_codec = RowCodec::kInt8;
  options.selection.value_codec = RowCodec::kInt4;
  options.value_home = ValueHome::kDevice;
  expect_same_session("llama", options, "int8 coefficients, int4 values on the device");
  options = small(AttentionMode::kShadow);
  options.selection.key_codec = KeyCodec::kExact;
  options.value_home = ValueHome::kDevice;
  expect_same_session("llama", options, "resident");
  options = small(AttentionMode::kShadow);
  options.selection.miss_cap = 2;
  options.selection.estimate = true;
  expect_same_session("llama", options, "capped and estimated");
  options = small(AttentionMode::kShadow);
  options.selection.reuse_steps = 7;
  expect_same_session("llama", options, "lists that serve seven steps");
  options = small(AttentionMode::kMpcache);
  options.selection.landmark_codec = RowCodec::kInt8;
  expect_same_session("llama", options, "two levels over int8");
  options = small(AttentionMode::kShadow);
  options.selection.key_codec = KeyCodec::kInt8;
  options.selection.sinks = kPrompt;
  expect_same_session("llama", options, "sinks that outlast the prompt");
}

TEST(SavedSession, SlidingWindows) {
  for (const char* model : {"mistral_window", "qwen2_window"}) {
    expect_same_session(model, small(AttentionMode::kDense), model);
    expect_same_session(model, small(AttentionMode::kShadow), model);
  }
}

// Every token's bias, and which chunks are exact, are part of it.
TEST(SavedSession, EvictionHead) {
  for (const AttentionMode mode :
       {AttentionMode::kDense, AttentionMode::kShadow, AttentionMode::kNosa, AttentionMode::kDelta}) {
    expect_same_session("llama_eviction_head", small(mode), name_of(mode));
  }
}

// Keys before RoPE are turned again when they are rebuilt, as far as they turn.
TEST(SavedSession, HeadsThatTurnInPart) {
  for (const char* model : {"phi3_partial", "glm4"}) {
    expect_same_session(model, small(AttentionMode::kShadow), model);
  }
}

// All keys of a context that is longer than the original one are turned otherwise: a session stays what
// it was prefilled as.
TEST(SavedSession, LongRopeStaysWhatItWas) {
  constexpr int64_t kFew = 100, kOriginal = 256;
  const auto model = open_model(golden("phi3_partial"));
  const std::vector<int32_t> ids = random_ids(*model, kFew);
  const Folder folder;
  std::vector<float> logits[2];
  for (const bool is_long : {false, true}) {
    SCOPED_TRACE(is_long);
    SessionOptions options = small(AttentionMode::kShadow);
    options.context = is_long ? kOriginal + 1 : kOriginal;
    const auto session = Session::open(model, Session::plan(*model, options, kFew, 8));
    ASSERT_TRUE(session->prefill(ids, {}));
    logits[is_long] = logits_of(*session);
    const std::string file = folder / fmt::format("{}.session", is_long);
    session->save(file, ids, {});
    const auto saved = SavedSession::open(file);
    options.context = 0;
    const auto copy = Session::open(model, Session::plan(*model, options, *saved, 8));
    copy->restore(*saved, {});
    EXPECT_EQ(copy->plan().context, kFew + 8);
    const std::vector<int32_t> next = {5, 6, 7};
    EXPECT_EQ(walk(*copy, next), walk(*session, next));
    const auto longer = [&] { return Session::plan(*model, options, *saved, kOriginal); };
    if (is_long) {
      EXPECT_TRUE(longer().long_rope);
    } else {
      const std::string why = complaint(longer);
      EXPECT_TRUE(contains(why, "at most 256 tokens") && contains(why, "LongRoPE")) << why;
    }
  }
  EXPECT_GT(relative_difference(logits[0], logits[1]), 0.05);
}

// How far queries look is part of what a prompt was prefilled as.
TEST(SavedSession, KnowsHowFarItsQueriesLook) {
  const Folder folder;
  const std::vector<int32_t> ids(100, 7);
  const auto open = [](std::optional<int64_t> chunk) {
    return Model::open(golden("llama"), {.backend = kBackend, .reach = {.dual_chunk = chunk}});
  };
  const auto model = open(72);
  const auto session = Session::open(model, Session::plan(*model, small(AttentionMode::kShadow), 100, 8));
  ASSERT_TRUE(session->prefill(ids, {}));
  const std::string file = folder / "reach.session";
  session->save(file, ids, {});
  const auto saved = SavedSession::open(file);
  const SessionOptions options = small(AttentionMode::kShadow);
  const auto same = open(72);
  const auto copy = Session::open(same, Session::plan(*same, options, *saved, 8));
  copy->restore(*saved, {});
  const std::vector<int32_t> next = {5, 6, 7};
  EXPECT_EQ(walk(*copy, next), walk(*session, next));
  const auto other = open({});
  const std::string why = complaint([&] { return Session::plan(*other, options, *saved, 8); });
  EXPECT_TRUE(contains(why, "with --dual-chunk 72 --dual-chunk-local 8") && contains(why, "give the same")) << why;
}

// A longer context moves every plane; another cache starts empty. Only roundings may differ.
TEST(SavedSession, AnotherContextAndAnotherCache) {
  for (const AttentionMode mode : {AttentionMode::kDense, AttentionMode::kShadow}) {
    Saved saved(golden("llama"), small(mode), kSteps);
    SessionOptions options = SavedSession::open(saved.file)->options();
    options.selection.slots = 5;
    options.selection.budget = 1000;
    const auto longer = saved.restored(options, 3000);
    EXPECT_GT(longer->plan().context, 3000);
    longer->set_budget(64);
    const auto shorter = saved.restored(SavedSession::open(saved.file)->options(), kMore);
    EXPECT_EQ(logits_of(*longer), logits_of(*saved.session));
    EXPECT_EQ(logits_of(*shorter), logits_of(*saved.session));
    const std::vector<float> expected = walk(*saved.session, saved.next());
    // The noise of bf16 activations (session_test.cpp).
    EXPECT_LT(relative_difference(expected, walk(*longer, saved.next())), 0.05);
    EXPECT_LT(relative_difference(expected, walk(*shorter, saved.next())), 0.05);
    EXPECT_TRUE(contains(complaint([&] { shorter->step(0); }), "is full"));
  }
}

// ---- what may differ ----

constexpr const char* kDemo = TIERCEL_SOURCE_DIR "/tools/demo/recall-4m";

// A fact among filler and the question for it: the answer is sure enough to survive roundings.
std::vector<int32_t> question() {
  std::string text = "\nThe magic number for silver-harbor is 48213.\n";
  for (int i = 0; i < (test::kSanitized ? 5 : 25); ++i) {
    text += fmt::format("Step {} explains how part {} is cleaned. ", i, i * 37 % 101);
  }
  text += "\nWhat is the magic number for silver-harbor? The magic number for silver-harbor is";
  return Tokenizer::load(kDemo).encode(text);
}

std::vector<int32_t> greedy(Session& session, int64_t n) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) {
    const auto logits = session.logits();
    tokens.push_back(static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin()));
    session.step(tokens.back());
  }
  return tokens;
}

// What restoring changes. `same`: the tokens that follow may not change with it.
struct Change {
  const char* what;
  bool same;
  std::function<void(SessionOptions&)> options;
  std::optional<ModelOptions> model = {};
};

// Saved once, restored with every change.
void expect_may_differ(const SessionOptions& options, const std::vector<Change>& changes,
                       BackendKind saved_with = kBackend) {
  constexpr int64_t kBefore = 2, kAfter = test::kSanitized ? 3 : 8;
  const Folder folder;
  const std::string file = folder / "a.session";
  const auto model = Model::open(kDemo, {.backend = saved_with, .n_threads = 2});
  std::vector<int32_t> ids = question();
  const auto n_prompt = std::ssize(ids);
  const auto session =
      Session::open(model, Session::plan(*model, options, n_prompt, kBefore + kAfter));
  ASSERT_TRUE(session->prefill(ids, {}));
  for (const int32_t id : greedy(*session, kBefore)) ids.push_back(id);
  session->save(file, ids, {});
  const std::vector<float> logits = logits_of(*session);
  const std::vector<int32_t> expected = greedy(*session, kAfter);
  const auto saved = SavedSession::open(file);
  const auto usual =
      saved_with == kBackend ? model : Model::open(kDemo, {.backend = kBackend, .n_threads = 2});
  for (const Change& change : changes) {
    SCOPED_TRACE(change.what);
    const auto other = change.model ? Model::open(kDemo, *change.model) : usual;
    SessionOptions changed = saved->options();
    changed.host_attention = options.host_attention;  // no property of a file
    change.options(changed);
    std::unique_ptr<Session> copy;
    const std::string why = complaint([&] {
      copy = Session::open(other, Session::plan(*other, changed, *saved, kAfter));
      copy->restore(*saved, {});
    });
    ASSERT_EQ(why, "");
    EXPECT_EQ(logits_of(*copy), logits);
    const std::vector<int32_t> got = greedy(*copy, kAfter);
    EXPECT_EQ(copy->n_tokens(), std::ssize(ids) + kAfter);
    EXPECT_TRUE(std::ranges::all_of(logits_of(*copy), [](float x) { return std::isfinite(x); }));
    if (change.same) {
      EXPECT_EQ(got, expected);
    }
    const SelectionOptions& s = copy->plan().options.selection;
    if (s.budget == kBudgetAll || options.attention == AttentionMode::kDense) continue;
    const SelectionReport report = copy->selection();
    const int64_t chunks = (s.budget + s.chunk_size - 1) / s.chunk_size;
    EXPECT_LE(report.selected_chunks, report.steps * other->config().n_kv_heads * chunks);
  }
}

using O = SessionOptions;
const auto kNothing = [](O&) {};

SessionOptions everything_selected(KeyCodec codec) {
  SessionOptions options = small(AttentionMode::kShadow);
  options.selection.outliers = 0;  // which --scope layer cannot have
  options.selection.key_codec = codec;
  options.selection.budget = kBudgetAll;
  options.value_home = ValueHome::kHost;
  return options;
}

TEST(SavedSession, WhatItsBytesDoNotDependOnMayDiffer) {
  std::vector<Change> changes = {
      {"nothing", true, kNothing},
      {"--budget of all, in tokens", true, [](O& o) { o.selection.budget = 4096; }},
      {"--budget", false, [](O& o) { o.selection.budget = 48; }},
      {"--budget in percent", false, [](O& o) { o.selection.budget_share = 0.2; }},
      {"--top-p-mass", false,
       [](O& o) { o.selection.group = GroupScore::kSum, o.selection.top_p = 0.5; }},
      {"--group mean", true, [](O& o) { o.selection.group = GroupScore::kMean; }},
      {"--group sum", true, [](O& o) { o.selection.group = GroupScore::kSum; }},
      {"--scope layer", true, [](O& o) { o.selection.scope = SelectScope::kLayer; }},
      {"--reuse", true, [](O& o) { o.selection.reuse = 0.5; }},
      {"--reuse-steps", true, [](O& o) { o.selection.reuse_steps = 3; }},
      {"--miss-cap", false, [](O& o) { o.selection.miss_cap = 2; }},
      {"--miss-cap that caps nothing", true, [](O& o) { o.selection.miss_cap = 4096; }},
      {"--slots", true, [](O& o) { o.selection.slots = 1; }},
      {"--prefill", true, [](O& o) { o.prefill = PrefillMode::kSelect, o.prefill_budget = 64; }},
      {"--ctx-size", true, [](O& o) { o.context = 3000; }},
      {"--device-memory", true, [](O& o) { o.device_memory = int64_t{1} << 30; }},
      {"--host-memory", true, [](O& o) { o.host_memory = int64_t{1} << 30; }},
      {"--value-home device", true, [](O& o) { o.value_home = ValueHome::kDevice; }},
      {"--value-home auto", true, [](O& o) { o.value_home = ValueHome::kAuto; }},
      {"--exact-exp", true, [](O& o) { o.exact_exp = true; }},
      {"--no-graphs", true, [](O& o) { o.no_graphs = !o.no_graphs; }},
      {"--strict", true, [](O& o) { o.strict = true; }},
      {"--threads", true, [](O& o) { o.n_threads = 1; },
       ModelOptions{.backend = kBackend, .n_threads = 1}},
      {"--backend", true, kNothing, ModelOptions{.backend = BackendKind::kCpu, .n_threads = 2}},
  };
  expect_may_differ(everything_selected(KeyCodec::kInt8), changes);
  expect_may_differ(everything_selected(KeyCodec::kLowRank), changes);
  std::vector<Change> exact = changes;
  if (kBackend == BackendKind::kCpu) {
    exact.push_back({"--host-attention", true, [](O& o) { o.host_attention = HostAttention::kOn; }});
  }
  expect_may_differ(everything_selected(KeyCodec::kExact), exact);
  SessionOptions dense = small(AttentionMode::kDense);
  dense.value_home = ValueHome::kAuto;  // which it has no use for, as --strict says
  expect_may_differ(dense, changes);
  // From a CPU to a device; the other way round is in the table.
  expect_may_differ(everything_selected(KeyCodec::kInt8), {{"--backend", true, kNothing}},
                    BackendKind::kCpu);
}

// Lists that serve several steps, slots and homes are part of a file, and of no use elsewhere.
TEST(SavedSession, WhatTheCacheDependsOnMayDifferToo) {
  SessionOptions options = small(AttentionMode::kShadow);
  options.selection.reuse_steps = 7;
  options.selection.coarse_chunk = 32;
  options.selection.coarse_share = 0.5;
  options.selection.key_codec = KeyCodec::kExact;
  options.value_home = ValueHome::kDevice;
  expect_may_differ(options,
                    {{"nothing", true, kNothing},
                     {"as many slots for shorter lists", false,
                      [](O& o) { o.selection.budget /= 2, o.selection.slots *= 2; }},
                     {"no reuse", false, [](O& o) { o.selection.reuse_steps = 0; }},
                     {"--reuse", false, [](O& o) { o.selection.reuse = 0.9; }},
                     {"--coarse-share", false, [](O& o) { o.selection.coarse_share = 0.1; }},
                     {"--miss-cap", false, [](O& o) { o.selection.miss_cap = 1; }},
                     {"--value-home host", false, [](O& o) { o.value_home = ValueHome::kHost; }},
                     {"--slots", false, [](O& o) { o.selection.slots = 1; }},
                     {"everything", true, [](O& o) { o.selection.budget = kBudgetAll; }}});
  if (kBackend != BackendKind::kCpu) return;
  options.host_attention = HostAttention::kOn;
  const auto without = [](O& o) { o.host_attention = HostAttention::kOff; };
  expect_may_differ(options, {{"nothing", true, kNothing}, {"no --host-attention", true, without}});
}

TEST(SavedSession, IsSavedAgainWithItsTokens) {
  const Saved saved(golden("llama"), small(AttentionMode::kShadow), 0);
  const auto copy = saved.restored();
  walk(*copy, saved.next());
  const auto n = static_cast<size_t>(saved.n + kMore);
  const std::string again = saved.folder / "again.session";
  copy->save(again, std::span(saved.ids).first(n), {});
  const auto file = SavedSession::open(again);
  EXPECT_EQ(file->n_tokens(), saved.n + kMore);
  EXPECT_EQ(file->n_prompt(), kPrompt);
  EXPECT_TRUE(std::ranges::equal(file->ids(), std::span(saved.ids).first(n)));
  auto third = Session::open(saved.model, Session::plan(*saved.model, file->options(), *file, 1));
  third->restore(*file, {});
  EXPECT_EQ(logits_of(*third), logits_of(*copy));
}

// ---- what is refused ----

void copy_model(const std::string& from, const std::string& to) {
  fs::create_directories(to);
  for (const auto& entry : fs::directory_iterator(from)) {
    fs::copy_file(entry.path(), fs::path(to) / entry.path().filename());
  }
}

TEST(SavedSession, AnotherModelIsRefused) {
  const Saved saved(golden("llama"), small(AttentionMode::kShadow), 0);
  const auto file = SavedSession::open(saved.file);
  const auto refuse = [&](const std::string& directory) {
    const auto other = open_model(directory);
    ErrorKind kind = ErrorKind::kRuntime;
    const std::string why =
        complaint([&] { Session::plan(*other, file->options(), *file, 8); }, &kind);
    EXPECT_TRUE(contains(why, "another model")) << why;
    EXPECT_EQ(kind, ErrorKind::kUsage);
  };
  refuse(golden("qwen3"));
  refuse(golden("llama_biases"));
  // One byte of one weight.
  const std::string changed = saved.folder / "changed";
  copy_model(golden("llama"), changed);
  {
    std::fstream weights(changed + "/model.safetensors",
                         std::ios::in | std::ios::out | std::ios::binary);
    weights.seekg(-7, std::ios::end);
    const char byte = static_cast<char>(weights.get() ^ 1);
    weights.seekp(-7, std::ios::end);
    weights.put(byte);
  }
  refuse(changed);
  // The same weights with other positions.
  const std::string turned = saved.folder / "turned";
  copy_model(golden("llama"), turned);
  std::ifstream stream(turned + "/config.json");
  std::string config(std::istreambuf_iterator<char>(stream), {});
  const size_t at = config.find("\"rope_theta\": ");
  ASSERT_NE(at, std::string::npos);
  config.insert(at + 14, "3");
  std::ofstream(turned + "/config.json") << config;
  refuse(turned);
}

TEST(SavedSession, OtherOptionsAreRefusedByName) {
  const Saved saved(golden("llama"), small(AttentionMode::kShadow), 0);
  const auto file = SavedSession::open(saved.file);
  const auto refuse = [&](const char* flag, auto change) {
    SessionOptions options = file->options();
    change(options);
    ErrorKind kind = ErrorKind::kRuntime;
    const std::string why =
        complaint([&] { Session::plan(*saved.model, options, *file, 8); }, &kind);
    EXPECT_TRUE(contains(why, flag)) << flag << ": " << why;
    EXPECT_TRUE(contains(why, saved.file)) << why;
    EXPECT_EQ(kind, ErrorKind::kUsage);
  };
  refuse("--attention shadow", [](O& o) { apply_preset(AttentionMode::kDense, o); });
  refuse("--chunk-size 8", [](O& o) { o.selection.chunk_size = 16; });
  refuse("--index mean", [](O& o) {
    o.selection.index = IndexKind::kMinMax;
    o.selection.outliers = 0;
  });
  refuse("--coarse-chunk", [](O& o) { o.selection.coarse_chunk = 32; });
  refuse("--share-layers", [](O& o) { o.selection.share_layers = 2; });
  refuse("--estimate", [](O& o) { o.selection.miss_cap = 1, o.selection.estimate = true; });
  refuse("--sinks", [](O& o) { o.selection.sinks = 64; });
  refuse("--recent 32", [](O& o) { o.selection.recent = 33; });
  refuse("--outliers 2", [](O& o) { o.selection.outliers = 1; });
  refuse("--outliers 2", [](O& o) {
    o.selection.outliers = 0;
    o.selection.static_budget = 8;
  });
  refuse("--drop-share", [](O& o) { o.selection.drop_share = 0.1; });
  refuse("--key-codec lowrank", [](O& o) { o.selection.key_codec = KeyCodec::kInt8; });
  refuse("--rank 32", [](O& o) { o.selection.rank = 16; });
  refuse("--rank-codec", [](O& o) { o.selection.rank_codec = RowCodec::kInt8; });
  refuse("--landmark-codec", [](O& o) { o.selection.landmark_codec = RowCodec::kInt8; });
  refuse("--value-codec", [](O& o) { o.selection.value_codec = RowCodec::kInt8; });
  refuse("--audit", [](O& o) { o.audit = 1; });
  SessionOptions narrow = file->options();
  narrow.context = kPrompt - 1;
  EXPECT_TRUE(
      contains(complaint([&] { Session::plan(*saved.model, narrow, *file, 8); }), "--ctx-size"));
}

TEST(SavedSession, CallsOutOfOrderAreRefused) {
  const Saved saved(golden("llama"), small(AttentionMode::kShadow), 0);
  const auto file = SavedSession::open(saved.file);
  Session& session = *saved.session;
  const auto ids = std::span(saved.ids);
  EXPECT_TRUE(contains(complaint([&] { session.restore(*file, {}); }), "holds tokens"));
  EXPECT_TRUE(contains(complaint([&] { session.prefill(ids.first(3), {}); }), "holds"));
  EXPECT_TRUE(contains(complaint([&] { session.save(saved.file, ids.first(3), {}); }), "3 ids"));
  const auto fresh =
      Session::open(saved.model, Session::plan(*saved.model, file->options(), *file, 1));
  EXPECT_TRUE(contains(complaint([&] { fresh->save(saved.file, {}, {}); }), "0 tokens"));
  EXPECT_TRUE(contains(complaint([&] { fresh->prefill(ids.first(3), {}); }), "1 were planned"));
}

TEST(SavedSession, AStoppedSaveLeavesTheFileThatWasThere) {
  const Saved saved(golden("llama"), small(AttentionMode::kShadow), 0);
  const auto size = fs::file_size(saved.file);
  saved.session->step(1);
  std::vector<int32_t> ids(saved.ids.begin(), saved.ids.begin() + kPrompt);
  ids.push_back(1);
  ErrorKind kind = ErrorKind::kRuntime;
  complaint([&] { saved.session->save(saved.file, ids, [](const Progress&) { return false; }); },
            &kind);
  EXPECT_EQ(kind, ErrorKind::kInterrupted);
  EXPECT_FALSE(fs::exists(saved.file + ".partial"));
  EXPECT_EQ(fs::file_size(saved.file), size);
  EXPECT_EQ(SavedSession::open(saved.file)->n_tokens(), kPrompt);
  saved.restored();
}

}  // namespace
}  // namespace tiercel
