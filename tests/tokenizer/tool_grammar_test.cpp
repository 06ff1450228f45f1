// Calls by a grammar: it matches what a template writes, and what it matches is read as calls of tools that there are.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/base/check.h"
#include "engine/text/chat_template.h"
#include "engine/text/grammar/recognizer.h"
#include "engine/text/grammar/token_trie.h"
#include "engine/text/tool_calls/tool_format.h"
#include "tests/grammar/matches.h"
#include "tests/seed.h"

namespace tiercel::test {
namespace {

using grammar::Recognizer;
using Json = nlohmann::ordered_json;

std::string tools_json(bool is_strict) {
  const std::string strict = is_strict ? R"("strict": true, )" : "";
  return R"([{"type": "function", "function": {"name": "find", )" + strict + R"("parameters": {"type": "object",
  "properties": {"what": {"type": "string"}, "n": {"$ref": "#/$defs/small"}, "kind": {"type": "string", "enum": ["a", "b"]}},
  "required": ["what"], "additionalProperties": false, "$defs": {"small": {"type": "integer", "minimum": -5, "maximum": 12}}}}},
 {"type": "function", "function": {"name": "find_all", )" +
         strict +
         R"("parameters": {"type": "object", "properties": {"deep": {"type": "object", "properties": {"ok": {"type": "boolean"}},
  "required": ["ok"]}}, "required": ["deep"]}}}])";
}
const std::vector<ToolCall> kCalls = {{"abcdefgh1", "find", R"({"what": "it's ]}\n <b> 12 é", "n": -3})"},
                                      {"abcdefgh2", "find_all", R"({"deep": {"ok": true}})"},
                                      {"abcdefgh3", "find", R"({"what": "x", "kind": "b"})"}};

std::string template_with(const std::string& calls) {
  return "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}" + calls +
         "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
         "%}<|im_start|>assistant\n{% endif %}";
}

struct Form {
  const char* name;
  std::string calls;
  size_t most;
};
const Form kForms[] = {
    {"Hermes",
     "{% for c in m.tool_calls %}{% if not loop.first %}\n{% endif %}<tool_call>\n{{ c.function | tojson "
     "}}\n</tool_call>"
     "{% endfor %}",
     3},
    {"Mistral",
     "[TOOL_CALLS] [{% for c in m.tool_calls %}{{ c.function | tojson }}{% if not loop.last %}, {% endif %}{% endfor "
     "%}]",
     3},
    {"bare",
     "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}{\"name\": \"{{ "
     "m.tool_calls[0].function.name }}\", \"parameters\": {{ m.tool_calls[0].function.arguments | tojson }}}",
     1},
    {"tagged",
     "{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor "
     "%}",
     3},
    {"special",  // <|im_start|> is a token
     "{% for c in m.tool_calls %}<|im_start|>{{ c.function.name }}\n{{ c.function.arguments | tojson }}\n{% endfor %}",
     3},
    {"parameters",
     "{% for c in m.tool_calls %}<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments | "
     "items %}<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor "
     "%}</function>\n</tool_call>"
     "{% endfor %}",
     3}};

class ToolGrammar : public testing::TestWithParam<Form> {
 protected:
  std::string written(size_t n) const {
    ChatOptions options{.add_generation_prompt = true, .date = {2024, 7, 26}, .tools = tools_json(false)};
    std::vector<ChatMessage> messages = {{ChatRole::kUser, "q"}};
    const std::string prompt(program_.write(messages, options).view());
    messages.push_back({.role = ChatRole::kAssistant,
                        .content = "",
                        .calls = {kCalls.begin(), kCalls.begin() + static_cast<std::ptrdiff_t>(n)}});
    options.add_generation_prompt = false;
    const std::string all(program_.write(messages, options).view());
    const std::string answer = all.substr(prompt.size());
    return answer.substr(0, answer.rfind("<|im_end|>"));
  }
  bool matches(const grammar::Grammar& grammar, const std::string& text) const {
    return grammar::matches(grammar, grammar::written_with_special(tokenizer_, text));
  }
  grammar::Grammar of(bool is_strict, ToolFormat::Calls calls = {}) const {
    return format_.grammar(Tools(tools_json(is_strict)), calls, tokenizer_);
  }

  const Tokenizer tokenizer_ =
      Tokenizer::load(std::string(TIERCEL_SOURCE_DIR) + "/tests/golden/tokenizer/qwen2/tokenizer.json");
  const ChatProgram program_ = ChatProgram(template_with(GetParam().calls), "", "", "FILE");
  const ToolFormat format_ = ToolFormat(program_);
};

INSTANTIATE_TEST_SUITE_P(Forms, ToolGrammar, testing::ValuesIn(kForms),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(ToolGrammar, MatchesWhatTheTemplateWrites) {
  ASSERT_TRUE(format_.has_grammar());
  for (const bool is_strict : {false, true}) {
    for (size_t n = 1; n <= GetParam().most; ++n) {
      const std::string text = written(n);
      EXPECT_TRUE(matches(of(is_strict), text)) << text;
      // Behind what an answer that must call begins with.
      const std::string begun(format_.beginning("").view()), named(format_.beginning("find").view());
      ASSERT_TRUE(text.starts_with(named)) << named << " of " << text;
      EXPECT_TRUE(matches(of(is_strict, {.from = ToolFormat::From::kName, .name = {}, .otherwise = {}}),
                          text.substr(begun.size())));
      EXPECT_TRUE(matches(of(is_strict, {.from = ToolFormat::From::kArguments, .name = "find", .otherwise = {}}),
                          text.substr(named.size())));
      EXPECT_EQ(matches(of(is_strict, {.name = {}, .several = false, .otherwise = {}}), text), n == 1) << text;
      // And nothing that is cut off, or of another name.
      EXPECT_FALSE(matches(of(is_strict), text.substr(0, text.size() - 2)));
      std::string other = text;
      other.replace(other.find("find"), 4, "fend");
      EXPECT_FALSE(matches(of(is_strict), other)) << other;
    }
  }
}

TEST_P(ToolGrammar, HoldsStrictToolsToTheirSchemas) {
  const std::string text = written(1);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    return changed;
  };
  for (const bool is_strict : {false, true}) {
    EXPECT_TRUE(matches(of(is_strict), with("-3", "12")));
    EXPECT_NE(matches(of(is_strict), with("-3", "13")), is_strict);
    EXPECT_NE(matches(of(is_strict), with("-3", "true")), is_strict);
  }
  EXPECT_FALSE(matches(of(true), with("what", "whom")));
}

TEST_P(ToolGrammar, SaysAnythingElse) {
  const grammar::Grammar grammar = of(true);
  for (const char* said : {"", "Nothing to look up.", "A list: [1, 2] <b> {3}", "<|im_start|>x"}) {
    if (std::string(said).starts_with("<|im_start|>") && GetParam().name == std::string("special")) continue;
    EXPECT_TRUE(matches(grammar, said)) << said;
  }
  EXPECT_TRUE(GetParam().name == std::string("bare") || matches(grammar, "Let me look.\n\n" + written(1)));
  // Where another form is asked for, that or calls.
  const grammar::Grammar either = of(false, {.name = {}, .otherwise = grammar::grammar_of(grammar::text("[7]"))});
  EXPECT_TRUE(matches(either, "[7]"));
  EXPECT_TRUE(matches(either, written(1)));
  EXPECT_FALSE(matches(either, "Nothing to look up."));
}

// The shortest way to an end.
std::string completion(Recognizer& recognizer, Recognizer::State from) {
  std::vector<std::pair<Recognizer::State, size_t>> reached = {{from, 0}};
  std::vector<std::pair<size_t, char>> came = {{0, 0}};
  std::map<Recognizer::State, bool> seen = {{from, true}};
  for (size_t i = 0; i < reached.size(); ++i) {
    if (recognizer.is_match(reached[i].first)) {
      std::string text;
      for (size_t at = i; at != 0; at = came[at].first) text += came[at].second;
      return {text.rbegin(), text.rend()};
    }
    for (int byte = 0; byte < 256; ++byte) {
      const auto next = recognizer.step(reached[i].first, static_cast<uint8_t>(byte));
      if (next == Recognizer::kDead || !seen.emplace(next, true).second) continue;
      reached.emplace_back(next, 0);
      came.emplace_back(i, static_cast<char>(byte));
    }
  }
  return {};
}

TEST_P(ToolGrammar, WhatMatchesIsRead) {
  std::mt19937_64 random(seed());
  for (const bool is_strict : {false, true}) {
    const Tools tools(tools_json(is_strict));
    Recognizer recognizer(of(is_strict, {.from = ToolFormat::From::kName, .name = {}, .otherwise = {}}));
    for (int round = 0; round < 60; ++round) {
      std::string text;
      Recognizer::State state = recognizer.start();
      for (uint64_t n = random() % 60; n > 0; --n) {
        std::vector<uint8_t> bytes;
        for (int byte = 1; byte < 128; ++byte) {
          if (recognizer.step(state, static_cast<uint8_t>(byte)) != Recognizer::kDead)
            bytes.push_back(static_cast<uint8_t>(byte));
        }
        if (bytes.empty()) break;
        text += static_cast<char>(bytes[random() % bytes.size()]);
        state = recognizer.step(state, static_cast<uint8_t>(text.back()));
      }
      text += completion(recognizer, state);
      std::erase(text, grammar::kSpecialMark);
      const std::string answer = std::string(format_.beginning("").view()) + text;
      const ToolFormat::Answer read = format_.read(answer, tools, false);
      ASSERT_FALSE(read.calls.empty()) << answer;
      EXPECT_EQ(read.content, "") << answer;
      for (const ToolCall& call : read.calls) {
        EXPECT_TRUE(tools.has(call.name));
        const Json arguments = Json::parse(call.arguments, nullptr, false);
        ASSERT_TRUE(arguments.is_object()) << answer;
        if (!is_strict) continue;
        if (call.name == "find_all") {
          EXPECT_TRUE(arguments["deep"]["ok"].is_boolean()) << answer;
          continue;
        }
        EXPECT_TRUE(arguments.contains("what") && arguments["what"].is_string()) << answer;
        EXPECT_TRUE(!arguments.contains("n") || arguments["n"].is_number_integer()) << answer;
      }
    }
  }
}

TEST(ToolGrammars, SayWhatTheyCannotHold) {
  const Tokenizer tokenizer =
      Tokenizer::load(std::string(TIERCEL_SOURCE_DIR) + "/tests/golden/tokenizer/qwen2/tokenizer.json");
  const ToolFormat tags(ChatProgram(template_with(std::end(kForms)[-1].calls), "", "", "FILE"));
  const auto message = [&](const std::string& parameters) -> std::string {
    const Tools tools(R"([{"type": "function", "function": {"name": "f", "strict": true, "parameters": )" + parameters +
                      "}}]");
    try {
      tags.grammar(tools, {.name = {}, .otherwise = {}}, tokenizer);
      return "none";
    } catch (const Error& error) {
      return error.what();
    }
  };
  EXPECT_EQ(message(R"({"properties": {"a": {"type": "string"}, "b": {"type": "integer", "minimum": 3}}})"), "none");
  EXPECT_NE(message(R"({"properties": {"a": {"type": "string", "pattern": "x"}}})").find("#/properties/a/pattern"),
            std::string::npos);
  EXPECT_NE(message(R"({"anyOf": [{}]})").find("#/anyOf"), std::string::npos);
  EXPECT_NE(message(R"({"properties": {"a": {"type": "integer", "not": {}}}})").find("not"), std::string::npos);
  // Ids of calls are the model's.
  const ToolFormat ids(ChatProgram(template_with("{% for c in m.tool_calls %}[CALL]{{ c.function.name }}[ID]{{ c.id "
                                                 "}}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}"),
                                   "", "", "FILE"));
  EXPECT_FALSE(ids.has_grammar());
}

}  // namespace
}  // namespace tiercel::test
