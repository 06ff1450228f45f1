// tiercel run as a user meets it: what goes where, the report, interruption, bad input.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/command/process.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

Launch run_demo(std::vector<std::string> more) {
  Launch launch{.arguments = {"run", "-m", demo_model()}};
  launch.arguments.insert(launch.arguments.end(), more.begin(), more.end());
  return launch;
}

// The words of a usage error: exit code 2, nothing on stdout, one complaint on stderr.
void expect_refused(const Launch& launch, int code, const std::vector<std::string>& words) {
  const Result result = run(launch);
  EXPECT_EQ(result.code, code) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_TRUE(contains(result.err, "error: ")) << result.err;
  for (const std::string& word : words)
    EXPECT_TRUE(contains(result.err, word)) << word << "\n" << result.err;
}

TEST(Run, TextOnStdoutTheRestOnStderr) {
  const std::string prompt =
      "The magic number for otter is 4821.\nThe sky is blue today.\n"
      "What is the magic number for otter? The magic number for otter is";
  const Result result = run(run_demo({"-p", prompt, "-n", "4"}));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(result.out.starts_with(" 4821")) << result.out;
  for (const char* word : {"memory plan", "weights", "MiB", "prompt eval time", "eval time",
                           "tok/s", "logits hash", "load time", "total time"}) {
    EXPECT_TRUE(contains(result.err, word)) << word << "\n" << result.err;
  }
  EXPECT_EQ(result.err.find('\x1b'), std::string::npos) << "colour without a terminal";
  const Result quiet = run(run_demo({"-p", prompt, "-n", "4", "-q"}));
  EXPECT_EQ(quiet.out, result.out);
  EXPECT_EQ(quiet.err, "");
}

TEST(Run, ReportHasEveryField) {
  const Scratch scratch;
  const std::string file = scratch / "report.json";
  const Result result = run(
      run_demo({"-p", "hello there, hello there", "-n", "6", "--ignore-eos", "--report", file}));
  ASSERT_EQ(result.code, 0) << result.err;
  const Json report = Json::parse(read_file(file));
  for (const char* name : {"version",
                           "commit",
                           "backend",
                           "model",
                           "prompt_tokens",
                           "generated_tokens",
                           "output",
                           "output_tokens",
                           "prefill_seconds",
                           "decode_seconds",
                           "time_to_first_token_seconds",
                           "prefill_tokens_per_second",
                           "decode_tokens_per_second",
                           "logits_hash",
                           "attention",
                           "memory",
                           "selection",
                           "audit",
                           "finish_reason",
                           "interrupted"}) {
    EXPECT_TRUE(report.contains(name)) << name;
  }
  for (const char* name : {"mode", "prefill", "budget", "chunk_size", "rank", "sinks", "recent",
                           "outliers", "key_codec", "slots"}) {
    EXPECT_TRUE(report["attention"].contains(name)) << name;
  }
  const Json& device = report["memory"]["device_bytes"];
  int64_t total = 0;
  for (const char* name : {"weights", "keys", "values", "landmarks", "slots", "exact", "activations"}) {
    total += device.at(name).get<int64_t>();
  }
  EXPECT_EQ(device.at("total"), total);
  EXPECT_GT(report["memory"]["planned_bytes"], 0);
  EXPECT_GT(report["memory"]["peak_rss_bytes"], 0);
  EXPECT_EQ(report["output"], result.out);
  EXPECT_EQ(report["generated_tokens"], 6);
  EXPECT_EQ(report["output_tokens"].size(), 6u);
  EXPECT_EQ(report["finish_reason"], "length");
  EXPECT_EQ(report["interrupted"], false);
  EXPECT_EQ(report["logits_hash"].get<std::string>().size(), 16u);
  EXPECT_TRUE(report["selection"].contains("hit_rate"));
  EXPECT_TRUE(report["audit"].contains("mass_p05"));
}

// A text that repeats itself is guessed, and stays what it was; so does one that is drawn.
TEST(Run, DraftsChangeNoText) {
  const Scratch scratch;
  std::string prompt;
  for (int i = 0; i < 12; ++i) prompt += "Step 7 of the guide explains how part 13 of the machine is cleaned. ";
  for (const char* temperature : {"0", "0.8"}) {
    std::string text;
    for (const char* mode : {"off", "auto", "always"}) {
      const std::string file = scratch / mode;
      const Result result = run(run_demo({"-p", prompt, "-n", "60", "--ignore-eos", "--temp", temperature, "--seed", "5",
                                          "--draft", mode, "--draft-max", "6", "--report", file}));
      ASSERT_EQ(result.code, 0) << result.err;
      if (text.empty()) text = result.out;
      EXPECT_EQ(result.out, text) << mode;
      const Json report = Json::parse(read_file(file));
      const Json& drafts = report["drafts"];
      EXPECT_EQ(drafts["mode"], mode);
      EXPECT_EQ(report["generated_tokens"], 60);
      EXPECT_EQ(contains(result.err, "guessed tokens were right"), std::string(mode) != "off") << result.err;
      if (std::string(mode) == "off") continue;
      EXPECT_EQ(drafts["most"], 6);
      EXPECT_EQ(drafts["steps"].get<int>() + drafts["right"].get<int>(), 59) << drafts;
      if (std::string(mode) == "always" && std::string(temperature) == "0") {
        EXPECT_GT(drafts["right"], 10) << drafts;
      }
    }
  }
  expect_refused(run_demo({"-p", "x", "--draft", "sometimes"}), 2, {"--draft", "auto", "always"});
  expect_refused(run_demo({"-p", "x", "--draft", "auto", "--reuse", "0.9", "--strict"}), 2, {"--draft", "--reuse"});
}

TEST(Run, SameSeedSameText) {
  const auto launch =
      run_demo({"-p", "once upon a time", "-n", "12", "--temp", "1", "--seed", "7"});
  const Result first = run(launch), second = run(launch);
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(first.out, second.out);
  EXPECT_TRUE(contains(first.err, "seed 7")) << first.err;
}

TEST(Run, PenaltiesBiasesAndLogProbabilities) {
  const Scratch scratch;
  const auto report_of = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"-p", "once upon a time", "-n", "40", "--ignore-eos", "--report", scratch / "r"});
    const Result result = run(run_demo(more));
    EXPECT_EQ(result.code, 0) << result.err;
    return Json::parse(read_file(scratch / "r"));
  };
  const auto distinct = [](const Json& report) {
    return std::set<int>(report["output_tokens"].begin(), report["output_tokens"].end()).size();
  };
  const Json plain = report_of({"--logprobs", "2"}), varied = report_of({"--presence-penalty", "100"});
  EXPECT_FALSE(varied.contains("logprobs"));
  EXPECT_EQ(distinct(varied), 40u);
  EXPECT_LT(distinct(plain), 40u);
  ASSERT_EQ(plain["logprobs"].size(), 40u);
  for (size_t i = 0; i < 40; ++i) {
    const Json& one = plain["logprobs"][i];
    EXPECT_EQ(one["token"], plain["output_tokens"][i]);
    EXPECT_EQ(one["top"][0], Json::array({one["token"], one["logprob"]}));  // greedy
    EXPECT_LT(one["top"][1][1], one["logprob"]);
    EXPECT_LT(one["logprob"], 0);
  }
  const int first = plain["output_tokens"][0], second = plain["logprobs"][0]["top"][1][0];
  EXPECT_EQ(report_of({"--logit-bias", std::to_string(first) + "-inf"})["output_tokens"][0], second);
  const Json forced = report_of({"--logit-bias", "77+1000", "--logit-bias", "78-5"});
  for (const Json& token : forced["output_tokens"]) EXPECT_EQ(token, 77);
  EXPECT_EQ(forced["sampling"]["logit_bias"], Json::parse(R"({"77": 1000.0, "78": -5.0})"));
  for (const char* wrong : {"77", "77+", "+1", "77+x", "77+1,", "77+-1", "77+1e9", "x-1", "77+1,77+2", "77+nan"}) {
    expect_refused(run_demo({"-p", "x", "--logit-bias", wrong}), 2, {"--logit-bias: expected"});
  }
  expect_refused(run_demo({"-p", "x", "--logit-bias", "999999+1"}), 2, {"a token from 0 to 2047, found 999999"});
  expect_refused(run_demo({"-p", "x", "--logprobs", "1"}), 2, {"--logprobs: expected --report"});
}

TEST(Run, EnvironmentTwinsAndFlagsThatBeatThem) {
  const Scratch scratch;
  auto launch = run_demo({"-p", "hello", "-q", "--ignore-eos", "--report", scratch / "r"});
  launch.environment = {{"TIERCEL_ARG_N_PREDICT", "3"}, {"TIERCEL_ARG_FILE", "/nonexistent"}};
  ASSERT_EQ(run(launch).code, 0);  // -p beats the file of the environment
  EXPECT_EQ(Json::parse(read_file(scratch / "r"))["generated_tokens"], 3);
  launch.arguments.insert(launch.arguments.end(), {"-n", "2"});
  ASSERT_EQ(run(launch).code, 0);
  EXPECT_EQ(Json::parse(read_file(scratch / "r"))["generated_tokens"], 2);
  launch.environment = {{"TIERCEL_ARG_TOP_K", "many"}};
  expect_refused(launch, 2, {"--top-k", "TIERCEL_ARG_TOP_K=many"});
}

// What a context is long enough for is said, and reported in any case.
TEST(Run, HowFarQueriesLook) {
  const Scratch scratch;
  const auto launch = run_demo({"-p", "once upon a time", "-n", "2", "--dual-chunk", "8K", "--scale-from", "1K",
                                "--ignore-eos", "--report", scratch / "r"});
  const Result brief = run(launch);
  EXPECT_EQ(brief.code, 0) << brief.err;
  EXPECT_FALSE(contains(brief.err, "reach:"));
  const Json attention = Json::parse(read_file(scratch / "r"))["attention"];
  EXPECT_EQ(attention["dual_chunk"], 8192);
  EXPECT_EQ(attention["dual_chunk_local"], 1024);
  EXPECT_EQ(attention["scale_from"], 1024);
  auto longer = launch;
  longer.arguments.insert(longer.arguments.end(), {"-c", "1025"});
  EXPECT_TRUE(contains(run(longer).err, "reach: --dual-chunk 8192 --dual-chunk-local 1024 --scale-from 1024"));
  expect_refused(run_demo({"-p", "x", "--dual-chunk-local", "5"}), 2, {"--dual-chunk-local", "--dual-chunk beside"});
  expect_refused(run_demo({"-p", "x", "--dual-chunk", "64", "--dual-chunk-local", "33"}), 2, {"at most half", "32"});
  expect_refused(run_demo({"-p", "x", "-c", "5K", "--dual-chunk", "100", "--dual-chunk-local", "0"}), 2,
                 {"--dual-chunk less --dual-chunk-local", "8 chunks of 8 tokens, found 100"});
  expect_refused(run_demo({"-p", "x", "-c", "10K", "--dual-chunk", "100", "--dual-chunk-local", "0"}), 2,
                 {"--ctx-size: dual chunk attention reaches 6400 tokens"});
}

TEST(Run, PromptFromFileAndStdinIsTakenAsItIs) {
  const Scratch scratch;
  write_file(scratch / "prompt", "one two\n\nthree \n");
  const auto count = [&](const Launch& launch) {
    EXPECT_EQ(run(launch).code, 0);
    return Json::parse(read_file(scratch / "r"))["prompt_tokens"].get<int>();
  };
  const std::vector<std::string> tail = {"-n", "1", "-q", "--report", scratch / "r"};
  auto by_file = run_demo({"-f", scratch / "prompt"});
  auto by_stdin = run_demo({"-f", "-"});
  by_stdin.standard_input = scratch / "prompt";
  auto by_flag = run_demo({"-p", "one two\\n\\nthree \\n", "-e"});
  for (Launch* launch : {&by_file, &by_stdin, &by_flag}) {
    launch->arguments.insert(launch->arguments.end(), tail.begin(), tail.end());
  }
  const int n = count(by_file);
  EXPECT_EQ(count(by_stdin), n);
  EXPECT_EQ(count(by_flag), n);
}

TEST(Run, UsageErrorsNameTheFlagAndWhatIsLegal) {
  expect_refused({.arguments = {}}, 2, {"run", "tokenize", "haystack"});
  expect_refused({.arguments = {"walk"}}, 2, {"walk", "run", "perplexity"});
  expect_refused({.arguments = {"run", "-p", "x"}}, 2, {"--model"});
  expect_refused(run_demo({}), 2, {"-p", "-f"});
  expect_refused(run_demo({"-p", ""}), 2, {"empty"});
  expect_refused(run_demo({"-p", "x", "-f", "y"}), 2, {"--prompt", "--file"});
  expect_refused(run_demo({"-p", "x", "--attention", "h2o"}), 2,
                 {"dense", "shadow", "quest", "h2o"});
  expect_refused(run_demo({"-p", "x", "--budget", "5x"}), 2, {"--budget", "2%", "5x"});
  expect_refused(run_demo({"-p", "x", "--attention", "quest", "--outliers", "4"}), 2,
                 {"--outliers", "--index mean"});
  expect_refused(run_demo({"-p", "x", "--budget", "few"}), 2, {"--budget", "all", "few"});
  expect_refused(run_demo({"-p", "x", "--budget", "0%"}), 2, {"--budget", "more than 0 %"});
  // With a limit, plans are laid out more than once; what makes no sense is refused before.
  expect_refused(run_demo({"-p", "x", "--static-budget", "64", "--device-memory", "8GiB"}), 2,
                 {"--outliers", "--static-budget"});
  expect_refused(run_demo({"-p", "x", "--chunk-size", "5", "--coarse-chunk", "64", "--device-memory",
                           "8GiB"}),
                 2, {"--coarse-chunk", "multiple"});
  expect_refused(run_demo({"-p", "x", "--key-codec", "int3"}), 2, {"auto", "exact", "lowrank"});
  expect_refused(run_demo({"-p", "x", "--device-memory", "1.5GB"}), 2, {"GiB", "1.5GB"});
  expect_refused(run_demo({"-p", "x", "-n", "two"}), 2, {"--n-predict", "two"});
  expect_refused(run_demo({"-p", "x", "--temp", "-1"}), 2, {"--temp"});
  expect_refused(run_demo({"-p", "x", "--top-p", "1.5"}), 2, {"--top-p"});
  expect_refused(run_demo({"-p", "x", "--frobnicate"}), 2, {"--frobnicate"});
  if (const std::string why = why_no_cuda(); !why.empty()) {
    expect_refused(run_demo({"-p", "x", "--backend", "cuda"}), 2, {"cuda", why, "cpu"});
  }
  expect_refused(run_demo({"-p", "a prompt of several tokens", "-c", "2"}), 2, {"2"});
  expect_refused(run_demo({"-p", "x", "-n", "50", "-c", "20", "--strict", "-q"}), 2, {"--n-predict", "--strict"});
  expect_refused(run_demo({"-p", "<|begin_of_text|>x", "-n", "1", "--strict", "-q", "--special"}), 2,
                 {"--no-bos", "--strict"});
}

TEST(Run, TroubleWithFilesIsNamed) {
  const Scratch scratch;
  write_file(scratch / "empty", "");
  expect_refused(run_demo({"-f", scratch / "empty"}), 2, {"empty"});
  expect_refused(run_demo({"-f", scratch / "missing"}), 1, {scratch / "missing", "No such file"});
  expect_refused(run_demo({"-f", "/tmp"}), 1, {"/tmp", "directory"});
  expect_refused({.arguments = {"run", "-m", scratch / "nomodel", "-p", "x"}}, 1,
                 {scratch / "nomodel"});
  if (::geteuid() != 0) {
    write_file(scratch / "secret", "x");
    ::chmod((scratch / "secret").c_str(), 0);
    expect_refused(run_demo({"-f", scratch / "secret"}), 1, {"Permission denied"});
  }
}

TEST(Run, InvalidUtf8IsCounted) {
  const Result result = run(run_demo({"-p",
                                      "ab\xFF\xFE"
                                      "cd",
                                      "-n", "1"}));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(contains(result.err, "2 bytes")) << result.err;
  expect_refused(run_demo({"-p",
                           "ab\xFF\xFE"
                           "cd",
                           "-n", "1", "--strict"}),
                 2, {"2 bytes"});
}

TEST(Run, DoesNotFitIsExitCodeThree) {
  expect_refused(run_demo({"-p", "x", "--device-memory", "64KiB"}), 3, {"--device-memory"});
}

TEST(Run, ReportTroubleIsSaidEarlyOrKeepsTheText) {
  const Scratch scratch;
  const Result both = run(run_demo({"-p", "once", "-n", "2", "-q", "--report", "-"}));
  EXPECT_EQ(both.code, 0) << both.err;
  const Json said = Json::parse(both.out.substr(both.out.find("{\n")));
  EXPECT_TRUE(both.out.starts_with(said["output"].get<std::string>())) << both.out;
  EXPECT_TRUE(contains(run(run_demo({"-p", "once", "-n", "2", "--log-file", "/dev/full"})).err,
                       "--log-file: cannot write /dev/full: No space left"));
  expect_refused(run_demo({"-p", "x", "--report", scratch / "no/where.json"}), 1, {scratch / "no"});
  expect_refused(run_demo({"-p", "x", "--report", "/tmp"}), 1, {"directory"});
  const auto plain = run(run_demo({"-p", "hello there", "-n", "3", "-q", "--ignore-eos"}));
  const auto full = run(
      run_demo({"-p", "hello there", "-n", "3", "-q", "--ignore-eos", "--report", "/dev/full"}));
  EXPECT_EQ(full.code, 1);
  EXPECT_EQ(full.out, plain.out);
  EXPECT_TRUE(contains(full.err, "/dev/full") && contains(full.err, "No space left")) << full.err;
}

// What is redirected to a file is not replaced by a report with its name.
TEST(Run, AReportBehindTheText) {
  const Scratch scratch;
  const std::string both = scratch / "both";
  write_file(both, "kept\n");
  for (const std::string& name : {both, std::string("/dev/stdout")}) {
    const std::string before = read_file(both);
    Launch launch = run_demo({"-p", "The", "-n", "4", "--report", name});
    launch.standard_output = both;
    const Result result = run(launch);
    ASSERT_EQ(result.code, 0) << result.err;
    const std::string after = read_file(both);
    EXPECT_TRUE(after.starts_with(before)) << after;
    EXPECT_TRUE(contains(after.substr(before.size()), "\"output\"")) << after;
  }
}

TEST(Run, UnwritableStdoutEndsTheRun) {
  auto launch = run_demo({"-p", "hello there, hello there", "-n", "5000", "--ignore-eos", "-q"});
  launch.standard_output = "/dev/full";
  const Result result = run(launch);
  EXPECT_EQ(result.code, 1);
  EXPECT_TRUE(contains(result.err, "No space left")) << result.err;
}

TEST(Run, TwoProcessesShareAModelThatCannotBeWritten) {
  const Scratch scratch;
  const std::string model = scratch / "model";
  fs::copy(demo_model(), model, fs::copy_options::recursive);
  constexpr auto kWrite = fs::perms::owner_write | fs::perms::group_write | fs::perms::others_write;
  // With times: whom permissions do not bind, as root, must not write either.
  const auto files = [&] {
    std::map<std::string, fs::file_time_type> times = {{model, fs::last_write_time(model)}};
    for (const auto& entry : fs::recursive_directory_iterator(model)) {
      times.emplace(entry.path(), entry.last_write_time());
    }
    return times;
  };
  const auto before = files();
  for (const auto& [path, time] : before) fs::permissions(path, kWrite, fs::perm_options::remove);
  std::string prompt = "The magic number for otter is 4821.\n";
  for (int i = 0; i < 150; ++i) prompt += "The sky is blue today.\n";
  prompt += "What is the magic number for otter? The magic number for otter is";
  const Launch launch{.arguments = {"run", "-m", model, "-p", prompt, "-n", "8", "-t", "1"}};
  const Result alone = run(launch);
  EXPECT_EQ(alone.code, 0) << alone.err;
  EXPECT_TRUE(alone.out.starts_with(" 4821")) << alone.out;
  // One is held in the middle, so that the other comes and goes beside it; then two race.
  Process held(launch);
  ASSERT_TRUE(held.wait_until([&] { return contains(held.err(), "memory plan"); })) << held.err();
  held.signal(SIGSTOP);
  EXPECT_EQ(run(launch).out, alone.out);
  held.signal(SIGCONT);
  Process other(launch);
  for (Process* process : {&held, &other}) {
    const Result result = process->wait();
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(result.out, alone.out);
  }
  EXPECT_EQ(files(), before);
  fs::permissions(model, fs::perms::owner_write, fs::perm_options::add);  // so that it can go
}

TEST(Run, CtrlCWhileDecodingKeepsEverything) {
  const Scratch scratch;
  Process process(run_demo({"-p", "hello there, hello there, hello", "-n", "400000", "--ignore-eos",
                            "--report", scratch / "r"}));
  ASSERT_TRUE(process.wait_until([&] { return process.out().size() > 20; })) << process.err();
  process.signal(SIGINT);
  const Result result = process.wait();
  EXPECT_EQ(result.code, 130) << result.err;
  const Json report = Json::parse(read_file(scratch / "r"));
  EXPECT_EQ(report["interrupted"], true);
  EXPECT_EQ(report["finish_reason"], "interrupted");
  EXPECT_EQ(report["output"], result.out);
  EXPECT_GT(report["generated_tokens"], 0);
  EXPECT_TRUE(contains(result.err, "eval time")) << result.err;
}

TEST(Run, SignalsWhilePrefillingStopIt) {
  const Scratch scratch;
  const std::string prompt = scratch / "prompt";
  ASSERT_EQ(
      run({.arguments = {"haystack", "--tokens", "400000", "-m", demo_model(), "-o", prompt}}).code,
      0);
  for (const int signal : {SIGINT, SIGTERM}) {
    Process process(run_demo({"-f", prompt, "-n", "4", "--report", scratch / "r"}));
    ASSERT_TRUE(process.wait_until([&] { return contains(process.err(), "backend:"); }));
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    process.signal(signal);
    const Result result = process.wait();
    EXPECT_EQ(result.code, 130) << result.err;
    EXPECT_EQ(result.out, "");
    const Json report = Json::parse(read_file(scratch / "r"));
    EXPECT_EQ(report["interrupted"], true);
    EXPECT_EQ(report["generated_tokens"], 0);
    EXPECT_TRUE(report["logits_hash"].is_null());
    fs::remove(scratch / "r");
  }
}

TEST(Run, SignalWhileWaitingForStdin) {
  const Scratch scratch;
  ASSERT_EQ(::mkfifo((scratch / "pipe").c_str(), 0600), 0);
  // Open for both directions, so that the command's read waits instead of seeing an end.
  const int keep_open = ::open((scratch / "pipe").c_str(), O_RDWR);
  auto launch = run_demo({"-f", "-"});
  launch.standard_input = scratch / "pipe";
  Process process(launch);
  auto batch = launch;
  batch.arguments[0] = "batch";
  Process other(batch);
  // A pipe that nobody writes to is not even opened.
  ASSERT_EQ(::mkfifo((scratch / "silent").c_str(), 0600), 0);
  Process third(run_demo({"-f", scratch / "silent"}));
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  for (Process* one : {&process, &other, &third}) {
    one->signal(SIGINT);
    const Result result = one->wait();
    EXPECT_EQ(result.code, 130) << result.err;
  }
  ::close(keep_open);
}

}  // namespace
}  // namespace tiercel::test
