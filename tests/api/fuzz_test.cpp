// Random calls against a small model of what the interface promises: legal ones must do what they
// say, illegal ones must throw the kind that the header names and change nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <random>

#include "tests/api/model.h"
#include "tests/seed.h"

namespace tiercel::test {
namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kCalls = 80;
#else
constexpr int kCalls = 3000;
#endif
constexpr int64_t kNew = 24;  // option n-predict

const Options kOptions[] = {
    {{"attention", "dense"}},
    {{"budget", "64"}, {"outliers", "4"}, {"key-codec", "exact"}},
    {{"attention", "quest"}, {"budget", "64"}, {"recent", "32"}, {"value-codec", "int8"}},
    {{"budget", "64"}, {"key-codec", "lowrank"}, {"rank", "32"}, {"temp", "0.9"}, {"seed", "7"}},
    {{"attention", "tokenselect"},
     {"budget", "32"},
     {"ignore-eos", "true"},
     {"temp", "3"},
     {"seed", "1"}},
};

// What a session must be.
struct Expected {
  size_t options = 0;
  bool closed = false;
  std::optional<size_t> prompt;  // index of the prompt it was given
  std::vector<int32_t> sequence;
  bool plain = true;  // behind the prompt there is nothing but what it generated

  int64_t behind(int64_t n_prompt) const {
    return static_cast<int64_t>(sequence.size()) - n_prompt;
  }
};

class Fuzz {
 public:
  explicit Fuzz(uint64_t seed) : random_(seed), engine_(open_demo()) {
    for (int i = 0; i < 3; ++i) prompts_.push_back(engine_.tokenize(prompt_text(3 + 6 * i, i)));
    for (size_t i = 0; i < 3; ++i) renew(i);
  }

  void run() {
    for (int i = 0; i < kCalls && !::testing::Test::HasFailure(); ++i) {
      at_ = below(sessions_.size());
      const char* name = call();
      SCOPED_TRACE(std::string(name) + ", call " + std::to_string(i));
      verify();
      ++counts_[name];
    }
    // A fuzz that never gets anywhere would pass too.
    for (const char* name :
         {"generate", "step", "append", "fork", "score", "rewind", "prefill", "cancel", "save", "illegal"}) {
      EXPECT_GT(counts_[name], 0) << name;
    }
  }

 private:
  size_t below(size_t n) { return static_cast<size_t>(random_() % n); }
  Session& session() { return sessions_[at_]; }
  Expected& expected() { return expected_[at_]; }
  const std::vector<int32_t>& prompt() { return prompts_[*expected().prompt]; }
  int64_t room() {
    return static_cast<int64_t>(prompt().size()) + kNew -
           static_cast<int64_t>(expected().sequence.size());
  }

  void renew(size_t i) {
    const size_t which = below(std::size(kOptions));
    Options options = kOptions[which];
    options.set("n-predict", std::to_string(kNew));
    Session session = engine_.open_session(options);
    if (i < sessions_.size()) {
      sessions_[i] = std::move(session);
      expected_[i] = {.options = which, .prompt = {}, .sequence = {}};
    } else {
      sessions_.push_back(std::move(session));
      expected_.push_back({.options = which, .prompt = {}, .sequence = {}});
    }
  }

  const char* call() {
    if (below(4) == 0) return illegal();
    if (expected().closed || below(60) == 0) return renew(at_), "renew";
    if (!expected().prompt) return begin();
    switch (below(10)) {
      case 0: return rewind();
      case 1: return below(2) > 0 ? step() : append();
      case 2: return score();
      case 3: return below(3) > 0 ? look() : fork();
      case 4:
        if (below(3) > 0) return save();
        session().reset();
        expected() = {.options = expected().options, .prompt = {}, .sequence = {}};
        return "reset";
      case 5:
        if (below(8) > 0) return generate();
        session().close();
        expected() = {.options = expected().options, .closed = true, .prompt = {}, .sequence = {}};
        return "close";
      default: return generate();
    }
  }

  const char* begin() {
    const size_t which = below(prompts_.size());
    const std::vector<int32_t>& ids = prompts_[which];
    if (below(4) == 0) {
      EXPECT_FALSE(session().prefill(ids, [](const Progress&) { return false; }));
      return "cancel";
    }
    if (below(4) == 0) {
      const std::vector<double> scores = session().score(ids);
      EXPECT_EQ(scores.size(), ids.size());
      // The same prompt, the same bits, whatever decode will select.
      const auto [known, fresh] = prompt_scores_.try_emplace(which, scores);
      EXPECT_TRUE(std::equal(scores.begin() + 1, scores.end(), known->second.begin() + 1));
    } else {
      EXPECT_TRUE(session().prefill(ids));
    }
    expected().prompt = which;
    expected().sequence = ids;
    expected().plain = true;
    return "prefill";
  }

  const char* generate() {
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
    return "generate";
  }

  // However generation was cut into calls, rewound and begun again: one prompt under one
  // composition has one continuation.
  void check_continuation() {
    auto& known = continuations_[{expected().options, *expected().prompt}];
    const auto begin = expected().sequence.begin() + static_cast<int64_t>(prompt().size());
    const std::vector<int32_t> mine(begin, expected().sequence.end());
    const size_t both = std::min(known.size(), mine.size());
    EXPECT_TRUE(std::equal(mine.begin(), mine.begin() + static_cast<int64_t>(both), known.begin()));
    if (mine.size() > known.size()) known = mine;
  }

  const char* step() {
    if (room() < 1) return look();
    const auto token = static_cast<int32_t>(below(2000));
    session().step(token);
    expected().sequence.push_back(token);
    expected().plain = false;
    return "step";
  }

  const char* score() {
    const size_t n = below(4);
    if (room() < static_cast<int64_t>(n)) return look();
    std::vector<int32_t> ids(n);
    for (int32_t& id : ids) id = static_cast<int32_t>(below(2000));
    const std::vector<double> scores = session().score(ids);
    EXPECT_EQ(scores.size(), n);
    for (const double value : scores) EXPECT_LT(value, 0);
    expected().sequence.insert(expected().sequence.end(), ids.begin(), ids.end());
    if (n > 0) expected().plain = false;
    return "score";
  }

  const char* look() {
    const std::span<const float> logits = session().logits();
    EXPECT_EQ(logits.size(), 2048u);
    const Stats stats = session().stats();
    EXPECT_EQ(stats.prompt_tokens, static_cast<int64_t>(prompt().size()));
    EXPECT_EQ(stats.decode_steps, stats.generated_tokens);  // logits wanted all of them
    EXPECT_EQ(session().memory().context, static_cast<int64_t>(prompt().size()) + kNew);
    return "look";
  }

  // What comes back is the same sequence, and thinks the same of what follows.
  const char* save() {
    const std::string file = TIERCEL_BINARY_DIR "/tests/fuzz.session";
    if (below(3) == 0) {
      EXPECT_FALSE(session().save(file, [](const Progress&) { return false; }));
    }
    EXPECT_TRUE(session().save(file));
    Session copy = engine_.restore(file);
    std::remove(file.c_str());
    EXPECT_EQ(copy.tokens(), expected().sequence);
    const std::span<const float> mine = session().logits(), its = copy.logits();
    EXPECT_TRUE(std::equal(mine.begin(), mine.end(), its.begin(), its.end()));
    EXPECT_EQ(copy.stats().prompt_tokens, static_cast<int64_t>(prompt().size()));
    if (expected().options > 0) session().set_budget(-1);
    return "save";
  }

  // Stopped or not, what is in is in.
  const char* append() {
    std::vector<int32_t> tokens(below(static_cast<size_t>(std::min<int64_t>(room(), 9)) + 1));
    for (int32_t& token : tokens) token = static_cast<int32_t>(below(2000));
    const bool stops = below(3) == 0 && !tokens.empty();
    EXPECT_EQ(session().append(tokens, [&](const Progress&) { return !stops; }), !stops);
    expected().sequence.insert(expected().sequence.end(), tokens.begin(), tokens.end());
    if (!tokens.empty()) expected().plain = false;
    return "append";
  }

  // The fork takes the place of another session, and is what this one is.
  const char* fork() {
    Session copy = session().fork();
    const std::span<const float> mine = session().logits(), its = copy.logits();
    EXPECT_TRUE(std::equal(mine.begin(), mine.end(), its.begin(), its.end()));
    const size_t other = below(sessions_.size());
    if (other == at_) return "fork";
    sessions_[other] = std::move(copy);
    expected_[other] = expected();
    return "fork";
  }

  const char* rewind() {
    const int kind = kind_of([&] { session().rewind(); });
    if (kind != 0) {
      // The prompt's window moved on: only where more was generated than it keeps room for.
      EXPECT_EQ(kind, static_cast<int>(ErrorKind::kState));
      EXPECT_GT(expected().behind(static_cast<int64_t>(prompt().size())), 4);
      return "window moved on";
    }
    expected().sequence = prompt();
    expected().plain = true;
    return "rewind";
  }

  const char* illegal() {
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
    return "illegal";
  }

  void verify() {
    for (size_t i = 0; i < sessions_.size(); ++i) {
      if (expected_[i].closed) continue;
      EXPECT_EQ(sessions_[i].tokens(), expected_[i].sequence) << "session " << i;
      EXPECT_EQ(sessions_[i].n_tokens(), static_cast<int64_t>(expected_[i].sequence.size()));
    }
  }

  std::mt19937_64 random_;
  Engine engine_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<Session> sessions_;
  std::vector<Expected> expected_;
  size_t at_ = 0;
  std::map<std::string, int> counts_;
  std::map<size_t, std::vector<double>> prompt_scores_;
  std::map<std::pair<size_t, size_t>, std::vector<int32_t>> continuations_;
};

TEST(ApiFuzz, RandomCallsDoWhatTheHeaderSays) { Fuzz(seed()).run(); }

}  // namespace
}  // namespace tiercel::test
