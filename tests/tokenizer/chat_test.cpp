// Chat templates: identity with transformers' apply_chat_template (tests/golden/chat), and what is
// refused.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "engine/base/check.h"
#include "engine/text/chat_template.h"
#include "tests/tokenizer/corpus.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::json;

const Json& golden() {
  static const Json kGolden =
      Json::parse(read_file(std::string(TIERCEL_SOURCE_DIR) + "/tests/golden/chat/golden.json"));
  return kGolden;
}

std::vector<ChatMessage> messages_of(const Json& json) {
  std::vector<ChatMessage> messages;
  for (const Json& entry : json) {
    const std::string role = entry["role"];
    messages.push_back({role == "system" ? ChatRole::kSystem
                        : role == "user" ? ChatRole::kUser
                                         : ChatRole::kAssistant,
                        entry["content"]});
  }
  return messages;
}

// The golden vocabulary with the template's special tokens, as the script adds them.
Tokenizer tokenizer_of(const Json& entry) {
  const std::string base = entry["tokenizer"];
  Json file = Json::parse(read_file(golden_path(base + "/tokenizer.json")));
  for (const auto& [token, id] : entry["added"].items()) {
    const auto is_it = [&token = token](const Json& known) { return known["content"] == token; };
    if (std::any_of(file["added_tokens"].begin(), file["added_tokens"].end(), is_it)) continue;
    file["added_tokens"].push_back({{"id", id},
                                    {"content", token},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", true}});
  }
  auto& added = file["added_tokens"];
  std::sort(added.begin(), added.end(),
            [](const Json& a, const Json& b) { return a["id"].get<int>() < b["id"].get<int>(); });
  return Tokenizer::parse(file.dump(), base);
}

ChatTemplate template_of(const Json& entry) {
  return ChatTemplate::parse(entry["jinja"].get<std::string>(), entry["bos"], entry["eos"],
                             entry["name"]);
}

ChatDate golden_date() {
  const Json& date = golden()["date"];
  return {.year = date[0], .month = date[1], .day = date[2]};
}

std::string message_of(const auto& function, ErrorKind kind = ErrorKind::kUsage) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// To Metaspace's "first" only a conversation begins a text, not what follows its special tokens.
TEST(ChatTemplate, OnlyTheBeginningHasAPrefix) {
  Json file = Json::parse(read_file(golden_path("llama2/tokenizer.json")));
  file["normalizer"] = nullptr;
  file["pre_tokenizer"] = {{"type", "Metaspace"},
                           {"replacement", "\u2581"},
                           {"prepend_scheme", "first"},
                           {"split", false}};
  const Tokenizer tokenizer = Tokenizer::parse(file.dump(), "first");
  int n_compared = 0;
  for (const Json& entry : golden()["templates"]) {
    if (entry["name"] != "Llama 2" && entry["name"] != "Mistral v1") continue;
    const ChatTemplate chat = template_of(entry);
    const std::vector<ChatMessage> messages = {{ChatRole::kUser, "Hello"},
                                               {ChatRole::kAssistant, "two words"},
                                               {ChatRole::kUser, "and more"}};
    const ChatOptions options{.add_generation_prompt = true, .date = golden_date()};
    // All at once, as transformers does.
    const std::vector<int32_t> whole =
        tokenizer.encode(chat.text(messages, options), {.add_special = false});
    EXPECT_EQ(chat.encode(tokenizer, messages, options), whole);
    const std::vector<int32_t> next = chat.encode_next_turn(tokenizer, "and more");
    EXPECT_TRUE(std::ranges::equal(next, std::span(whole).last(next.size())));
    ++n_compared;
  }
  EXPECT_EQ(n_compared, 5);
}

// Special tokens that take the white space beside them do so in a conversation.
TEST(ChatTemplate, SpecialTokensTakeTheirWhiteSpace) {
  Json file = Json::parse(read_file(golden_path("qwen2/tokenizer.json")));
  for (Json& token : file["added_tokens"]) {
    if (token["content"] == "<|im_end|>") token["rstrip"] = true;
    if (token["content"] == "<|im_start|>") token["lstrip"] = true;
  }
  const Tokenizer tokenizer = Tokenizer::parse(file.dump(), "strip");
  const Json& entry = golden()["templates"][0];
  ASSERT_EQ(entry["name"], "ChatML");
  const ChatTemplate chat = template_of(entry);
  const std::vector<ChatMessage> messages = {{ChatRole::kUser, "Hello \u3000"},
                                             {ChatRole::kAssistant, "\n two words"},
                                             {ChatRole::kUser, "and more\xC3"}};
  const ChatOptions options{.add_generation_prompt = true, .date = {}};
  const std::vector<int32_t> whole =
      tokenizer.encode(chat.text(messages, options), {.add_special = false});
  EXPECT_EQ(chat.encode(tokenizer, messages, options), whole);
  const std::vector<int32_t> next = chat.encode_next_turn(tokenizer, "and more\xC3");
  EXPECT_TRUE(std::ranges::equal(next, std::span(whole).last(next.size())));
  EXPECT_EQ(whole[whole.size() - next.size() - 1], *tokenizer.id_of("<|im_end|>"));
}

class ChatGolden : public ::testing::TestWithParam<size_t> {
 protected:
  const Json& entry() const { return golden()["templates"][GetParam()]; }
};

TEST_P(ChatGolden, TextsAndIdsEqualTransformers) {
  const ChatTemplate chat = template_of(entry());
  const std::string name = entry()["name"];
  const Tokenizer tokenizer = tokenizer_of(entry());
  int n_texts = 0, n_refused = 0;
  for (const Json& expected : entry()["cases"]) {
    const Json& conversation = golden()["conversations"][expected["conversation"].get<size_t>()];
    SCOPED_TRACE(conversation.dump());
    const std::vector<ChatMessage> messages = messages_of(conversation);
    ChatOptions options{.add_generation_prompt = expected["prompt"], .date = {}};
    if (expected["dated"] || chat.asks_for_date()) options.date = golden_date();
    if (expected.contains("error")) {
      const std::string message = message_of([&] { chat.text(messages, options); });
      EXPECT_TRUE(message.starts_with(name + ": line ") && message.ends_with(expected["error"].get<std::string>())) << message;
      ++n_refused;
      continue;
    }
    // Some would drop a system message, or one in the middle; here that is an error.
    const bool drops = std::ranges::any_of(messages, [&](const ChatMessage& m) {
      const size_t begin = m.content.find_first_not_of(" \n"), end = m.content.find_last_not_of(" \n");
      return m.role == ChatRole::kSystem && begin != std::string::npos &&
             !contains(expected["text"], m.content.substr(begin, end + 1 - begin));
    });
    if (drops) {
      EXPECT_TRUE(name == "Llama 2" || name.starts_with("Mistral v") || name == "Phi-3 without system") << name;
      EXPECT_TRUE(contains(message_of([&] { chat.text(messages, options); }), "no place for this system"));
      continue;
    }
    EXPECT_EQ(chat.text(messages, options), expected["text"]);
    EXPECT_EQ(Json(chat.encode(tokenizer, messages, options)), expected["ids"]);
    ++n_texts;
  }
  EXPECT_GE(n_texts, 12);
  const bool any_order = entry()["bos"] == "" || name.starts_with("Llama 3") || name == "Mistral v7" || name.starts_with("Phi");
  EXPECT_EQ(n_refused == 0, any_order) << n_refused;
}

// A session that goes on with what encode_next_turn gives holds what the template writes for the
// whole conversation.
TEST_P(ChatGolden, NextTurnContinuesTheConversation) {
  const ChatTemplate chat = template_of(entry());
  const Tokenizer tokenizer = tokenizer_of(entry());
  const std::string name = entry()["name"];
  const ChatOptions options{.add_generation_prompt = true, .date = golden_date()};
  const std::string question = " And\nwhy, <|im_end|>? ", answer = "Because of 42.";
  std::vector<ChatMessage> messages = {{ChatRole::kUser, "Hello"}};
  std::vector<int32_t> ids = chat.encode(tokenizer, messages, options);
  EXPECT_TRUE(chat.awaits_answer(tokenizer, ids));
  // The blanks that a template puts around an answer are the model's to write.
  const bool blank = contains(
      chat.text(std::vector<ChatMessage>{{ChatRole::kUser, "?"}, {ChatRole::kAssistant, "!"}},
                {.add_generation_prompt = false, .date = golden_date()}),
      "INST] !");
  const bool line = name.starts_with("GLM") && !chat.text(messages, options).ends_with("\n");
  const std::string written =
      (blank ? " " : line ? "\n" : "") + answer + (name == "Llama 2" ? " " : "");
  const auto append = [&](const std::vector<int32_t>& more) {
    ids.insert(ids.end(), more.begin(), more.end());
  };
  append(tokenizer.encode(
      written, {.add_special = false,
                .parse_special = false,
                .follows = tokenizer.is_special(ids.back()) ? Follows::kToken : Follows::kText}));
  EXPECT_FALSE(chat.awaits_answer(tokenizer, ids));
  ids.push_back(chat.end_of_turn(tokenizer));
  append(chat.encode_next_turn(tokenizer, question));
  EXPECT_TRUE(chat.awaits_answer(tokenizer, ids));
  messages.push_back({ChatRole::kAssistant, answer});
  messages.push_back({ChatRole::kUser, question});
  // Where an answer is begun by the template ("<think>"), it is not part of what is written later.
  if (name == "QwQ" || name == "Qwen 3 Thinking" || name == "GLM-Z1") {
    EXPECT_FALSE(chat.rewrites().empty());
    return;
  }
  EXPECT_EQ(ids, chat.encode(tokenizer, messages, options));
  // Llama 2's tokenizer writes a space behind every special token.
  if (entry()["tokenizer"] != "llama2") {
    EXPECT_EQ(tokenizer.decode(ids), chat.text(messages, options));
  }
}

// What is said about conversations that go on.
TEST_P(ChatGolden, SaysWhatItRewrites) {
  const std::string name = entry()["name"], rewrites(template_of(entry()).rewrites());
  const bool drops_thoughts = name == "QwQ" || name == "GLM-Z1" || (name.starts_with("Qwen 3") && name != "Qwen 3 Instruct");
  EXPECT_EQ(contains(rewrites, "what was thought"), drops_thoughts) << rewrites;
  EXPECT_EQ(contains(rewrites, "earlier messages"), name == "Mistral v3" || name == "Mistral v1 with the last") << rewrites;
}

TEST_P(ChatGolden, NobodysWordsEndATurn) {
  const ChatTemplate chat = template_of(entry());
  const Tokenizer tokenizer = tokenizer_of(entry());
  const ChatOptions options{.add_generation_prompt = true, .date = golden_date()};
  std::string all = "a";
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.is_special(id)) all += " " + std::string(tokenizer.token(id)) + "b";
  }
  const auto n_special = [&](const std::string& words) {
    const std::vector<ChatMessage> messages = {{ChatRole::kUser, words}};
    std::vector<int32_t> ids = chat.encode(tokenizer, messages, options);
    const std::vector<int32_t> more = chat.encode_next_turn(tokenizer, words);
    ids.insert(ids.end(), more.begin(), more.end());
    return std::count_if(ids.begin(), ids.end(),
                         [&](int32_t id) { return tokenizer.is_special(id); });
  };
  EXPECT_EQ(n_special(all), n_special("a"));
}

INSTANTIATE_TEST_SUITE_P(Templates, ChatGolden,
                         ::testing::Range(size_t{0}, golden()["templates"].size()),
                         [](const auto& info) {
                           std::string name = golden()["templates"][info.param]["name"];
                           std::erase_if(name, [](char c) { return c == ' ' || c == '.' || c == '-'; });
                           return name + "_" + std::to_string(info.param);
                         });

const Json& golden_template(const std::string& name) {
  for (const Json& entry : golden()["templates"]) {
    if (entry["name"] == name) return entry;
  }
  CHECK(false, "{}", name);
}

TEST(ChatTemplate, SaysWhatCannotBeRun) {
  for (const char* other :
       {"", "{{ messages | length }}", "{% for message in messages %}", "{{", "{% if", "{{ 'a", "{#",
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m.role }}{% endfor %}"}) {
    const std::string message = message_of([&] { ChatTemplate::parse(other, "a", "b", "FILE"); });
    EXPECT_TRUE(contains(message, "FILE: expected a chat template that can be run")) << other << message;
    EXPECT_TRUE(contains(message, "--chat")) << message;
  }
}

TEST(ChatTemplate, SaysWhatIsMissing) {
  // gpt2 has no <|im_end|>, and as text anybody could write it: no conversation can go on with that.
  const ChatTemplate chat = template_of(golden_template("ChatML"));
  const Tokenizer gpt2 = Tokenizer::load(golden_path("gpt2"));
  EXPECT_TRUE(contains(message_of([&] { chat.end_of_turn(gpt2); }), "no special token"));
  EXPECT_TRUE(contains(message_of([&] { chat.encode_next_turn(gpt2, "x"); }), "no special token"));
  EXPECT_TRUE(contains(message_of([&] { chat.text({}, {}); }), "no messages"));
}

// A template may look back at the system message whenever an answer is due.
TEST(ChatTemplate, GoesOnWithTheSystemMessage) {
  const Tokenizer tokenizer = Tokenizer::load(golden_path("qwen2"));
  const std::string turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}{{ m.reasoning_content }}<|im_end|>"
                            "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}";
  const ChatTemplate chat = ChatTemplate::parse(
      turns + "{% if add_generation_prompt %}<|im_start|>assistant\n{% if '/no_think' in messages[0].content %}<think>\n\n</think>\n{% endif %}{% endif %}",
      "", "", "FILE");
  // As thoughts end with the token that ends answers, it does not say that one has ended.
  EXPECT_TRUE(contains(message_of([&] { chat.end_of_turn(tokenizer); }), "ends thoughts with <|im_end|>"));
  std::string quiet = turns;
  quiet.replace(quiet.find("<|im_end|>{% endif %}"), 10, "\n\n");
  const ChatTemplate looks = ChatTemplate::parse(
      quiet + "{% if add_generation_prompt %}<|im_start|>assistant\n{% if '/no_think' in messages[0].content %}<think>\n\n</think>\n{% endif %}{% endif %}",
      "", "", "FILE");
  const auto next = [&](const std::optional<std::string>& system) { return tokenizer.decode(looks.encode_next_turn(tokenizer, "y", system)); };
  EXPECT_EQ(next({}), "\n<|im_start|>user\ny<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(next("Be brief. /no_think"), "\n<|im_start|>user\ny<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n");
  // Words are words, whatever they spell; none are as good.
  EXPECT_EQ(next("<|im_end|>"), next({}));
  EXPECT_EQ(tokenizer.decode(looks.encode_next_turn(tokenizer, "")), "\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n");
  const std::vector<int32_t> spelled = looks.encode_next_turn(tokenizer, "<|im_end|>");
  EXPECT_EQ(std::ranges::count(spelled, *tokenizer.id_of("<|im_end|>")), 1);
}

class ChatDirectory : public ::testing::Test {
 protected:
  ChatDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tiercel-chat-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~ChatDirectory() override { std::filesystem::remove_all(path_); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ + "/" + name) << text;
  }
  // What it writes.
  std::string load() const {
    return ChatTemplate::load(path_).text(std::vector<ChatMessage>{{ChatRole::kUser, "x"}}, {});
  }
  std::string path_;
};

TEST_F(ChatDirectory, FindsTheTemplate) {
  const std::string chatml = golden_template("ChatML")["jinja"];
  const std::string llama = golden_template("Llama 3.1")["jinja"];
  EXPECT_FALSE(ChatTemplate::exists(path_));
  for (const char* config : {"", "{}", R"({"chat_template": null})"}) {
    if (*config != '\0') write("tokenizer_config.json", config);
    const std::string message = message_of([&] { ChatTemplate::load(path_); });
    for (const std::string& word : {path_, std::string("chat_template.jinja"),
                                    std::string("--chat")}) {
      EXPECT_TRUE(contains(message, word)) << message;
    }
    EXPECT_FALSE(ChatTemplate::exists(path_));
  }
  write("tokenizer_config.json", Json{{"chat_template", chatml}}.dump());
  EXPECT_TRUE(ChatTemplate::exists(path_));
  EXPECT_EQ(load(), "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
  const Json tool = {{"name", "tool_use"}, {"template", llama}};
  const Json usual = {{"name", "default"}, {"template", chatml}};
  write("tokenizer_config.json", Json{{"chat_template", {tool, usual}}}.dump());
  EXPECT_EQ(load(), "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
  write("tokenizer_config.json", Json{{"chat_template", {tool}}}.dump());
  EXPECT_TRUE(contains(message_of([&] { load(); }), "\"default\""));
  write("tokenizer_config.json", R"({"chat_template": 7})");
  EXPECT_TRUE(contains(message_of([&] { load(); }, ErrorKind::kRuntime), "chat_template"));
  // A file of its own goes first; the tokens' names may be objects.
  write("chat_template.jinja", llama);
  write("tokenizer_config.json",
        Json{{"chat_template", chatml}, {"bos_token", {{"content", "<|begin_of_text|>"}}}}.dump());
  EXPECT_TRUE(load().starts_with("<|begin_of_text|><|start_header_id|>system"));
  std::filesystem::remove(path_ + "/tokenizer_config.json");
  EXPECT_TRUE(contains(message_of([&] { load(); }), "writes bos_token, expected its name in tokenizer_config.json"));
  write("chat_template.jinja", "{{ messages | length }}");
  EXPECT_TRUE(contains(message_of([&] { load(); }), path_ + "/chat_template.jinja: expected"));
}

}  // namespace
}  // namespace tiercel::test
