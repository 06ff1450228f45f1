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
  EXPECT_EQ(chat.name(), entry()["name"]);
  const Tokenizer tokenizer = tokenizer_of(entry());
  int n_texts = 0, n_refused = 0;
  for (const Json& expected : entry()["cases"]) {
    const Json& conversation = golden()["conversations"][expected["conversation"].get<size_t>()];
    SCOPED_TRACE(conversation.dump());
    const std::vector<ChatMessage> messages = messages_of(conversation);
    ChatOptions options{.add_generation_prompt = expected["prompt"], .date = {}};
    if (expected["dated"] || chat.asks_for_date()) options.date = golden_date();
    if (expected.contains("error")) {
      EXPECT_EQ(message_of([&] { chat.text(messages, options); }), expected["error"]);
      ++n_refused;
      continue;
    }
    // Llama 2's would drop a system message in the middle; here that is an error.
    const bool system_inside =
        std::any_of(messages.begin() + 1, messages.end(),
                    [](const ChatMessage& m) { return m.role == ChatRole::kSystem; });
    if (chat.name() == "Llama 2" && system_inside) {
      EXPECT_TRUE(contains(message_of([&] { chat.text(messages, options); }), "Only the first"));
      continue;
    }
    const bool no_system = chat.name() == "Phi-3 without system";
    if (no_system && (system_inside || messages.front().role == ChatRole::kSystem)) {
      EXPECT_TRUE(contains(message_of([&] { chat.text(messages, options); }), "no place for a system"));
      continue;
    }
    EXPECT_EQ(chat.text(messages, options), expected["text"]);
    EXPECT_EQ(Json(chat.encode(tokenizer, messages, options)), expected["ids"]);
    ++n_texts;
  }
  EXPECT_GE(n_texts, 12);
  const bool any_order = entry()["bos"] == "" || chat.name().starts_with("Llama 3") ||
                         chat.name() == "Mistral v7" || chat.name().starts_with("Phi");
  EXPECT_EQ(n_refused == 0, any_order) << n_refused;
}

// A session that goes on with what encode_next_turn gives holds what the template writes for the
// whole conversation.
TEST_P(ChatGolden, NextTurnContinuesTheConversation) {
  const ChatTemplate chat = template_of(entry());
  const Tokenizer tokenizer = tokenizer_of(entry());
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
  const bool line = chat.name().starts_with("GLM") && !chat.text(messages, options).ends_with("\n");
  const std::string written =
      (blank ? " " : line ? "\n" : "") + answer + (chat.name() == "Llama 2" ? " " : "");
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
  if (chat.name() == "QwQ" || chat.name() == "Qwen 3 Thinking" || chat.name() == "GLM-Z1") {
    EXPECT_FALSE(chat.rewrites().empty());
    return;
  }
  EXPECT_EQ(ids, chat.encode(tokenizer, messages, options));
  // Llama 2's tokenizer writes a space behind every special token.
  if (entry()["tokenizer"] != "llama2") {
    EXPECT_EQ(tokenizer.decode(ids), chat.text(messages, options));
  }
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

// A template that does anything else is not the known one, however much it looks like it: it is run, or refused.
TEST(ChatTemplate, VariationsAreNotTheOriginal) {
  const struct {
    const char *name, *from, *to;
  } variations[] = {
      {"ChatML", "+ '\n'}}", "}}"},
      {"ChatML", "<|im_end|>", "<|im_stop|>"},
      {"ChatML", "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant' }}"},
      {"ChatML", "{% for", "{{ bos_token }}{% for"},
      {"ChatML", "{% endfor %}", "{% endfor %} "},
      {"ChatML", "message['content'] +", "message['content'] | trim +"},
      {"ChatML", "{% endfor %}", ""},
      {"ChatML", "{% endif %}", "{% else %}{{ '<|im_start|>' }}{% endif %}"},
      {"Qwen 2", "!= 'system'", "== 'system'"},
      {"Qwen 2.5", "{%- if tools %}", "{%- if not tools %}"},
      {"Qwen 2.5", "and not loop.first", "and loop.first"},
      {"Qwen 3", "loop.index0 > ns.", "loop.index0 >= ns."},
      {"Qwen 3", "'\\n</think>\\n\\n'", "'\\n</think>\\n'"},
      {"Llama 3", "| trim", ""},
      {"Llama 3.1", "\"Today Date: \"", "\"Date: \""},
      {"Llama 3.1", "{{- \"<|eot_id|>\" }}", ""},
      {"Llama 3.2", "%d %b %Y", "%Y-%m-%d"},
      {"Llama 2", "+ ' ' + eos_token", "+ eos_token"},
      {"Mistral v1", "'[INST] '", "'[INST]'"},
      {"Mistral v3", "loop.last", "loop.first"},
      {"Mistral v7", "'[/INST]'", "' [/INST]'"},
      {"Phi-3", "{% else %}{{ eos_token }}", "{% else %}"},
      {"Phi-3.5", "and message['content']", "and not message['content']"},
      {"Phi-4", "<|im_sep|>", "\n"},
      {"Phi-4-mini", "'|>' + message['content'] + '<|end|>' }}{% endif %}", "'|>' + message['content'] }}{% endif %}"},
      {"GLM-4", "[gMASK]<sop>", "[gMASK] <sop>"},
      {"GLM-4-0414", "!= 'system'", "!= 'user'"},
      {"GLM-Z1", "[-1].strip()", "[-1]"},
  };
  for (const auto& [name, from, to] : variations) {
    SCOPED_TRACE(fmt::format("{}: {} -> {}", name, from, to));
    Json entry = golden_template(name);
    std::string jinja = entry["jinja"];
    const size_t at = jinja.find(from);
    ASSERT_NE(at, std::string::npos);
    entry["jinja"] = jinja.replace(at, std::string(from).size(), to);
    std::string found;
    const std::string message = message_of([&] { found = template_of(entry).name(); });
    if (found == "Jinja") continue;
    for (const char* word : {name, "ChatML", "GLM-4", "Llama", "Mistral", "Phi-3", "chat_template.jinja"}) {
      EXPECT_TRUE(contains(message, word)) << found << message;
    }
  }
  for (const char* other :
       {"", "{{ messages | length }}", "{% for message in messages %}", "{{", "{% if", "{{ 'a", "{#",
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m.role }}{% endfor %}"}) {
    EXPECT_TRUE(contains(message_of([&] { ChatTemplate::parse(other, "a", "b", "FILE"); }),
                         "FILE: expected one of the supported chat templates"))
        << other;
  }
}

// White space, quotes and what concerns tools do not matter.
TEST(ChatTemplate, AcceptsOtherSpellings) {
  const ChatTemplate chat = ChatTemplate::parse(
      "{# ChatML #}\n{% for message in messages -%}\n    {%- if tools -%}{{ tools }}{%- endif -%}\n"
      "  {{- \"<|im_start|>\" + message.role + \"\\n\" -}}\n{{ message[\"content\"] }}"
      "{%- generation -%}{{- '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}\n"
      "{%- endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n",
      "", "", "FILE");
  EXPECT_EQ(chat.name(), "ChatML");
}

TEST(ChatTemplate, NamesTheTokenThatIsMissing) {
  const Json& llama = golden_template("Llama 3.1");
  const std::string jinja = llama["jinja"];
  EXPECT_TRUE(contains(message_of([&] { ChatTemplate::parse(jinja, "", "", "FILE"); }),
                       "writes bos_token"));
  // gpt2 has no <|im_end|>, and as text anybody could write it.
  const ChatTemplate chat = template_of(golden_template("ChatML"));
  const Tokenizer gpt2 = Tokenizer::load(golden_path("gpt2"));
  const std::vector<ChatMessage> messages = {{ChatRole::kUser, "Hello"}};
  for (const char* word : {"ChatML", "<|im_start|>", "special token", "tokenizer.json"}) {
    EXPECT_TRUE(contains(message_of([&] { chat.encode(gpt2, messages, {}); }), word)) << word;
  }
  EXPECT_TRUE(contains(message_of([&] { chat.text({}, {}); }), "no messages"));
  const ChatTemplate dated = ChatTemplate::parse(
      golden()["templates"].back()["jinja"].get<std::string>(), "<s>", "</s>", "FILE");
  EXPECT_TRUE(contains(message_of([&] { dated.text(messages, {}); }), "has a date"));
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
  std::string load() const { return std::string(ChatTemplate::load(path_).name()); }
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
                                    std::string("Llama 3"), std::string("--chat")}) {
      EXPECT_TRUE(contains(message, word)) << message;
    }
    EXPECT_FALSE(ChatTemplate::exists(path_));
  }
  write("tokenizer_config.json", Json{{"chat_template", chatml}}.dump());
  EXPECT_TRUE(ChatTemplate::exists(path_));
  EXPECT_EQ(load(), "ChatML");
  const Json tool = {{"name", "tool_use"}, {"template", llama}};
  const Json usual = {{"name", "default"}, {"template", chatml}};
  write("tokenizer_config.json", Json{{"chat_template", {tool, usual}}}.dump());
  EXPECT_EQ(load(), "ChatML");
  write("tokenizer_config.json", Json{{"chat_template", {tool}}}.dump());
  EXPECT_TRUE(contains(message_of([&] { load(); }), "\"default\""));
  write("tokenizer_config.json", R"({"chat_template": 7})");
  EXPECT_TRUE(contains(message_of([&] { load(); }, ErrorKind::kRuntime), "chat_template"));
  // A file of its own goes first; the tokens' names may be objects.
  write("chat_template.jinja", llama);
  write("tokenizer_config.json",
        Json{{"chat_template", chatml}, {"bos_token", {{"content", "<|begin_of_text|>"}}}}.dump());
  EXPECT_EQ(load(), "Llama 3.1");
  write("chat_template.jinja", "{{ messages | length }}");
  EXPECT_TRUE(contains(message_of([&] { load(); }), path_ + "/chat_template.jinja: expected"));
}

}  // namespace
}  // namespace tiercel::test
