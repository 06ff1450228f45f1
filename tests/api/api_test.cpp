// The public C++ interface, through the shared library as others link it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <ios>
#include <memory>
#include <set>
#include <sstream>

#include "engine/tiercel.h"
#include "engine/tiercel_c.h"
#include "tests/api/model.h"
#include "tests/shell.h"

namespace tiercel::test {
namespace {

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

TEST(Api, TheAnswerIsTheCommandsAnswer) {
  const Engine engine = open_demo();
  Session session = engine.open_session({{"budget", "256"}, {"n-predict", "8"}});
  const std::string text = prompt_text(40);
  ASSERT_TRUE(session.prefill(text));
  const Generation generation = session.generate(8);
  const ShellResult command =
      shell(std::string(TIERCEL_BINARY_DIR) + "/tiercel run -q -m " + demo_directory() +
            " --backend cpu -t 2 --budget 256 -n 8 -p '" + text + "'");
  ASSERT_EQ(command.code, 0) << command.output;
  EXPECT_EQ(command.output, generation.text);
  EXPECT_EQ(generation.text.find(" 48213"), 0u) << generation.text;
}

TEST(Api, HeadersNeedTheStandardLibraryOnly) {
  for (const char* name : {"/engine/tiercel.h", "/engine/tiercel_c.h"}) {
    std::ifstream file(std::string(TIERCEL_SOURCE_DIR) + name);
    int n_includes = 0;
    for (std::string line; std::getline(file, line);) {
      if (!line.starts_with("#include")) continue;
      ++n_includes;
      EXPECT_EQ(line.find_first_not_of("abcdefghijklmnopqrstuvwxyz_.", 10), line.size() - 1)
          << line;
      EXPECT_EQ(line[9], '<') << line;
      EXPECT_TRUE(!line.ends_with(".h>") || line == "#include <stddef.h>" ||
                  line == "#include <stdint.h>")
          << line;
    }
    EXPECT_GT(n_includes, 1);
  }
}

TEST(Api, OnlyThePublicNamesAreExported) {
  const ShellResult nm = shell("nm -DC --defined-only " TIERCEL_BINARY_DIR "/libtiercel.so");
  ASSERT_EQ(nm.code, 0) << nm.output;
  std::istringstream lines(nm.output);
  std::set<std::string> c_functions;
  int n = 0;
  for (std::string line; std::getline(lines, line); ++n) {
    // "0000000000013579 T tiercel_version"
    const std::string name = line.substr(std::min<size_t>(line.size(), 19));
    if (name.starts_with("tiercel_")) c_functions.insert(name);
    EXPECT_TRUE(name.starts_with("tiercel_") || name.starts_with("tiercel::v0::") ||
                name.starts_with("typeinfo for tiercel::v0::") ||
                name.starts_with("typeinfo name for tiercel::v0::") ||
                name.starts_with("vtable for tiercel::v0::"))
        << line;
  }
  EXPECT_GT(n, 60);
  // Everything that the header declares is there.
  std::ifstream header(TIERCEL_SOURCE_DIR "/engine/tiercel_c.h");
  const std::string text{std::istreambuf_iterator<char>(header), {}};
  size_t n_declared = 0;
  for (size_t at = 0; (at = text.find("\nTIERCEL_C_API ", at)) != std::string::npos; ++at) {
    const size_t open = text.find('(', at), begin = text.rfind("tiercel_", open);
    EXPECT_TRUE(c_functions.contains(text.substr(begin, open - begin)))
        << text.substr(begin, open - begin);
    ++n_declared;
  }
  EXPECT_EQ(n_declared, c_functions.size());
}

TEST(Api, LogsGoWhereTheyAreWanted) {
  Engine engine = open_demo();
  std::vector<std::pair<LogLevel, std::string>> lines;
  const auto keep = [&](LogLevel level, std::string_view line) { lines.emplace_back(level, line); };
  const Options adjusted = {{"key-codec", "lowrank"}, {"rank", "4000"}};
  engine.set_log(keep);
  ASSERT_TRUE(engine.open_session(adjusted).prefill(prompt_text(3)));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].first, LogLevel::kInfo);
  EXPECT_NE(lines[0].second.find("prefill: context of "), std::string::npos) << lines[0].second;
  EXPECT_EQ(lines[1].first, LogLevel::kWarning);
  EXPECT_NE(lines[1].second.find("--rank 4000"), std::string::npos) << lines[1].second;
  lines.clear();
  engine.set_log(keep, LogLevel::kWarning);
  ASSERT_TRUE(engine.open_session(adjusted).prefill(prompt_text(3)));
  EXPECT_EQ(lines.size(), 1u);
  bool refused = false;
  engine.set_log([&](LogLevel, std::string_view) {
    EXPECT_KIND(engine.set_log({}), ErrorKind::kBusy);
    refused = true;
  });
  EXPECT_TRUE(engine.open_session().prefill(prompt_text(3)));
  EXPECT_TRUE(refused);
  engine.set_log([](LogLevel, std::string_view) { throw 1; });
  EXPECT_TRUE(engine.open_session().prefill(prompt_text(3)));
  lines.clear();
  engine.set_log(keep);
  engine.set_log({});
  EXPECT_TRUE(engine.open_session().prefill(prompt_text(3)));
  EXPECT_TRUE(lines.empty());
}

TEST(Api, VersionsAgree) {
  const std::string of_header = std::to_string(TIERCEL_VERSION_MAJOR) + "." +
                                std::to_string(TIERCEL_VERSION_MINOR) + "." +
                                std::to_string(TIERCEL_VERSION_PATCH);
  EXPECT_EQ(version(), of_header);
  EXPECT_EQ(tiercel_version(), of_header);
  const ShellResult command = shell(TIERCEL_BINARY_DIR "/tiercel --version");
  EXPECT_EQ(command.output.find("tiercel " + of_header + " (commit " + commit() + ")"), 0u)
      << command.output;
  std::ifstream project(TIERCEL_SOURCE_DIR "/python/pyproject.toml");
  const std::string text{std::istreambuf_iterator<char>(project), {}};
  EXPECT_NE(text.find("version = \"" + of_header + "\""), std::string::npos);
}

TEST(Api, OptionsAreTheCommandsFlags) {
  const ShellResult help = shell(TIERCEL_BINARY_DIR "/tiercel run --help");
  ASSERT_EQ(help.code, 0);
  const std::vector<OptionInfo> options = Options::list();
  EXPECT_GT(options.size(), 40u);
  const std::set<std::string> of_batches = {"parallel", "max-prompt", "max-gap",
                                            "micro-batches"};
  for (const OptionInfo& option : options) {
    EXPECT_EQ(help.output.find("--" + option.name) == std::string::npos,
              of_batches.contains(option.name))
        << option.name;
    EXPECT_FALSE(option.help.empty()) << option.name;
  }
}

TEST(Api, OptionErrorsSayWhatIsLegal) {
  const auto message = [](const char* name, const char* value) -> std::string {
    try {
      Options().set(name, value);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message("budget", "1024"), "");
  EXPECT_EQ(message("temperature", "0.5"), "");  // the second name of temp
  EXPECT_NE(message("bugdet", "1024").find("attention, "), std::string::npos);
  EXPECT_EQ(message("value-codec", "int7"),
            "option 'value-codec': expected bf16, int8 or int4, found 'int7'");
  EXPECT_EQ(message("strict", "yes"), "option 'strict': expected false or true, found 'yes'");
  EXPECT_NE(message("device-memory", "1 parsec").find("64MiB"), std::string::npos);
  EXPECT_NE(message("threads", "-1").find("from 0 to"), std::string::npos);
}

TEST(Api, AnOptionBeatsThePresetInAnyOrder) {
  const Engine engine = open_demo();
  const std::string first =
      engine.plan(4000, {{"chunk-size", "32"}, {"attention", "quest"}}).composition;
  const std::string last =
      engine.plan(4000, {{"attention", "quest"}, {"chunk-size", "32"}}).composition;
  EXPECT_EQ(first, last);
  EXPECT_NE(first.find("of 32 tokens"), std::string::npos) << first;
  EXPECT_NE(first, engine.plan(4000, {{"attention", "quest"}}).composition);
  // A later value replaces an earlier one; those of the engine are defaults.
  const Engine other(demo_directory(), {{"attention", "quest"}, {"chunk-size", "64"}});
  EXPECT_EQ(other.plan(4000, {{"chunk-size", "8"}, {"chunk-size", "32"}}).composition, first);
}

TEST(Api, ProgressIsHonestAndStops) {
  const Engine engine = open_demo();
  Session session = engine.open_session();
  const std::string text = prompt_text(30);
  const auto n = static_cast<int64_t>(engine.tokenize(text).size());
  int64_t last = 0, calls = 0;
  EXPECT_FALSE(session.prefill(text, [&](const Progress& p) {
    EXPECT_EQ(p.total, n);
    EXPECT_EQ(p.cached, 0);
    EXPECT_GT(p.processed, last);
    EXPECT_GE(p.elapsed, 0);
    last = p.processed;
    return ++calls < 2;
  }));
  EXPECT_EQ(calls, 2);
  EXPECT_LT(last, n);
  EXPECT_EQ(session.n_tokens(), 0);
  EXPECT_KIND(session.generate(1), ErrorKind::kState);
  ASSERT_TRUE(session.prefill(text, [&](const Progress& p) {
    last = p.processed;
    return true;
  }));
  EXPECT_EQ(last, n);
  EXPECT_EQ(session.n_tokens(), n);
}

TEST(Api, WhatACallbackThrowsComesThrough) {
  struct Mine {};
  const Engine engine = open_demo();
  Session session = engine.open_session();
  EXPECT_THROW(session.prefill(prompt_text(10), [](const Progress&) -> bool { throw Mine(); }),
               Mine);
  EXPECT_EQ(session.n_tokens(), 0);
  ASSERT_TRUE(session.prefill(prompt_text(10)));
  const int64_t n = session.n_tokens();
  EXPECT_THROW(session.generate(4, [](const Piece&) -> bool { throw Mine(); }), Mine);
  EXPECT_EQ(session.n_tokens(), n + 1);
  EXPECT_EQ(session.generate(2).tokens.size(), 2u);
  // Of a kind that the library itself may throw, too.
  using Failure = std::ios_base::failure;
  const auto throws = [](const Progress&) -> bool { throw Failure("mine"); };
  Session other = engine.open_session();
  EXPECT_THROW(other.prefill(prompt_text(10), throws), Failure);
  EXPECT_THROW(other.score(engine.tokenize(prompt_text(10)), throws), Failure);
  EXPECT_EQ(other.n_tokens(), 0);
  EXPECT_THROW(session.append("more", throws), Failure);
  const std::string path = ::testing::TempDir() + "thrown";
  EXPECT_THROW(session.save(path, throws), Failure);
  ASSERT_TRUE(session.save(path));
  EXPECT_THROW(engine.restore(path, {}, throws), Failure);
  std::remove(path.c_str());
}

TEST(Api, ACallbackThatCallsBackIsRefused) {
  const Engine engine = open_demo();
  Session session = engine.open_session(), other = engine.open_session();
  int n_calls = 0;
  ASSERT_TRUE(session.prefill(prompt_text(10), [&](const Progress&) {
    ++n_calls;
    EXPECT_KIND(session.n_tokens(), ErrorKind::kBusy);
    EXPECT_KIND(session.rewind(), ErrorKind::kBusy);
    EXPECT_KIND(session.close(), ErrorKind::kBusy);
    EXPECT_KIND(other.prefill("x"), ErrorKind::kBusy);
    EXPECT_KIND(engine.plan(10), ErrorKind::kBusy);
    EXPECT_EQ(other.n_tokens(), 0);  // computes nothing
    EXPECT_FALSE(engine.tokenize("x").empty());
    return true;
  }));
  EXPECT_GT(n_calls, 0);
  ASSERT_TRUE(other.prefill(prompt_text(5)));
  // Between tokens nobody holds the engine: another session may go on.
  const Generation mine = session.generate(3, [&](const Piece&) {
    EXPECT_KIND(session.step(1), ErrorKind::kBusy);
    EXPECT_EQ(other.generate(1).tokens.size(), 1u);
    return true;
  });
  EXPECT_EQ(mine.tokens.size(), 3u);
  EXPECT_EQ(other.stats().generated_tokens, 3);
}

// A session that is destroyed in a callback of its own call ends it.
TEST(Api, ASessionMayEndInItsOwnCallback) {
  const Engine engine = open_demo();
  auto session = std::make_unique<Session>(engine.open_session());
  ASSERT_TRUE(session->prefill(prompt_text(20)));
  int n_pieces = 0;
  const Generation generated = session->generate(8, [&](const Piece&) {
    session.reset();
    return ++n_pieces > 0;
  });
  EXPECT_EQ(n_pieces, 1);
  EXPECT_EQ(generated.reason, FinishReason::kStopped);

  session = std::make_unique<Session>(engine.open_session());
  EXPECT_FALSE(session->prefill(prompt_text(20), [&](const Progress&) {
    if (session != nullptr) *session = engine.open_session();
    return true;
  }));
  EXPECT_TRUE(session->prefill(prompt_text(20)));  // the one that took its place
}

// Also of one that takes long: it is asked between its pieces of work.
TEST(Api, AnAppendOrAScoreEndsWithItsSession) {
  const Engine engine = open_demo();
  const std::vector<int32_t> more = engine.tokenize(prompt_text(60), {{"no-bos", "true"}});
  for (const bool scores : {false, true}) {
    auto session = std::make_unique<Session>(engine.open_session({{"ctx-size", "4000"}}));
    session->prefill("Once upon a time");
    int n_calls = 0;
    const auto end_it = [&](const Progress&) {
      ++n_calls;
      session.reset();
      return true;
    };
    Session& it = *session;
    if (scores) {
      EXPECT_LT(it.score(more, end_it).size(), 3u);
    } else {
      EXPECT_FALSE(it.append(more, end_it));
    }
    EXPECT_EQ(n_calls, 1);
  }
}

TEST(Api, AppendingNothingChangesNothing) {
  const Engine engine = open_demo();
  const auto text_of = [&](bool appends) {
    Session session = engine.open_session({{"temp", "50"}, {"seed", "5"}, {"ignore-eos", "true"}});
    session.prefill("Once upon a time");
    std::string text;
    for (int i = 0; i < 60; ++i) {
      text += session.generate(1).text;
      if (!appends) continue;
      EXPECT_TRUE(session.append(std::span<const int32_t>()));
      EXPECT_TRUE(session.score({}).empty());
    }
    return text;
  };
  EXPECT_EQ(text_of(true), text_of(false));
}

TEST(Api, LogitsScoresAndStepsAgree) {
  const Engine engine = open_demo();
  const std::vector<int32_t> prompt = engine.tokenize(prompt_text(12));
  Session session = engine.open_session({{"attention", "dense"}});
  ASSERT_TRUE(session.prefill(prompt));
  const int32_t best = argmax(session.logits());
  const Generation generation = session.generate(5);
  EXPECT_EQ(generation.tokens[0], best);
  session.rewind();
  EXPECT_EQ(argmax(session.logits()), best);
  // Greedy tokens are each the likeliest, so no other first token scores higher.
  const std::vector<double> scores = session.score(generation.tokens);
  ASSERT_EQ(scores.size(), 5u);
  session.rewind();
  for (const int32_t token : {best + 1, 17, 900}) {
    EXPECT_LT(session.score(std::vector{token})[0], scores[0]);
    session.rewind();
  }
  // The same tokens as a prompt: score(prompt + tokens) ends with the same values, up to rounding.
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), generation.tokens.begin(), generation.tokens.end());
  Session whole = engine.open_session({{"attention", "dense"}});
  const std::vector<double> together = whole.score(all);
  ASSERT_EQ(together.size(), all.size());
  EXPECT_TRUE(std::isnan(together[0]));
  for (size_t i = 1; i < together.size(); ++i) EXPECT_LE(together[i], 0);
  // bf16 activations: 2^-8 relative, in a few layers.
  for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(together[prompt.size() + i], scores[i], 0.05);
  EXPECT_EQ(whole.n_tokens(), static_cast<int64_t>(all.size()));
}

TEST(Api, AScoreBehindAPromptStopsWhereItIsAskedTo) {
  const Engine engine = open_demo();
  const std::vector<int32_t> prompt = engine.tokenize(prompt_text(3)), more = {5, 6, 7, 8};
  const auto n = static_cast<int64_t>(prompt.size());
  Session session = engine.open_session(), other = engine.open_session();
  ASSERT_TRUE(session.prefill(prompt) && other.prefill(prompt));
  const std::vector<double> all = session.score(more);
  std::vector<int64_t> told;
  const std::vector<double> some = other.score(more, [&](const Progress& p) {
    EXPECT_EQ(p.total, n + 4);
    EXPECT_EQ(p.cached, n);
    told.push_back(p.processed);
    return p.processed < n + 2;
  });
  EXPECT_EQ(told, (std::vector{n + 1, n + 2}));
  EXPECT_EQ(some, (std::vector{all[0], all[1]}));
  EXPECT_EQ(other.n_tokens(), n + 2);
  // What a callback throws stops it too.
  const std::vector<int32_t> rest = {7, 8};
  EXPECT_THROW(other.score(rest, [](const Progress&) -> bool { throw 1; }), int);
  EXPECT_EQ(other.n_tokens(), n + 3);
  EXPECT_EQ(other.score(std::vector{8}), (std::vector{all[3]}));
  EXPECT_EQ(other.tokens(), session.tokens());
}

TEST(Api, NumbersOfTokensAreThoseOfTheCommand) {
  const Engine engine = open_demo();
  EXPECT_EQ(engine.plan(1000, {{"ctx-size", "16K"}}).context, 16384);
  EXPECT_EQ(engine.plan(1000, {{"n-predict", "1K"}}).context, 2024);
  EXPECT_NO_THROW(Options({{"budget", "2K"}, {"prefill-budget", "1M"}, {"max-prompt", "1M"},
                           {"n-predict", "-1"}, {"repeat-last-n", "-1"}, {"sinks", "0"}}));
  for (const char* wrong : {"2k", "K", "-2K", "9999999999999999M", ""}) {
    EXPECT_KIND(Options({{"ctx-size", wrong}}), ErrorKind::kUsage);
    EXPECT_KIND(Options({{"budget", wrong}}), ErrorKind::kUsage);
  }
}

TEST(Api, PiecesAreWholeCharactersAndJoinToTheText) {
  const Engine engine = open_demo();
  // Random sampling of a byte-level model makes broken characters soon.
  Session session = engine.open_session(
      {{"temp", "20"}, {"seed", "3"}, {"n-predict", "100"}, {"ignore-eos", "true"}});
  ASSERT_TRUE(session.prefill(prompt_text(5)));
  std::string joined;
  int n_empty = 0;
  std::vector<int32_t> tokens;
  for (int i = 0; i < 20; ++i) {
    const Generation part = session.generate(5, [&](const Piece& piece) {
      joined += piece.text;
      n_empty += piece.text.empty();
      return true;
    });
    tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
  }
  EXPECT_GT(n_empty, 0);
  EXPECT_EQ(session.generate(1).reason, FinishReason::kContextFull);
  // Up to a character that is not complete.
  EXPECT_EQ(engine.detokenize(tokens, true).find(joined), 0u);
  EXPECT_EQ(engine.tokenize(joined, {{"no-bos", "true"}}).empty(), false);
}

TEST(Api, StatisticsAddUp) {
  const Engine engine = open_demo();
  const Options options = {
      {"budget", "64"}, {"audit", "1"}, {"outliers", "0"}, {"value-home", "host"}};
  Session session = engine.open_session(options);
  EXPECT_EQ(session.stats().prompt_tokens, 0);
  EXPECT_EQ(session.memory().device_total, 0);
  EXPECT_EQ(session.backend(), "");
  const std::string text = prompt_text(30);
  ASSERT_TRUE(session.prefill(text));
  EXPECT_EQ(session.stats().decode_steps, 0);
  session.generate(10);
  const Stats stats = session.stats();
  EXPECT_EQ(stats.prompt_tokens, static_cast<int64_t>(engine.tokenize(text).size()));
  EXPECT_EQ(stats.generated_tokens, 10);
  EXPECT_EQ(stats.decode_steps, 9);  // nobody asked what follows the last
  EXPECT_GT(stats.selected_chunks, 0);
  EXPECT_GT(stats.audited_steps, 0);
  EXPECT_GT(stats.audit_mass_mean, 0);
  EXPECT_LE(stats.audit_mass_mean, 1);
  EXPECT_GT(stats.prefill_seconds, 0);
  const MemoryPlan plan = session.memory();
  EXPECT_EQ(plan.context, stats.prompt_tokens + 512);
  EXPECT_EQ(plan.device_total, engine.plan(stats.prompt_tokens, options).device_total);
  EXPECT_EQ(session.backend().find("cpu: "), 0u);
  session.rewind();
  EXPECT_EQ(session.stats().generated_tokens, 0);
  session.reset();
  EXPECT_EQ(session.stats().prompt_tokens, 0);
}

TEST(Api, SessionsOutliveTheirEngine) {
  auto engine = std::make_unique<Engine>(open_demo());
  Session session = engine->open_session();
  engine.reset();
  ASSERT_TRUE(session.prefill(prompt_text(5)));
  EXPECT_EQ(session.generate(2).tokens.size(), 2u);
  Session moved = std::move(session);
  EXPECT_EQ(moved.stats().generated_tokens, 2);
  EXPECT_KIND(session.n_tokens(), ErrorKind::kState);
  Engine first = open_demo();
  const Engine second = std::move(first);
  EXPECT_KIND(first.info(), ErrorKind::kState);
  EXPECT_EQ(second.info().vocab_size, 2048);
}

TEST(Api, BadModelsAndLimits) {
  EXPECT_KIND(Engine("/nowhere"), ErrorKind::kRuntime);
  EXPECT_KIND(Engine(""), ErrorKind::kRuntime);
  const Engine engine = open_demo();
  EXPECT_KIND(engine.open_session({{"threads", "2"}}), ErrorKind::kUsage);
  EXPECT_KIND(engine.plan(0), ErrorKind::kUsage);
  EXPECT_KIND(engine.plan(-5), ErrorKind::kUsage);
  EXPECT_KIND(engine.detokenize(std::vector<int32_t>{5, 5000}), ErrorKind::kUsage);
  Session small = engine.open_session({{"device-memory", "1MiB"}});
  EXPECT_KIND(small.prefill(prompt_text(5)), ErrorKind::kDoesNotFit);
  EXPECT_KIND(small.prefill(prompt_text(5)), ErrorKind::kDoesNotFit);
  Session contradiction = engine.open_session({{"estimate", "true"}});
  EXPECT_KIND(contradiction.prefill(prompt_text(5)), ErrorKind::kUsage);
}

}  // namespace
}  // namespace tiercel::test
