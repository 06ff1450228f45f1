#include "engine/text/grammar/grammar_constraint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>

#include "engine/base/check.h"
#include "engine/text/grammar/gbnf.h"
#include "tests/grammar/random_grammar.h"
#include "tests/seed.h"

namespace tiercel::grammar {
namespace {

const std::string kGolden = std::string(TIERCEL_SOURCE_DIR) + "/tests/golden/tokenizer/";

constexpr const char* kJson = R"(
root ::= "{" ws ( member ("," ws member)* )? ws "}"
member ::= string ":" ws value
value ::= root | "[" ws ( value ("," ws value)* )? ws "]" | string | number | "true" | "false" | "null"
string ::= "\"" ([^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\""
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)?
ws ::= (" " | "\n" [ \t]{0,20})?
)";

// Text of less characters than a token may have, and of more.
constexpr const char* kBounded[] = {R"(root ::= "\"" [^"\\\x00-\x1F]{0,40} "\"")",
                                    R"(root ::= "\"" [^"\\\x00-\x1F]{2,15} "\"")",
                                    R"(root ::= [^"\\\x00-\x1F\uFFFF]{20} | [a-z \u0100-\uFFFF]+)"};

// Bytes for which there is no other choice.
std::string forced_text(Recognizer& recognizer, Recognizer::State state) {
  std::string text;
  while (text.size() < 128 && !recognizer.is_match(state)) {
    std::vector<char> ways;
    for (int byte = 0; byte < 256; ++byte) {
      if (recognizer.step(state, static_cast<uint8_t>(byte)) != Recognizer::kDead) ways.push_back(static_cast<char>(byte));
    }
    if (ways.size() != 1) break;
    text += ways[0];
    state = recognizer.step(state, static_cast<uint8_t>(ways[0]));
  }
  return text;
}

// Every token of a vocabulary, asked one by one.
int64_t n_expected = 0;
void expect_by_definition(const Grammar& grammar, const Tokenizer& tokenizer,
                          const std::shared_ptr<const GrammarConstraint::Vocabulary>& vocabulary, int n_steps,
                          std::mt19937_64& random) {
  GrammarConstraint constraint(grammar, vocabulary);
  Recognizer recognizer(grammar);
  int32_t place = constraint.start();
  Recognizer::State state = recognizer.start();
  for (int step = 0; step < n_steps; ++step) {
    const auto set = constraint.allowed(place);
    std::string expected_text;
    if (const auto likely = constraint.expected(place)) {
      for (const int32_t token : *likely) expected_text += bytes_of_token(tokenizer, token);
      EXPECT_FALSE(expected_text.empty());
    }
    ASSERT_EQ(expected_text, forced_text(recognizer, state)) << "at step " << step;
    n_expected += !expected_text.empty();
    std::vector<int32_t> allowed;
    for (int32_t token = 0; token < static_cast<int32_t>(vocabulary->size); ++token) {
      const bool is_end = std::ranges::count(vocabulary->end_tokens, token) > 0;
      bool expected = is_end && recognizer.is_match(state);
      if (!is_end && token < tokenizer.vocab_size()) {
        const std::string bytes = bytes_of_token(tokenizer, token);
        expected = !bytes.empty() && recognizer.step(state, bytes) != Recognizer::kDead;
      }
      ASSERT_EQ(contains(*set, token), expected) << "token " << token << " at step " << step;
      if (expected && !is_end) allowed.push_back(token);
    }
    if (allowed.empty()) {
      EXPECT_TRUE(recognizer.is_match(state));
      EXPECT_EQ(constraint.behind(place, vocabulary->end_tokens[0]), constraint.start());
      return;
    }
    const int32_t token = allowed[random() % allowed.size()];
    place = constraint.behind(place, token);
    state = recognizer.step(state, bytes_of_token(tokenizer, token));
  }
}

TEST(GrammarConstraint, AllowsTokensAfterWhichAMatchedTextMayCome) {
  std::mt19937_64 random(test::seed());
  for (const char* name : {"gpt2", "llama2", "llama3", "qwen2"}) {
    const Tokenizer tokenizer = Tokenizer::load(kGolden + name + "/tokenizer.json");
    const int64_t n = tokenizer.vocab_size() + 7;  // a model's may be padded
    const auto vocabulary = std::make_shared<const GrammarConstraint::Vocabulary>(
        tokenizer, n, std::vector<int32_t>{40, 300});  // of which one is text
    for (int round = 0; round < 6; ++round) {
      expect_by_definition(parse_gbnf(kJson, "json"), tokenizer, vocabulary, 12, random);
      for (const char* bounded : kBounded)
        expect_by_definition(parse_gbnf(bounded, "text"), tokenizer, vocabulary, 12, random);
    }
    for (int round = 0; round < 20; ++round) {
      const test::RandomGrammar some(random);
      try {
        expect_by_definition(some.grammar(), tokenizer, vocabulary, 8, random);
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("no finite text"), std::string::npos) << error.what();
      }
    }
  }
  EXPECT_GT(n_expected, 50);
}

// What a form says word for word is expected as a tokenizer spells it; special tokens, and what is to be chosen, are not.
TEST(GrammarConstraint, ExpectsWhatMustCome) {
  const Tokenizer tokenizer = Tokenizer::load(kGolden + "qwen2/tokenizer.json");
  const auto vocabulary =
      std::make_shared<const GrammarConstraint::Vocabulary>(tokenizer, tokenizer.vocab_size(), std::vector<int32_t>{0});
  const auto text_behind = [&](const Grammar& grammar, std::string_view begun) {
    GrammarConstraint constraint(grammar, vocabulary);
    int32_t place = constraint.start();
    for (const int32_t token : tokenizer.encode(begun, {.add_special = false})) place = constraint.behind(place, token);
    const auto tokens = constraint.expected(place);
    if (tokens == nullptr) return std::string();
    EXPECT_EQ(*tokens, tokenizer.encode(tokenizer.decode(*tokens, false), {.add_special = false}));
    return tokenizer.decode(*tokens, false);
  };
  const Grammar names = parse_gbnf(R"(root ::= "{\"company\": " ("true" | "null") ", \"größe\": 7}")", "names");
  EXPECT_EQ(text_behind(names, ""), "{\"company\": ");
  EXPECT_EQ(text_behind(names, "{\""), "company\": ");
  EXPECT_EQ(text_behind(names, "{\"company\":"), " ");
  EXPECT_EQ(text_behind(names, "{\"company\": "), "");
  EXPECT_EQ(text_behind(names, "{\"company\": n"), "ull, \"größe\": 7}");
  EXPECT_EQ(text_behind(names, "{\"company\": null, \"größe\": 7}"), "");
  const std::string call = written_with_special(tokenizer, "calls<|im_start|>now");
  EXPECT_EQ(text_behind(grammar_of(text(call)), ""), "calls");
  // Up to a whole character.
  EXPECT_EQ(text_behind(parse_gbnf("root ::= \"a\" [\u00e4\u00f6]", "characters"), ""), "a");
}

TEST(GrammarConstraint, SaysWhatTheVocabularyLacks) {
  const Tokenizer tokenizer = Tokenizer::parse(
      R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "</s>": 2}, "merges": []},
          "added_tokens": [{"id": 2, "content": "</s>", "special": true}], "decoder": {"type": "ByteLevel"},
          "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}})",
      "tokenizer.json");
  const auto vocabulary = std::make_shared<const GrammarConstraint::Vocabulary>(tokenizer, 3, std::vector<int32_t>{2});
  GrammarConstraint constraint(grammar_of(choice({text("ac"), text("b")})), vocabulary);
  EXPECT_EQ(*constraint.allowed(constraint.start()), TokenSet{0b011});
  EXPECT_EQ(*constraint.allowed(constraint.behind(constraint.start(), 1)), TokenSet{0b100});
  try {
    constraint.allowed(constraint.behind(constraint.start(), 0));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("no token of this model's vocabulary"), std::string::npos);
  }
}

// Many ways to read one text cost time for each token that may come: that ends, and costs that answer only.
TEST(GrammarConstraint, TimeHasAnEnd) {
  const Tokenizer tokenizer = Tokenizer::load(kGolden + "gpt2/tokenizer.json");
  const auto vocabulary =
      std::make_shared<const GrammarConstraint::Vocabulary>(tokenizer, tokenizer.vocab_size(), std::vector<int32_t>{0});
  std::vector<Expr> many;
  for (int i = 0; i < 6'000; ++i) many.push_back(optional(choice({text(""), sequence({text("#"), text("#")})})));
  many.push_back(characters_except({}));
  std::vector<Expr> either = {sequence(many)};
  const Expr any = repeat(characters_except({{U'#', U'#'}}), 0, kUnlimited);
  for (char32_t c = U'a'; c <= U'z'; ++c)
    either.push_back(sequence({any, characters({{c, c}}), repeat(characters_except({}), 0, 12)}));
  GrammarConstraint constraint(grammar_of(repeat(choice(either), 0, kUnlimited)), vocabulary);
  const auto begin = std::chrono::steady_clock::now();
  try {
    constraint.allowed(constraint.start());
    FAIL() << "it did all of it";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("too many ways to go on"), std::string::npos) << error.what();
  }
  EXPECT_TRUE(constraint.is_full());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
}

// What a schema of strings costs, is paid once for each of its strings.
TEST(GrammarConstraint, GivesTheSameSetAgain) {
  const Tokenizer tokenizer = Tokenizer::load(kGolden + "llama3/tokenizer.json");
  const auto vocabulary =
      std::make_shared<const GrammarConstraint::Vocabulary>(tokenizer, tokenizer.vocab_size(), std::vector<int32_t>{0});
  GrammarConstraint constraint(parse_gbnf(kJson, "json"), vocabulary);
  Recognizer bytes(parse_gbnf(kJson, "json"));
  const auto at = [&](std::string_view text) {
    int32_t place = constraint.start();
    for (const int32_t token : tokenizer.encode(text, {.add_special = false})) place = constraint.behind(place, token);
    return constraint.allowed(place);
  };
  EXPECT_EQ(at(R"({"a": "x)"), at(R"({"a": "some longer text)"));
  EXPECT_EQ(at(R"({"a": 1)"), at(R"({"other": [1, 2], "b": 234567)"));
  EXPECT_NE(at(R"({"a": 1)"), at(R"({"a": [1)"));
}

}  // namespace
}  // namespace tiercel::grammar
