// tiercel haystack: length, depths, uniqueness, determinism, and hay that is only hay.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/command/process.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

struct Made {
  std::string prompt;
  Json answers;
};

Made make(const Scratch& scratch, std::vector<std::string> more) {
  Launch launch{.arguments = {"haystack", "-m", demo_model(), "-o", scratch / "prompt", "--answers",
                              scratch / "answers"}};
  launch.arguments.insert(launch.arguments.end(), more.begin(), more.end());
  const Result result = run(launch);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  return {read_file(scratch / "prompt"), Json::parse(read_file(scratch / "answers"))};
}

size_t occurrences(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t i = text.find(part); i != std::string::npos; i = text.find(part, i + 1)) ++n;
  return n;
}

size_t n_tokens(const std::string& path) {
  const Result result = run({.arguments = {"tokenize", "-m", demo_model(), "-f", path, "--json"}});
  return Json::parse(result.out).size();
}

TEST(Haystack, LengthDepthsAndUniqueness) {
  const Scratch scratch;
  for (const char* form : {"magic", "special", "passkey", "line", "mixed"}) {
    for (const int target : {1000, 20000}) {
      const auto [prompt, answers] = make(scratch, {"--tokens", std::to_string(target), "--facts",
                                                    "9", "--seed", "5", "--form", form});
      const auto counted = static_cast<double>(n_tokens(scratch / "prompt"));
      EXPECT_NEAR(counted, target, 0.005 * target);
      EXPECT_EQ(answers["tokens"].get<double>(), counted);
      ASSERT_EQ(answers["facts"].size(), 9u);
      std::set<std::string> keys, values;
      std::string hay = prompt;
      for (size_t i = 0; i < 9; ++i) {
        const Json& fact = answers["facts"][i];
        const std::string sentence = fact["sentence"], key = fact["key"], value = fact["value"];
        EXPECT_DOUBLE_EQ(fact["depth"], static_cast<double>(i) / 8);
        EXPECT_NEAR(fact["tokens_before"].get<double>(), fact["depth"].get<double>() * target,
                    0.03 * target + 30);
        EXPECT_EQ(occurrences(prompt, sentence), 1u) << sentence;
        EXPECT_EQ(occurrences(prompt, key), 1u) << key;
        EXPECT_EQ(occurrences(prompt, value), 1u) << value;
        EXPECT_TRUE(contains(sentence, key) && contains(sentence, value)) << sentence;
        EXPECT_EQ(fact["answer"], " " + value);
        EXPECT_TRUE(contains(fact["question"], key));
        EXPECT_FALSE(contains(fact["question"], value));
        EXPECT_TRUE(value.size() >= 3 && value.size() <= 9) << value;
        keys.insert(key);
        values.insert(value);
        hay.erase(hay.find(sentence), sentence.size());
      }
      EXPECT_EQ(keys.size(), 9u);
      EXPECT_EQ(values.size(), 9u);
      // Nothing of a fact's form is left.
      for (const char* word : {"magic", "number", "pass key", "code", ":", "Remember it"}) {
        EXPECT_FALSE(contains(hay, word)) << word;
      }
      int digits = 0;
      for (const char c : hay) {
        digits = c >= '0' && c <= '9' ? digits + 1 : 0;
        ASSERT_LT(digits, 3);
      }
      EXPECT_TRUE(prompt.starts_with(answers["facts"][0]["sentence"].get<std::string>()));
      EXPECT_TRUE(prompt.ends_with(answers["facts"][8]["sentence"].get<std::string>() + "\n"));
    }
  }
}

TEST(Haystack, SeedDecides) {
  const Scratch scratch;
  const std::vector<std::string> size = {"--tokens", "3000", "--facts", "4", "--seed"};
  const auto with = [&](const char* seed) {
    auto arguments = size;
    arguments.emplace_back(seed);
    return make(scratch, arguments).prompt;
  };
  const std::string first = with("1");
  EXPECT_EQ(first, with("1"));
  EXPECT_NE(first, with("2"));
}

TEST(Haystack, HayDoesNotRepeat) {
  const Scratch scratch;
  const std::string prompt = make(scratch, {"--tokens", "100000"}).prompt;
  std::set<std::string> distinct;
  size_t n = 0;
  for (size_t begin = 0, stop; (stop = prompt.find(". ", begin)) != std::string::npos;
       begin = stop + 2, ++n) {
    distinct.insert(prompt.substr(begin, stop - begin));
  }
  EXPECT_GT(n, 1000u);
  EXPECT_GT(static_cast<double>(distinct.size()), 0.98 * static_cast<double>(n));
}

TEST(Haystack, AskAppendsTheQuestionOnItsOwnLine) {
  const Scratch scratch;
  const std::vector<std::string> base = {"--tokens", "2000", "--facts", "3", "--form", "passkey"};
  const std::string plain = make(scratch, base).prompt;
  auto asked = base;
  asked.insert(asked.end(), {"--ask", "1"});
  const auto [prompt, answers] = make(scratch, asked);
  EXPECT_EQ(prompt, plain + answers["facts"][1]["question"].get<std::string>());
  EXPECT_TRUE(plain.ends_with("\n"));
}

TEST(Haystack, OwnTextIsFillerWithoutItsFacts) {
  const Scratch scratch;
  std::string text;
  for (int i = 0; i < 200; ++i)
    text += "Sheep graze on the hill, row " + std::to_string(i % 90) + ".\n\n";
  write_file(scratch / "text", text + "lamp: 12345\nThe magic number for lamp is 5.\n");
  const auto [prompt, answers] =
      make(scratch, {"--tokens", "2000", "--facts", "2", "--text", scratch / "text"});
  EXPECT_TRUE(contains(prompt, "Sheep graze"));
  EXPECT_FALSE(contains(prompt, "lamp"));
  EXPECT_NEAR(static_cast<double>(n_tokens(scratch / "prompt")), 2000, 10);
}

TEST(Haystack, BadArguments) {
  const Scratch scratch;
  const auto code = [&](std::vector<std::string> more) {
    Launch launch{.arguments = {"haystack", "-m", demo_model()}};
    launch.arguments.insert(launch.arguments.end(), more.begin(), more.end());
    return run(launch).code;
  };
  EXPECT_EQ(code({"-o", scratch / "p"}), 2);                                     // no --tokens
  EXPECT_EQ(code({"--tokens", "1000"}), 2);                                      // no --output
  EXPECT_EQ(code({"--tokens", "20", "--facts", "50", "-o", scratch / "p"}), 2);  // facts are longer
  EXPECT_EQ(code({"--tokens", "1000", "-o", scratch / "p", "--ask", "1"}), 2);   // one fact only
  EXPECT_EQ(code({"--tokens", "1000", "-o", scratch / "p", "--answers", scratch / "p"}), 2);
  EXPECT_EQ(code({"--tokens", "1000", "-o", "/dev/full"}), 1);
  EXPECT_EQ(code({"--tokens", "1000", "-o", scratch / "p", "--text", "/dev/null"}), 2);
}

}  // namespace
}  // namespace tiercel::test
