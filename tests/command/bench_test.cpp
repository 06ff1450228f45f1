// tiercel bench, run as a user would run it.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/command/process.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

Launch with_model(const char* command, std::vector<std::string> more) {
  std::vector<std::string> arguments = {command, "-m", demo_model(), "--backend", "cpu"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return {.arguments = std::move(arguments)};
}

TEST(Bench, RowsOfOneSequence) {
  const Result result =
      run(with_model("bench", {"-p", "64..256*2", "-n", "0,4", "-r", "2", "-o", "json"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const Json rows = Json::parse(result.out);
  ASSERT_EQ(rows.size(), 9u);  // each prompt alone, and with 4 tokens behind it
  EXPECT_EQ(rows[0]["n_prompt"], 64);
  EXPECT_EQ(rows[8]["n_depth"], 256);
  EXPECT_EQ(rows[8]["n_gen"], 4);
  for (const Json& row : rows) {
    EXPECT_EQ(row["samples_ns"].size(), 2u);
    EXPECT_GT(row["avg_ts"], 0);
  }
  const Result depths =
      run(with_model("bench", {"-p", "32", "-n", "2", "-d", "1K,100", "-r", "1", "-o", "jsonl"}));
  ASSERT_EQ(depths.code, 0) << depths.err;
  EXPECT_EQ(std::count(depths.out.begin(), depths.out.end(), '\n'), 5);
  EXPECT_TRUE(contains(depths.out, "\"n_depth\":1024")) << depths.out;
  // A text behind each prompt, and what is generated behind both.
  const Result behind =
      run(with_model("bench", {"-p", "64,256", "--behind", "300", "-n", "3", "-r", "2", "-o", "json"}));
  ASSERT_EQ(behind.code, 0) << behind.err;
  const Json texts = Json::parse(behind.out);
  ASSERT_EQ(texts.size(), 6u);
  EXPECT_EQ(texts[3]["n_depth"], 0);
  EXPECT_EQ(texts[4]["n_prompt"], 300);
  EXPECT_EQ(texts[4]["n_depth"], 256);
  EXPECT_EQ(texts[4]["samples_ns"].size(), 2u);
  EXPECT_EQ(texts[5]["n_depth"], 556);
  EXPECT_EQ(texts[5]["time_to_first_token_seconds"], texts[4]["time_to_first_token_seconds"]);
}

TEST(Bench, ManySequencesBesideTheirRivals) {
  if (sanitized()) GTEST_SKIP() << "a minute under a sanitizer; the others show its parts";
  const Scratch scratch;
  const std::string picture = scratch / "a.svg", json = scratch / "a.json";
  const std::vector<std::string> flags = {
      "-p", "2K", "-n", "4", "-b", "max", "--device-memory", "48MiB", "--budget", "64", "--slots",
      "1", "--recent", "32", "--outliers", "0", "--key-codec", "exact", "--compare", "dense,device", "-o", "json"};
  std::vector<std::string> with_picture = flags;
  with_picture.insert(with_picture.end(), {"--picture", picture});
  const Result measured = run(with_model("bench", with_picture));
  ASSERT_EQ(measured.code, 0) << measured.err;
  const Json rows = Json::parse(measured.out);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0]["attention"], "shadow");
  EXPECT_EQ(rows[1]["attention"], "dense");
  EXPECT_EQ(rows[2]["attention"], "shadow, on device");
  for (const Json& row : rows) {
    const int64_t n = row["pl"];
    ASSERT_GT(n, 0) << row;
    EXPECT_EQ(row["n_kv"], n * (2048 + 4));
    EXPECT_LE(row["device_bytes"], 48 << 20);
    EXPECT_NEAR(row["speed_tg"].get<double>() * row["t_tg"].get<double>(),
                static_cast<double>(4 * n), 1e-6);
  }
  // What lives on the host leaves room for more.
  EXPECT_GT(rows[0]["pl"], 2 * rows[1]["pl"].get<int64_t>());
  EXPECT_GT(rows[0]["pl"], rows[2]["pl"]);
  EXPECT_GT(rows[0]["host_bytes"], 0);
  EXPECT_EQ(rows[1]["host_bytes"], 0);
  const std::string drawn = read_file(picture);
  EXPECT_TRUE(contains(drawn, "<svg")) << drawn;
  EXPECT_TRUE(contains(drawn, "dense, 2,052 tokens")) << drawn;
  // The same picture from the JSON.
  write_file(json, measured.out);
  const std::string again = scratch / "b.svg";
  EXPECT_EQ(run({.arguments = {"bench", "--from", json, "--picture", again}}).code, 0);
  EXPECT_EQ(read_file(again), drawn);
  write_file(json, "[{\"pl\": 3}]");
  const Result wrong = run({.arguments = {"bench", "--from", json, "--picture", again}});
  EXPECT_EQ(wrong.code, 1);
  EXPECT_TRUE(contains(wrong.err, "a.json")) << wrong.err;
}

// What was measured before something failed is not lost.
TEST(Bench, PrintsWhatItHas) {
  const Result result = run(with_model("bench", {"-p", "64,1M", "-n", "2", "-r", "1", "-o", "jsonl",
                                                 "--device-memory", "100MiB", "--host-memory", "100MiB"}));
  EXPECT_EQ(result.code, 3) << result.err;
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 2) << result.out;
  EXPECT_TRUE(contains(result.err, "--device-memory")) << result.err;
}

TEST(Bench, SaysWhatDoesNotFit) {
  const Result result = run(with_model(
      "bench", {"-p", "4K", "-n", "2", "-b", "2", "--device-memory", "30MiB", "--budget", "64",
                "--slots", "1", "--key-codec", "exact", "--compare", "dense"}));
  ASSERT_EQ(result.code, 3) << result.err;  // nothing was measured
  EXPECT_TRUE(contains(result.out, "dense: does not fit")) << result.out;
  EXPECT_TRUE(contains(result.err, "--device-memory")) << result.err;
}

TEST(Bench, AsManyAsFitIsOneOfAList) {
  const Result result = run(with_model("bench", {"-p", "64", "-n", "2", "-b", "1,max", "--budget", "16",
                                                 "--device-memory", "16MiB", "-o", "json"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const Json rows = Json::parse(result.out);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["pl"], 1);
  EXPECT_GT(rows[1]["pl"], 1);
  EXPECT_EQ(rows[1]["micro_batches"], 1);  // nothing runs beside anything here
}

// Questions on one text: it is prefilled once, and room is what they take beside it.
TEST(Bench, BehindASharedPrompt) {
  const std::vector<std::string> memory = {"--budget", "16", "--recent", "32", "--device-memory", "24MiB"};
  const auto bench = [&](std::vector<std::string> flags) {
    flags.insert(flags.end(), {"-p", "600", "-n", "2", "-o", "json"});
    flags.insert(flags.end(), memory.begin(), memory.end());
    const Result result = run(with_model("bench", flags));
    EXPECT_EQ(result.code, 0) << result.err;
    return Json::parse(result.out);
  };
  const Json apart = bench({"-b", "max"}), rows = bench({"-b", "3,max", "--behind", "20"});
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["pl"], 3);
  EXPECT_EQ(rows[0]["n_behind"], 20);
  EXPECT_EQ(rows[0]["n_kv"], 600 + 3 * (20 + 2));
  EXPECT_NEAR(rows[0]["speed_pp"].get<double>() * rows[0]["t_pp"].get<double>(), 600 + 3 * 20, 1e-6);
  const int64_t most = rows[1]["pl"], most_apart = apart[0]["pl"];
  EXPECT_GT(most, 2 * most_apart);
  EXPECT_LE(rows[1]["device_bytes"].get<int64_t>(), int64_t{24} << 20);
  std::vector<std::string> flags = {"--tokens", "600", "-n", "3", "--behind", "20"};
  flags.insert(flags.end(), memory.begin(), memory.end());
  const Result estimate = run(with_model("estimate", flags));
  EXPECT_TRUE(contains(estimate.err, "or " + std::to_string(most_apart) + " sequences of 600, or " +
                                         std::to_string(most) + " that share them and have 20 each"))
      << estimate.err;
}

TEST(Bench, InTwoMicroBatchesWhereThatIsAskedFor) {
  const Result result = run(with_model(
      "bench", {"-p", "64", "-n", "2", "-b", "1,3", "--micro-batches", "2", "-o", "json"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const Json rows = Json::parse(result.out);
  EXPECT_EQ(rows[0]["micro_batches"], 1);
  EXPECT_EQ(rows[1]["micro_batches"], 2);
}

TEST(Bench, RefusesWhatMakesNoSense) {
  for (const std::vector<std::string>& flags : std::vector<std::vector<std::string>>{
           {"-p", "0"},
           {"-p", "64..32"},
           {"-p", "64..128*1"},
           {"-b", "0"},
           {"-b", "1,most"},
           {"-b", "2000"},
           {"-b", "2", "-n", "0"},
           {"-b", "2", "--compare", "sparse"},
           {"-b", "2", "--micro-batches", "3"},
           {"--compare", "dense"},
           {"--behind", "-7"},
           {"--from", "x.json"}}) {
    const Result result = run(with_model("bench", flags));
    EXPECT_EQ(result.code, 2) << flags[0] << " " << flags[1] << result.err;
    EXPECT_TRUE(contains(result.err, "expected")) << result.err;
  }
}

}  // namespace
}  // namespace tiercel::test
