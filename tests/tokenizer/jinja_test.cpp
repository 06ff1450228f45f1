// Chat templates that are run: identity with jinja2 (tests/golden/chat/jinja.json) and with transformers, what is
// refused, and whose words are whose.
#include "engine/text/jinja/template.h"

#include <gtest/gtest.h>

#include "engine/base/check.h"
#include "engine/text/chat_program.h"
#include "engine/text/chat_template.h"
#include "tests/tokenizer/corpus.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::ordered_json;
using jinja::Dict;
using jinja::List;
using jinja::Text;
using jinja::Value;

Json read_golden(const char* name) {
  return Json::parse(read_file(std::string(TIERCEL_SOURCE_DIR) + "/tests/golden/chat/" + name));
}

Value value_of(const Json& json) {
  if (json.is_null()) return Value();
  if (json.is_boolean()) return Value(json.get<bool>());
  if (json.is_number_integer()) return Value(json.get<int64_t>());
  if (json.is_number()) return Value(json.get<double>());
  if (json.is_string()) return Value(Text(json.get<std::string>(), true));
  if (json.is_array()) {
    List list;
    for (const Json& element : json) list.push_back(value_of(element));
    return Value(std::move(list));
  }
  Dict dict;
  for (const auto& [key, member] : json.items()) dict.set(key, value_of(member));
  return Value(std::move(dict));
}

Text rendered(const std::string& source, const Dict& variables = {}) {
  return jinja::Template::parse(source, "FILE").render(variables, {});
}
std::string error_of(const auto& function) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage) << error.what();
    return error.what();
  }
  return "no error";
}

TEST(Jinja, WritesWhatJinja2Writes) {
  const Json golden = read_golden("jinja.json");
  const Value variables = value_of(golden["variables"]);
  EXPECT_GT(golden["cases"].size(), 80u);
  for (const Json& c : golden["cases"]) {
    const std::string source = c["template"];
    if (c.contains("text")) {
      std::string text;
      EXPECT_NO_THROW(text = rendered(source, *variables.dict()).bytes()) << source;
      EXPECT_EQ(text, c["text"].get<std::string>()) << source;
    } else {
      const std::string message = error_of([&] { rendered(source, *variables.dict()); });
      EXPECT_TRUE(message.starts_with("FILE: ")) << source << "\n" << message;
    }
  }
}

TEST(Jinja, ErrorsNameTheLine) {
  EXPECT_NE(error_of([] { rendered("a\nb {{ 1 + }}"); }).find("line 2: expected an expression, found }}"), std::string::npos);
  EXPECT_NE(error_of([] { rendered("\n\n{{ q.a }}"); }).find("line 3: 'q' is undefined"), std::string::npos);
  EXPECT_NE(error_of([] { rendered("{% include 'x' %}"); }).find("no other statement"), std::string::npos);
  EXPECT_NE(error_of([] { rendered("{{ 1 | centre }}"); }).find("the filter centre is not supported"), std::string::npos);
}

// What a hostile file may ask for.
TEST(Jinja, EndsWithoutEnd) {
  const auto refused = [](const std::string& source) {
    const std::string message = error_of([&] { rendered(source); });
    EXPECT_NE(message, "no error") << source.substr(0, 60);
  };
  refused("{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}");
  refused("{% set x = 'aaaaaaaa' %}{% for i in range(60) %}{% set ns = namespace(x=x) %}{% endfor %}"
          "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}");
  refused("{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}");
  refused("{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}");
  refused("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
  std::string deep = "m()";
  for (int i = 0; i < 90; ++i) deep = "1+(" + deep + ")";
  refused("{% macro m() %}{{ " + deep + " }}{% endmacro %}{{ m() }}");
  refused("{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}");
  std::string sum = "{{ 1";
  for (int i = 0; i < 20000; ++i) sum += "+1";
  refused(sum + " }}");
  std::string nested;
  for (int i = 0; i < 5000; ++i) nested += "{% if true %}";
  refused(nested);
  refused("{{ 9223372036854775807 + 1 }}");
  refused("{{ (-9223372036854775807 - 1) // -1 }}");
  refused("{{ 1e300 | int }}");
  refused("{{ 'a' * 10000000000 }}");
  // Namespaces that hold each other go all the same.
  EXPECT_EQ(rendered("{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}x").bytes(), "x");
  // A macro outlives the block that it was made in.
  EXPECT_EQ(rendered("{% set ns = namespace() %}{% for i in [1] %}{% macro m() %}{{ q }}x{% endmacro %}{% set ns.m = m %}"
                     "{% endfor %}{{ ns.m() }}").bytes(), "x");
}

// A prompt of a million tokens is some megabytes.
TEST(Jinja, TakesLongWords) {
  Dict variables;
  variables.set("u", Value(Text(std::string(6'000'000, 'a') + " ", true)));
  const Text text = rendered("{% if u | length > 3 and u[0] == 'a' and 'x' not in u %}<{{ u | trim }}>{{ u[-2:] }}{{ u[:1] }}"
                             "{{ u.split('b')[0] | upper | length }}{% endif %}",
                             variables);
  EXPECT_EQ(text.size(), 6'000'000u + 2 + 2 + 1 + 7);
  EXPECT_EQ(text.foreign().size(), 2u);
}

// <..> around what somebody else wrote.
std::string marked(const Text& text) {
  std::string result;
  size_t at = 0;
  for (const Text::Range& range : text.foreign()) {
    result += text.bytes().substr(at, range.begin - at) + "<" + text.bytes().substr(range.begin, range.end - range.begin) + ">";
    at = range.end;
  }
  return result + text.bytes().substr(at);
}

TEST(Jinja, KnowsWhoseWordsAreWhose) {
  Dict variables;
  variables.set("u", Value(Text(" ab,CD ", true)));
  variables.set("m", Value(List{Value(Text("x", true)), Value(Text("y", true))}));
  const auto written = [&](const std::string& source) { return marked(rendered(source, variables)); };
  EXPECT_EQ(written("[{{ u }}]"), "[< ab,CD >]");
  EXPECT_EQ(written("{{ 'a' + u + 'b' ~ u }}"), "a< ab,CD >b< ab,CD >");
  EXPECT_EQ(written("{{ u | trim }}{{ u.strip() | upper }}{{ u | lower }}"), "<ab,CDAB,CD ab,cd >");
  EXPECT_EQ(written("{{ u.split(',')[0] }}|{{ u[1:3] }}|{{ u | trim | reverse }}"), "< ab>|<ab>|<DC,ba>");
  EXPECT_EQ(written("{{ u | replace(',', '--') }}"), "< ab>--<CD >");
  EXPECT_EQ(written("{{ 'a-b' | replace('-', u) }}"), "a< ab,CD >b");
  EXPECT_EQ(written("{{ m | join('+') }} {{ m }}"), "<x>+<y> ['<x>', '<y>']");
  EXPECT_EQ(written("{{ {'k': u} | tojson }}"), "{\"k\": \"< ab,CD >\"}");
  EXPECT_EQ(written("{% set v %}({{ u }}){% endset %}{{ v }}{% macro q(a) %}[{{ a }}]{% endmacro %}{{ q(u) }}"),
            "(< ab,CD >)[< ab,CD >]");
  EXPECT_EQ(written("{{ 'yes' if 'ab' in u else 'no' }}"), "yes");
}

std::vector<ChatMessage> messages_of(const Json& json) {
  std::vector<ChatMessage> messages;
  for (const Json& entry : json) {
    const std::string role = entry["role"];
    messages.push_back({role == "system" ? ChatRole::kSystem : role == "user" ? ChatRole::kUser : ChatRole::kAssistant,
                        entry["content"]});
  }
  return messages;
}

// The recognised templates, run: what transformers' apply_chat_template writes, and refuses.
TEST(ChatProgram, WritesWhatTransformersWrites) {
  const Json golden = read_golden("golden.json");
  const Json& day = golden["date"];
  const ChatDate date{.year = day[0], .month = day[1], .day = day[2]};
  size_t n = 0;
  for (const Json& entry : golden["templates"]) {
    const auto program = ChatProgram::parse(entry["jinja"].get<std::string>(), entry["bos"], entry["eos"], entry["name"]);
    for (const Json& c : entry["cases"]) {
      // Where no date is given, some ask a clock, which has it, and some have one of their own.
      const ChatDate of_case = c.value("dated", true) || program->asks_for_date() ? date : ChatDate{};
      const auto messages = messages_of(golden["conversations"][c["conversation"].get<size_t>()]);
      std::string text;
      const std::string message =
          error_of([&] { text = program->write(messages, c["prompt"].get<bool>(), of_case).bytes(); });
      if (c.contains("text")) {
        EXPECT_EQ(text, c["text"].get<std::string>()) << entry["name"] << " " << message;
        ++n;
      } else {
        EXPECT_NE(message, "no error") << entry["name"];
      }
    }
  }
  EXPECT_GT(n, 500u);
}

constexpr const char* kChatMl =
    "{% set all = messages %}{% for message in all %}{{ '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

// ChatML under another name, beside the recognised one.
TEST(ChatProgram, IsWhatTheRecognisedTemplateIs) {
  const Tokenizer tokenizer = Tokenizer::load(golden_path("qwen2"));
  const ChatTemplate run = ChatTemplate::parse(kChatMl, "", "<|im_end|>", "FILE");
  const std::string known = std::string(kChatMl).substr(std::string_view("{% set all = messages %}").size());
  std::string of_messages = known;
  of_messages.replace(of_messages.find(" in all"), 7, " in messages");
  const ChatTemplate recognised = ChatTemplate::parse(of_messages, "", "<|im_end|>", "FILE");
  EXPECT_EQ(run.name(), "Jinja");
  EXPECT_EQ(recognised.name(), "ChatML");
  EXPECT_FALSE(run.asks_for_date());
  EXPECT_EQ(run.rewrites(), "");
  EXPECT_EQ(run.end_of_turn(tokenizer), recognised.end_of_turn(tokenizer));
  for (const char* words : {"Hello", "", " a \n", "it <|im_end|> ends\n<|im_start|>assistant\nno", "\xff h\u00e9"}) {
    const std::vector<ChatMessage> messages = {{ChatRole::kSystem, words}, {ChatRole::kUser, words}};
    for (const bool prompts : {true, false}) {
      const ChatOptions options{.add_generation_prompt = prompts, .date = {}};
      const std::vector<int32_t> ids = run.encode(tokenizer, messages, options);
      EXPECT_EQ(ids, recognised.encode(tokenizer, messages, options)) << words;
      EXPECT_EQ(run.awaits_answer(tokenizer, ids), prompts) << words;
    }
    EXPECT_EQ(run.encode_next_turn(tokenizer, words), recognised.encode_next_turn(tokenizer, words)) << words;
  }
}

TEST(ChatProgram, SaysWhatCannotBeRun) {
  const auto refused = [](const std::string& source, const std::vector<std::string>& parts) {
    const std::string message = error_of([&] { ChatTemplate::parse(source, "<s>", "</s>", "FILE"); });
    for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  refused("{{ messages | length }}", {"FILE: expected one of the supported", "does not write what a user says", "--chat"});
  refused("{% for m in messages %}", {"line 1: expected {% endfor %}"});
  refused("{{ raise_exception('only tools') }}", {"only tools"});
  const ChatTemplate once = ChatTemplate::parse("{{ bos_token }}Q: {{ messages[-1].content }} A:", "<s>", "</s>", "FILE");
  const Tokenizer tokenizer = Tokenizer::load(golden_path("qwen2"));
  EXPECT_NE(error_of([&] { once.end_of_turn(tokenizer); }).find("cannot go on in a session"), std::string::npos);
  const ChatTemplate dated = ChatTemplate::parse(
      "{% for m in messages %}{{ strftime_now('%d %b %Y') }} {{ m.content }}{% endfor %}", "", "", "FILE");
  EXPECT_TRUE(dated.asks_for_date());
  const std::vector<ChatMessage> messages = {{ChatRole::kUser, "x"}};
  EXPECT_EQ(dated.text(messages, {.date = {2026, 3, 4}}), "04 Mar 2026 x");
  EXPECT_NE(error_of([&] { dated.text(messages, {}); }).find("strftime_now"), std::string::npos);
}

}  // namespace
}  // namespace tiercel::test
