// tiercel serve: what clients of OpenAI's endpoints are answered, and that it is what tiercel run answers.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <chrono>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/command/chat_model.h"
#include "tests/command/process.h"
#include "tests/http_client.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

// A running server.
class Server {
 public:
  explicit Server(std::vector<std::string> more = {}, const std::string& model = demo_model()) {
    std::vector<std::string> words = {"serve", "-m", model, "--port", "0", "-c", "16K", "-n", "8"};
    words.insert(words.end(), more.begin(), more.end());
    process_ = std::make_unique<Process>(Launch{.arguments = words});
    static const std::string before = "listening: http://127.0.0.1:";
    if (!process_->wait_until([this] { return contains(process_->err(), before); })) return;
    port_ = std::atoi(process_->err().substr(process_->err().find(before) + before.size()).c_str());
  }
  int port() const { return port_; }
  Process& process() { return *process_; }

  HttpResponse ask(std::string_view path, const Json& body) const {
    return test::ask(port_, "POST", path, body.dump());
  }
  // The body of an answer that must be one.
  Json complete(const Json& body, std::string_view path = "/v1/completions") const {
    const HttpResponse response = ask(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    return response.status == 200 ? Json::parse(response.body) : Json();
  }
  std::string text(const Json& body) const {
    const Json answer = complete(body);
    return answer.is_null() ? "" : answer["choices"][0]["text"].get<std::string>();
  }

 private:
  std::unique_ptr<Process> process_;
  int port_ = 0;
};

class ServeCommand : public testing::Test {
 protected:
  void SetUp() override {
    if (contains(version_of_program(), "built without Boost")) GTEST_SKIP() << "this build has no server";
  }
};

std::string fact(const std::string& key, int value) {
  return "The magic number for " + key + " is " + std::to_string(value) + ".\n";
}
std::string question(const std::string& key) {
  return "What is the magic number for " + key + "? The magic number for " + key + " is";
}
// A text of some 13 tokens a sentence, with facts in it.
std::string book(int n_sentences) {
  std::string text;
  for (int i = 0; i < n_sentences; ++i) {
    text += "Step " + std::to_string(i) + " of the guide explains how part " + std::to_string(i * 37 % 101) +
            " of the machine is cleaned. ";
    if (i == n_sentences / 3) text += "\n" + fact("otter", 4821);
    if (i == n_sentences / 2) text += "\n" + fact("falcon", 1734);
  }
  return text + "\n";
}

std::string run_text(const std::string& prompt, std::vector<std::string> more = {}) {
  const Scratch scratch;
  write_file(scratch / "prompt", prompt);
  std::vector<std::string> words = {"run", "-m", demo_model(), "-f", scratch / "prompt", "-n", "8", "-q"};
  words.insert(words.end(), more.begin(), more.end());
  const Result result = run({.arguments = words});
  EXPECT_EQ(result.code, 0) << result.err;
  return result.out;
}

TEST_F(ServeCommand, CompletesAsRunDoes) {
  const Server server;
  const std::string prompt = fact("otter", 4821) + question("otter");
  const Json whole = server.complete({{"prompt", prompt}, {"model", "any"}});
  EXPECT_EQ(whole["object"], "text_completion");
  EXPECT_EQ(whole["model"], "any");
  EXPECT_EQ(whole["choices"][0]["text"], run_text(prompt));
  EXPECT_EQ(whole["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(whole["usage"]["completion_tokens"], 8);
  EXPECT_EQ(whole["usage"]["total_tokens"], whole["usage"]["prompt_tokens"].get<int>() + 8);

  const HttpResponse streamed = server.ask(
      "/v1/completions", {{"prompt", prompt}, {"stream", true}, {"stream_options", {{"include_usage", true}}}});
  EXPECT_EQ(streamed.headers.at("content-type"), "text/event-stream");
  std::vector<std::string> events = streamed.events();
  ASSERT_GT(events.size(), 5u);
  EXPECT_EQ(events.back(), "[DONE]");
  events.pop_back();
  std::string text, reason;
  for (const std::string& event : events) {
    const Json chunk = Json::parse(event);
    EXPECT_EQ(chunk["model"], "recall-4m");
    if (chunk["choices"].empty()) {
      EXPECT_EQ(chunk["usage"], whole["usage"]);
      continue;
    }
    EXPECT_TRUE(chunk["usage"].is_null());
    text += chunk["choices"][0]["text"].get<std::string>();
    if (!chunk["choices"][0]["finish_reason"].is_null()) reason = chunk["choices"][0]["finish_reason"];
  }
  EXPECT_EQ(text, whole["choices"][0]["text"]);
  EXPECT_EQ(reason, "length");

  // What a request says for itself.
  const Json stopped = server.complete({{"prompt", prompt}, {"stop", {"82"}}});
  EXPECT_EQ(stopped["choices"][0]["text"], " 4");
  EXPECT_EQ(stopped["choices"][0]["finish_reason"], "stop");
  const Json drawn = {{"prompt", prompt}, {"temperature", 1.5}, {"seed", 11}, {"max_tokens", 12}, {"logprobs", 2}};
  EXPECT_EQ(server.complete(drawn)["choices"], server.complete(drawn)["choices"]);
  EXPECT_EQ(server.complete(drawn)["choices"][0]["logprobs"]["tokens"].size(), 12u);
  EXPECT_FALSE(server.text({{"prompt", {1, 5, 9}}}).empty());
}

// Of a stream with one choice or several: what each of them says, and its log probabilities, put together.
struct Streamed {
  std::vector<std::string> texts, reasons;
  std::vector<Json> logprobs;
  Json usage;
};
Streamed put_together(const HttpResponse& response, size_t n) {
  Streamed all{.texts = std::vector<std::string>(n), .reasons = std::vector<std::string>(n), .logprobs = std::vector<Json>(n), .usage = {}};
  std::vector<std::string> events = response.events();
  EXPECT_FALSE(events.empty());
  if (events.empty()) return all;
  EXPECT_EQ(events.back(), "[DONE]");
  events.pop_back();
  for (const std::string& event : events) {
    const Json chunk = Json::parse(event);
    if (chunk["choices"].empty()) all.usage = chunk["usage"];
    for (const Json& choice : chunk["choices"]) {
      const size_t c = choice["index"];
      EXPECT_LT(c, n);
      all.texts[c] += choice.contains("text") ? choice["text"].get<std::string>() : choice["delta"].value("content", "");
      if (choice["finish_reason"].is_string()) all.reasons[c] += choice["finish_reason"].get<std::string>();
      if (!choice["logprobs"].is_object()) continue;
      for (const auto& [name, more] : choice["logprobs"].items()) {
        Json& member = all.logprobs[c][name];
        if (!member.is_array()) member = more;
        else member.insert(member.end(), more.begin(), more.end());
      }
    }
  }
  return all;
}

// Every answer is the one to a request by itself with the seed that it draws with.
TEST_F(ServeCommand, SeveralAnswers) {
  const Server server({"--parallel", "3"});
  const uint64_t next = uint64_t{1} << 32;
  Json body = {{"prompt", fact("otter", 4821) + question("otter")}, {"temperature", 2.5}, {"seed", 5}, {"n", 3}, {"logprobs", 1}};
  const Json whole = server.complete(body);
  ASSERT_EQ(whole["choices"].size(), 3u) << whole;
  Json one = body;
  one["n"] = 1;
  int64_t n_prompt = 0;
  for (size_t i = 0; i < 3; ++i) {
    one["seed"] = 5 + i * next;
    Json by_itself = server.complete(one);
    n_prompt = by_itself["usage"]["prompt_tokens"];
    by_itself["choices"][0]["index"] = i;
    EXPECT_EQ(whole["choices"][i], by_itself["choices"][0]) << i;
  }
  EXPECT_NE(whole["choices"][0]["text"], whole["choices"][1]["text"]);
  EXPECT_EQ(whole["usage"]["prompt_tokens"], n_prompt);
  EXPECT_EQ(whole["usage"]["completion_tokens"], 24);
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const Streamed streamed = put_together(server.ask("/v1/completions", body), 3);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(streamed.texts[i], whole["choices"][i]["text"]);
    EXPECT_EQ(streamed.reasons[i], "length");
    EXPECT_EQ(streamed.logprobs[i], whole["choices"][i]["logprobs"]) << i;
  }
  EXPECT_EQ(streamed.usage["completion_tokens"], 24);

  // Prompts of a list.
  Json list = {{"prompt", {"Once", {1, 5, 9}, "upon a time"}}, {"temperature", 1.5}, {"seed", 8}, {"n", 2}};
  const Json both = server.complete(list);
  ASSERT_EQ(both["choices"].size(), 6u);
  for (size_t i = 0; i < 6; ++i) {
    const Json alone = {{"prompt", list["prompt"][i / 2]}, {"temperature", 1.5}, {"seed", 8 + i % 2 * next}};
    EXPECT_EQ(both["choices"][i]["text"], server.text(alone)) << i;
  }
  EXPECT_EQ(both["usage"]["completion_tokens"], 48);

  // Each is held to the form, and stops by itself.
  const Json formed = server.complete({{"prompt", "Say"}, {"n", 4}, {"temperature", 3}, {"seed", 1}, {"max_tokens", 40},
                                       {"structured_outputs", {{"choice", {"yes", "no", "perhaps"}}}}});
  std::set<std::string> said;
  for (const Json& choice : formed["choices"]) {
    EXPECT_EQ(choice["finish_reason"], "stop");
    said.insert(choice["text"].get<std::string>());
  }
  EXPECT_GT(said.size(), 1u);
  for (const std::string& text : said) EXPECT_TRUE(text == "yes" || text == "no" || text == "perhaps") << text;

  // A long prompt is read once for all of its answers.
  const auto prefilled = [&] {
    const std::string metrics = ask(server.port(), "GET", "/metrics").body, name = "\ntiercel_prompt_tokens_total ";
    return std::atoll(metrics.c_str() + metrics.find(name) + name.size());
  };
  const long long before = prefilled();
  const Json many = server.complete({{"prompt", book(100) + question("otter")}, {"n", 5}, {"max_tokens", 6}});
  EXPECT_LT(prefilled() - before, 2.5 * many["usage"]["prompt_tokens"].get<double>());
  ASSERT_EQ(many["choices"].size(), 5u);
  for (const Json& choice : many["choices"]) EXPECT_TRUE(choice["text"].get<std::string>().starts_with(" 4821"));
}

TEST_F(ServeCommand, TokensOfAPrompt) {
  const Scratch scratch;
  make_chat_model(scratch / "model");
  const Server server({}, scratch / "model");
  const std::string text = "The magic number";
  const Json found = server.complete({{"prompt", text}, {"model", "any"}}, "/tokenize");
  const Result listed = run({.arguments = {"tokenize", "-m", scratch / "model", "-p", text, "--json"}});
  EXPECT_EQ(found["tokens"], Json::parse(listed.out)) << listed.out;
  EXPECT_EQ(found["count"], found["tokens"].size());
  EXPECT_EQ(found["max_model_len"], 16384);
  EXPECT_EQ(server.complete({{"prompt", found["tokens"]}}, "/tokenize")["tokens"], found["tokens"]);
  EXPECT_TRUE(contains(server.complete({{"tokens", found["tokens"]}}, "/detokenize")["prompt"], text));
  // A conversation is what it is as a prompt.
  const Json messages = {{{"role", "user"}, {"content", "Hi"}}};
  const Json chat = server.complete({{"messages", messages}}, "/tokenize");
  EXPECT_EQ(server.complete({{"messages", messages}}, "/v1/chat/completions")["usage"]["prompt_tokens"], chat["count"]);
  EXPECT_EQ(server.complete({{"tokens", chat["tokens"]}}, "/detokenize")["prompt"],
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  for (const auto& [path, body] : {std::pair<const char*, Json>{"/tokenize", Json::object()},
                                   {"/tokenize", {{"prompt", 3}}},
                                   {"/tokenize", Json::array()},
                                   {"/detokenize", {{"tokens", "x"}}},
                                   {"/detokenize", {{"tokens", {99999999}}}},
                                   {"/detokenize", Json::array()}}) {
    EXPECT_EQ(server.ask(path, body).status, 400) << path << body;
  }
  EXPECT_EQ(ask(server.port(), "GET", "/tokenize").status, 405);
}

// What a token's text waits for, its log probability waits for too.
TEST_F(ServeCommand, LogProbabilitiesInStreams) {
  const Scratch scratch;
  make_chat_model(scratch / "model");
  const Server server({}, scratch / "model");
  const Json messages = {{{"role", "user"}, {"content", "Hi"}}};
  for (const char* path : {"/v1/completions", "/v1/chat/completions"}) {
    const bool is_chat = std::string_view(path).find("chat") != std::string_view::npos;
    Json body = {{"temperature", 3}, {"seed", 2}, {"max_tokens", 60}, {"stop", {"xyz"}}};
    if (is_chat) {
      body.update({{"messages", messages}, {"logprobs", true}, {"top_logprobs", 3}});
    } else {
      body.update({{"prompt", "Hi"}, {"logprobs", 3}});
    }
    std::string said;
    for (const bool is_cut : {false, true}) {
      // The last token of one that is cut says nothing.
      if (is_cut) {
        const size_t letter = said.find_first_of("abcdefghijklmnopqrstuvwxyz", said.size() / 4);
        ASSERT_NE(letter, std::string::npos) << said;
        body["stop"] = {said.substr(letter, 1)};
      }
      const Json whole = server.complete(body, path)["choices"][0];
      body["stream"] = true;
      const Streamed streamed = put_together(server.ask(path, body), 1);
      body["stream"] = false;
      EXPECT_EQ(whole["finish_reason"], is_cut ? "stop" : "length");
      said = is_chat ? whole["message"]["content"] : whole["text"];
      EXPECT_EQ(streamed.texts[0], said);
      EXPECT_EQ(streamed.logprobs[0], whole["logprobs"]);
    }
  }
}

TEST_F(ServeCommand, Chats) {
  const Scratch scratch;
  make_chat_model(scratch / "model");
  const Server server({"--alias", "small"}, scratch / "model");
  const Json system = {{"role", "system"}, {"content", "Be brief."}}, user = {{"role", "user"}, {"content", "Hi"}};
  const Json body = {{"messages", {system, user}},
                     {"max_completion_tokens", 6}};
  const Json whole = server.complete(body, "/v1/chat/completions");
  EXPECT_EQ(whole["object"], "chat.completion");
  EXPECT_EQ(whole["model"], "small");
  EXPECT_EQ(whole["choices"][0]["message"]["role"], "assistant");
  const std::string content = whole["choices"][0]["message"]["content"];
  EXPECT_EQ(content, run({.arguments = {"run", "-m", scratch / "model", "--chat", "-p", "Hi", "--system",
                                               "Be brief.", "-n", "6", "-q"}}).out);
  Json asked = body;
  asked["stream"] = true;
  const std::vector<std::string> events = server.ask("/v1/chat/completions", asked).events();
  ASSERT_GT(events.size(), 3u);
  EXPECT_EQ(Json::parse(events[0])["object"], "chat.completion.chunk");
  EXPECT_EQ(Json::parse(events[0])["choices"][0]["delta"], (Json{{"role", "assistant"}, {"content", ""}}));
  std::string text;
  for (size_t i = 1; i + 1 < events.size(); ++i) {
    text += Json::parse(events[i])["choices"][0]["delta"].value("content", "");
    EXPECT_FALSE(Json::parse(events[i]).contains("usage"));
  }
  EXPECT_EQ(text, content);
  EXPECT_EQ(Json::parse(events[events.size() - 2])["choices"][0]["delta"], Json::object());
  EXPECT_EQ(server.ask("/v1/completions", body).status, 400);  // it has messages
  // A message in parts.
  const auto said = [&](const Json& content) {
    return server.complete({{"messages", {{{"role", "user"}, {"content", content}}}}}, "/v1/chat/completions")["usage"];
  };
  const Json parts = {{{"type", "text"}, {"text", "one"}}, {{"type", "text"}, {"text", "two"}}};
  EXPECT_EQ(said(parts), said("one\ntwo"));
  Json renamed = body;
  renamed["messages"][0]["role"] = "developer";
  EXPECT_EQ(server.complete(renamed, "/v1/chat/completions")["choices"], whole["choices"]);
}

// A template that shows tools, and writes calls as NAME{..}; biases make the model call one.
TEST_F(ServeCommand, CallsTools) {
  const Scratch scratch;
  make_chat_model(scratch / "model");
  write_file(scratch / "model/chat_template.jinja",
             "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
             "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% else %}{{ m.content }}{% endfor %}"
             "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% if quick %}!{% endif %}{% endif %}");
  const Server server({}, scratch / "model");
  const char* path = "/v1/chat/completions";
  const Json tool = {{"type", "function"}, {"function", {{"name", "f"}, {"description", "Does it."}}}};
  const Json user = {{"role", "user"}, {"content", "Do it"}};
  // f, {, } and the end of the answer, each once.
  const Json body = {{"messages", {user}},
                     {"tools", {tool}},
                     {"presence_penalty", 90},
                     {"logit_bias", {{"102", 100}, {"123", 80}, {"125", 60}, {"2047", 40}}}};
  const Json answer = server.complete(body, path)["choices"][0];
  EXPECT_EQ(answer["finish_reason"], "tool_calls");
  EXPECT_TRUE(answer["message"]["content"].is_null());
  ASSERT_EQ(answer["message"]["tool_calls"].size(), 1u) << answer;
  const Json call = answer["message"]["tool_calls"][0];
  EXPECT_EQ(call["function"], (Json{{"name", "f"}, {"arguments", "{}"}}));
  EXPECT_EQ(call["id"].get<std::string>().size(), 9u);
  Json streamed = body;
  streamed["stream"] = true;
  const std::vector<std::string> events = server.ask(path, streamed).events();
  ASSERT_EQ(events.size(), 4u);  // its beginning, the call, its end
  const Json delta = Json::parse(events[1])["choices"][0]["delta"];
  EXPECT_EQ(delta["tool_calls"][0]["function"], call["function"]);
  EXPECT_EQ(delta["tool_calls"][0]["index"], 0);
  EXPECT_EQ(Json::parse(events[2])["choices"][0]["finish_reason"], "tool_calls");
  // Not where tools are not to be called, or what is written is no call of one.
  Json silent = body;
  silent["tool_choice"] = "none";
  EXPECT_EQ(server.complete(silent, path)["choices"][0]["message"]["content"], "f{}");
  Json others = body;
  others["tools"][0]["function"]["name"] = "g";
  EXPECT_EQ(server.complete(others, path)["choices"][0]["message"]["content"], "f{}");
  EXPECT_EQ(server.complete(others, path)["choices"][0]["finish_reason"], "stop");
  // One that must be called: the answer begins with its name.
  Json must = body;
  must["tool_choice"] = {{"type", "function"}, {"function", {{"name", "f"}}}};
  must["logit_bias"].erase("102");
  const Json made = server.complete(must, path);
  EXPECT_EQ(made["choices"][0]["message"]["tool_calls"][0]["function"], call["function"]) << made;
  EXPECT_EQ(made["usage"]["completion_tokens"], 3);  // {, } and the end
  // What was called, and what came of it, comes back as it was given.
  Json next = body;
  next["messages"] = {user, answer["message"], {{"role", "tool"}, {"tool_call_id", call["id"]}, {"content", "42"}}};
  next["messages"][1]["refusal"] = nullptr;
  const int first = server.complete(body, path)["usage"]["prompt_tokens"];
  EXPECT_GT(server.complete(next, path)["usage"]["prompt_tokens"].get<int>(), first);
  // Variables of the template.
  Json quick = body;
  quick["chat_template_kwargs"] = {{"quick", true}};
  EXPECT_EQ(server.complete(quick, path)["usage"]["prompt_tokens"], first + 1);
  const auto refused = [&](const char* member, const Json& value, const std::string& word) {
    Json asked = body;
    asked[member] = value;
    const HttpResponse response = server.ask(path, asked);
    EXPECT_EQ(response.status, 400) << response.body;
    EXPECT_TRUE(contains(response.body, word)) << response.body;
  };
  refused("tool_choice", "never", "tool_choice");
  refused("tool_choice", "required", "no beginning of their own");  // NAME{..} says nothing before the name
  refused("tool_choice", {{"type", "function"}, {"function", {{"name", "g"}}}}, "one of");
  refused("tools", {{{"type", "web"}}}, "function");
  refused("tools", {{{"type", "function"}, {"function", {{"name", "f"}, {"parameters", 3}}}}}, "parameters");
  refused("chat_template_kwargs", {{"slow", true}}, "does not ask for slow");
  refused("chat_template_kwargs", {{"messages", true}}, "messages");
  refused("messages", {user, {{"role", "assistant"}, {"content", nullptr}}}, "content");
  refused("messages", {user, {{"role", "assistant"}, {"tool_calls", {{{"function", {{"name", "f"}, {"arguments", "[1"}}}}}}}}, "arguments");
  refused("messages", {user, {{"role", "user"}, {"content", "x"}, {"tool_calls", Json::array()}}}, "nothing else is supported");
}

// A second question on a text, and the next turn of a conversation, prefill what is new; and many ask at once.
TEST_F(ServeCommand, PromptsThatBeginAlike) {
  const std::string text = book(sanitized() ? 60 : 150);
  const Server server({"--parallel", "3"});
  const auto cached = [](const Json& answer) {
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"].get<int64_t>();
  };
  const Json first = server.complete({{"prompt", text + question("otter")}, {"max_tokens", 6}});
  EXPECT_EQ(cached(first), 0);
  EXPECT_TRUE(first["choices"][0]["text"].get<std::string>().starts_with(" 4821")) << first;
  const Json second = server.complete({{"prompt", text + question("falcon")}, {"max_tokens", 6}});
  EXPECT_GT(2 * cached(second), second["usage"]["prompt_tokens"].get<int64_t>());
  EXPECT_TRUE(second["choices"][0]["text"].get<std::string>().starts_with(" 1734")) << second;
  const std::string both = text + question("otter") + " 4821.\n" + question("falcon");
  const Json turn = server.complete({{"prompt", both}, {"max_tokens", 6}});
  EXPECT_EQ(cached(turn), cached(second));
  EXPECT_TRUE(turn["choices"][0]["text"].get<std::string>().starts_with(" 1734")) << turn;

  std::vector<std::future<std::string>> answers;
  for (int i = 0; i < 9; ++i) {
    answers.push_back(std::async(std::launch::async, [&, i] {
      const char* key = i % 2 == 0 ? "otter" : "falcon";
      const std::string before = i % 3 == 2 ? fact(key, i % 2 == 0 ? 4821 : 1734) : text;
      return server.text({{"prompt", before + question(key)}, {"max_tokens", 6}});
    }));
  }
  for (size_t i = 0; i < answers.size(); ++i) {
    const std::string answer = answers[i].get();
    EXPECT_TRUE(answer.starts_with(i % 2 == 0 ? " 4821" : " 1734")) << i << ": " << answer;
  }
  const std::string metrics = ask(server.port(), "GET", "/metrics").body;
  EXPECT_TRUE(contains(metrics, "tiercel_requests_ended_total 12\n")) << metrics;

  const Server apart({"--no-share-prefix"});
  for (int i = 0; i < 2; ++i) {
    const Json answer = apart.complete({{"prompt", text + question("otter")}, {"max_tokens", 6}});
    EXPECT_EQ(cached(answer), 0);
    EXPECT_EQ(answer["choices"][0]["text"], run_text(text + question("otter"), {"-n", "6"}));
  }
}

// A long prompt is no silence.
TEST_F(ServeCommand, TellsHowFarAPromptIs) {
  const Server server({"-c", "64K", "--prefill", "dense"});
  const HttpResponse response = server.ask("/v1/completions", {{"prompt", book(400)},
                                                               {"max_tokens", 2},
                                                               {"stream", true},
                                                               {"return_progress", true}});
  int64_t before = -1, n = 0, total = 0;
  for (const std::string& event : response.events()) {
    if (event == "[DONE]") break;
    const Json chunk = Json::parse(event);
    if (!chunk.contains("prompt_progress")) continue;
    const Json progress = chunk["prompt_progress"];
    EXPECT_EQ(chunk["choices"][0]["text"], "");
    EXPECT_GT(progress["processed"].get<int64_t>(), before);
    before = progress["processed"];
    total = progress["total"];
    EXPECT_LE(before, total);
    EXPECT_EQ(progress["cache"], 0);
    ++n;
  }
  EXPECT_GE(n, 2);
  EXPECT_GT(before, total / 4);
  EXPECT_LT(n, 500);
}

TEST_F(ServeCommand, WhatItDoesNotDoIsRefused) {
  const Server server;
  const auto refused = [&](std::string_view path, const std::string& body, const std::string& word, int status = 400) {
    const HttpResponse response = ask(server.port(), "POST", path, body);
    EXPECT_EQ(response.status, status) << body << ": " << response.body;
    const Json error = Json::parse(response.body)["error"];
    EXPECT_TRUE(contains(error["message"], word)) << error;
    EXPECT_EQ(error["type"], status < 500 ? "invalid_request_error" : "server_error");
    return error;
  };
  const char* path = "/v1/completions";
  refused(path, "{\"prompt\": ", "JSON");
  refused(path, "[]", "object");
  refused(path, "{}", "prompt");
  refused(path, R"({"prompt": []})", "no tokens");
  refused(path, R"({"prompt": "x", "prompt": "y"})", "prompt");
  refused(path, R"({"prompt": "x", "max_token": 3})", "did you mean max_tokens");
  refused(path, R"({"prompt": "x", "n": 0})", "n:");
  refused(path, R"({"prompt": "x", "n": 129})", "n:");
  refused(path, Json{{"prompt", std::vector<std::string>(9, "x")}, {"n", 128}}.dump(), "1024 answers");
  refused(path, R"({"prompt": "x", "stream": 1})", "stream");
  refused(path, R"({"prompt": [99999999]})", "prompt[0]");
  refused(path, R"({"prompt": ["x", []]})", "prompt[1]");
  refused(path, R"({"prompt": ["x", 5]})", "prompt[1]");
  refused(path, R"({"prompt": ["x", ["y", "z"]]})", "one prompt");
  refused(path, Json{{"prompt", "x"}, {"stop", {std::string(2000, 'x')}}}.dump(), "stop");
  refused(path, Json{{"prompt", "x"}, {"model", std::string(300, 'x')}}.dump(), "model");
  // However much there is of it, what is wrong is said at once.
  const auto start = std::chrono::steady_clock::now();
  refused(path, Json{{"prompt", std::vector<std::string>(300'000, "a")}}.dump(), "1024 answers");
  Json biases = Json::object();
  for (int token = 0; token < 200'000; ++token) biases[std::to_string(token)] = 1;
  refused(path, Json{{"prompt", "x"}, {"logit_bias", biases}}.dump(), "2047");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  EXPECT_EQ(server.text({{"prompt", {"x"}}}), server.text({{"prompt", "x"}}));
  refused("/v1/chat/completions", R"({"messages": [{"role": "user", "content": "x"}]})", "chat template");
  const Json too_long = refused(path, Json{{"prompt", book(1600)}}.dump(), "--ctx-size");
  EXPECT_EQ(too_long["code"], "context_length_exceeded");
  refused("/v1/embeddings", "{}", "there is no /v1/embeddings", 404);
  EXPECT_EQ(ask(server.port(), "GET", path).status, 405);
  EXPECT_EQ(ask(server.port(), "GET", "/v1/models/recall-4m").status, 200);
  EXPECT_EQ(server.text({{"prompt", fact("otter", 12) + question("otter")}, {"max_tokens", 3}}).substr(0, 3), " 12");
  EXPECT_EQ(ask(server.port(), "GET", "/health").body, R"({"status":"ok"})");
  const Json models = Json::parse(ask(server.port(), "GET", "/v1/models").body);
  EXPECT_EQ(models["data"][0]["id"], "recall-4m");
  EXPECT_EQ(models["data"][0]["max_model_len"], 16384);
}

TEST_F(ServeCommand, AsksForItsKey) {
  const Server server({"--api-key", "secret"});
  const std::string body = R"({"prompt": "x", "max_tokens": 1})";
  for (const char* header : {"", "Authorization: Bearer secre\r\n", "Authorization: secret\r\n",
                             "Authorization: Bearer \r\n"}) {
    const HttpResponse response = ask(server.port(), "POST", "/v1/completions", body, header);
    EXPECT_EQ(response.status, 401) << header;
    EXPECT_EQ(Json::parse(response.body)["error"]["type"], "authentication_error");
  }
  EXPECT_EQ(ask(server.port(), "POST", "/v1/completions", body, "Authorization: bearer secret\r\n").status, 200);
  EXPECT_EQ(ask(server.port(), "GET", "/health").status, 200);
  EXPECT_EQ(run({.arguments = {"serve", "-m", demo_model(), "--port", "0", "--api-key", ""}}).code, 2);
  EXPECT_EQ(run({.arguments = {"serve", "-m", demo_model(), "--port", "0", "--host", ""}}).code, 2);
  const Result said =
      run({.arguments = {"serve", "--port", "x"}, .environment = {{"TIERCEL_ARG_API_KEY", "hidden-key"}}});
  EXPECT_EQ(said.code, 2);
  EXPECT_TRUE(contains(said.err, "TIERCEL_ARG_API_KEY") && !contains(said.err, "hidden-key")) << said.err;
}

// Pages of other sites cannot make a browser of this machine ask.
TEST_F(ServeCommand, StrangersAreNotAnswered) {
  const Server server;
  const auto status = [&](const std::string& host, const std::string& origin) {
    HttpConnection connection(server.port());
    const std::string body = R"({"prompt": "x", "max_tokens": 1})";
    connection.send("POST /v1/completions HTTP/1.1\r\nHost: " + host + "\r\n" +
                    (origin.empty() ? "" : "Origin: " + origin + "\r\n") +
                    "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
    return connection.read_response().status;
  };
  for (const char* host : {"localhost:80", "127.0.0.1", "[::1]:8080", "LOCALHOST", "192.168.0.7:8080"}) {
    EXPECT_EQ(status(host, ""), 200) << host;
    EXPECT_EQ(status(host, "http://localhost:3000"), 200) << host;
    for (const char* page : {"https://pages.example", "http://6.6.6.6", "http://6.6.6.6:8000", "http://[2001:db8::1]",
                             "file://", "http://localhost.example", "https://127.evil.example",
                             "http://127.0.0.1.evil.example"}) {
      EXPECT_EQ(status(host, page), 403) << host << ", " << page;
    }
    EXPECT_EQ(status(host, std::string("http://") + host), 200) << host;
  }
  EXPECT_EQ(status("rebound.example:8080", ""), 403);
  EXPECT_EQ(status("localhost.example", ""), 403);
  EXPECT_EQ(status("localhost", "null"), 403);
  const auto preflight = [&](const std::string& origin) {
    return ask(server.port(), "OPTIONS", "/v1/chat/completions", {}, "Origin: " + origin + "\r\n");
  };
  HttpResponse response = preflight("http://localhost:3000");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.headers["access-control-allow-origin"], "http://localhost:3000");
  EXPECT_TRUE(contains(response.headers["access-control-allow-headers"], "Authorization"));
  response = ask(server.port(), "OPTIONS", "/v1/models", {},
                 "Origin: http://localhost\r\nAccess-Control-Request-Headers: x-some, content-type\r\n");
  EXPECT_EQ(response.headers["access-control-allow-headers"], "x-some, content-type");
  response = preflight("https://pages.example");
  EXPECT_EQ(response.status, 403);
  EXPECT_FALSE(response.headers.contains("access-control-allow-origin"));
  response = ask(server.port(), "POST", "/v1/completions", R"({"prompt": "x", "max_tokens": 1})",
                 "Origin: http://localhost:3000\r\n");
  EXPECT_EQ(response.headers["access-control-allow-origin"], "http://localhost:3000");
}

// What is behind a kept prompt is kept in another way: where there is no room for that, a prompt stands by itself.
TEST_F(ServeCommand, APromptThatFitsIsAnswered) {
  const Server server({"--parallel", "1", "--device-memory", "94MiB"});
  const std::string text = book(700), half = text.substr(0, text.size() * 2 / 5);
  const std::string more = text.substr(0, text.size() * 4 / 7);
  server.complete({{"prompt", half + question("otter")}, {"max_tokens", 4}});
  const Json second =
      server.complete({{"prompt", more + question("otter")}, {"max_tokens", 2500}, {"stop", {"\n"}}});
  EXPECT_EQ(second["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  // It is kept by itself then, where that has room.
  const Json third = server.complete({{"prompt", more + question("falcon")}, {"max_tokens", 4}});
  EXPECT_GT(third["usage"]["prompt_tokens_details"]["cached_tokens"], 0);

  // So where RoPE turns keys of short contexts and of long ones otherwise.
  const Scratch scratch;
  fs::copy(demo_model(), scratch / "model");
  Json config = Json::parse(read_file(scratch / "model/config.json"));
  config["original_max_position_embeddings"] = 4096;
  config["rope_scaling"] = {{"rope_type", "longrope"},
                            {"short_factor", std::vector<double>(32, 1.0)},
                            {"long_factor", std::vector<double>(32, 1.5)},
                            {"original_max_position_embeddings", 4096}};
  write_file(scratch / "model/config.json", config.dump());
  const Server turns({"-n", "64"}, scratch / "model");
  for (const int n : {1500, 4090, 4500, 5500}) {
    const Json answer = turns.complete({{"prompt", std::vector<int>(static_cast<size_t>(n), 77)}});
    EXPECT_EQ(answer["usage"]["prompt_tokens"], n);
  }
}

// Nobody computes for a client that has gone: a token later there is room for others.
TEST_F(ServeCommand, ClientsThatGo) {
  Server server({"--parallel", "1", "--ignore-eos"});
  for (const bool streams : {true, false}) {
    HttpConnection connection(server.port());
    connection.send_request("POST", "/v1/completions",
                            Json{{"prompt", "Once upon"}, {"max_tokens", 15000}, {"stream", streams}, {"n", 2}}.dump());
    if (streams) {
      while (!connection.line().empty()) {
      }
      for (int i = 0; i < 5; ++i) EXPECT_FALSE(connection.next_chunk().empty());
    } else {
      EXPECT_TRUE(server.process().wait_until(
          [&] { return contains(ask(server.port(), "GET", "/metrics").body, "requests_decoding 1\n"); }));
    }
    connection.close();
    EXPECT_FALSE(server.text({{"prompt", "x"}, {"max_tokens", 2}}).empty());
  }
  server.process().signal(SIGTERM);
  const Result result = server.process().wait();
  EXPECT_EQ(result.code, 0);
  const size_t first = result.err.find("its client has gone");
  EXPECT_NE(first, std::string::npos) << result.err;
  EXPECT_NE(result.err.find("its client has gone", first + 1), std::string::npos) << result.err;
}

TEST_F(ServeCommand, Stops) {
  for (const int signal : {SIGTERM, SIGINT}) {
    Server server({"--ignore-eos"});
    HttpConnection streams(server.port()), waits(server.port());
    Json body = {{"prompt", "Once upon"}, {"max_tokens", 15000}};
    waits.send_request("POST", "/v1/completions", body.dump());
    body["stream"] = true;
    streams.send_request("POST", "/v1/completions", body.dump());
    while (!streams.line().empty()) {
    }
    for (int i = 0; i < 5; ++i) EXPECT_FALSE(streams.next_chunk().empty());
    server.process().signal(signal);
    EXPECT_EQ(waits.read_response().status, 503);
    std::string last;
    for (std::string chunk = streams.next_chunk(); !chunk.empty(); chunk = streams.next_chunk()) last = chunk;
    EXPECT_TRUE(contains(last, "is being stopped")) << last;
    const Result result = server.process().wait();
    EXPECT_EQ(result.code, 0);
    EXPECT_TRUE(contains(result.err, "stopped")) << result.err;
  }
}

TEST_F(ServeCommand, WhatItCannotStartWith) {
  const Server server;
  const auto start = [](std::vector<std::string> more) {
    std::vector<std::string> words = {"serve", "-m", demo_model()};
    words.insert(words.end(), more.begin(), more.end());
    return run({.arguments = words});
  };
  const Result taken = start({"--port", std::to_string(server.port())});
  EXPECT_EQ(taken.code, 1);
  EXPECT_TRUE(contains(taken.err, "another --port")) << taken.err;
  EXPECT_EQ(start({"--port", "70000"}).code, 2);
  EXPECT_EQ(start({"--port", "0", "-c", "1"}).code, 2);
  EXPECT_EQ(start({"--port", "0", "--audit", "3"}).code, 2);
  const Result large = start({"--port", "0", "--device-memory", "1MiB"});
  EXPECT_EQ(large.code, 3) << large.err;
  EXPECT_EQ(run({.arguments = {"serve", "-m", "/nowhere", "--port", "0"}}).code, 1);
}

}  // namespace
}  // namespace tiercel::test
