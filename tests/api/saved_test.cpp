// Sessions that are saved and restored through the public interface.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/api/model.h"
#include "tests/sanitized.h"

namespace tiercel::test {
namespace {

namespace fs = std::filesystem;

constexpr int kSentences = kSanitized ? 2 : 40, kNew = kSanitized ? 4 : 12;

class ApiSaved : public ::testing::Test {
 protected:
  ApiSaved() {
    std::string pattern = (fs::temp_directory_path() / "tiercel-api-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~ApiSaved() override { fs::remove_all(folder_); }
  std::string file(const char* name) const { return folder_ / name; }
  std::string bytes_of(const std::string& path) const {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  std::string write(const char* name, const std::string& bytes) const {
    std::ofstream(file(name), std::ios::binary) << bytes;
    return file(name);
  }

  fs::path folder_;
  Engine engine_ = open_demo();
};

TEST_F(ApiSaved, ARestoredSessionGoesOnAsTheSavedOne) {
  for (const char* attention : {"dense", "shadow", "quest"}) {
    SCOPED_TRACE(attention);
    Options options = {{"attention", attention}, {"budget", "64"}, {"n-predict", "100"}};
    if (std::string(attention) == "shadow") options.set("value-codec", "int8");
    Session session = engine_.open_session(options);
    ASSERT_TRUE(session.prefill(prompt_text(kSentences)));
    session.generate(5);  // the last one is not in the cache yet
    ASSERT_TRUE(session.save(file("a")));
    const std::vector<int32_t> before = session.tokens();
    const Generation expected = session.generate(kNew);

    // Another process would have another engine; its options are for other sessions.
    const Engine other(demo_directory(), {{"backend", "cpu"},
                                          {"threads", "2"},
                                          {"budget", "512"},
                                          {"attention", "nosa"},
                                          {"n-predict", "50"}});
    Session copy = other.restore(file("a"));
    EXPECT_EQ(copy.tokens(), before);
    EXPECT_EQ(copy.memory().composition, session.memory().composition);
    EXPECT_EQ(copy.memory().context, static_cast<int64_t>(before.size()) + 50);
    const Stats stats = copy.stats();
    EXPECT_EQ(stats.prompt_tokens, session.stats().prompt_tokens);
    EXPECT_EQ(stats.generated_tokens, 5);
    EXPECT_GT(stats.prefill_seconds, 0);
    const Generation got = copy.generate(kNew);
    EXPECT_EQ(got.tokens, expected.tokens);
    EXPECT_EQ(copy.generate(100).reason, FinishReason::kContextFull);
    // Back to the end of the prompt, saved again over the file that it came from.
    copy.rewind();
    session.rewind();
    EXPECT_EQ(copy.generate(kNew).tokens, session.generate(kNew).tokens);
    ASSERT_TRUE(copy.save(file("a")));
    EXPECT_EQ(copy.generate(3).tokens, engine_.restore(file("a")).generate(3).tokens);
    copy.reset();
    EXPECT_TRUE(copy.prefill("x"));
  }
}

// Two answers to one prompt; each goes on as if the other was not there.
TEST_F(ApiSaved, ForksAndTurns) {
  Session session = engine_.open_session({{"budget", "64"}, {"temp", "0.7"}, {"seed", "3"}});
  EXPECT_KIND(session.fork(), ErrorKind::kState);
  EXPECT_KIND(session.append("x"), ErrorKind::kState);
  ASSERT_TRUE(session.prefill(prompt_text(kSentences)));
  session.generate(2);
  Session fork = session.fork(), other = session.fork();
  EXPECT_EQ(fork.tokens(), session.tokens());
  EXPECT_EQ(fork.stats().prompt_tokens, session.stats().prompt_tokens);
  Progress last;
  ASSERT_TRUE(other.append(" And then?", [&](const Progress& p) { return last = p, true; }));
  EXPECT_EQ(last.cached, session.n_tokens());
  EXPECT_EQ(last.total, other.n_tokens());
  EXPECT_EQ(last.processed, last.total);
  const std::vector<int32_t> more = engine_.tokenize(" And then?", {{"no-bos", "true"}});
  EXPECT_EQ(other.n_tokens(), session.n_tokens() + static_cast<int64_t>(more.size()));
  EXPECT_EQ(fork.generate(kNew).tokens, session.generate(kNew).tokens);  // sampling goes on alike
  session.close();
  EXPECT_EQ(fork.generate(1).tokens.size(), 1u);
  struct Mine {};
  const int64_t before = other.n_tokens();
  EXPECT_THROW(other.append(more, [](const Progress&) -> bool { throw Mine(); }), Mine);
  EXPECT_EQ(other.n_tokens(), before + static_cast<int64_t>(more.size()));  // they fit one run
  EXPECT_EQ(other.generate(1).tokens.size(), 1u);
  fork.rewind();
  other.rewind();
  EXPECT_EQ(fork.generate(kNew).tokens, other.generate(kNew).tokens);
}

TEST_F(ApiSaved, AtTheEndOfAPromptSeedsDrawTheSame) {
  const Options options = {{"temp", "0.9"}, {"seed", "5"}};
  Session session = engine_.open_session(options);
  ASSERT_TRUE(session.prefill(prompt_text(kSentences)));
  ASSERT_TRUE(session.save(file("a")));
  const auto size = static_cast<int64_t>(fs::file_size(file("a")));
  EXPECT_EQ(engine_.plan(session.n_tokens(), options).session_file, size);
  EXPECT_EQ(session.memory().session_file, size);
  // Chunks that leave the window add their outliers.
  Session longer = engine_.open_session({{"value-home", "host"}, {"n-predict", "500"}, {"ignore-eos", "true"}});
  ASSERT_TRUE(longer.prefill("Once"));
  longer.generate(kSanitized ? 10 : 400);
  ASSERT_TRUE(longer.save(file("b")));
  EXPECT_EQ(longer.memory().session_file, static_cast<int64_t>(fs::file_size(file("b"))));
  EXPECT_EQ(engine_.restore(file("a"), options).generate(kNew).tokens,
            session.generate(kNew).tokens);
}

TEST_F(ApiSaved, ProgressStops) {
  Session session = engine_.open_session();
  ASSERT_TRUE(session.prefill(prompt_text(kSentences)));
  const auto n = session.n_tokens();
  int64_t last = -1;
  ASSERT_TRUE(session.save(file("a"), [&](const Progress& p) {
    EXPECT_EQ(p.total, n);
    EXPECT_EQ(p.cached, 0);
    EXPECT_GE(p.processed, last);
    last = p.processed;
    EXPECT_KIND(engine_.plan(5), ErrorKind::kBusy);
    return true;
  }));
  EXPECT_EQ(last, n);
  const std::string before = bytes_of(file("a"));
  session.step(7);
  EXPECT_FALSE(session.save(file("a"), [](const Progress&) { return false; }));
  struct Mine {};
  EXPECT_THROW(session.save(file("a"), [](const Progress&) -> bool { throw Mine(); }), Mine);
  EXPECT_EQ(bytes_of(file("a")), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
  EXPECT_EQ(session.n_tokens(), n + 1);

  Session empty = engine_.restore(file("a"), {}, [](const Progress&) { return false; });
  EXPECT_EQ(empty.n_tokens(), 0);
  EXPECT_TRUE(empty.prefill("x"));
  EXPECT_THROW(engine_.restore(file("a"), {}, [](const Progress&) -> bool { throw Mine(); }), Mine);
  const Session whole = engine_.restore(file("a"), {}, [&](const Progress& p) {
    EXPECT_EQ(p.total, n);
    EXPECT_EQ(p.cached, p.processed);
    last = p.processed;
    return true;
  });
  EXPECT_EQ(last, n);
  EXPECT_EQ(whole.n_tokens(), n);
}

TEST_F(ApiSaved, WrongFilesAndOptionsAreRefused) {
  Session session = engine_.open_session({{"budget", "64"}, {"key-codec", "int8"}});
  EXPECT_KIND(session.save(file("a")), ErrorKind::kState);
  EXPECT_KIND(session.set_budget(64), ErrorKind::kState);
  ASSERT_TRUE(session.prefill(prompt_text(kSentences)));
  session.generate(2);
  const std::vector<int32_t> before = session.tokens();
  EXPECT_KIND(session.save(file("missing/a")), ErrorKind::kRuntime);
  EXPECT_KIND(session.save(folder_.string()), ErrorKind::kRuntime);
  EXPECT_KIND(session.save(""), ErrorKind::kUsage);
  EXPECT_EQ(session.tokens(), before);
  ASSERT_TRUE(session.save(file("a")));

  const std::string good = bytes_of(file("a"));
  const auto refused = [&](const std::string& path, const Options& options = {}) {
    return kind_of([&] { engine_.restore(path, options); });
  };
  const int runtime = static_cast<int>(ErrorKind::kRuntime);
  EXPECT_EQ(refused(file("none")), runtime);
  EXPECT_EQ(refused(""), runtime);
  EXPECT_EQ(refused(folder_.string()), runtime);
  EXPECT_EQ(refused(write("b", "")), runtime);
  EXPECT_EQ(refused(write("b", "not a session")), runtime);
  for (const size_t cut : {size_t{40}, size_t{5000}, good.size() - 1}) {
    EXPECT_EQ(refused(write("b", good.substr(0, cut))), runtime) << cut;
  }
  for (const size_t at : {size_t{3}, size_t{60}, good.size() / 2, good.size() - 3}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    EXPECT_EQ(refused(write("b", bad)), runtime) << at;
  }
  const int usage = static_cast<int>(ErrorKind::kUsage);
  EXPECT_EQ(refused(file("a"), {{"key-codec", "int4"}}), usage);
  EXPECT_EQ(refused(file("a"), {{"attention", "dense"}}), usage);
  EXPECT_EQ(refused(file("a"), {{"threads", "2"}}), usage);
  EXPECT_EQ(refused(file("a"), {{"parallel", "2"}}), usage);
  EXPECT_EQ(refused(file("a"), {{"device-memory", "1MiB"}}),
            static_cast<int>(ErrorKind::kDoesNotFit));
  EXPECT_EQ(refused(file("a"), {{"budget", "128"}, {"slots", "4"}}), 0);  // these may differ
  session.close();
  EXPECT_KIND(session.save(file("a")), ErrorKind::kState);
}

TEST_F(ApiSaved, ABudgetChangesOnTheWay) {
  Session session = engine_.open_session({{"budget", "256"}, {"recent", "32"}, {"outliers", "0"}});
  Session smaller = engine_.open_session({{"budget", "64"}, {"recent", "32"}, {"outliers", "0"}});
  for (Session* one : {&session, &smaller}) ASSERT_TRUE(one->prefill(prompt_text(kSentences)));
  EXPECT_KIND(session.set_budget(0), ErrorKind::kUsage);
  EXPECT_KIND(session.set_budget(257), ErrorKind::kUsage);
  EXPECT_KIND(session.set_budget(-2), ErrorKind::kUsage);
  session.set_budget(64);
  session.generate(kNew);
  smaller.generate(kNew);
  EXPECT_EQ(session.stats().selected_chunks, smaller.stats().selected_chunks);
  session.set_budget(-1);
  const int64_t so_far = session.stats().selected_chunks;
  session.generate(kNew);
  smaller.generate(kNew);
  EXPECT_GE(session.stats().selected_chunks - so_far, smaller.stats().selected_chunks - so_far);
  Session dense = engine_.open_session({{"attention", "dense"}});
  ASSERT_TRUE(dense.prefill("x"));
  EXPECT_KIND(dense.set_budget(64), ErrorKind::kUsage);
}

}  // namespace
}  // namespace tiercel::test
