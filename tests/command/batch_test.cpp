// tiercel batch: every line is answered as tiercel run answers it, a job that was stopped goes on,
// and bad lines are refused before anything is computed.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/command/chat_model.h"
#include "tests/command/process.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

Launch batch(std::vector<std::string> more, const std::string& standard_input = "/dev/null") {
  Launch launch{.arguments = {"batch", "-m", demo_model()}, .standard_input = standard_input};
  launch.arguments.insert(launch.arguments.end(), more.begin(), more.end());
  return launch;
}

// A text with one fact, and the question for it.
std::string prompt_about(const std::string& animal, int number, int n_sentences) {
  std::string text;
  for (int i = 0; i < n_sentences; ++i) {
    text += "Step " + std::to_string(i) + " of the guide explains how part " +
            std::to_string(i * 37 % 101) + " of the machine is cleaned. ";
    if (i == n_sentences / 2) {
      text += "\nThe magic number for " + animal + " is " + std::to_string(number) + ".\n";
    }
  }
  return text + "\nWhat is the magic number for " + animal + "? The magic number for " + animal +
         " is";
}

std::vector<Json> lines_of(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

// By the line that they answer.
std::map<int, Json> answers_of(const std::string& text) {
  std::map<int, Json> answers;
  for (const Json& line : lines_of(text)) {
    EXPECT_TRUE(answers.emplace(line["line"].get<int>(), line).second) << line["line"];
  }
  return answers;
}

struct Animal {
  const char* name;
  int number, n_sentences;
};
constexpr Animal kAnimals[] = {{"otter", 4821, 8}, {"falcon", 1734, 90}, {"badger", 9052, 40}};

std::string requests(const std::string& more = {}) {
  std::string text;
  for (const Animal& animal : kAnimals) {
    const Json line = {{"id", animal.name},
                       {"prompt", prompt_about(animal.name, animal.number, animal.n_sentences)}};
    text += line.dump() + "\n\n";  // an empty line counts, and is no request
  }
  return text + more;
}

TEST(BatchCommand, AnswersEveryLineAsRunDoes) {
  const Scratch scratch;
  write_file(scratch / "requests",
             requests(R"({"prompt": [1, 5, 9], "temperature": 1.5, "seed": 7, "id": 42})"
                      "\n"));
  const Result result = run(batch({"-f", scratch / "requests", "-o", scratch / "answers", "-n", "6",
                                   "--ignore-eos", "--report", scratch / "report"}));
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_TRUE(contains(result.err, "4 of 4 lines")) << result.err;
  const std::map<int, Json> answers = answers_of(read_file(scratch / "answers"));
  ASSERT_EQ(answers.size(), 4u);
  int line = 1;
  for (const Animal& animal : kAnimals) {
    const Json& answer = answers.at(line);
    line += 2;
    write_file(scratch / "prompt", prompt_about(animal.name, animal.number, animal.n_sentences));
    const Result alone = run({.arguments = {"run", "-m", demo_model(), "-f", scratch / "prompt",
                                            "-n", "6", "--ignore-eos", "-q"}});
    EXPECT_EQ(answer["text"], alone.out);
    EXPECT_TRUE(alone.out.starts_with(" " + std::to_string(animal.number))) << alone.out;
    EXPECT_EQ(answer["id"], animal.name);
    EXPECT_EQ(answer["finish_reason"], "length");
    EXPECT_EQ(answer["generated_tokens"], 6);
    EXPECT_EQ(answer["seed"], nullptr);
  }
  EXPECT_EQ(answers.at(7)["seed"], 7);
  EXPECT_EQ(answers.at(7)["id"], 42);
  const Json report = Json::parse(read_file(scratch / "report"));
  EXPECT_EQ(report["answered"], 4);
  EXPECT_EQ(report["generated_tokens"], 24);
  EXPECT_GT(report["most_decoding"], 1);
  EXPECT_EQ(report["attention"]["mode"], "shadow");
}

// One at a time, so that there is always one alone; and many, of which at last one is.
TEST(BatchCommand, DraftsChangeNoAnswer) {
  const Scratch scratch;
  write_file(scratch / "requests", requests());
  std::string texts;
  for (const char* parallel : {"1", "3"}) {
    for (const char* mode : {"off", "always"}) {
      const Result result = run(batch({"-f", scratch / "requests", "-o", scratch / "answers", "-n", "40", "--ignore-eos",
                                       "--parallel", parallel, "--draft", mode, "--report", scratch / "report"}));
      ASSERT_EQ(result.code, 0) << result.err;
      std::string all;
      for (const auto& [line, answer] : answers_of(read_file(scratch / "answers"))) {
        all += answer["text"].get<std::string>() + "\n";
      }
      if (texts.empty()) texts = all;
      EXPECT_EQ(all, texts) << parallel << " " << mode;
      const Json drafts = Json::parse(read_file(scratch / "report"))["drafts"];
      if (std::string(mode) == "off") {
        EXPECT_EQ(drafts["steps"], 0);
      } else if (std::string(parallel) == "1") {
        EXPECT_EQ(drafts["steps"].get<int>() + drafts["right"].get<int>(), 3 * 39);
        EXPECT_GT(drafts["right"], 10);
      }
      fs::remove(scratch / "answers");
    }
  }
}

// Down to stdout, from stdin; an answer ends at an end-of-text token, which is not in it.
TEST(BatchCommand, StandardStreamsAndEndsOfText) {
  const Scratch scratch;
  write_file(scratch / "requests", requests());
  const Result result = run(batch({"-f", "-", "-n", "64", "-q"}, scratch / "requests"));
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  const std::map<int, Json> answers = answers_of(result.out);
  ASSERT_EQ(answers.size(), 3u);
  for (const auto& [line, answer] : answers) {
    const bool stopped = answer["finish_reason"] == "stop";
    EXPECT_EQ(answer["generated_tokens"] < 64, stopped) << answer;
    EXPECT_FALSE(contains(answer["text"], "<|end_of_text|>")) << answer;
  }
}

TEST(BatchCommand, StopsWhereItIsTold) {
  const Scratch scratch;
  const std::string prompt = prompt_about("otter", 4821, 8);
  write_file(scratch / "prompt", prompt);
  write_file(scratch / "more", Json({{"prompt", prompt}}).dump() + "\n" +
                                   Json({{"prompt", prompt}, {"stop", {"no such", "21"}}}).dump() +
                                   "\n");
  const Result result =
      run(batch({"-f", scratch / "more", "-n", "30", "--stop", "\n", "--ignore-eos", "-q"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const std::map<int, Json> answers = answers_of(result.out);
  EXPECT_EQ(answers.at(1)["text"], " 4821");
  EXPECT_EQ(answers.at(2)["text"], " 48");
  EXPECT_EQ(answers.at(2)["finish_reason"], "stop");
  EXPECT_LT(answers.at(2)["generated_tokens"], 30);
  const auto answer = [&](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"run", "-m", demo_model(), "-f", scratch / "prompt", "-n", "30",
                                 "--ignore-eos", "-q", "--report", scratch / "report"});
    const Result alone = run({.arguments = flags});
    EXPECT_EQ(alone.code, 0) << alone.err;
    EXPECT_EQ(Json::parse(read_file(scratch / "report"))["finish_reason"], "stop");
    return alone.out;
  };
  EXPECT_EQ(answer({"--stop", "\n"}), " 4821");
  EXPECT_EQ(answer({"-e", "-r", "never", "-r", "\\n"}), " 4821");
  EXPECT_EQ(answer({"--stop", "21", "--stop", "\n"}), " 48");
  EXPECT_EQ(answer({"--stop", "[4821]", "--stop", "2"}), " 48");  // no list
}

// However many lines there are, a few wait at a time; and the longest prompt need not have the
// longest answer.
TEST(BatchCommand, ManyLines) {
  const Scratch scratch;
  std::string text = R"({"prompt": "The key", "max_tokens": 400, "ignore_eos": true})"
                     "\n";
  text += Json({{"prompt", prompt_about("otter", 4821, 40)}, {"max_tokens", 1}}).dump() + "\n";
  for (int i = 0; i < 500; ++i)
    text += R"({"prompt": "The key of", "max_tokens": 2, "id": null})"
            "\n";
  write_file(scratch / "requests", text);
  const Result result = run(batch({"-f", scratch / "requests", "-o", scratch / "answers",
                                   "--parallel", "8", "--report", "./report-of-batch"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const std::map<int, Json> answers = answers_of(read_file(scratch / "answers"));
  EXPECT_EQ(answers.size(), 502u);
  const Json report = Json::parse(read_file("./report-of-batch"));
  fs::remove("./report-of-batch");
  EXPECT_EQ(report["answered"], 502);
  EXPECT_EQ(report["most_decoding"], 8);
  EXPECT_EQ(report["attention"]["context"], answers.at(2)["prompt_tokens"].get<int>() + 1);
  EXPECT_EQ(run(batch({"-f", scratch / "requests", "-o", "same", "--report", "./same"})).code, 2);
  EXPECT_FALSE(fs::exists("same"));
}

TEST(BatchCommand, AReaderThatGoesEndsIt) {
  const Scratch scratch;
  std::string text;
  for (int i = 0; i < 3000; ++i)
    text += R"({"prompt": "The key of", "max_tokens": 1})"
            "\n";
  write_file(scratch / "requests", text);
  const std::string pipe = scratch / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  Process process(batch({"-f", scratch / "requests", "-o", pipe}));
  {
    std::ifstream reader(pipe);
    std::string line;
    ASSERT_TRUE(std::getline(reader, line));
    EXPECT_TRUE(line.starts_with("{\"line\":")) << line;
  }
  const Result result = process.wait();
  EXPECT_EQ(result.code, 1);
  EXPECT_TRUE(contains(result.err, "Broken pipe")) << result.err;
}

// Lines draw with seeds of their own, which --seed fixes, whatever runs beside them.
TEST(BatchCommand, SeedsBelongToLines) {
  const Scratch scratch;
  const std::string line = R"({"prompt": "The key of vault"})";
  write_file(scratch / "two", line + "\n" + line + "\n");
  write_file(scratch / "second", "\n" + line + "\n");
  const auto texts = [&](const std::string& file) {
    const Result result =
        run(batch({"-f", scratch / file, "-n", "12", "--temp", "2", "--seed", "5", "-q"}));
    EXPECT_EQ(result.code, 0) << result.err;
    return answers_of(result.out);
  };
  const std::map<int, Json> two = texts("two"), second = texts("second");
  EXPECT_EQ(two.at(1)["seed"], 5);
  EXPECT_EQ(two.at(2)["seed"], 6);
  EXPECT_NE(two.at(1)["output_tokens"], two.at(2)["output_tokens"]);
  EXPECT_EQ(two.at(2)["output_tokens"], second.at(2)["output_tokens"]);
}

TEST(BatchCommand, GoesOnWhereAnswersEnd) {
  const Scratch scratch;
  const std::string file = scratch / "answers";
  write_file(scratch / "requests", requests());
  const std::vector<std::string> flags = {"-f", scratch / "requests", "-o", file, "-n", "5"};
  ASSERT_EQ(run(batch(flags)).code, 0);
  const std::string whole = read_file(file);
  const Result again = run(batch(flags));
  EXPECT_EQ(again.code, 2);
  EXPECT_TRUE(contains(again.err, "bytes already; add --resume to go on")) << again.err;
  EXPECT_EQ(read_file(file), whole);

  std::vector<std::string> resume = flags;
  resume.emplace_back("--resume");
  const Result nothing = run(batch(resume));
  EXPECT_EQ(nothing.code, 0) << nothing.err;
  EXPECT_TRUE(contains(nothing.err, "3 of 3 lines are answered")) << nothing.err;
  EXPECT_EQ(read_file(file), whole);

  // As a process leaves it that was killed while it wrote its second line.
  const size_t first_end = whole.find('\n') + 1;
  const std::string cut = whole.substr(0, first_end + 40);
  write_file(file, cut);
  const Result rest = run(batch(resume));
  EXPECT_EQ(rest.code, 0) << rest.err;
  EXPECT_TRUE(contains(rest.err, "1 of 3 lines are answered")) << rest.err;
  EXPECT_TRUE(read_file(file).starts_with(whole.substr(0, first_end)));
  const std::map<int, Json> expected = answers_of(whole), found = answers_of(read_file(file));
  ASSERT_EQ(found.size(), 3u);
  for (const auto& [line, answer] : expected) EXPECT_EQ(found.at(line)["text"], answer["text"]);

  // What was not answered is tried again.
  Json failed = lines_of(whole)[0];
  failed["error"] = "no memory";
  write_file(file, failed.dump() + "\n");
  EXPECT_EQ(run(batch(resume)).code, 0);
  EXPECT_EQ(lines_of(read_file(file)).size(), 3u);  // in place of the error
  EXPECT_EQ(answers_of(read_file(file)).size(), 3u);

  // Answers to something else are not gone on with, nor harmed.
  Json other = lines_of(whole)[0];
  other["request_hash"] = "0123456789abcdef";
  Json beyond = lines_of(whole)[0];
  beyond["line"] = 99;
  for (const std::string& text : {other.dump() + "\n{", beyond.dump() + "\n",
                                  std::string("no JSON\n"), std::string("notes")}) {
    write_file(file, text);
    const Result refused = run(batch(resume));
    EXPECT_NE(refused.code, 0);
    EXPECT_TRUE(contains(refused.err, file + ":1: expected")) << refused.err;
    const std::string kept = read_file(file);
    EXPECT_TRUE(kept == text || kept + "{" == text) << kept;
  }
  // Nor is a file that was answered with other settings, or for other options of a line.
  write_file(file, whole.substr(0, first_end));
  for (const std::vector<std::string>& more :
       {std::vector<std::string>{"--budget", "64"}, {"-n", "6"}, {"--temp", "1"}}) {
    std::vector<std::string> changed = resume;
    changed.insert(changed.end(), more.begin(), more.end());
    const Result refused = run(batch(changed));
    EXPECT_EQ(refused.code, 2) << refused.err;
    EXPECT_TRUE(contains(refused.err, file + ":1: ")) << refused.err;
    EXPECT_EQ(read_file(file), whole.substr(0, first_end));
  }
}

// Questions on one document: it is prefilled once, and they say what they say without sharing.
TEST(BatchCommand, SharesWhatLinesBeginWith) {
  const Scratch scratch;
  std::string document, questions;
  for (const Animal& animal : kAnimals) {
    const std::string text = prompt_about(animal.name, animal.number, animal.n_sentences);
    const size_t end = text.rfind("\nWhat is");
    document += text.substr(0, end);
    questions += Json({{"prompt", text.substr(end)}, {"id", animal.number}}).dump() + "\n";
  }
  write_file(scratch / "document", document);
  write_file(scratch / "questions", questions);
  const std::vector<std::string> flags = {"-f", scratch / "questions", "--prefix",
                                          scratch / "document", "-n", "5", "--ignore-eos"};
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> all = flags;
    all.insert(all.end(), more.begin(), more.end());
    return run(batch(all));
  };
  const Result whole = with({}), shared = with({"--share-prefix", "--report", scratch / "report"});
  ASSERT_EQ(whole.code, 0) << whole.err;
  ASSERT_EQ(shared.code, 0) << shared.err;
  EXPECT_TRUE(contains(whole.err, "lines begin alike: with --share-prefix")) << whole.err;
  EXPECT_TRUE(contains(shared.err, "need not be prefilled again")) << shared.err;
  const std::map<int, Json> expected = answers_of(whole.out), found = answers_of(shared.out);
  ASSERT_EQ(found.size(), 3u);
  int64_t n_prompt = 0, n_shared = 0;
  for (const auto& [number, answer] : found) {
    EXPECT_EQ(answer["text"], expected.at(number)["text"]);
    EXPECT_EQ(answer["text"].get<std::string>().substr(0, 5), " " + answer["id"].dump());
    EXPECT_EQ(answer["prompt_tokens"], expected.at(number)["prompt_tokens"]);
    EXPECT_EQ(expected.at(number)["shared_prompt_tokens"], 0);
    n_shared = answer["shared_prompt_tokens"];
    n_prompt += answer["prompt_tokens"].get<int64_t>();
  }
  EXPECT_GT(n_shared, 1000);
  EXPECT_EQ(Json::parse(read_file(scratch / "report"))["prompt_tokens"], n_prompt - 2 * n_shared);
  // An answer depends on what was shared: it is not gone on with otherwise.
  EXPECT_EQ(with({"--share-prefix", "-o", scratch / "answers"}).code, 0);
  const Result other = with({"-o", scratch / "answers", "--resume"});
  EXPECT_EQ(other.code, 2) << other.err;
  EXPECT_EQ(with({"--share-prefix", "-o", scratch / "answers", "--resume"}).code, 0);
  // What is in front of prompts must be text, and is.
  EXPECT_TRUE(contains(run(batch({"-f", "-", "--prefix", "-"})).err, "only one of them can be stdin"));
  write_file(scratch / "ids", "{\"prompt\": [1, 2]}\n");
  EXPECT_TRUE(contains(run(batch({"-f", scratch / "ids", "--prefix", scratch / "document"})).err,
                       ":1: prompt: expected text, found"));
  write_file(scratch / "empty", "");
  EXPECT_EQ(run(batch({"-f", scratch / "questions", "--prefix", scratch / "empty"})).code, 2);
}

// Where RoPE turns keys of long contexts otherwise than those of short ones, a line whose answer makes its context long
// shares nothing.
TEST(BatchCommand, LinesThatGetLongShareNothing) {
  const Scratch scratch;
  std::filesystem::copy(demo_model(), scratch / "model");
  Json config = Json::parse(read_file(scratch / "model/config.json"));
  config["original_max_position_embeddings"] = 600;
  config["rope_scaling"] = {{"rope_type", "longrope"},
                            {"short_factor", std::vector<double>(32, 1.0)},
                            {"long_factor", std::vector<double>(32, 1.5)},
                            {"original_max_position_embeddings", 600}};
  write_file(scratch / "model/config.json", config.dump());
  std::string text;
  for (const int n_new : {3, 200, 4}) {
    std::vector<int> prompt(500, 77);
    prompt.push_back(100 + n_new);
    text += Json({{"prompt", prompt}, {"max_tokens", n_new}}).dump() + "\n";
  }
  write_file(scratch / "requests", text);
  const auto answers = [&](std::vector<std::string> more) {
    Launch launch{.arguments = {"batch", "-m", scratch / "model", "-f", scratch / "requests", "--ignore-eos"}};
    launch.arguments.insert(launch.arguments.end(), more.begin(), more.end());
    const Result result = run(launch);
    EXPECT_EQ(result.code, 0) << result.err;
    return answers_of(result.out);
  };
  const std::map<int, Json> whole = answers({}), shared = answers({"--share-prefix"});
  ASSERT_EQ(shared.size(), 3u);
  for (const auto& [line, answer] : shared) {
    EXPECT_EQ(answer["text"], whole.at(line)["text"]);
    EXPECT_EQ(answer["shared_prompt_tokens"].get<int>() > 0, line != 2) << answer;
  }
}

// As clients of servers write requests and read answers, beside lines of our own.
TEST(BatchCommand, SpeaksOpenAisFormat) {
  const Scratch scratch;
  const std::string model = scratch / "model";
  make_chat_model(model);
  const std::string prompt = prompt_about("otter", 4821, 8);
  const Json messages = {{{"role", "system"}, {"content", "Be brief."}},
                         {{"role", "user"}, {"content", {{{"type", "text"}, {"text", "Hello"}}}}}};
  const Json plain_messages = {{{"role", "system"}, {"content", "Be brief."}},
                               {{"role", "user"}, {"content", "Hello"}}};
  const Json lines[] = {
      {{"custom_id", "first"},
       {"method", "POST"},
       {"url", "/v1/completions"},
       {"body",
        {{"model", "some/name"}, {"prompt", prompt}, {"max_tokens", 5}, {"n", 1}, {"user", "me"}}}},
      {{"custom_id", "2"},
       {"url", "/v1/chat/completions"},
       {"body",
        {{"messages", messages},
         {"max_completion_tokens", 6},
         {"temperature", 1.5},
         {"seed", 3},
         {"repetition_penalty", 1.25},
         {"frequency_penalty", 0.0},
         {"stop", nullptr},
         {"response_format", {{"type", "text"}}}}}},
      {{"id", "ours"}, {"prompt", prompt}, {"max_tokens", 5}},
      {{"messages", plain_messages},
       {"max_tokens", 6},
       {"temperature", 1.5},
       {"seed", 3},
       {"repeat_penalty", 1.25}},
      {{"custom_id", "long"},
       {"url", "/v1/completions"},
       {"body", {{"prompt", std::string(4000, 'x')}, {"max_tokens", 1}}}}};
  std::string requests;
  for (const Json& line : lines) requests += line.dump() + "\n";
  write_file(scratch / "requests", requests);
  std::vector<std::string> flags = {"batch", "-m", model, "-f", scratch / "requests", "-o",
                                    scratch / "answers", "-c", "1000", "--ignore-eos"};
  const Result result = run({.arguments = flags});
  EXPECT_EQ(result.code, 1) << result.err;
  const std::map<int, Json> answers = answers_of(read_file(scratch / "answers"));
  ASSERT_EQ(answers.size(), 5u);
  const Json &first = answers.at(1), &second = answers.at(2);
  EXPECT_EQ(first["custom_id"], "first");
  EXPECT_EQ(first["error"], nullptr);
  EXPECT_EQ(first["response"]["status_code"], 200);
  const Json& completion = first["response"]["body"];
  EXPECT_EQ(completion["object"], "text_completion");
  EXPECT_EQ(completion["model"], "some/name");
  EXPECT_EQ(completion["choices"][0]["text"], answers.at(3)["text"]);
  EXPECT_EQ(completion["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(completion["usage"]["prompt_tokens"], answers.at(3)["prompt_tokens"]);
  EXPECT_EQ(completion["usage"]["completion_tokens"], 5);
  EXPECT_EQ(completion["usage"]["total_tokens"], answers.at(3)["prompt_tokens"].get<int>() + 5);
  const Json& chat = second["response"]["body"];
  EXPECT_EQ(chat["object"], "chat.completion");
  EXPECT_EQ(chat["choices"][0]["index"], 0);
  EXPECT_EQ(chat["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(chat["choices"][0]["message"]["content"], answers.at(4)["text"]);
  EXPECT_EQ(chat["usage"]["completion_tokens"], 6);
  EXPECT_NE(first["id"], second["id"]);
  EXPECT_EQ(answers.at(5)["custom_id"], "long");
  EXPECT_EQ(answers.at(5)["response"], nullptr);
  EXPECT_EQ(answers.at(5)["error"]["code"], "invalid_request");
  EXPECT_TRUE(contains(answers.at(5)["error"]["message"], "--ctx-size 1000 has room for 999"));
  // Only what was not answered is tried again.
  flags.emplace_back("--resume");
  const Result again = run({.arguments = flags});
  EXPECT_EQ(again.code, 2) << again.err;  // all that were left failed of that
  EXPECT_TRUE(contains(again.err, "4 of 5 lines are answered")) << again.err;
  EXPECT_EQ(lines_of(read_file(scratch / "answers")).size(), 5u);  // the error only once
}

// A line that asks for several answers has each that it would have alone, with the seed of that one.
TEST(BatchCommand, SeveralAnswersToALine) {
  const Scratch scratch;
  const std::string prompt = prompt_about("otter", 4821, 8);
  const auto line = [&](int n, uint64_t seed) {
    const Json body = {{"prompt", prompt}, {"max_tokens", 6}, {"temperature", 2.5}, {"seed", seed}, {"n", n}};
    return Json{{"custom_id", std::to_string(seed)}, {"url", "/v1/completions"}, {"body", body}}.dump() + "\n";
  };
  const uint64_t next = uint64_t{1} << 32;
  write_file(scratch / "requests", line(3, 7) + line(1, 7) + line(1, 7 + next) + line(1, 7 + 2 * next));
  const std::vector<std::string> flags = {"batch", "-m", demo_model(), "-f", scratch / "requests", "-o", scratch / "answers"};
  const Result result = run({.arguments = flags});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(contains(result.err, "4 of 4 lines")) << result.err;
  const std::map<int, Json> answers = answers_of(read_file(scratch / "answers"));
  ASSERT_EQ(answers.size(), 4u);
  const Json body = answers.at(1)["response"]["body"];
  ASSERT_EQ(body["choices"].size(), 3u);
  for (int i = 0; i < 3; ++i) {
    const Json alone = answers.at(2 + i)["response"]["body"];
    EXPECT_EQ(body["choices"][i]["text"], alone["choices"][0]["text"]);
    EXPECT_EQ(body["choices"][i]["index"], i);
    EXPECT_EQ(body["usage"]["prompt_tokens"], alone["usage"]["prompt_tokens"]);
  }
  EXPECT_NE(body["choices"][0]["text"], body["choices"][1]["text"]);
  EXPECT_EQ(body["usage"]["completion_tokens"], 18);
  // Another number of answers is another request.
  write_file(scratch / "requests", line(2, 7) + line(1, 7) + line(1, 7 + next) + line(1, 7 + 2 * next));
  std::vector<std::string> again = flags;
  again.emplace_back("--resume");
  EXPECT_EQ(run({.arguments = again}).code, 2);
}

TEST(BatchCommand, LogProbabilitiesInEveryFormat) {
  const Scratch scratch;
  const std::string model = scratch / "model";
  make_chat_model(model);
  const std::string prompt = prompt_about("otter", 4821, 8);
  const Json chat = {{{"role", "user"}, {"content", prompt}}};
  const Json lines[] = {
      {{"prompt", prompt}, {"logprobs", 2}, {"logit_bias", {{"77", 1.5}, {"78", -100}}}},
      {{"custom_id", "a"},
       {"url", "/v1/completions"},
       {"body", {{"prompt", prompt}, {"logprobs", 2}, {"logit_bias", {{"77", 1.5}, {"78", -100}}}}}},
      {{"custom_id", "b"},
       {"url", "/v1/chat/completions"},
       {"body", {{"messages", chat}, {"logprobs", true}, {"top_logprobs", 1}, {"frequency_penalty", 0.5}}}},
      {{"custom_id", "c"},
       {"url", "/v1/chat/completions"},
       {"body", {{"messages", chat}, {"logprobs", false}, {"top_logprobs", 0}}}}};
  std::string requests;
  for (const Json& line : lines) requests += line.dump() + "\n";
  write_file(scratch / "requests", requests);
  const Result result = run({.arguments = {"batch", "-m", model, "-f", scratch / "requests", "-o",
                                           scratch / "answers", "-n", "5", "--ignore-eos"}});
  ASSERT_EQ(result.code, 0) << result.err;
  const std::map<int, Json> answers = answers_of(read_file(scratch / "answers"));
  const Json& plain = answers.at(1)["logprobs"];
  ASSERT_EQ(plain.size(), 5u);
  const Json& completion = answers.at(2)["response"]["body"]["choices"][0];
  const Json& its = completion["logprobs"];
  EXPECT_EQ(completion["text"], answers.at(1)["text"]);
  std::string text;
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(plain[i]["token"], answers.at(1)["output_tokens"][i]);
    EXPECT_EQ(its["token_logprobs"][i], plain[i]["logprob"]);
    EXPECT_EQ(its["top_logprobs"][i].size(), 2u);
    EXPECT_EQ(its["text_offset"][i], text.size());
    text += its["tokens"][i];
  }
  EXPECT_EQ(text, completion["text"]);
  const Json& content = answers.at(3)["response"]["body"]["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 5u);
  const std::string token = content[0]["token"];
  EXPECT_EQ(content[0]["bytes"].size(), token.size());
  EXPECT_EQ(content[0]["top_logprobs"].size(), 1u);
  EXPECT_EQ(content[0]["top_logprobs"][0]["token"], token);
  EXPECT_EQ(answers.at(4)["response"]["body"]["choices"][0]["logprobs"], nullptr);
}

TEST(BatchCommand, RefusesWhatOpenAisFormatAsksInVain) {
  const Scratch scratch;
  const auto body = [](const std::string& more) {
    return R"({"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "a")" + more + "}}";
  };
  const std::pair<std::string, const char*> cases[] = {
      {body(R"(, "n": 129)"), ":1: body.n: expected an integer from 1 to 128, found 129"},
      {body(R"(, "stream": true)"), ":1: body.stream: expected false"},
      {body(R"(, "logprobs": true)"), ":1: body.logprobs: expected a number"},
      {body(R"(, "logprobs": 101)"), ":1: body.logprobs: expected an integer from -1 to 100"},
      {body(R"(, "logit_bias": {"77": 1, "x": 2})"), ":1: body.logit_bias: expected ids of tokens"},
      {body(R"(, "logit_bias": {"5+100,6": 1})"), ":1: body.logit_bias: expected ids of tokens"},
      {body(R"(, "logit_bias": {"77": 5000})"), ":1: body.logit_bias: expected a token's id and what to add"},
      {body(R"(, "logit_bias": {"99999": 1})"), "expected a token from 0 to 2047, found 99999"},
      {body(R"(, "presence_penalty": "high")"), ":1: body.presence_penalty: expected a number"},
      {body(R"(, "response_format": {"type": "xml"})"), ":1: body.response_format.type: expected"},
      {body(R"(, "temprature": 1)"),
       ":1: body: expected prompt or messages, options of sampling, found \"temprature\"; did you mean temperature?"},
      {body(R"(, "max_tokens": 1, "max_completion_tokens": 1)"),
       "expected one of max_completion_tokens and max_tokens, found both"},
      {body(R"(, "messages": [])"), ":1: body: expected \"prompt\" alone"},
      {body(R"(, "id": "x")"), "found \"id\""},
      {R"({"custom_id": "a", "url": "/v1/completions", "body": {"messages": []}})",
       ":1: body: expected \"prompt\""},
      {R"({"custom_id": "a", "url": "/v1/embeddings", "body": {"input": "a"}})",
       R"(:1: url: expected "/v1/chat/completions" or "/v1/completions", found "/v1/embeddings")"},
      {R"({"custom_id": 7, "url": "/v1/completions", "body": {"prompt": "a"}})", ":1: custom_id: "},
      {R"({"custom_id": "a", "url": "/v1/completions"})", ":1: body: expected a value"},
      {R"({"custom_id": "a", "method": "GET", "url": "/v1/completions", "body": {}})",
       ":1: method: expected \"POST\""},
      {R"({"url": "/v1/completions", "body": {"prompt": "a"}})", ":1: custom_id: expected a value"},
      {R"({"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "a"}, "n": 1})",
       "there is no \"n\""},
      {R"({"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": []}})",
       ":1: body.messages: "},
  };
  for (const auto& [line, message] : cases) {
    SCOPED_TRACE(line);
    write_file(scratch / "requests", line + "\n");
    const Result result = run(batch({"-f", scratch / "requests"}));
    EXPECT_EQ(result.code, 2);
    EXPECT_TRUE(contains(result.err, message)) << result.err;
  }
}

TEST(BatchCommand, StopsAtASignalAndLosesNothing) {
  const Scratch scratch;
  const std::string file = scratch / "answers";
  // One that ends soon, and one that would go on for long.
  write_file(scratch / "requests",
             requests(R"({"prompt": "On and on", "max_tokens": 400000, "ignore_eos": true})"
                      "\n"));
  const std::vector<std::string> flags = {"-f", scratch / "requests", "-o", file, "-n", "3"};
  Process process(batch(flags));
  ASSERT_TRUE(process.wait_until([&] {
    const std::string text = read_file(file);
    return std::count(text.begin(), text.end(), '\n') == 3;
  }));
  // Nobody else gets the file meanwhile.
  std::vector<std::string> resume = flags;
  resume.emplace_back("--resume");
  const Result second = run(batch(resume));
  EXPECT_EQ(second.code, 1);
  EXPECT_TRUE(contains(second.err, "another process is writing its answers there")) << second.err;
  process.signal(SIGINT);
  const Result result = process.wait();
  EXPECT_EQ(result.code, 130);
  EXPECT_TRUE(contains(result.err, "3 of 4 lines are answered; --resume goes on")) << result.err;
  EXPECT_EQ(answers_of(read_file(file)).size(), 3u);
}

TEST(BatchCommand, AnswersThatAreRemovedAreNotThere) {
  const Scratch scratch;
  std::string lines;
  for (int i = 0; i < 400; ++i) lines += "{\"prompt\": \"Hello there\"}\n";
  write_file(scratch / "requests", lines);
  Process process({{"batch", "-m", demo_model(), "-f", scratch / "requests", "-o", scratch / "answers", "-n", "40",
                    "--ignore-eos"}});
  ASSERT_TRUE(process.wait_until([&] {
    return fs::exists(scratch / "answers") && fs::file_size(scratch / "answers") > 0;
  })) << process.err();
  fs::remove(scratch / "answers");
  const Result result = process.wait();
  EXPECT_EQ(result.code, 1) << result.err;
  EXPECT_TRUE(contains(result.err, "it was removed or replaced")) << result.err;
}

TEST(BatchCommand, RefusesWhatItCannotAnswer) {
  const Scratch scratch;
  const std::string file = scratch / "requests";
  const struct {
    const char* line;
    const char* message;
  } cases[] = {
      {"{\"prompt\": ", ":3: expected JSON"},
      {"[]", ":3: "},
      {"{}", ":3: expected either a prompt or messages, found neither"},
      {R"({"prompt": "a", "messages": []})",
       ":3: expected either a prompt or messages, found both"},
      {R"({"prompt": 7})", ":3: prompt: expected"},
      {R"({"prompt": [1, -1]})", ":3: prompt[1]: expected"},
      {R"({"prompt": [1, 2048]})", ":3: prompt[1]: expected"},
      {R"({"prompt": []})", ":3: the prompt has no tokens"},
      {R"({"prompt": "a", "id": true})", ":3: id: expected text or an integer"},
      {R"({"prompt": "a", "max_token": 3})", "found \"max_token\"; did you mean max_tokens?"},
      {R"({"prompt": "a", "max_tokens": 0})", ":3: max_tokens: expected"},
      {R"({"prompt": "a", "top_p": 1.5})", ":3: top_p: expected"},
      {R"({"prompt": "a", "stop": ["x", ""]})", ":3: stop[1]: expected a text that is not empty"},
      {R"({"prompt": "a", "temperature": "hot"})", ":3: temperature: expected a number"},
      {R"({"prompt": "a", "prompt": "b"})", ":3: "},
      {R"({"messages": [{"role": "user", "content": "x"}]})", ":3: messages: "},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.line);
    write_file(file, std::string("{\"prompt\": \"fine\"}\n\n") + c.line + "\n");
    const Result result = run(batch({"-f", file, "-o", scratch / "answers"}));
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_TRUE(contains(result.err, file)) << result.err;
    EXPECT_TRUE(contains(result.err, c.message)) << result.err;
    EXPECT_FALSE(fs::exists(scratch / "answers"));
  }
  write_file(file, "\n \n");
  EXPECT_TRUE(
      contains(run(batch({"-f", file})).err, "expected a JSON object on each line, found none"));
  write_file(file, "{\"prompt\": \"fine\"}\n");
  EXPECT_EQ(run(batch({})).code, 2);
  EXPECT_EQ(run(batch({"-f", scratch / "none"})).code, 1);
  EXPECT_EQ(run(batch({"-f", file, "-o", file})).code, 2);
  EXPECT_EQ(run(batch({"-f", file, "--resume"})).code, 2);
  EXPECT_EQ(run(batch({"-f", file, "-o", scratch / ""})).code, 1);
  EXPECT_EQ(run(batch({"-f", file, "--parallel", "0"})).code, 2);
  EXPECT_EQ(run(batch({"-f", file, "--device-memory", "64KiB"})).code, 3);
  EXPECT_EQ(run(batch({"-f", file, "--audit", "4"})).code, 2);
  write_file(file, "{\"prompt\": [5, 6]}\n\n{\"prompt\": [5, 6, 7, 8]}\n");
  const Result small = run(batch({"-f", file, "-n", "3", "-c", "4"}));
  EXPECT_EQ(small.code, 1);
  EXPECT_TRUE(contains(small.err, "line 3: the prompt has 4 tokens, --ctx-size 4 has room for 3 and an answer"))
      << small.err;
  const std::map<int, Json> some = answers_of(small.out);
  EXPECT_EQ(some.at(3)["finish_reason"], "error");
  EXPECT_EQ(some.at(3)["error"], "the prompt has 4 tokens, --ctx-size 4 has room for 3 and an answer");
  EXPECT_EQ(some.at(3)["prompt_tokens"], 4);
  EXPECT_GE(some.at(1)["generated_tokens"], 1);
  EXPECT_EQ(run(batch({"-f", file, "-n", "3", "-c", "4", "--strict"})).code, 2);
  const Result none = run(batch({"-f", file, "-n", "3", "-c", "2"}));
  EXPECT_EQ(none.code, 2) << none.err;
  EXPECT_EQ(answers_of(none.out).size(), 2u);
  const Result shorter = run(batch({"-f", file, "-n", "3", "-c", "6", "--ignore-eos"}));
  EXPECT_EQ(shorter.code, 0) << shorter.err;
  EXPECT_TRUE(contains(shorter.err, "1 of 2 lines have room for fewer tokens")) << shorter.err;
  EXPECT_EQ(answers_of(shorter.out).at(1)["generated_tokens"], 3);
  EXPECT_EQ(answers_of(shorter.out).at(3)["generated_tokens"], 2);
  EXPECT_EQ(run(batch({"-f", file, "-n", "3", "-c", "6", "--strict"})).code, 2);
  const Result full = run(batch({"-f", file, "-o", "/dev/full", "-n", "2"}));
  EXPECT_EQ(full.code, 1);
  EXPECT_TRUE(contains(full.err, "--output: cannot write /dev/full: No space left")) << full.err;
}

}  // namespace
}  // namespace tiercel::test
