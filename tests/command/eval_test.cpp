// tiercel eval end to end on the demo model: what must hold exactly, and what must get worse with
// less.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/command/process.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

Launch eval(std::vector<std::string> more) {
  Launch launch{.arguments = {"eval", "-m", demo_model(), "-q"}};
  launch.arguments.insert(launch.arguments.end(), more.begin(), more.end());
  return launch;
}

Json eval_json(std::vector<std::string> more) {
  more.insert(more.end(), {"--json", "-"});
  const Result result = run(eval(more));
  EXPECT_EQ(result.code, 0) << result.err;
  return Json::parse(result.out);
}

// The cell of a series.
Json cell(const Json& json, const std::string& series, const std::string& task = "") {
  for (const Json& one : json["cells"]) {
    const std::string name = json["series"][one["series"].get<size_t>()]["name"];
    if (name == series && (task.empty() || one["task"] == task)) return one;
  }
  ADD_FAILURE() << series << " " << task << "\n" << json["series"].dump(1);
  return {};
}

TEST(Eval, EverythingSelectedIsDenseAndLessIsLess) {
  const Json json = eval_json({"--tasks", "multikey-1", "--lengths", "2K", "--depths", "0,50,100",
                               "--presets", "dense,shadow --key-codec exact", "--budgets",
                               "all,256,16", "--compare", "dense"});
  const Json dense = cell(json, "dense");
  EXPECT_EQ(dense["kl_mean"], 0);
  EXPECT_EQ(dense["kl_max"], 0);
  EXPECT_EQ(dense["agreement"], 1);
  EXPECT_EQ(dense["score"], cell(json, "reference (dense)")["score"]);
  EXPECT_GT(dense["score"], 0.6);
  const std::string exact = "shadow --key-codec exact";
  const Json all = cell(json, exact + " @ all"), some = cell(json, exact + " @ 256"),
             few = cell(json, exact + " @ 16");
  // The same keys in another order of addition: roundings of bf16 activations.
  EXPECT_LT(all["kl_mean"], 0.01);
  EXPECT_EQ(all["agreement"], 1);
  EXPECT_NEAR(all["mass_mean"].get<double>(), 1, 1e-3);
  EXPECT_LT(all["kl_mean"], few["kl_mean"]);
  EXPECT_LE(some["kl_mean"], few["kl_mean"]);
  EXPECT_LT(few["mass_mean"], some["mass_mean"]);
  EXPECT_LT(some["mass_mean"], all["mass_mean"]);
  EXPECT_EQ(few["layer_mass"].size(), 4u);
  EXPECT_EQ(all["questions"], 3);
}

// A flag beats the preset, and a composition's own flag both.
TEST(Eval, FlagsBesidePresets) {
  const Result result =
      run({.arguments = {"eval", "-m", demo_model(), "--tasks", "single", "--lengths", "300", "--presets",
                         "quest,quest --chunk-size 8", "--chunk-size", "32", "--value-codec", "int4", "-n", "2",
                         "-q"}});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(contains(result.out, "of 32 tokens")) << result.out;
  EXPECT_TRUE(contains(result.out, "of 8 tokens")) << result.out;
  EXPECT_TRUE(contains(result.out, "values int4")) << result.out;
  EXPECT_FALSE(contains(result.out, "values bf16")) << result.out;
}

TEST(Eval, InterruptedItSaysWhatItHas) {
  const Scratch scratch;
  const std::string file = scratch / "eval.json";
  Process process({.arguments = {"eval", "-m", demo_model(), "--backend", "cpu", "--tasks", "single",
                                 "--lengths", "1K", "--samples", "900", "--presets", "shadow,quest",
                                 "--json", file}});
  ASSERT_TRUE(process.wait_until([&] { return contains(process.err(), "sample 3 of 900: quest"); }));
  process.signal(SIGINT);
  const Result result = process.wait();
  EXPECT_EQ(result.code, 130) << result.err;
  const Json json = Json::parse(read_file(file));
  EXPECT_EQ(json["interrupted"], true);
  const int64_t n = cell(json, "shadow")["questions"];
  EXPECT_GE(n, 2);
  EXPECT_EQ(cell(json, "quest")["questions"], n);
  const std::string note = "the results are those of the first " + std::to_string(n) + " prompts";
  EXPECT_TRUE(contains(json["notes"].dump(), note)) << json["notes"];
  EXPECT_TRUE(contains(result.out, "shadow")) << result.out;
}

// A reference is only compared with: the answers are the composition's own, right or wrong.
TEST(Eval, AnswersDoNotDependOnTheReference) {
  if (sanitized()) GTEST_SKIP() << "minutes under a sanitizer; the others show its parts";
  const std::vector<std::string> flags = {"--tasks",   "multikey-2,multiquery",
                                          "--lengths", "2K",
                                          "--depths",  "0,50,80,100",
                                          "--presets", "shadow --recent 64 --outliers 0",
                                          "--budgets", "512,16"};
  const auto outputs = [](const Json& json, size_t series) {
    std::vector<std::string> all;
    for (const Json& record : json["records"]) {
      if (record["series"] == series) all.push_back(record["output"]);
    }
    return all;
  };
  const Json alone = eval_json(flags);
  auto with = flags;
  with.insert(with.end(), {"--compare", "dense", "-n", "3"});
  const Json compared = eval_json(with);
  EXPECT_EQ(outputs(compared, 1), outputs(alone, 0));
  EXPECT_EQ(outputs(compared, 2), outputs(alone, 1));
  EXPECT_EQ(outputs(alone, 1).size(), 8u);
  EXPECT_NE(outputs(compared, 2), outputs(compared, 0))
      << "nothing was lost: this test shows nothing";
}

TEST(Eval, EqualTotalsCountWhatIsProtected) {
  const Json json = eval_json({"--tasks", "records", "--lengths", "2K", "--presets",
                               "shadow,shadow --recent 64 --outliers 0", "--totals", "1K"});
  ASSERT_EQ(json["plans"].size(), 2u);
  for (const Json& plan : json["plans"]) {
    EXPECT_EQ(plan["selected_tokens"].get<int>() + plan["protected_tokens"].get<int>(), 1024);
  }
  EXPECT_TRUE(json["reference"].is_null());
}

TEST(Eval, EqualBytesAreKept) {
  const Json json = eval_json({"--tasks", "single", "--lengths", "4K", "--presets",
                               "shadow,shadow --key-codec exact", "--bytes", "16MiB"});
  ASSERT_EQ(json["plans"].size(), 2u);
  for (const Json& plan : json["plans"]) EXPECT_LE(plan["device_bytes"], 16 << 20);
  EXPECT_GT(json["plans"][1]["selected_tokens"], json["plans"][0]["selected_tokens"]);
}

TEST(Eval, AllFamiliesInBothStyles) {
  const Json recall = eval_json({"--lengths", "1K", "--compare", "dense", "-n", "4"});
  EXPECT_EQ(recall["style"], "recall");
  for (const char* task :
       {"single", "multikey-1", "multikey-2", "multikey-3", "multiquery", "records"}) {
    EXPECT_GT(cell(recall, "shadow", task)["compared_steps"], 0) << task;
  }
  EXPECT_EQ(cell(recall, "reference (dense)", "single")["score"], 1);
  const Json plain =
      eval_json({"--style", "plain", "--tasks", "multivalue,variables,common-words,frequent-words",
                 "--lengths", "1K"});
  EXPECT_EQ(plain["cells"].size(), 4u);
}

TEST(Eval, TablesAndPicture) {
  const Scratch scratch;
  const Result result =
      run(eval({"--tasks", "multikey-1", "--lengths", "1K,2K", "--depths", "0,20,..,100",
                "--budgets", "64,512", "--svg", scratch / "p.svg", "--json", scratch / "r.json"}));
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(contains(result.out, "| multikey-1 | 2,048")) << result.out;
  EXPECT_TRUE(contains(result.out, "score % at depth")) << result.out;
  const std::string svg = read_file(scratch / "p.svg");
  EXPECT_TRUE(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
  EXPECT_TRUE(contains(svg, "depth 80 %"));
  EXPECT_EQ(Json::parse(read_file(scratch / "r.json"))["records"].size(), 2u * 2u * 6u);
}

TEST(Eval, WhatCannotBeWrittenTakesNothingAlong) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  const Scratch scratch;
  const std::vector<std::string> words = {"eval", "-m", demo_model(), "--tasks", "single", "--lengths",
                                          "512", "--budgets", "128", "-q"};
  for (const bool picture : {true, false}) {
    std::vector<std::string> all = words;
    const std::string kept = scratch / (picture ? "json" : "svg");
    all.insert(all.end(), {picture ? "--svg" : "--json", "/dev/full", picture ? "--json" : "--svg", kept});
    const Result result = run({all});
    EXPECT_EQ(result.code, 1) << result.err;
    EXPECT_TRUE(contains(result.err, "/dev/full")) << result.err;
    EXPECT_TRUE(contains(result.out, "| single")) << result.out;
    EXPECT_GT(fs::file_size(kept), 100u);
  }
}

TEST(Eval, WhatHasNoRoomIsNotComposed) {
  const auto began = std::chrono::steady_clock::now();
  const Result result =
      run({{"eval", "-m", demo_model(), "--tasks", "single", "--lengths", "512M", "--budgets", "64"}});
  EXPECT_EQ(result.code, 3) << result.err;
  EXPECT_TRUE(contains(result.err, "536,870,912 tokens are left out")) << result.err;
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(60));
}

TEST(Eval, TuneFindsWhatFits) {
  if (sanitized()) GTEST_SKIP() << "minutes under a sanitizer; the others show its parts";
  const Scratch scratch;
  ASSERT_EQ(run({.arguments = {"haystack", "--tokens", "3000", "--facts", "4", "--ask", "2", "-m",
                               demo_model(), "-o", scratch / "p"}})
                .code,
            0);
  const Result result =
      run(eval({"--tune", "-f", scratch / "p", "-n", "8", "--presets", "dense,shadow,quest",
                "--budgets", "64,512", "--json", scratch / "r"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const Json json = Json::parse(read_file(scratch / "r"));
  const Json& candidates = json["candidates"];
  EXPECT_EQ(candidates.size(), 5u);
  EXPECT_EQ(candidates[0]["kl_mean"], 0);  // dense
  for (size_t i = 1; i < candidates.size(); ++i) {
    EXPECT_GE(candidates[i]["kl_mean"], candidates[i - 1]["kl_mean"]);
  }
  EXPECT_TRUE(contains(result.out, "tiercel run -m")) << result.out;
  const int64_t total = candidates[0]["device_total_bytes"];
  const std::string small = "shadow --key-codec exact --outliers 0 --recent 64";
  const Result limited =
      run(eval({"--tune", "-f", scratch / "p", "-n", "8", "--presets", "dense," + small,
                "--budgets", "64", "--device-memory", std::to_string(total - 1)}));
  ASSERT_EQ(limited.code, 0) << limited.err;
  EXPECT_TRUE(contains(limited.out, "skipped: dense")) << limited.out;
  // The command that is printed asks for what was measured, within the same limit.
  EXPECT_TRUE(contains(limited.out, "--attention " + small + " --budget 64 --device-memory " +
                                        std::to_string(total - 1)))
      << limited.out;
  EXPECT_EQ(
      run(eval({"--tune", "-f", scratch / "p", "--presets", "shadow", "--device-memory", "1MiB"}))
          .code,
      3);
}

TEST(Eval, BadInput) {
  const Scratch scratch;
  const auto refused = [&](std::vector<std::string> more, const std::string& word, int code = 2) {
    const Result result = run(eval(more));
    EXPECT_EQ(result.code, code) << result.err;
    EXPECT_TRUE(contains(result.err, word)) << word << "\n" << result.err;
    EXPECT_EQ(result.out, "");
  };
  refused({"--tasks", "poetry"}, "frequent-words");
  refused({"--lengths", "16k"}, "--lengths");
  refused({"--lengths", "20"}, "--lengths");
  refused({"--depths", "50,20"}, "ascending");
  refused({"--depths", "0,..,100"}, "--depths");
  refused({"--depths", "0,10,.."}, "--depths");
  refused({"--depths", "0,101"}, "--depths");
  refused({"--budgets", "few"}, "--budgets");
  refused({"--budgets", "64", "--totals", "900"}, "--totals");
  refused({"--presets", "shadow,nobody"}, "nobody");
  refused({"--presets", "shadow --frobnicate"}, "--frobnicate");
  refused({"--style", "baroque"}, "recall");
  refused({"-p", "x"}, "--tune");
  refused({"--tune"}, "-f");
  refused({"--tune", "-p", "x y", "--svg", scratch / "s"}, "--svg");
  refused({"--json", scratch / "no/r.json"}, "--json", 1);
  refused({"--lengths", "1K", "--totals", "64"}, "protected", 3);
  EXPECT_EQ(run({.arguments = {"eval"}}).code, 2);
}

}  // namespace
}  // namespace tiercel::test
