// tiercel run --save-session and --session: what is saved is what goes on, and a process that is
// killed while it saves leaves no file that opens wrongly. TIERCEL_KILLS=1000 kills that often.
#include "engine/saved_session.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>
#include <random>

#include "engine/base/check.h"
#include "tests/command/process.h"
#include "tests/seed.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

Launch run_demo(std::vector<std::string> more) {
  Launch launch{.arguments = {"run", "-m", demo_model()}};
  launch.arguments.insert(launch.arguments.end(), more.begin(), more.end());
  return launch;
}

std::string filler(int n_sentences) {
  std::string text;
  for (int i = 0; i < n_sentences; ++i) {
    text += "Step " + std::to_string(i) + " of the guide explains how part " +
            std::to_string(i * 37 % 101) + " of the machine is cleaned. ";
    if (i == n_sentences / 2) text += "\nThe magic number for otter is 4821.\n";
  }
  return text;
}

TEST(RunSaved, GoesOnFromWhatWasSaved) {
  const Scratch scratch;
  const std::string file = scratch / "s.session", report = scratch / "report.json";
  write_file(scratch / "prompt", filler(60));
  const Result saved = run(run_demo({"-f", scratch / "prompt", "-n", "12", "--ignore-eos",
                                     "--attention", "tokenselect", "--save-session", file}));
  ASSERT_EQ(saved.code, 0) << saved.err;
  for (const char* word : {"session file", "save time"}) {
    EXPECT_TRUE(contains(saved.err, word)) << word << "\n" << saved.err;
  }
  EXPECT_FALSE(fs::exists(file + ".partial"));
  // The composition need not be repeated.
  const Result restored =
      run(run_demo({"--session", file, "-n", "12", "--ignore-eos", "--report", report}));
  ASSERT_EQ(restored.code, 0) << restored.err;
  EXPECT_EQ(restored.out, saved.out);
  EXPECT_TRUE(contains(restored.err, "restore time")) << restored.err;
  const Json json = Json::parse(read_file(report));
  EXPECT_EQ(json["attention"]["mode"], "tokenselect");
  EXPECT_EQ(json["restored_tokens"], json["prompt_tokens"]);
  EXPECT_GT(json["restored_tokens"], 1000);
}

TEST(RunSaved, AnswersAFollowUp) {
  const Scratch scratch;
  const std::string file = scratch / "s.session", again = scratch / "again.session";
  const std::string question =
      "\nWhat is the magic number for otter? The magic number for otter is";
  const Result saved = run(run_demo({"-p", filler(60), "-n", "0", "--save-session", file, "-q"}));
  ASSERT_EQ(saved.code, 0) << saved.err;
  const Result answer =
      run(run_demo({"--session", file, "-p", question, "-n", "4", "--save-session", again}));
  EXPECT_EQ(answer.code, 0) << answer.err;
  EXPECT_TRUE(answer.out.starts_with(" 4821")) << answer.out;
  const Result once_more = run(run_demo({"--session", again, "-n", "4"}));
  EXPECT_EQ(once_more.out, answer.out);
}

// A session is replaced by one that is complete, and by nothing else.
TEST(RunSaved, WhatIsRestoredMayBeSavedOverAndNothingElse) {
  const Scratch scratch;
  const std::string file = scratch / "s.session";
  ASSERT_EQ(run(run_demo({"-p", filler(5), "-n", "0", "--save-session", file})).code, 0);
  const std::string bytes = read_file(file);
  fs::create_directory(scratch / "in");
  fs::create_symlink(file, scratch / "link");
  const auto refused = [&](std::vector<std::string> more, const char* names,
                           const char* variable = "TIERCEL_ARG_NONE") {
    more.insert(more.end(), {"--session", file, "-n", "1"});
    Launch launch = run_demo(std::move(more));
    launch.environment = {{variable, file}};
    const Result result = run(launch);
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_TRUE(contains(result.err, names)) << names << "\n" << result.err;
    EXPECT_EQ(read_file(file), bytes);
  };
  refused({"--report", file}, "--session and --report");
  refused({"--report", scratch / "in/../link"}, "--session and --report");
  refused({"--log-file", file}, "--session and --log-file");
  refused({"-p", "x"}, "--session and --log-file", "TIERCEL_ARG_LOG_FILE");
  refused({"-f", file}, "--session and --file");
  refused({}, "--session and TIERCEL_ARG_FILE", "TIERCEL_ARG_FILE");
  const Result result =
      run(run_demo({"--session", file, "-p", " And so on.", "-n", "1", "--save-session", file}));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_GT(SavedSession::open(file)->n_tokens(), 50);
  EXPECT_NE(read_file(file), bytes);
}

TEST(RunSaved, RefusesWithTheReason) {
  const Scratch scratch;
  const std::string file = scratch / "s.session";
  ASSERT_EQ(run(run_demo({"-p", filler(40), "-n", "0", "--save-session", file})).code, 0);
  const auto refuse = [&](std::vector<std::string> flags, int code,
                          const std::vector<std::string>& words) {
    const Result result = run(run_demo(std::move(flags)));
    EXPECT_EQ(result.code, code) << result.err;
    EXPECT_EQ(result.out, "");
    for (const std::string& word : words) {
      EXPECT_TRUE(contains(result.err, word)) << word << "\n" << result.err;
    }
  };
  refuse({"--session", scratch / "none"}, 1, {"--session", "No such file"});
  refuse({"--session", file, "--value-codec", "int8"}, 2, {file, "--value-codec bf16, here int8"});
  refuse({"--session", file, "--attention", "dense"}, 2, {file, "--attention shadow"});
  refuse({"-p", "x", "--save-session", "/dev/full"}, 1, {"/dev/full", "a device"});
  refuse({"-p", "x", "--save-session", scratch / "none/s"}, 1, {"No such file"});
  const std::string golden = TIERCEL_SOURCE_DIR "/tests/golden/models/llama";
  const Result other = run({.arguments = {"run", "-m", golden, "--session", file}});
  EXPECT_NE(other.code, 0);
  std::string bytes = read_file(file);
  bytes[bytes.size() / 2] ^= 4;
  write_file(file, bytes);
  refuse({"--session", file, "-n", "2"}, 1, {file, "checksum"});
}

TEST(RunSaved, KillsLeaveNoFileThatOpensWrongly) {
  const Scratch scratch;
  const std::string file = scratch / "s.session";
  const auto command =
      run_demo({"-p", filler(sanitized() ? 20 : 150), "-n", "0", "--save-session", file, "-q"});
  const char* wanted = std::getenv("TIERCEL_KILLS");
  const int n_kills = wanted != nullptr ? std::atoi(wanted) : sanitized() ? 5 : 20;
  const std::string partial = file + ".partial";
  // How long a whole run takes, and how long it writes.
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  Clock::duration whole{}, writing{};
  {
    Process process(command);
    ASSERT_TRUE(process.wait_until([&] { return fs::exists(partial) || fs::exists(file); }));
    const auto opened = Clock::now();
    ASSERT_EQ(process.wait().code, 0);
    whole = Clock::now() - begin;
    writing = Clock::now() - opened;
  }
  const auto size = fs::file_size(file);
  std::mt19937_64 random(seed());
  int n_there = 0, n_partial = 0;
  for (int i = 0; i < n_kills; ++i) {
    // Every third time the file of an earlier run is there, and must stay or be replaced as a
    // whole; every fourth time, what a killed one left.
    if (i % 3 != 0) fs::remove(file);
    if (i % 4 != 0) fs::remove(partial);
    const bool was_there = fs::exists(file), left_over = fs::exists(partial);
    {
      Process process(command);
      // Mostly from the moment that the file is being written, which is a small part of the run.
      if (!left_over) {
        process.wait_until([&] { return fs::exists(partial) || (!was_there && fs::exists(file)); });
      }
      const auto longest = std::chrono::duration_cast<std::chrono::microseconds>(
          left_over ? whole * 5 / 4 : writing * 5 / 4);
      std::this_thread::sleep_for(longest * static_cast<int64_t>(random() % 1000) / 1000);
      process.signal(SIGKILL);
      process.wait();
    }
    n_partial += fs::exists(partial);
    if (was_there) {
      ASSERT_TRUE(fs::exists(file));
    }
    if (!fs::exists(file)) continue;
    ++n_there;
    ASSERT_EQ(fs::file_size(file), size);
    ASSERT_NO_THROW(SavedSession::open(file)->file().check_blocks(2)) << "kill " << i;
  }
  if (n_kills >= 20) {  // fewer may miss
    EXPECT_GT(n_there, 1) << "no save was completed";
    EXPECT_GT(n_partial, 0) << "no save was hit: this test shows nothing";
  }
  RecordProperty("complete", n_there);
  RecordProperty("partial", n_partial);
  EXPECT_EQ(run(command).code, 0) << "what the killed ones left is in nobody's way";
  EXPECT_FALSE(fs::exists(partial));
}

// What cannot be saved after all is still answered.
TEST(RunSaved, AFailedSaveCostsNoAnswer) {
  const Scratch scratch;
  const std::string file = scratch / "s.session", partial = file + ".partial";
  const int fd = ::open(partial.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(::flock(fd, LOCK_EX), 0);  // as another process that saves does
  const std::vector<std::string> words = {"-p", "Hello there.", "-n", "8"};
  std::vector<std::string> saving = words;
  saving.insert(saving.end(), {"--save-session", file});
  const Result result = run(run_demo(saving));
  ::close(fd);
  EXPECT_EQ(result.code, 1);
  EXPECT_TRUE(contains(result.err, "another process is writing")) << result.err;
  EXPECT_EQ(result.out, run(run_demo(words)).out);
  EXPECT_FALSE(fs::exists(file));
}

// A stop by a signal, or by two: at any moment, also within the writing of a file.
TEST(RunSaved, SignalsLeaveNothingHalfWritten) {
  const Scratch scratch;
  const std::string folder = scratch / "out";
  fs::create_directory(folder);
  const std::string file = folder + "/s.session", report = folder + "/report.json";
  const auto command = run_demo({"-p", filler(sanitized() ? 20 : 150), "-n", "4", "--save-session",
                                 file, "--report", report, "-q"});
  std::mt19937_64 random(seed());
  const int n_stops = sanitized() ? 6 : 24;
  int n_two = 0, n_stopped = 0;
  for (int i = 0; i < n_stops; ++i) {
    fs::remove(file);
    const int signal = i % 2 == 0 ? SIGINT : SIGTERM;
    const bool writes = i % 4 < 2, twice = i % 3 > 0;
    Process process(command);
    // Half of them while the file is being written, which takes a few milliseconds.
    if (writes) {
      process.wait_until([&] { return fs::exists(file + ".partial") || fs::exists(file); });
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % (writes ? 2000 : 200000)));
    process.signal(signal);
    if (twice) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
      process.signal(signal);
      ++n_two;
    }
    const int code = process.wait().code;
    // 128 + signal: it came before there was a handler.
    EXPECT_TRUE(code == 0 || code == 130 || code == 128 + signal) << code << " at stop " << i;
    n_stopped += code == 130;
    for (const auto& entry : fs::directory_iterator(folder)) {
      EXPECT_TRUE(entry.path() == file || entry.path() == report) << entry.path() << " at " << i;
    }
    if (fs::exists(file)) {
      EXPECT_NO_THROW(SavedSession::open(file)->file().check_blocks(2)) << i;
    }
  }
  EXPECT_GT(n_two, 0);
  EXPECT_GT(n_stopped, 0);
}

// What is mapped can be cut short by anybody: then the file is named.
TEST(RunSaved, AFileThatIsCutWhileInUse) {
  if (sanitized()) GTEST_SKIP() << "the sanitizer has the signal";
  const Scratch scratch;
  const std::string file = scratch / "s.session";
  const Result saved = run(run_demo({"-p", filler(600), "-n", "1", "--budget", "512", "--value-home", "host",
                                     "--save-session", file}));
  ASSERT_EQ(saved.code, 0) << saved.err;
  Process process(run_demo({"--session", file, "-n", "100000", "--ignore-eos", "-c", "200000", "--budget", "512",
                            "--value-home", "host"}));
  ASSERT_TRUE(process.wait_until([&] { return !process.out().empty(); })) << process.err();
  fs::resize_file(file, 4096);
  const Result result = process.wait();
  EXPECT_EQ(result.code, 1) << result.err;
  EXPECT_TRUE(contains(result.err, "s.session: it was changed while it was in use")) << result.err;
}

TEST(RunSaved, NamesThatCannotBeWrittenAreRefusedBeforeTheWork) {
  const Scratch scratch;
  const std::string place = scratch / "place", link = scratch / "link", kept = scratch / "kept";
  fs::create_directory(place);
  fs::create_symlink("place/later", link);
  EXPECT_EQ(run(run_demo({"-p", "Hi", "-n", "1", "--save-session", link})).code, 0);
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_TRUE(fs::is_regular_file(place + "/later"));

  const auto refused = [&](const std::string& path, const std::string& why) {
    const Result result = run(run_demo({"-p", "Hi", "-n", "1", "--save-session", path}));
    EXPECT_NE(result.code, 0) << path;
    EXPECT_EQ(result.out, "") << path;
    EXPECT_TRUE(contains(result.err, why)) << result.err;
  };
  refused(scratch / std::string(250, 'x'), "a file name of at most 247 bytes, found 250");
  if (::geteuid() == 0) return;  // who may write everything
  write_file(kept, "x");
  fs::permissions(kept, fs::perms::owner_read);
  refused(kept, "Permission denied");
}

}  // namespace
}  // namespace tiercel::test
