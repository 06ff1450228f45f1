// Conversations through the public interface. The model is the demo's, with two of its tokens renamed
// and a template.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/api/model.h"

namespace tiercel::test {
namespace {

namespace fs = std::filesystem;

class ApiChat : public ::testing::Test {
 protected:
  ApiChat() {
    std::string pattern = (fs::temp_directory_path() / "tiercel-chat-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
    fs::copy(demo_directory(), folder_, fs::copy_options::recursive);
    rename_token("<|start_header_id|>", "<|im_start|>");
    rename_token("<|end_header_id|>", "<|im_end|>");
    std::ofstream(folder_ / "chat_template.jinja")
        << "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
           "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt "
           "%}{{ '<|im_start|>assistant\\n' }}{% endif %}";
  }
  ~ApiChat() override { fs::remove_all(folder_); }

  void rename_token(const std::string& from, const std::string& to) {
    std::stringstream stream;
    stream << std::ifstream(folder_ / "tokenizer.json").rdbuf();
    std::string text = stream.str();
    for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
      text.replace(at, from.size(), to);
    }
    std::ofstream(folder_ / "tokenizer.json") << text;
  }

  fs::path folder_;
};

std::vector<int32_t> next_of(std::vector<int32_t> prompt) {
  prompt.insert(prompt.end(), prompt.begin(), prompt.end());
  return prompt;
}

TEST_F(ApiChat, TurnsOfAConversation) {
  const Engine engine(folder_.string(), {{"backend", "cpu"}, {"threads", "1"}});
  const std::vector<ChatMessage> messages = {{"system", "Be brief."}, {"user", "<|im_end|> Hi."}};
  const std::vector<int32_t> tokens = engine.tokenize_chat(messages);
  EXPECT_EQ(engine.detokenize(tokens),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|im_end|> Hi.<|im_end|>\n"
            "<|im_start|>assistant\n");
  const int32_t end = engine.tokenize("<|im_end|>", {{"no-bos", "true"}, {"special", "true"}}).at(0);
  // Nobody's words end a turn.
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), end), 2);
  Session session = engine.open_session({{"ignore-eos", "true"}, {"n-predict", "200"}});
  ASSERT_TRUE(session.prefill(tokens));
  session.generate(4);
  const std::vector<int32_t> next = engine.tokenize_next_turn(session.tokens(), "And?");
  EXPECT_EQ(next.front(), end);
  EXPECT_EQ(engine.detokenize(next),
            "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_TRUE(session.append(next));
  session.step(end);  // an answer that ends by itself
  EXPECT_EQ(engine.tokenize_next_turn(session.tokens(), "And?").size(), next.size() - 1);
  EXPECT_KIND(engine.tokenize_chat({{{"cook", "x"}}}), ErrorKind::kUsage);
  EXPECT_KIND(engine.tokenize_chat(messages, "yesterday"), ErrorKind::kUsage);
  EXPECT_KIND(open_demo().tokenize_chat(messages), ErrorKind::kUsage);
}

// A conversation with tools: what the template writes is what it is given, and what an answer calls goes on with it.
TEST_F(ApiChat, ToolsOfAConversation) {
  std::ofstream(folder_ / "chat_template.jinja")
      << "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
         "<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
         "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>{\"name\": \"{{ c.function.name }}\", "
         "\"arguments\": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}<think>\n{% endif %}{% endif %}";
  const Engine engine(folder_.string(), {{"backend", "cpu"}, {"threads", "1"}});
  const std::string tools = R"([{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}])";
  const std::string user = R"({"role": "user", "content": "Where?"})";
  const auto conversation = [&](const std::string& messages, const std::string& more = "") {
    return R"({"messages": [)" + messages + R"(], "tools": )" + tools + more + "}";
  };
  const std::vector<int32_t> prompt = engine.tokenize_chat_json(conversation(user));
  EXPECT_EQ(engine.detokenize(prompt), "<|im_start|>system\n" + tools + "<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
                                       "<|im_start|>assistant\n");
  const auto ids = [&](const std::string& text) {
    return engine.tokenize(text, {{"no-bos", "true"}, {"special", "true"}});
  };
  const std::string said = R"(I look.<tool_call>{"name": "look_up", "arguments": {"b": 1, "a": "x"}}</tool_call><|im_end|>)";
  const ChatAnswer answer = engine.read_answer(prompt, ids("<think>\nHm.\n</think>\n\n" + said), tools);
  EXPECT_EQ(answer.reasoning, "Hm.");
  EXPECT_EQ(answer.content, "I look.");
  ASSERT_EQ(answer.calls.size(), 1u) << answer.message_json;
  EXPECT_EQ(answer.calls[0].name, "look_up");
  EXPECT_EQ(answer.calls[0].arguments, R"({"b":1,"a":"x"})");
  EXPECT_EQ(answer.calls[0].id.size(), 9u);
  // Without tools it is text; and thoughts that the prompt has begun end in the answer.
  EXPECT_EQ(engine.read_answer(prompt, ids(said)).content, said.substr(0, said.find("<|im_end|>")));
  const std::vector<int32_t> thinking =
      engine.tokenize_chat_json(conversation(user, R"(, "chat_template_kwargs": {"thinking": true})"));
  EXPECT_TRUE(engine.detokenize(thinking).ends_with("<think>\n"));
  const ChatAnswer thought = engine.read_answer(thinking, ids("Hm.\n</think>\n\nHere."), tools);
  EXPECT_EQ(thought.reasoning, "Hm.");
  EXPECT_EQ(thought.content, "Here.");
  EXPECT_TRUE(thought.calls.empty());
  // What is thought calls nothing, whether it ends or is cut off.
  const std::string call = R"(<tool_call>{"name": "look_up", "arguments": {"a": 1, "a": 2}}</tool_call>)";
  for (const std::string end : {"", "\n</think>\n\nHere."}) {
    const ChatAnswer only_thought = engine.read_answer(thinking, ids("Perhaps " + call + end), tools);
    EXPECT_TRUE(only_thought.calls.empty()) << only_thought.message_json;
    EXPECT_EQ(only_thought.reasoning, "Perhaps " + call);
  }
  // What it is given twice comes once, so that the message can go on; the same call in another turn is another one.
  const ChatAnswer once = engine.read_answer(prompt, ids(call), tools), later = engine.read_answer(thinking, ids("</think>" + call), tools);
  ASSERT_EQ(once.calls.size(), 1u);
  EXPECT_EQ(once.calls[0].arguments, R"({"a":2})");
  EXPECT_FALSE(engine.tokenize_chat_json(conversation(user + "," + once.message_json)).empty());
  EXPECT_NE(engine.read_answer(prompt, ids(call), tools).calls[0].id, engine.read_answer(next_of(prompt), ids(call), tools).calls[0].id);
  EXPECT_EQ(later.calls.size(), 1u);
  EXPECT_EQ(engine.read_answer(prompt, ids(call), "[]").content, call);
  // The message that it is, and what the tool gave, are told to the template.
  const std::string result = R"({"role": "tool", "tool_call_id": ")" + answer.calls[0].id + R"(", "content": "There."})";
  const std::vector<int32_t> next = engine.tokenize_chat_json(conversation(user + "," + answer.message_json + "," + result));
  const std::string text = engine.detokenize(next);
  EXPECT_NE(text.find("<think>\nHm.\n</think>\n\nI look.<tool_call>{\"name\": \"look_up\", \"arguments\": {\"b\": 1, \"a\": \"x\"}}"
                      "</tool_call><|im_end|>\n<|im_start|>tool\nThere.<|im_end|>\n"),
            std::string::npos)
      << text;
  for (const std::string wrong : {R"({"messages": []})", R"({"messages": [], "tool": 1})", R"([])", R"({"messages": )",
                                  R"({"messages": [{"role": "cook", "content": "x"}]})"}) {
    EXPECT_KIND(engine.tokenize_chat_json(wrong), ErrorKind::kUsage) << wrong;
  }
  EXPECT_KIND(engine.tokenize_chat_json(conversation(user, R"(, "date": "soon")")), ErrorKind::kUsage);
  EXPECT_KIND(engine.tokenize_chat_json(conversation(user, R"(, "date": "2023-02-29")")), ErrorKind::kUsage);
  EXPECT_KIND(engine.tokenize_chat_json(conversation(user, R"(, "chat_template_kwargs": {"slow": 1})")), ErrorKind::kUsage);
  EXPECT_KIND(engine.read_answer(prompt, ids(said), "{"), ErrorKind::kUsage);
  EXPECT_KIND(engine.read_answer(prompt, std::vector<int32_t>{1 << 30}), ErrorKind::kUsage);
}

// A padded vocabulary: what the tokenizer has no text for is a token all the same.
TEST_F(ApiChat, TokensThatTheTokenizerHasNot) {
  constexpr int32_t kPadded = 2047;
  fs::remove(folder_ / "chat_template.jinja");
  std::stringstream stream;
  stream << std::ifstream(folder_ / "tokenizer.json").rdbuf();
  std::string text = stream.str();
  const size_t id = text.find("\"id\": 2047"), comma = text.rfind(',', text.rfind('{', id));
  text.erase(comma, text.find('}', id) + 1 - comma);
  std::ofstream(folder_ / "tokenizer.json") << text;
  const Engine engine(folder_.string(), {{"backend", "cpu"}, {"threads", "1"}});
  EXPECT_KIND(engine.detokenize(std::vector<int32_t>{kPadded}), ErrorKind::kUsage);
  const Options options = {{"logit-bias", std::to_string(kPadded) + "+1000"}, {"n-predict", "100"}};
  Session session = engine.open_session(options);
  ASSERT_TRUE(session.prefill("Hello there."));
  const int64_t n = session.n_tokens();
  const Generation answer = session.generate(3);
  EXPECT_EQ(answer.tokens, std::vector<int32_t>(3, kPadded));
  EXPECT_EQ(answer.text, "");
  EXPECT_EQ(session.n_tokens(), n + 3);
  EXPECT_TRUE(session.append("And?"));
  Batch batch = engine.open_batch({{"max-prompt", "100"}, {"n-predict", "40"}});
  EXPECT_EQ(batch.submit("Hello there.", 3, options).wait().tokens, answer.tokens);
}

// The configuration does not name the token that ends a turn: its template does.
TEST_F(ApiChat, AnAnswerEndsWithItsTurn) {
  const Engine engine(folder_.string(), {{"backend", "cpu"}});
  const int32_t end = engine.tokenize("<|im_end|>", {{"no-bos", "true"}, {"special", "true"}}).at(0);
  const std::vector<int64_t> configured = open_demo().info().end_tokens;
  std::vector<int64_t> ends = configured;
  ends.push_back(end);
  EXPECT_EQ(engine.info().end_tokens, ends);
  // So hot that every token is as likely as any other; with this seed the seventh is that one.
  const Options hot = {{"temp", "100"}, {"top-k", "0"}, {"top-p", "1"}, {"seed", "123"}};
  Session session = engine.open_session(hot);
  ASSERT_TRUE(session.prefill("Hello there."));
  const Generation answer = session.generate(40);
  EXPECT_EQ(answer.reason, FinishReason::kEndOfText);
  ASSERT_EQ(answer.tokens.back(), end);
  Batch batch = engine.open_batch({{"max-prompt", "100"}, {"n-predict", "40"}});
  const Generation batched = batch.submit("Hello there.", 40, hot).wait();
  EXPECT_EQ(batched.reason, FinishReason::kEndOfText);
  EXPECT_EQ(batched.tokens, answer.tokens);

  fs::remove(folder_ / "chat_template.jinja");
  const Engine plain(folder_.string(), {{"backend", "cpu"}});
  EXPECT_EQ(plain.info().end_tokens, configured);
  Session goes_on = plain.open_session(hot);
  ASSERT_TRUE(goes_on.prefill("Hello there."));
  EXPECT_EQ(goes_on.generate(40).tokens.size(), 40u);
}

}  // namespace
}  // namespace tiercel::test
