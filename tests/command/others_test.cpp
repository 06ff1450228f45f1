// tokenize, perplexity, estimate, version.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "engine/base/units.h"
#include "tests/command/process.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

Launch with_model(const char* command, std::vector<std::string> more) {
  Launch launch{.arguments = {command, "-m", demo_model()}};
  launch.arguments.insert(launch.arguments.end(), more.begin(), more.end());
  return launch;
}

TEST(Tokenize, RefusesWhatItWouldIgnore) {
  for (const std::vector<std::string>& more :
       {std::vector<std::string>{"-p", "x"}, {"--json"}, {"--special"}, {"--no-bos"}}) {
    std::vector<std::string> flags = {"--decode", "1 2"};
    flags.insert(flags.end(), more.begin(), more.end());
    const Result result = run(with_model("tokenize", flags));
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_TRUE(contains(result.err, "--decode: expected no text")) << result.err;
  }
  const Result beyond = run(with_model("tokenize", {"--decode", "1 2048"}));
  EXPECT_EQ(beyond.code, 2);
  EXPECT_TRUE(contains(beyond.err, "--decode: expected ids from 0 to 2047, found 2048")) << beyond.err;
}

TEST(Tokenize, RoundTrip) {
  const std::string text =
      "Grüße, 世界! It's 2024...\n\n\ttabs and  spaces \xF0\x9F\x98\x80 <|end_of_text|>";
  const Result forth = run(with_model("tokenize", {"-p", text, "--json", "--no-bos"}));
  ASSERT_EQ(forth.code, 0) << forth.err;
  EXPECT_EQ(forth.err, "");
  EXPECT_TRUE(Json::parse(forth.out).is_array());
  const Result back = run(with_model("tokenize", {"--decode", forth.out}));
  EXPECT_EQ(back.code, 0) << back.err;
  EXPECT_EQ(back.out, text);
}

TEST(Tokenize, LinesAndCount) {
  const Result result = run(with_model("tokenize", {"-p", "two words\n"}));
  EXPECT_EQ(result.code, 0) << result.err;
  const auto lines = std::count(result.out.begin(), result.out.end(), '\n');
  EXPECT_TRUE(contains(result.err, std::to_string(lines) + " tokens")) << result.err;
  EXPECT_TRUE(contains(result.out, "2044  '")) << result.out;  // begin of text
  EXPECT_TRUE(contains(result.out, "\\n'")) << result.out;
}

TEST(Tokenize, BadInput) {
  EXPECT_EQ(run({.arguments = {"tokenize", "-p", "x"}}).code, 2);
  EXPECT_EQ(run(with_model("tokenize", {"--decode", "1 two"})).code, 2);
  const Result outside = run(with_model("tokenize", {"--decode", "999999"}));
  EXPECT_NE(outside.code, 0);
  EXPECT_TRUE(contains(outside.err, "999999")) << outside.err;
  EXPECT_EQ(run(with_model("tokenize", {})).code, 2);
  auto full = with_model("tokenize", {"-p", "x", "--json"});
  full.standard_output = "/dev/full";
  EXPECT_EQ(run(full).code, 1);
}

TEST(Perplexity, JsonAgreesWithItself) {
  const std::string text =
      "The quick brown fox jumps over the lazy dog. The quick brown fox jumps again.";
  const Result result = run(with_model("perplexity", {"-p", text, "--json"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const Json json = Json::parse(result.out);
  ASSERT_EQ(json["tokens"].size(), json["logprobs"].size());
  EXPECT_TRUE(json["logprobs"][0].is_null());
  double sum = 0;
  for (size_t i = 1; i < json["logprobs"].size(); ++i) {
    ASSERT_LE(json["logprobs"][i].get<double>(), 0);
    sum += json["logprobs"][i].get<double>();
  }
  const double n = static_cast<double>(json["logprobs"].size()) - 1;
  EXPECT_NEAR(json["perplexity"], std::exp(-sum / n), 1e-6 * std::exp(-sum / n));
  EXPECT_GT(json["standard_error"], 0);
}

// Nobody shall take codecs for lossless that nothing was read from.
TEST(Perplexity, SaysWhatIsOfNoUse) {
  const std::vector<std::string> arguments = {"perplexity", "-m", demo_model(), "-p", "The key of", "--budget",
                                              "16", "--value-codec", "int4"};
  const Result result = run({.arguments = arguments});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(contains(result.err, "--budget, --value-codec: of no use")) << result.err;
  std::vector<std::string> strict = arguments;
  strict.push_back("--strict");
  EXPECT_EQ(run({.arguments = strict}).code, 2);
}

TEST(Perplexity, WindowsKnowNothingOfEachOther) {
  std::string text;
  for (int i = 0; i < 30; ++i) text += "Rain falls on the hills. ";
  const Result result = run(with_model("perplexity", {"-p", text, "--json", "-c", "50"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const Json json = Json::parse(result.out);
  for (size_t i = 0; i < json["tokens"].size(); ++i) {
    EXPECT_EQ(json["logprobs"][i].is_null(), i % 50 == 0) << i;
    if (i % 50 == 0) {
      EXPECT_EQ(json["tokens"][i], 2044);
    }
  }
  EXPECT_EQ(run(with_model("perplexity", {"-p", text, "-c", "2"})).code, 2);
  EXPECT_EQ(run(with_model("perplexity", {})).code, 2);
}

// Norms that no product can be finite behind.
TEST(Perplexity, ABrokenCheckpointIsSaidAsByRun) {
  const Scratch scratch;
  const std::string model = scratch / "model";
  fs::copy(demo_model(), model, fs::copy_options::recursive);
  std::string weights = read_file(model + "/model.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, weights.data(), sizeof(header_bytes));
  const Json norm = Json::parse(weights.substr(8, header_bytes))["model.norm.weight"];
  const size_t begin = 8 + header_bytes + norm["data_offsets"][0].get<size_t>();
  const size_t end = 8 + header_bytes + norm["data_offsets"][1].get<size_t>();
  for (size_t i = begin; i < end; i += 2) weights[i] = 0x00, weights[i + 1] = 0x7f;
  fs::remove(model + "/model.safetensors");  // it may be a link
  write_file(model + "/model.safetensors", weights);
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"run", "-m", model, "-p", "once upon a time"},
        {"perplexity", "-m", model, "-p", "once upon a time"},
        {"eval", "-m", model, "--tasks", "single", "--lengths", "1K", "--compare", "dense"}}) {
    const Result result = run({.arguments = words});
    EXPECT_EQ(result.code, 1) << words[0] << "\n" << result.err;
    EXPECT_TRUE(contains(result.err, "logits: expected numbers, found NaN")) << words[0] << "\n" << result.err;
  }
}

TEST(Estimate, TableOrExitCodeThree) {
  const Result table = run(with_model("estimate", {"--tokens", "100000"}));
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_TRUE(contains(table.err, "memory plan")) << table.err;
  EXPECT_TRUE(contains(table.err, "most that fits: one prompt of ")) << table.err;
  EXPECT_EQ(table.out, "");
  const Result small = run(with_model("estimate", {"--tokens", "100000", "--device-memory", "64MiB"}));
  EXPECT_EQ(small.code, 3);
  EXPECT_TRUE(contains(small.err, "most that fits: one prompt of ")) << small.err;
  EXPECT_TRUE(contains(small.err, "raise --device-memory")) << small.err;
  EXPECT_EQ(run(with_model("estimate", {"--tokens", "100000", "--device-memory", "1KiB"})).code, 3);
}

// A number of tokens is written in one way everywhere.
TEST(Usage, NumbersOfTokens) {
  const auto estimate = [](const std::string& tokens, const std::string& context,
                           const std::string& n) {
    return run(with_model("estimate", {"--tokens", tokens, "-c", context, "-n", n, "--strict"}));
  };
  const Result plain = estimate("16384", "1048576", "2048");
  EXPECT_TRUE(contains(plain.err, "prompt: 16,384 tokens; context: 1,048,576 tokens")) << plain.err;
  const Result short_form = estimate("16K", "1M", "2K");
  EXPECT_EQ(short_form.code, 0);
  const size_t lines = plain.err.find("\n  process");  // behind it, what this machine has
  EXPECT_EQ(short_form.err.substr(0, lines), plain.err.substr(0, lines));
  for (const char* wrong : {"16k", "K", "1.5K", "16KB", "16 K", "-1K", "2000000M", "many"}) {
    const Result result = estimate(wrong, "1M", "8");
    EXPECT_EQ(result.code, 2) << wrong;
    EXPECT_TRUE(contains(result.err, "--tokens: expected a number of tokens from 0")) << result.err;
    EXPECT_TRUE(contains(result.err, "such as 4096, 16K or 1M")) << result.err;
  }
  const Scratch scratch;
  const Result hay = run({.arguments = {"haystack", "--tokens", "1K", "-o", scratch / "prompt"}});
  EXPECT_EQ(hay.code, 0) << hay.err;
  const Result generated = run(with_model(
      "run", {"-f", scratch / "prompt", "-n", "1K", "-c", "1500", "--budget", "1K", "--recent", "1K"}));
  EXPECT_EQ(generated.code, 0) << generated.err;
  EXPECT_TRUE(contains(generated.err, "of the 1024 asked for")) << generated.err;
  for (const char* command : {"run", "batch", "serve", "bench", "perplexity", "estimate", "eval", "haystack"}) {
    const Result help = run({.arguments = {command, "--help"}});
    EXPECT_TRUE(contains(help.out, "TOKENS are 4096, or 16K (16,384), or 1M (1,048,576)")) << command;
  }
}

// Of config.json alone; one token more than "the most" does not fit, and a run plans the same bytes.
TEST(Estimate, TheMostIsTheMostAndARunAgrees) {
  const Scratch scratch;
  fs::copy(demo_model() + "/config.json", scratch / "config.json");
  const auto estimate = [&](const std::string& n) {
    return run({.arguments = {"estimate", "-m", scratch / "", "--tokens", n, "-n", "8",
                              "--device-memory", "200MiB"}});
  };
  const std::string text = estimate("1000").err, words = "most that fits: one prompt of ";
  const size_t at = text.find(words);
  ASSERT_NE(at, std::string::npos) << text;
  std::string most = text.substr(at + words.size(), text.find(' ', at + words.size()) - at - words.size());
  std::erase(most, ',');
  const int64_t n = std::stoll(most);
  EXPECT_GT(n, 1000);
  EXPECT_EQ(estimate(std::to_string(n)).code, 0);
  EXPECT_EQ(estimate(std::to_string(n + 1)).code, 3);

  // The table up to where this process counts itself.
  const auto table_of = [](const std::string& err) {
    const size_t row = err.find("\n  weights"), end = err.find("\n  process");
    return row < end ? err.substr(row, end - row) : err;
  };
  const auto prompt = [&](int64_t tokens) {  // with the begin-of-text token in front
    std::string out;
    for (int64_t i = 1; i < tokens; ++i) out += " a";
    return out;
  };
  const Result ran = run(with_model("run", {"-p", prompt(1000), "-n", "8", "--device-memory", "200MiB"}));
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(table_of(ran.err), table_of(text));
}

// The flag that is named as a help does help.
TEST(Estimate, WhatWouldFitIsSaid) {
  std::set<std::string> helps;
  for (const char* limit : {"54MiB", "56MiB", "58MiB", "60MiB", "62MiB", "63MiB"}) {
    for (const char* outliers : {"48", "99999"}) {
      std::vector<std::string> flags = {"--tokens",        "3911", "-n",         "2",
                                        "--device-memory", limit,  "--outliers", outliers};
      const Result result = run(with_model("estimate", flags));
      if (result.code == 0) continue;
      EXPECT_EQ(result.code, 3) << result.err;
      const size_t add = result.err.find(", add ");
      if (add == std::string::npos) continue;
      std::istringstream words(result.err.substr(add + 6, result.err.find(',', add + 2) - add - 6));
      for (std::string word; words >> word;) flags.push_back(word);
      const Result again = run(with_model("estimate", flags));
      EXPECT_EQ(again.code, 0) << result.err << again.err;
      helps.insert(flags.back());
    }
  }
  EXPECT_GE(helps.size(), 2u) << "limits that need different help";
}

TEST(Estimate, FloorOfAStep) {
  // Memory of another machine, larger than any that runs this test.
  const std::vector<std::string> flags = {
      "estimate", "--synthetic", "llama-3.1-8b", "--backend", "cuda", "--tokens", "131072",
      "--device-memory", "135GiB", "--host-memory", "4TiB", "--device-bandwidth", "4000"};
  const Result missing = run({.arguments = [&] {
    std::vector<std::string> more = flags;
    more.insert(more.end(), {"--value-home", "host"});
    return more;
  }()});
  EXPECT_EQ(missing.code, 2);
  EXPECT_TRUE(contains(missing.err, "--link-bandwidth")) << missing.err;
  std::vector<std::string> more = flags;
  more.insert(more.end(), {"--attention", "dense"});
  const Result dense = run({.arguments = more});
  ASSERT_EQ(dense.code, 0) << dense.err;
  EXPECT_TRUE(contains(dense.err, "or 7 sequences of 131,072")) << dense.err;
  EXPECT_TRUE(contains(dense.err, "floor, 7 sequences: ")) << dense.err;
  EXPECT_TRUE(contains(dense.err, "(computed)")) << dense.err;
  EXPECT_FALSE(contains(dense.err, "micro-batches")) << dense.err;
  // Many that fetch: half of them may work while the other half waits.
  more = flags;
  more.insert(more.end(), {"--value-codec", "int8", "--link-bandwidth", "20"});
  const Result fetches = run({.arguments = more});
  ASSERT_EQ(fetches.code, 0) << fetches.err;
  EXPECT_TRUE(contains(fetches.err, "in two micro-batches")) << fetches.err;
}

// The object says what the table says, and the table stays.
TEST(Estimate, AsJson) {
  const std::vector<std::string> flags = {
      "--tokens", "20000", "-n", "32", "--behind", "100", "--device-memory", "256MiB", "--device-bandwidth",
      "20", "--link-bandwidth", "10", "--hit-rate", "0.5", "--value-home", "host"};
  std::vector<std::string> more = flags;
  more.push_back("--json");
  const Result text = run(with_model("estimate", flags)), both = run(with_model("estimate", more));
  ASSERT_EQ(text.code, 0) << text.err;
  ASSERT_EQ(both.code, 0) << both.err;
  EXPECT_EQ(text.out, "");
  // Behind the table, whose line of the process varies.
  const auto most_on = [](const std::string& err) { return err.substr(err.find("most that fits")); };
  EXPECT_EQ(most_on(both.err), most_on(text.err));
  const Json json = Json::parse(both.out);
  EXPECT_EQ(json["prompt_tokens"], 20000);
  EXPECT_EQ(json["attention"]["context"], 20032);
  EXPECT_GE(json["attention"]["threads"], 1);
  const int64_t total = json["memory"]["device_bytes"]["total"];
  EXPECT_LE(total, int64_t{256} << 20);
  int64_t sum = 0;
  for (const auto& [name, bytes] : json["memory"]["device_bytes"].items()) {
    if (name != "total") sum += bytes.get<int64_t>();
  }
  EXPECT_EQ(sum, total);
  EXPECT_TRUE(contains(text.err, format_bytes(total))) << text.err;
  const auto& most = json["most"];
  EXPECT_TRUE(contains(text.err, "most that fits: one prompt of " +
                                     format_count(most["context_tokens"].get<int64_t>()) + " tokens, or " +
                                     format_count(most["sequences"].get<int64_t>()) + " sequences"))
      << text.err;
  ASSERT_EQ(json["floors"].size(), 2);
  const auto& alone = json["floors"][0];
  EXPECT_EQ(alone["sequences"], 1);
  EXPECT_EQ(json["floors"][1]["sequences"], most["sequences_behind"]);
  // What a step moves, over the bandwidths that were given.
  const double device = (alone["weight_bytes"].get<double>() + alone["device_bytes_per_sequence"].get<double>() +
                         alone["shared_bytes"].get<double>()) / 20e9;
  const double link = alone["link_bytes_per_sequence"].get<double>() / 10e9;
  EXPECT_GT(link, 0);
  EXPECT_NEAR(alone["serial_seconds"], device + link, 1e-9);
  EXPECT_NEAR(alone["overlapped_seconds"], std::max(device, link), 1e-9);
}

// What more sequences read of the experts can be computed from what one reads.
TEST(Estimate, ExpertsAreReadInPart) {
  const Result result = run({.arguments = {"estimate", "--synthetic", "mixtral-8x7b", "--backend", "cuda", "--tokens",
                                           "16384", "--device-memory", "135GiB", "--host-memory", "4TiB",
                                           "--device-bandwidth", "4000", "--link-bandwidth", "50", "--json"}});
  ASSERT_EQ(result.code, 0) << result.err;
  const Json floors = Json::parse(result.out)["floors"];
  ASSERT_EQ(floors.size(), 2);
  const double share = floors[0]["expert_share"], experts = floors[0]["expert_bytes"];
  EXPECT_EQ(share, 0.25);
  EXPECT_EQ(experts, 2.0 * 32 * 8 * 3 * 14336 * 4096);
  const double n = floors[1]["sequences"];
  EXPECT_GT(n, 1);
  EXPECT_NEAR(floors[1]["weight_bytes"].get<double>() - floors[0]["weight_bytes"].get<double>(),
              experts * ((1 - share) - std::pow(1 - share, n)), 2);
}

// Codes take less memory, and a step less time to read them; a checkpoint's are counted as it has them.
TEST(Estimate, CodedWeights) {
  const auto estimate = [](std::vector<std::string> flags) {
    for (const char* more : {"--tokens", "16384", "--device-bandwidth", "100", "--link-bandwidth", "100", "--json"}) flags.emplace_back(more);
    flags.insert(flags.begin(), "estimate");
    const Result result = run({.arguments = flags});
    EXPECT_EQ(result.code, 0) << result.err;
    return Json::parse(result.out);
  };
  const auto weights = [](const Json& json) { return json["memory"]["device_bytes"]["weights"].get<double>(); };
  const auto with = [&](const char* codec) {
    return estimate({"--synthetic", "llama-3.1-8b", "--backend", "cpu", "--host-memory", "64GiB", "--weight-codec", codec});
  };
  const Json bf16 = with("bf16"), int8 = with("int8"), int4 = with("int4");
  // A param of 4 bytes for 128 weights; in four bits for 32, but for what tokens become and logits are made of.
  EXPECT_NEAR(weights(int8), weights(bf16) * (0.5 + 1.0 / 64), 1e-3 * weights(bf16));
  EXPECT_LT(weights(int4), 0.37 * weights(bf16));
  EXPECT_EQ(bf16["attention"]["weights"], "bf16");
  EXPECT_TRUE(contains(int8["attention"]["weights"].get<std::string>(), "8 bits, groups of 128, rounded"));
  EXPECT_TRUE(contains(int4["attention"]["weights"].get<std::string>(), "4 bits, groups of 32"));
  for (const Json* json : {&bf16, &int8, &int4}) {
    const double read = (*json)["floors"][0]["weight_bytes"], row_bytes = json == &bf16 ? 2.0 * 4096 : 4096 + 128;
    EXPECT_NEAR(read, weights(*json) - 128256 * row_bytes, 1) << "a step reads a row of the embedding";
  }
  const std::string model = TIERCEL_SOURCE_DIR "/tests/golden/models/qwen3_w4a16";
  const Json stored = estimate({"-m", model}), decoded = estimate({"-m", model, "--weight-codec", "bf16"});
  EXPECT_LT(weights(stored), weights(decoded));
  EXPECT_TRUE(contains(stored["attention"]["weights"].get<std::string>(), "4 bits, groups of 32, as the checkpoint"));
  // Of a checkpoint that is not all there config.json says enough.
  const fs::path incomplete = fs::path(testing::TempDir()) / ("tiercel-incomplete-" + std::to_string(::getpid()));
  fs::create_directory(incomplete);
  fs::copy_file(fs::path(model) / "config.json", incomplete / "config.json");
  std::ofstream(incomplete / "model.safetensors") << "version https://git-lfs.github.com/spec/v1\n";
  EXPECT_LT(weights(estimate({"-m", incomplete.string()})), weights(decoded));
  fs::remove_all(incomplete);
  const Result wrong = run({.arguments = {"estimate", "-m", model, "--weight-codec", "int3"}});
  EXPECT_EQ(wrong.code, 2);
  EXPECT_TRUE(contains(wrong.err, "--weight-codec") && contains(wrong.err, "int4")) << wrong.err;
}

// What a plan says would help does, and where weights go is in table, JSON and floor.
TEST(Estimate, WeightsInHostMemory) {
  const auto estimate = [](std::vector<std::string> more) {
    std::vector<std::string> flags = {"estimate", "--synthetic", "llama-3.1-8b", "--tokens", "300000",
                                      "--host-memory", "4TiB", "--device-memory", "18GiB", "--json"};
    flags.insert(flags.end(), more.begin(), more.end());
    return run({.arguments = std::move(flags)});
  };
  const Result refused = estimate({"--backend", "cuda", "--host-layers", "0"});
  EXPECT_EQ(refused.code, 3) << refused.err;
  const size_t at = refused.err.find("--host-layers ");
  ASSERT_NE(at, std::string::npos) << refused.err;
  const std::string layers = refused.err.substr(at + 14, refused.err.find(')', at) - at - 14);
  const Result helped = estimate({"--backend", "cuda", "--host-layers", layers});
  ASSERT_EQ(helped.code, 0) << helped.err;
  const Json memory = Json::parse(helped.out)["memory"];
  // Which is what is chosen where nobody says.
  const Result chosen = estimate({"--backend", "cuda"});
  ASSERT_EQ(chosen.code, 0) << chosen.err;
  EXPECT_EQ(Json::parse(chosen.out)["memory"]["host_bytes"], memory["host_bytes"]);
  const int64_t on_host = memory["host_bytes"]["weights"];
  EXPECT_EQ(on_host, std::stoll(layers) * 3 * 14336 * 4096 * 2 + int64_t{128256} * 4096 * 2);
  EXPECT_TRUE(contains(helped.err, format_bytes(on_host))) << helped.err;
  std::vector<std::string> floor = {"--backend", "cuda", "--host-layers", "all", "--value-home", "device",
                                    "--device-bandwidth", "3000", "--device-memory", "60GiB"};
  EXPECT_TRUE(contains(estimate(floor).err, "expected --link-bandwidth"));
  floor.insert(floor.end(), {"--link-bandwidth", "50"});
  const Result timed = estimate(floor);
  ASSERT_EQ(timed.code, 0) << timed.err;
  const Json one = Json::parse(timed.out)["floors"][0];
  const double over_link = one["link_weight_bytes"];
  EXPECT_EQ(over_link, 32.0 * 3 * 14336 * 4096 * 2);
  EXPECT_NEAR(one["overlapped_seconds"].get<double>(), over_link / 50e9, 1e-9);
  EXPECT_TRUE(contains(timed.err, format_bytes(static_cast<int64_t>(over_link)) + " of those over the link"));
  const Result on_cpu = estimate({"--backend", "cpu", "--host-layers", "1"});
  EXPECT_EQ(on_cpu.code, 2);
  EXPECT_TRUE(contains(on_cpu.err, "--host-layers: on a CPU")) << on_cpu.err;
}

// Keys that leave the device where none of their codecs fits do not where the host could not attend them as asked:
// what is too long for the device is too long, and no contradiction.
TEST(Estimate, TheMostIsFoundWhereTheHostAttends) {
  const Result result = run({.arguments = {"estimate", "--synthetic", "llama-3.1-8b", "--backend", "cuda", "--tokens",
                                           "100000", "--host-attention", "on", "--value-codec", "int8",
                                           "--device-memory", "32GiB", "--host-memory", "512GiB"}});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(contains(result.err, "most that fits: one prompt of ")) << result.err;
}

TEST(Usage, SaysWhatMayHaveBeenMeant) {
  const auto error = [](std::vector<std::string> words) {
    const Result result = run({.arguments = std::move(words)});
    EXPECT_EQ(result.code, 2) << result.err;
    return result.err;
  };
  EXPECT_TRUE(contains(error({"rnu"}), "did you mean run?"));
  EXPECT_FALSE(contains(error({"sing"}), "did you mean"));
  EXPECT_TRUE(contains(error({"run", "--buget", "4"}),
                       "--buget: no such flag; did you mean --budget?"));
  EXPECT_TRUE(contains(error({"run", "--zzzzzz=1"}), "--zzzzzz: no such flag; see"));
  EXPECT_TRUE(contains(error({"run", "stray"}), "found 'stray'"));
  const Scratch scratch;
  EXPECT_EQ(run({.arguments = {"help", "run"}}).out, run({.arguments = {"run", "--help"}}).out);
}

// What is written must not take the place of something else.
TEST(Usage, TwoFilesAreTwoFiles) {
  const Scratch scratch;
  const std::string file = scratch / "f", other = scratch / "g";
  write_file(file, "keep");
  const auto refused = [&](const char* command, std::vector<std::string> more, const char* names) {
    const Result result = run(with_model(command, std::move(more)));
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_TRUE(contains(result.err, names)) << result.err;
    EXPECT_EQ(read_file(file), "keep");
  };
  refused("run", {"-f", file, "--report", file}, "--report and --file");
  fs::create_directory(scratch / "in");
  refused("run", {"-f", file, "--save-session", scratch / "in/../f"}, "--save-session and --file");
  refused("run", {"-p", "x", "--save-session", other, "--report", other},
          "--save-session and --report");
  refused("run", {"-f", file, "--log-file", file}, "--log-file and --file");
  refused("eval", {"--json", other, "--svg", other}, "--json and --svg");
  refused("haystack", {"--tokens", "500", "-o", other, "--answers", other},
          "--output and --answers");
  EXPECT_EQ(run(with_model("run", {"-p", "x", "-n", "1", "--report", "/dev/null", "--log-file",
                                   "/dev/null"}))
                .code,
            0);
}

TEST(Usage, NothingOfTheModelIsWritten) {
  const Scratch scratch;
  const std::string model = scratch / "model";
  fs::create_directory(model);
  for (const char* file : {"config.json", "tokenizer.json", "model.safetensors"}) {
    fs::copy(fs::path(demo_model()) / file, fs::path(model) / file);
  }
  const std::string weights = read_file(model + "/model.safetensors");
  for (const char* flag : {"--save-session", "--log-file", "--report"}) {
    const Result result = run({{"run", "-m", model, "-p", "Hi", "-n", "1", flag, model + "/model.safetensors"}});
    EXPECT_EQ(result.code, 2) << flag << result.err;
    EXPECT_TRUE(contains(result.err, "no part of the model")) << result.err;
  }
  EXPECT_EQ(read_file(model + "/model.safetensors"), weights);
  for (int i = 0; i < 2; ++i) {  // a file of the user's
    EXPECT_EQ(run({{"run", "-m", model, "-p", "Hi", "-n", "1", "--report", model + "/report.json"}}).code, 0);
  }
}

// Whoever opens a pipe waits for its reader; a signal ends that as it ends everything.
TEST(Usage, SignalsWhileAPipeHasNoReader) {
  const Scratch scratch;
  const std::string pipe = scratch / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const char* flag : {"--report", "--log-file"}) {
    Process process({{"run", "-m", demo_model(), "-p", "Hi", "-n", "1", flag, pipe}});
    std::this_thread::sleep_for(std::chrono::milliseconds(sanitized() ? 6000 : 1500));
    process.signal(SIGTERM);
    EXPECT_EQ(process.wait().code, 130) << flag;
  }
}

TEST(Usage, ThreadsThatTheSystemDoesNotStart) {
  if (sanitized()) GTEST_SKIP() << "its shadow memory needs the address space";
  const rlimit all = [] {
    rlimit before{};
    ::getrlimit(RLIMIT_AS, &before);
    return before;
  }();
  for (const rlim_t megabytes : {400u, 1000u, 2000u, 3000u}) {
    const rlimit some{megabytes << 20, all.rlim_max};
    ::setrlimit(RLIMIT_AS, &some);
    Process process({{"run", "-m", demo_model(), "-p", "Hi", "-n", "1", "-t", "64"}});
    ::setrlimit(RLIMIT_AS, &all);
    const Result result = process.wait();
    if (result.code == 127) continue;  // no room for the CUDA libraries either
    EXPECT_TRUE(result.code == 0 || result.code == 1 || result.code == 3) << result.code << result.err;
    EXPECT_TRUE(result.code != 1 || contains(result.err, "--threads (-t)")) << result.err;
  }
}

TEST(Version, NamesWhatItIsMadeOf) {
  const Result result = run({.arguments = {"version"}});
  EXPECT_EQ(result.code, 0);
  for (const char* word : {"tiercel ", "commit", "C++20", "cpu:", "oneTBB", "hwloc"}) {
    EXPECT_TRUE(contains(result.out, word)) << result.out;
  }
  EXPECT_EQ(run({.arguments = {"--version"}}).out, result.out);
  // Its flags have variables too.
  for (const char* how : {"version", "--version"}) {
    const Result loud = run({.arguments = {how}, .environment = {{"TIERCEL_ARG_LOG_LEVEL", "loud"}}});
    EXPECT_EQ(loud.code, 2);
    EXPECT_TRUE(contains(loud.err, "--log-level")) << loud.err;
  }
}

TEST(Log, FileGetsWhatStderrGets) {
  const Scratch scratch;
  const std::string log = scratch / "log";
  // What is adjusted is a warning: the rank here.
  const std::vector<std::string> flags = {"--tokens", "2000",   "--rank",     "4000",
                                          "--key-codec", "lowrank", "--log-file", log};
  const Result all = run(with_model("estimate", flags));
  ASSERT_EQ(all.code, 0) << all.err;
  const std::string text = read_file(log);
  EXPECT_TRUE(contains(text, "Z info    prompt: 2,000 tokens")) << text;
  EXPECT_TRUE(contains(text, "Z warning --rank 4000 is more than")) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), std::count(all.err.begin(), all.err.end(), '\n'));
  // Appended, from a level on; errors too.
  std::vector<std::string> fewer = flags;
  fewer.insert(fewer.end(), {"--log-level", "warning"});
  const Result some = run(with_model("estimate", fewer));
  EXPECT_EQ(std::count(some.err.begin(), some.err.end(), '\n'), 1) << some.err;
  const std::string more = read_file(log);
  EXPECT_EQ(more.substr(0, text.size()), text);
  EXPECT_EQ(std::count(more.begin(), more.end(), '\n'),
            std::count(text.begin(), text.end(), '\n') + 1);
  fewer.back() = "error";
  fewer.insert(fewer.end(), {"--device-memory", "1KiB"});
  EXPECT_EQ(run(with_model("estimate", fewer)).code, 3);
  EXPECT_TRUE(contains(read_file(log).substr(more.size()), "Z error   ")) << read_file(log);
  const Result none = run(with_model("estimate", {"--tokens", "9", "--log-file", "/nowhere/log"}));
  EXPECT_EQ(none.code, 1);
  EXPECT_TRUE(contains(none.err, "--log-file: /nowhere/log: No such file")) << none.err;
}

TEST(Help, EveryCommandHasOne) {
  for (const char* command : {"run", "batch", "serve", "bench", "tokenize", "perplexity", "estimate", "eval",
                              "haystack", "version"}) {
    const Result result = run({.arguments = {command, "--help"}});
    EXPECT_EQ(result.code, 0) << command;
    EXPECT_TRUE(contains(result.out, "TIERCEL_ARG_")) << command;
    EXPECT_EQ(result.err, "");
  }
}

}  // namespace
}  // namespace tiercel::test
