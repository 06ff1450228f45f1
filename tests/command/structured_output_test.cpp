// Answers that are held to a form, in run, batch and serve. The model knows no JSON: what makes its answers JSON is the
// form alone.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "tests/command/chat_model.h"
#include "tests/command/process.h"
#include "tests/http_client.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

constexpr const char* kSchema = R"({"type": "object", "properties": {
  "name": {"type": "string", "maxLength": 9}, "code": {"type": "integer", "minimum": 100, "maximum": 250},
  "kind": {"enum": ["good", "b\"ad", 7]}, "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
  "required": ["name", "code", "kind"]})";

// In the order of the schema: which it is, is seen in the text.
void expect_by_schema(const std::string& text) {
  const Json answer = Json::parse(text, nullptr, false);
  ASSERT_TRUE(answer.is_object()) << text;
  EXPECT_LE(answer.at("name").get<std::string>().size(), 9u * 4);
  EXPECT_GE(answer.at("code").get<int>(), 100);
  EXPECT_LE(answer.at("code").get<int>(), 250);
  EXPECT_TRUE(answer.at("kind") == "good" || answer.at("kind") == "b\"ad" || answer.at("kind") == 7) << text;
  for (const Json& tag : answer.value("tags", Json::array())) EXPECT_TRUE(tag.is_boolean());
  EXPECT_EQ(answer.size(), answer.contains("tags") ? 4u : 3u);
  EXPECT_LT(text.find("\"name\""), text.find("\"code\""));
  EXPECT_LT(text.find("\"code\""), text.find("\"kind\""));
}

Result answer(std::vector<std::string> more) {
  std::vector<std::string> words = {"run", "-m", demo_model(), "-q", "-p", "Otters swim.\n", "-n", "400"};
  words.insert(words.end(), more.begin(), more.end());
  return run({.arguments = words});
}

TEST(RunStructured, AnswersBySchemas) {
  const Scratch scratch;
  write_file(scratch / "schema.json", kSchema);
  std::set<std::string> answers;
  for (const char* seed : {"1", "2", "3", "4", "5"}) {
    const Result drawn = answer({"--temp", "1.3", "-s", seed, "--json-schema", scratch / "schema.json"});
    ASSERT_EQ(drawn.code, 0) << drawn.err;
    expect_by_schema(drawn.out);
    answers.insert(drawn.out);
  }
  EXPECT_GE(answers.size(), 4u);
  const Result greedy = answer({"-j", kSchema, "--report", scratch / "report"});
  expect_by_schema(greedy.out);
  const Json report = Json::parse(read_file(scratch / "report"));
  EXPECT_EQ(report["finish_reason"], "stop");
  EXPECT_EQ(report["form"], (Json{{"json_schema", kSchema}}));
  // Penalties, biases and filters come on top.
  expect_by_schema(answer({"-j", kSchema, "--temp", "2", "--top-k", "5", "--top-p", "0.9", "--min-p", "0.1",
                           "--repeat-penalty", "1.2", "--presence-penalty", "1", "--logit-bias", "123-100"})
                       .out);
}

// What the form says word for word is guessed, and answers stay what they are: alone, and of a server's or batch's kind.
TEST(RunStructured, DraftsByForms) {
  const Scratch scratch;
  constexpr const char* kNames = R"({"type": "object", "properties": {"magic number of the guide": {"type": "integer"},
    "harbour and mountain": {"type": "boolean"}}, "required": ["magic number of the guide", "harbour and mountain"]})";
  for (const char* temperature : {"0", "0.7"}) {
    std::string text;
    for (const char* mode : {"off", "always"}) {
      const Result result = answer({"-j", kNames, "--temp", temperature, "-s", "3", "--draft", mode, "--report",
                                    scratch / "report"});
      ASSERT_EQ(result.code, 0) << result.err;
      if (text.empty()) text = result.out;
      EXPECT_EQ(result.out, text);
      const Json drafts = Json::parse(read_file(scratch / "report"))["drafts"];
      EXPECT_EQ(drafts["guessed"] > 0, std::string(mode) == "always") << drafts;
    }
  }
  const Json line = {{"prompt", "Otters swim.\n"}, {"json_schema", Json::parse(kNames)}, {"max_tokens", 200}};
  write_file(scratch / "requests", line.dump() + "\n");
  std::string text;
  for (const char* mode : {"off", "always"}) {
    const Result result = run({.arguments = {"batch", "-m", demo_model(), "-f", scratch / "requests", "--draft", mode,
                                             "--report", scratch / "report"}});
    ASSERT_EQ(result.code, 0) << result.err;
    const Json one = Json::parse(result.out);
    if (text.empty()) text = one["text"];
    EXPECT_EQ(one["text"], text);
    EXPECT_EQ(Json::parse(read_file(scratch / "report"))["drafts"]["guessed"] > 0, std::string(mode) == "always");
  }
}

TEST(RunStructured, AnswersByPatternsAndGrammars) {
  const Scratch scratch;
  const std::string chosen = answer({"--regex", "(?:yes|no): 4{7}"}).out;
  EXPECT_TRUE(chosen == "yes: 4444444" || chosen == "no: 4444444") << chosen;
  write_file(scratch / "list.gbnf", "root ::= item{2,5} \"end\"\nitem ::= \"- \" [a-z]{3} \"\\n\"\n");
  for (const std::string& grammar : {std::string(scratch / "list.gbnf"), read_file(scratch / "list.gbnf")}) {
    const Result listed = answer({"--grammar", grammar, "--temp", "1", "-s", "4"});
    ASSERT_EQ(listed.code, 0) << listed.err;
    EXPECT_TRUE(listed.out.starts_with("- ") && listed.out.ends_with("\nend")) << listed.out;
  }
  // Cut by its number of tokens, an answer is the beginning of one.
  const Result cut = answer({"--regex", "[a-z]{200}", "-n", "3", "--report", scratch / "report"});
  EXPECT_FALSE(cut.out.empty());
  EXPECT_EQ(cut.out.find_first_not_of("abcdefghijklmnopqrstuvwxyz"), std::string::npos);
  EXPECT_EQ(Json::parse(read_file(scratch / "report"))["finish_reason"], "length");
}

// A fact that the model finds, in the form that is asked for.
TEST(RunStructured, AnswersAreStillTheModels) {
  const char* prompt =
      "The magic number for otter is 4821.\nWhat is the magic number for otter? The magic number for otter is";
  EXPECT_EQ(answer({"-p", prompt, "--regex", " [0-9]{4}"}).out, " 4821");
}

TEST(RunStructured, EveryAnswerOfAConversation) {
  const Scratch scratch;
  make_chat_model(scratch / "model");
  write_file(scratch / "typed", "one\ntwo\n");
  const Result talk = run({.arguments = {"run", "-m", scratch / "model", "-q", "-i", "--regex", "[0-9]{5}"},
                           .standard_input = scratch / "typed"});
  ASSERT_EQ(talk.code, 0) << talk.err;
  std::istringstream lines(talk.out);
  int n = 0;
  for (std::string line; std::getline(lines, line); ++n) {
    EXPECT_EQ(line.size(), 5u) << talk.out;
    EXPECT_EQ(line.find_first_not_of("0123456789"), std::string::npos) << talk.out;
  }
  EXPECT_EQ(n, 2) << talk.out;
}

TEST(RunStructured, SaysWhatIsWrong) {
  const auto refused = [](const std::vector<std::string>& flags, const std::string& words) {
    const Result result = answer(flags);
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(contains(result.err, words)) << result.err;
  };
  refused({"-j", R"({"type": "object", "properties": {"a": {"uniqueItems": true}}})"}, "#/properties/a/uniqueItems");
  refused({"-j", "{\"type\": "}, "schema");
  refused({"--regex", "a(?=b)"}, "regex");
  refused({"--grammar", "root ::= list"}, "list");
  refused({"--grammar", "root ::= root \"a\" | \"b\""}, "begins with itself");
  refused({"-j", "{}", "--regex", "a"}, "found a second one");
  refused({"-j", "{}", "--ignore-eos"}, "ignore-eos");
  const Result missing = answer({"-j", "/nowhere/schema.json"});
  EXPECT_NE(missing.code, 0);
  EXPECT_TRUE(contains(missing.err, "/nowhere/schema.json")) << missing.err;
}

TEST(BatchStructured, EachLineHasAFormOfItsOwn) {
  const Scratch scratch;
  const Json schema = Json::parse(kSchema);
  const std::string ordered =
      R"({"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": )" +
      std::string(kSchema) + "}}}";
  std::string one_line;
  for (const char c : ordered) one_line += c == '\n' ? ' ' : c;
  const std::vector<std::string> lines = {
      one_line,
      R"({"prompt": "a", "structured_outputs": {"choice": ["left", "ri\"gh\\t", "\nup"]}})",
      R"({"prompt": "a", "guided_regex": "x[yz]{3}"})",
      R"({"prompt": "a", "grammar": "root ::= \"<\" [0-9]+ \">\"", "temperature": 1, "seed": 1})",
      R"({"prompt": "a", "response_format": {"type": "json_object"}, "temperature": 1, "seed": 2})",
      R"({"prompt": "a", "response_format": {"type": "text"}, "max_tokens": 3})",
      R"({"custom_id": "q", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "a", "max_tokens": 9, "structured_outputs": {"json": {"const": [1, 2]}}}})",
      R"({"prompt": "a"})"};
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  write_file(scratch / "requests", text);
  const Launch launch{.arguments = {"batch", "-m", demo_model(), "-f", scratch / "requests", "-o", scratch / "answers",
                                    "-n", "200", "--regex", "0{4}"}};
  const Result result = run(launch);
  ASSERT_EQ(result.code, 0) << result.err;
  std::map<int, std::string> answers;
  std::istringstream stream(read_file(scratch / "answers"));
  for (std::string line; std::getline(stream, line);) {
    const Json json = Json::parse(line);
    if (json.contains("custom_id")) {
      answers[7] = json["response"]["body"]["choices"][0]["text"];
    } else {
      answers[json["line"]] = json["text"];
    }
  }
  ASSERT_EQ(answers.size(), 8u);
  expect_by_schema(answers[1]);
  EXPECT_TRUE(answers[2] == "left" || answers[2] == "ri\"gh\\t" || answers[2] == "\nup") << answers[2];
  EXPECT_TRUE(answers[3].size() == 4 && answers[3].find_first_not_of("yz", 1) == std::string::npos) << answers[3];
  EXPECT_TRUE(answers[4].starts_with("<") && answers[4].ends_with(">")) << answers[4];
  EXPECT_TRUE(answers[5].starts_with("{"));
  EXPECT_NE(answers[6], "0000");
  EXPECT_EQ(Json::parse(answers[7]), (Json{1, 2}));
  EXPECT_EQ(answers[8], "0000");

  const auto refused = [&](const std::string& members, const std::string& words) {
    write_file(scratch / "bad", R"({"prompt": "a", )" + members + "}\n");
    const Result bad = run({.arguments = {"batch", "-m", demo_model(), "-f", scratch / "bad"}});
    EXPECT_EQ(bad.code, 2) << bad.err;
    EXPECT_TRUE(contains(bad.err, words)) << bad.err;
  };
  refused(R"("response_format": {"type": "xml"})", "response_format.type");
  refused(R"("response_format": {"type": "json_schema"})", "json_schema");
  refused(R"("structured_outputs": {"json": {}, "regex": "a"})", "beside another one");
  refused(R"("guided_json": {}, "grammar": "root ::= \"a\"")", "one form");
  refused(R"("guided_choice": [])", "a text or more");
  refused(R"("json_schema": {"type": "array", "contains": {}})", "#/contains");
  refused(R"("json_schema": 3)", "a JSON schema");
  refused(R"("regex": "a", "ignore_eos": true)", "ignore-eos");
}

class ServeStructured : public testing::Test {
 protected:
  void SetUp() override {
    if (contains(version_of_program(), "built without Boost")) GTEST_SKIP() << "this build has no server";
    make_chat_model(scratch_ / "model");
  }
  void serve(const std::string& jinja = kChatMl) {
    write_file(scratch_ / "model/chat_template.jinja", jinja);
    server_ =
        std::make_unique<Process>(Launch{.arguments = {"serve", "-m", scratch_ / "model", "--port", "0", "-c", "4K"}});
    const std::string before = "listening: http://127.0.0.1:";
    ASSERT_TRUE(server_->wait_until([&] { return contains(server_->err(), before); }));
    port_ = std::atoi(server_->err().substr(server_->err().find(before) + before.size()).c_str());
  }
  // more: members, as text: nlohmann's objects would lose the order of a schema's properties.
  HttpResponse ask_server(const std::string& more) const {
    return ask(
        port_, "POST", "/v1/chat/completions",
        R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400, "temperature": 1, )" + more + "}");
  }
  // The choice of a whole answer; and that a stream says the same.
  Json choice(const std::string& more) const {
    const HttpResponse whole = ask_server(more);
    EXPECT_EQ(whole.status, 200) << whole.body;
    if (whole.status != 200) return {};
    const Json choice = Json::parse(whole.body)["choices"][0], message = choice["message"];
    std::string said, thought;
    Json calls = Json::array();
    for (const std::string& event : ask_server(more + R"(, "stream": true)").events()) {
      if (event == "[DONE]") continue;
      const Json delta = Json::parse(event)["choices"][0]["delta"];
      said += delta.value("content", "");
      thought += delta.value("reasoning_content", "");
      for (const Json& call : delta.value("tool_calls", Json::array())) calls.push_back(call["function"]);
    }
    EXPECT_EQ(said, message["content"].is_null() ? "" : message["content"].get<std::string>());
    EXPECT_EQ(thought, message.value("reasoning_content", ""));
    EXPECT_EQ(calls.size(), message.value("tool_calls", Json::array()).size());
    return choice;
  }

  const Scratch scratch_;
  std::unique_ptr<Process> server_;
  int port_ = 0;
};

TEST_F(ServeStructured, AnswersByResponseFormat) {
  serve();
  const std::string by_schema =
      R"("seed": 5, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": )" +
      std::string(kSchema) + "}}";
  const Json answered = choice(by_schema);
  expect_by_schema(answered["message"]["content"]);
  EXPECT_EQ(answered["finish_reason"], "stop");
  const HttpResponse refused =
      ask_server(R"("response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "objekt"}}})");
  EXPECT_EQ(refused.status, 400);
  EXPECT_TRUE(contains(refused.body, "#/type")) << refused.body;
  EXPECT_EQ(ask_server(R"("response_format": {"type": "text"})").status, 200);
}

// A model that cannot call at all calls, as it cannot do anything else.
TEST_F(ServeStructured, CallsByTheSchemasOfTools) {
  serve(
      "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
      "{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"
      "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
      "%}<|im_start|>assistant\n{% endif %}");
  const std::string tools =
      R"("tools": [{"type": "function", "function": {"name": "find", "strict": true, "parameters": {"type": "object",
      "properties": {"what": {"type": "string", "maxLength": 5}, "n": {"type": "integer", "minimum": 3, "maximum": 8}},
      "required": ["what", "n"], "additionalProperties": false}}},
    {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}])";
  for (const char* seed : {"1", "2", "3"}) {
    const std::string drawn = std::string(R"("seed": )") + seed + ", ";
    const Json named = choice(drawn + tools + R"(, "tool_choice": {"type": "function", "function": {"name": "find"}},
                                                  "parallel_tool_calls": false)");
    EXPECT_EQ(named["finish_reason"], "tool_calls") << named;
    ASSERT_EQ(named["message"]["tool_calls"].size(), 1u);
    const Json arguments = Json::parse(named["message"]["tool_calls"][0]["function"]["arguments"].get<std::string>());
    EXPECT_EQ(arguments.size(), 2u);
    EXPECT_GE(arguments["n"].get<int>(), 3);
    EXPECT_LE(arguments["n"].get<int>(), 8);
  }
  const Json any = choice(R"("seed": 4, )" + tools +
                          R"(, "tool_choice": "required", "parallel_tool_calls": false, "logit_bias": {"82": -2})");
  ASSERT_EQ(any["message"]["tool_calls"].size(), 1u) << any;
  // Or a form, where nothing must be called.
  const Json either = choice(
      R"("seed": 4, )" + tools +
      R"(, "parallel_tool_calls": false, "response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "no"}}})");
  EXPECT_TRUE(either["message"]["content"] == "\"no\"" || either["finish_reason"] == "tool_calls") << either;
  const HttpResponse refused = ask_server(
      R"("tools": [{"type": "function", "function": {"name": "f", "strict": true, "parameters": {"not": {}}}}])");
  EXPECT_EQ(refused.status, 400);
  EXPECT_TRUE(contains(refused.body, "#/not")) << refused.body;
}

TEST_F(ServeStructured, KeepsThoughtsApart) {
  const std::string begun = std::string(kChatMl) + "{% if add_generation_prompt %}<think>\n{% endif %}";
  serve(begun);
  const std::string short_one = R"("seed": 3, "max_completion_tokens": 12)";
  const auto thinks = [&](const std::string& more) {
    const HttpResponse response =
        ask(port_, "POST", "/v1/chat/completions",
            R"({"messages": [{"role": "user", "content": "Hi"}], "temperature": 1, )" + short_one + more + "}");
    EXPECT_EQ(response.status, 200) << response.body;
    return Json::parse(response.body)["choices"][0]["message"];
  };
  const Json apart = thinks("");
  EXPECT_EQ(apart["content"], "");
  EXPECT_FALSE(apart["reasoning_content"].get<std::string>().empty());
  const Json together = thinks(R"(, "reasoning_format": "none")");
  EXPECT_FALSE(together.contains("reasoning_content"));
  EXPECT_TRUE(contains(together["content"], apart["reasoning_content"].get<std::string>())) << together << apart;
  // A form comes behind them: they have not ended.
  const Json held = thinks(R"(, "response_format": {"type": "json_object"})");
  EXPECT_EQ(held["content"], "");
  EXPECT_FALSE(held["reasoning_content"].get<std::string>().starts_with("{"));
}

}  // namespace
}  // namespace tiercel::test
