// Random calls against a small model of what the interface promises: legal ones must do what they
// say, illegal ones must throw the kind that the header names and change nothing.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <random>
#include <thread>

#include "tests/api/deck.h"
#include "tests/api/model.h"
#include "tests/sanitized.h"
#include "tests/seed.h"

namespace tiercel::test {
namespace {

constexpr int kCalls = kSanitized ? 200 : 2400;      // of one thread
constexpr int kSharedCalls = kSanitized ? 80 : 400;  // of each of two
constexpr int kMoreSentences = kSanitized ? 3 : 6;   // from one prompt to the next
constexpr int64_t kNew = 24;                         // option n-predict

// With windows that leave something to select.
const Options kOptions[] = {
    {{"attention", "dense"}},
    {{"budget", "64"}, {"recent", "32"}, {"outliers", "4"}, {"key-codec", "exact"}},
    {{"attention", "quest"}, {"budget", "64"}, {"recent", "32"}, {"value-codec", "int8"}},
    {{"budget", "64"},
     {"recent", "48"},
     {"outliers", "1"},
     {"key-codec", "lowrank"},
     {"rank", "32"},
     {"temp", "0.9"},
     {"seed", "7"}},
    {{"attention", "tokenselect"},
     {"budget", "32"},
     {"sinks", "16"},
     {"recent", "32"},
     {"ignore-eos", "true"},
     {"temp", "3"},
     {"seed", "1"}},
};

// What restoring may ask for beside what was saved. `same`: every bit of what follows stays.
struct Change {
  const char *name, *value;
  bool same = false;
  unsigned of = 0x1f;  // bit i: it goes with kOptions[i]
};
const Change kChanges[] = {
    {.name = "device-memory", .value = "1GiB", .same = true},
    {.name = "host-memory", .value = "1GiB", .same = true},
    {.name = "no-graphs", .value = "true", .same = true},
    {.name = "temp", .value = "0.5", .same = true},
    {.name = "budget", .value = "32"},
    {.name = "budget", .value = "512"},
    {.name = "budget", .value = "all"},
    {.name = "slots", .value = "1"},
    {.name = "slots", .value = "5.5"},
    {.name = "group", .value = "mean"},
    {.name = "group", .value = "sum"},
    {.name = "reuse", .value = "0.5"},
    {.name = "reuse-steps", .value = "3"},
    {.name = "miss-cap", .value = "1"},
    {.name = "value-home", .value = "device"},
    {.name = "value-home", .value = "host"},
    {.name = "scope", .value = "head", .of = 0x10},
    {.name = "scope", .value = "layer", .of = 0x04},
};

// What a session must be.
struct Expected {
  size_t options = 0;
  int64_t n_new = kNew;
  bool closed = false;
  std::optional<size_t> prompt = {};  // index of the prompt it was given
  std::vector<int32_t> sequence = {};
  int64_t context = 0;
  int64_t n_restored = 0;  // behind the prompt, from a file
  bool restored = false;   // its options of sampling are not those it was opened with
  bool plain = true;       // behind the prompt there is nothing but what it generated as opened

  int64_t behind(int64_t n_prompt) const {
    return static_cast<int64_t>(sequence.size()) - n_prompt;
  }
  Expected emptied(bool closes) const {
    return {.options = options,
            .n_new = n_new,
            .closed = closes,
            .restored = restored,
            .plain = !restored};
  }
};

class Fuzz {
 public:
  Fuzz(uint64_t seed, const Engine& engine, const std::string& name)
      : random_(seed),
        engine_(engine),
        file_(TIERCEL_BINARY_DIR "/tests/fuzz-" + std::to_string(::getpid()) + name) {
    for (int i = 0; i < 3; ++i) {
      texts_.push_back(prompt_text(2 + kMoreSentences * i, i));
      prompts_.push_back(engine_.tokenize(texts_.back()));
    }
    for (size_t i = 0; i < 3; ++i) {
      sessions_.push_back(open(0));
      expected_.push_back({});
      renew(i);
    }
  }

  void run(int n_calls) {
    Deck<Kind> deck(kinds());
    for (int i = 0; i < n_calls && !::testing::Test::HasFailure(); ++i) {
      const Kind& kind = deck.deal(random_);
      at_ = below(sessions_.size());
      SCOPED_TRACE(std::string(kind.name) + ", call " + std::to_string(i));
      (this->*kind.call)();
      verify();
    }
    // A fuzz that never gets anywhere would pass too.
    for (const char* what : {"prefill", "generate", "append", "fork", "restore", "rewind"}) {
      EXPECT_GT(counts_[what], 0) << what;
    }
  }

  // One prompt under one composition has one continuation, whoever else computes beside it.
  void expect_agrees_with(const Fuzz& other) const {
    for (const auto& [key, mine] : continuations_) {
      const auto its = other.continuations_.find(key);
      if (its != other.continuations_.end()) expect_one_begins_the_other(mine, its->second);
    }
    for (const auto& [prompt, mine] : prompt_scores_) {
      const auto its = other.prompt_scores_.find(prompt);
      if (its == other.prompt_scores_.end()) continue;
      EXPECT_TRUE(std::equal(mine.begin() + 1, mine.end(), its->second.begin() + 1)) << prompt;
    }
  }

 private:
  struct Kind {
    const char* name;
    int n;  // in a deck
    void (Fuzz::*call)();
  };
  static std::span<const Kind> kinds();

  size_t below(size_t n) { return static_cast<size_t>(random_() % n); }
  Session& session() { return sessions_[at_]; }
  Expected& expected() { return expected_[at_]; }
  const std::vector<int32_t>& prompt() { return prompts_[*expected().prompt]; }
  int64_t room() { return expected().context - static_cast<int64_t>(expected().sequence.size()); }

  Session open(size_t which) {
    Options options = kOptions[which];
    return engine_.open_session(options.set("n-predict", std::to_string(kNew)));
  }
  void renew(size_t i) {
    const size_t which = below(std::size(kOptions));
    sessions_[i] = open(which);
    expected_[i] = {.options = which};
  }
  void renew() { renew(at_); }
  void close() {
    session().close();
    expected() = expected().emptied(true);
  }
  void reset() {
    if (expected().closed) renew();
    session().reset();
    expected() = expected().emptied(false);
  }

  // An empty session gets a prompt, a full one begins anew.
  void need(int64_t n_room) {
    if (expected().n_new < n_room) renew();
    if (!expected().prompt || room() < n_room) prefill();
  }
  void prefill() {
    reset();
    const size_t which = below(prompts_.size());
    const std::vector<int32_t>& ids = prompts_[which];
    switch (below(6)) {
      case 0: {
        const std::vector<double> scores = session().score(ids);
        EXPECT_EQ(scores.size(), ids.size());
        // The same prompt, the same bits, whatever decode will select.
        const auto [known, fresh] = prompt_scores_.try_emplace(which, scores);
        EXPECT_TRUE(std::equal(scores.begin() + 1, scores.end(), known->second.begin() + 1));
        break;
      }
      case 1:
        EXPECT_FALSE(session().prefill(ids, [](const Progress&) { return false; }));
        EXPECT_EQ(session().n_tokens(), 0);
        [[fallthrough]];
      case 2: EXPECT_TRUE(session().prefill(texts_[which])); break;
      default: EXPECT_TRUE(session().prefill(ids));
    }
    expected().prompt = which;
    expected().sequence = ids;
    expected().context = static_cast<int64_t>(ids.size()) + expected().n_new;
    ++counts_["prefill"];
  }

  void generate() {
    need(0);
    const auto n = static_cast<int64_t>(below(6));
    const int64_t stop_after = below(4) == 0 ? 2 : n + 1, had_room = room();
    int64_t n_pieces = 0;
    std::string text;
    const Generation got = session().generate(n, [&](const Piece& piece) {
      text += piece.text;
      return ++n_pieces < stop_after;
    });
    const auto n_got = static_cast<int64_t>(got.tokens.size());
    EXPECT_EQ(text, got.text);
    EXPECT_EQ(n_pieces, n_got);
    EXPECT_LE(n_got, std::min(n, had_room));
    switch (got.reason) {
      case FinishReason::kLength: EXPECT_EQ(n_got, n); break;
      case FinishReason::kStopped: EXPECT_EQ(n_got, stop_after); break;
      case FinishReason::kContextFull: EXPECT_EQ(n_got, had_room); break;
      case FinishReason::kEndOfText: EXPECT_EQ(got.tokens.back(), 2045); break;
    }
    expected().sequence.insert(expected().sequence.end(), got.tokens.begin(), got.tokens.end());
    if (expected().plain) check_continuation();
    counts_["generate"] += n_got > 0;
  }

  static void expect_one_begins_the_other(const std::vector<int32_t>& a,
                                          const std::vector<int32_t>& b) {
    const size_t both = std::min(a.size(), b.size());
    EXPECT_EQ(std::vector(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(both)),
              std::vector(b.begin(), b.begin() + static_cast<std::ptrdiff_t>(both)));
  }

  // However generation was cut into calls, rewound and begun again: one prompt under one
  // composition has one continuation.
  void check_continuation() {
    auto& known = continuations_[{expected().options, *expected().prompt}];
    const auto begin = expected().sequence.begin() + static_cast<int64_t>(prompt().size());
    const std::vector<int32_t> mine(begin, expected().sequence.end());
    expect_one_begins_the_other(mine, known);
    if (mine.size() > known.size()) known = mine;
  }

  void appended(const std::vector<int32_t>& tokens) {
    expected().sequence.insert(expected().sequence.end(), tokens.begin(), tokens.end());
    if (!tokens.empty()) expected().plain = false;
  }
  std::vector<int32_t> random_tokens(size_t n) {
    std::vector<int32_t> tokens(n);
    for (int32_t& token : tokens) token = static_cast<int32_t>(below(2000));
    return tokens;
  }

  void step() {
    need(1);
    const std::vector<int32_t> tokens = random_tokens(1);
    session().step(tokens[0]);
    appended(tokens);
  }

  void score() {
    const size_t n = below(4);
    need(static_cast<int64_t>(n));
    std::vector<int32_t> tokens = random_tokens(n);
    const size_t stop = n > 0 && below(2) > 0 ? 1 + below(n) : n;
    size_t n_told = 0;
    const std::vector<double> scores =
        session().score(tokens, [&](const Progress&) { return ++n_told < stop; });
    EXPECT_EQ(n_told, stop);
    EXPECT_EQ(scores.size(), stop);
    for (const double value : scores) EXPECT_LT(value, 0);
    tokens.resize(stop);
    appended(tokens);
  }

  // Stopped or not, what is in is in.
  void append() {
    std::vector<int32_t> tokens = random_tokens(below(9));
    const std::string text = below(2) > 0 ? " And the harbor?" : " 4";
    const bool by_text = below(3) == 0;
    if (by_text) tokens = engine_.tokenize(text, {{"no-bos", "true"}});
    need(static_cast<int64_t>(tokens.size()));
    const bool stops = below(3) == 0 && !tokens.empty();
    const auto progress = [&](const Progress&) { return !stops; };
    EXPECT_EQ(by_text ? session().append(text, progress) : session().append(tokens, progress),
              !stops);
    appended(tokens);
    ++counts_["append"];
  }

  void look() {
    need(0);
    EXPECT_EQ(logits_of(session()).size(), 2048u);
    const Stats stats = session().stats();
    EXPECT_EQ(stats.prompt_tokens, static_cast<int64_t>(prompt().size()));
    EXPECT_EQ(stats.generated_tokens, expected().behind(stats.prompt_tokens));
    // Logits wanted all of them.
    EXPECT_EQ(stats.decode_steps, stats.generated_tokens - expected().n_restored);
    EXPECT_EQ(session().memory().context, expected().context);
  }

  static std::vector<float> logits_of(Session& session) {
    const std::span<const float> logits = session.logits();
    return {logits.begin(), logits.end()};
  }

  // Whether a restored session has the cache that was saved: homes have not changed, and slots are as
  // many, which they are from the context on that has no fewer chunks than there are slots. Without it
  // the same chunks are attended in another order.
  bool has_the_cache(Session& copy) {
    constexpr int64_t kSlotTokens = 3 * 64;  // option slots, largest budget
    const MemoryPlan mine = session().memory(), its = copy.memory();
    return (mine.values > 0) == (its.values > 0) &&
           (mine.context == its.context || std::min(mine.context, its.context) >= kSlotTokens);
  }

  // What comes back is the same sequence, and thinks the same of what follows, whatever else it is
  // asked for; where that does not matter, it takes the place of the one that was saved.
  void save() {
    need(0);
    if (below(3) == 0) {
      EXPECT_FALSE(session().save(file_, [](const Progress&) { return false; }));
    }
    EXPECT_TRUE(session().save(file_));
    const auto n_new = static_cast<int64_t>(below(kNew));
    Options options = {{"n-predict", std::to_string(n_new)}};
    bool same = true;
    std::string what;
    for (size_t i = below(4); i > 0; --i) {
      const Change& change = kChanges[below(std::size(kChanges))];
      if ((change.of >> expected().options & 1) == 0) continue;
      options.set(change.name, change.value);
      same = same && change.same;
      what += std::string(change.name) + " " + change.value + ", ";
    }
    SCOPED_TRACE(what);
    Session copy = engine_.restore(file_, options);
    std::remove(file_.c_str());
    const auto context = static_cast<int64_t>(expected().sequence.size()) + n_new;
    EXPECT_EQ(copy.tokens(), expected().sequence);
    EXPECT_EQ(logits_of(copy), logits_of(session()));
    EXPECT_EQ(copy.stats().prompt_tokens, static_cast<int64_t>(prompt().size()));
    EXPECT_EQ(copy.memory().context, context);
    ++counts_["restore"];
    if (!same || !has_the_cache(copy)) return use_up(copy, n_new);
    if (expected().options > 0) session().set_budget(-1);
    if (const std::vector<int32_t> token = random_tokens(1); n_new > 0 && room() > 0) {
      session().step(token[0]);
      copy.step(token[0]);
      EXPECT_EQ(logits_of(copy), logits_of(session()));
      appended(token);
    }
    session() = std::move(copy);
    expected().n_new = n_new;
    expected().context = context;
    expected().n_restored = context - n_new - static_cast<int64_t>(prompt().size());
    expected().restored = true;
    expected().plain = false;
  }

  // It works, to its end.
  void use_up(Session& copy, int64_t n_new) {
    const auto n = static_cast<int64_t>(below(static_cast<size_t>(n_new) + 1));
    EXPECT_LE(std::ssize(copy.generate(n).tokens), n);
    const int64_t left = n_new - (copy.n_tokens() - std::ssize(expected().sequence));
    EXPECT_TRUE(copy.append(random_tokens(static_cast<size_t>(left))));
    EXPECT_KIND(copy.step(1), ErrorKind::kState);
    if (kind_of([&] { copy.rewind(); }) == 0) {
      EXPECT_EQ(copy.tokens(), prompt());
    }
  }

  // The fork takes the place of another session, and is what this one is.
  void fork() {
    need(0);
    Session copy = session().fork();
    EXPECT_EQ(logits_of(copy), logits_of(session()));
    const auto n = static_cast<int64_t>(below(3));
    const Generation mine = session().generate(n), its = copy.generate(n);
    EXPECT_EQ(its.tokens, mine.tokens);
    EXPECT_EQ(its.text, mine.text);
    auto& sequence = expected().sequence;
    sequence.insert(sequence.end(), mine.tokens.begin(), mine.tokens.end());
    if (expected().plain) check_continuation();
    ++counts_["fork"];
    const size_t other = below(sessions_.size());
    if (other == at_) return;
    sessions_[other] = std::move(copy);
    expected_[other] = expected();
  }

  void rewind() {
    need(0);
    const int kind = kind_of([&] { session().rewind(); });
    if (kind != 0) {
      // The prompt's window moved on: only where more was generated than it keeps room for.
      EXPECT_EQ(kind, static_cast<int>(ErrorKind::kState));
      EXPECT_GT(expected().behind(static_cast<int64_t>(prompt().size())), 4);
      verify();
      reset();
      need(1);
      session().step(1);
      session().rewind();
    }
    expected().sequence = prompt();
    expected().plain = !expected().restored;
    expected().n_restored = 0;
    ++counts_["rewind"];
  }

  void illegal() {
    Session& s = session();
    const std::vector<int32_t> outside = {1, 2048}, negative = {-1}, some = {1, 2};
    if (expected().closed) {
      EXPECT_KIND(s.prefill(some), ErrorKind::kState);
      EXPECT_KIND(s.generate(1), ErrorKind::kState);
      EXPECT_KIND(s.reset(), ErrorKind::kState);
      EXPECT_KIND(s.tokens(), ErrorKind::kState);
      EXPECT_KIND(s.stats(), ErrorKind::kState);
      s.close();
    } else if (!expected().prompt) {
      EXPECT_KIND(s.generate(1), ErrorKind::kState);
      EXPECT_KIND(s.step(1), ErrorKind::kState);
      EXPECT_KIND(s.logits(), ErrorKind::kState);
      EXPECT_KIND(s.rewind(), ErrorKind::kState);
      EXPECT_KIND(s.save("x"), ErrorKind::kState);
      EXPECT_KIND(s.set_budget(8), ErrorKind::kState);
      EXPECT_KIND(s.fork(), ErrorKind::kState);
      EXPECT_KIND(s.append(some), ErrorKind::kState);
      EXPECT_KIND(s.prefill(std::span<const int32_t>()), ErrorKind::kUsage);
      EXPECT_KIND(s.score({}), ErrorKind::kUsage);
      EXPECT_KIND(s.prefill(outside), ErrorKind::kUsage);
      EXPECT_KIND(s.score(negative), ErrorKind::kUsage);
    } else {
      EXPECT_KIND(s.prefill(some), ErrorKind::kState);
      EXPECT_KIND(s.prefill("text"), ErrorKind::kState);
      EXPECT_KIND(s.generate(-1), ErrorKind::kUsage);
      EXPECT_KIND(s.save(""), ErrorKind::kUsage);
      EXPECT_KIND(s.save("/nowhere/x"), ErrorKind::kRuntime);
      EXPECT_KIND(s.set_budget(1 << 20), ErrorKind::kUsage);
      EXPECT_KIND(s.step(2048), ErrorKind::kUsage);
      EXPECT_KIND(s.step(-7), ErrorKind::kUsage);
      EXPECT_KIND(s.score(outside), ErrorKind::kUsage);
      const std::vector<int32_t> too_many(static_cast<size_t>(room()) + 1, 5);
      EXPECT_KIND(s.score(too_many), ErrorKind::kState);
      EXPECT_KIND(s.append(too_many), ErrorKind::kState);
      EXPECT_KIND(s.append(outside), ErrorKind::kUsage);
      if (room() == 0) {
        EXPECT_KIND(s.step(1), ErrorKind::kState);
      }
    }
  }

  void verify() {
    for (size_t i = 0; i < sessions_.size(); ++i) {
      if (expected_[i].closed) continue;
      EXPECT_EQ(sessions_[i].tokens(), expected_[i].sequence) << "session " << i;
      EXPECT_EQ(sessions_[i].n_tokens(), static_cast<int64_t>(expected_[i].sequence.size()));
    }
  }

  std::mt19937_64 random_;
  const Engine& engine_;
  const std::string file_;
  std::vector<std::string> texts_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<Session> sessions_;
  std::vector<Expected> expected_;
  size_t at_ = 0;
  std::map<std::string, int64_t> counts_;
  std::map<size_t, std::vector<double>> prompt_scores_;
  std::map<std::pair<size_t, size_t>, std::vector<int32_t>> continuations_;
};

std::span<const Fuzz::Kind> Fuzz::kinds() {
  static constexpr Kind kKinds[] = {
      {"illegal", 10, &Fuzz::illegal}, {"generate", 14, &Fuzz::generate},
      {"rewind", 3, &Fuzz::rewind},    {"step", 2, &Fuzz::step},
      {"append", 3, &Fuzz::append},    {"score", 3, &Fuzz::score},
      {"look", 3, &Fuzz::look},        {"fork", 1, &Fuzz::fork},
      {"save", 3, &Fuzz::save},        {"reset", 1, &Fuzz::reset},
      {"close", 1, &Fuzz::close},      {"renew", 1, &Fuzz::renew},
  };
  return kKinds;
}

TEST(ApiFuzz, RandomCallsDoWhatTheHeaderSays) {
  const Engine engine = open_demo(kSanitized ? "1" : "2");
  Fuzz(seed(), engine, "a").run(kCalls);
}

TEST(ApiFuzz, TwoThreadsOnOneEngineDisturbNothing) {
  const Engine engine = open_demo();
  Fuzz one(seed() + 1, engine, "b"), other(seed() + 2, engine, "c");
  std::thread thread([&] { EXPECT_NO_THROW(one.run(kSharedCalls)); });
  EXPECT_NO_THROW(other.run(kSharedCalls));
  thread.join();
  one.expect_agrees_with(other);
}

}  // namespace
}  // namespace tiercel::test
