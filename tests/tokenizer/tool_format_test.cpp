// Calls of tools: that what a template writes is read as what was called, whatever the form; and what is no call.
#include "engine/text/tool_calls/tool_format.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/base/check.h"
#include "engine/text/chat_template.h"
#include "tests/tokenizer/corpus.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::ordered_json;

const std::string kTools =
    R"([{"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": {"type": "object",
  "properties": {"what": {"type": "string", "description": "Words."}, "n": {"type": "integer", "description": "How many."}}}}},
 {"type": "function", "function": {"name": "find_all", "description": "Finds all.", "parameters": {"type": "object",
  "properties": {"what": {"type": "string", "description": "Words."}, "n": {"type": "number", "description": "How many."}}}}}])";
const std::vector<ToolCall> kCalls = {{"abcdefgh1", "find", R"({"what":"it's {\"a\"}, ]}\n <b> 12 é","n":-3})"},
                                      {"abcdefgh2", "find_all", R"({"what":"12","n":0.5})"},
                                      {"abcdefgh3", "find_all", R"({"what":"true"})"}};

// ChatML whose answers write calls so.
std::string template_with(const std::string& calls) {
  return "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}" + calls +
         "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
         "%}<|im_start|>assistant\n{% endif %}";
}
const std::string kHermes =
    "{% for c in m.tool_calls %}{% if not loop.first %}\n{% endif %}<tool_call>\n{{ c.function | tojson "
    "}}\n</tool_call>{% endfor %}";
const std::string kMistral =
    "[TOOL_CALLS] [{% for c in m.tool_calls %}{{ c.function | tojson }}{% if not loop.last %}, {% endif %}{% endfor "
    "%}]";
const std::string kBare =
    "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}{\"name\": \"{{ "
    "m.tool_calls[0].function.name }}\", "
    "\"parameters\": {{ m.tool_calls[0].function.arguments | tojson }}}";
const std::string kTagged =
    "{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]{{ c.function.arguments | "
    "tojson }}{% endfor %}";
const std::string kNested =
    "<calls>{% for c in m.tool_calls %}<call>function<sep>{{ c.function.name }}\n```json\n{{ c.function.arguments | "
    "tojson }}\n```</call>\n"
    "{% endfor %}</calls>";
const std::string kLines = "{{ m.tool_calls[0].function.name }}\n{{ m.tool_calls[0].function.arguments | tojson }}";
const std::string kParameters =
    "{% for c in m.tool_calls %}<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments | "
    "items %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}";

std::string message_of(const auto& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// What the program writes for an answer with calls.
std::string written(const ChatProgram& program, std::vector<ToolCall> calls) {
  ChatOptions options{.add_generation_prompt = true, .date = {2024, 7, 26}, .tools = kTools};
  std::vector<ChatMessage> messages = {{ChatRole::kUser, "q"}};
  const std::string prompt(program.write(messages, options).view());
  messages.push_back({.role = ChatRole::kAssistant, .content = "", .calls = std::move(calls)});
  options.add_generation_prompt = false;
  const std::string all(program.write(messages, options).view());
  return all.starts_with(prompt) ? all.substr(prompt.size()) : all.substr(all.rfind("q") + 1);
}

void expect_calls(const ToolFormat::Answer& answer, size_t n, const std::string& text) {
  ASSERT_EQ(answer.calls.size(), n) << text;
  for (size_t i = 0; i < n; ++i) {
    EXPECT_EQ(answer.calls[i].name, kCalls[i].name) << text;
    EXPECT_EQ(answer.calls[i].arguments, kCalls[i].arguments) << text;
  }
}

// Every beginning of an answer: what is said of it comes before the calls.
void expect_streams(const ToolFormat& format, const Tools& tools, const std::string& text, bool thinks = false) {
  const std::string content = format.read(text, tools, thinks).content;
  for (const size_t stride : {size_t{1}, size_t{7}}) {
    ToolFormat::Progress progress;
    for (size_t n = 0; n <= text.size(); n += stride) {
      const size_t before = progress.n_before;
      format.follow(std::string_view(text).substr(0, n), tools, thinks, progress);
      ASSERT_GE(progress.n_before, before);
      ASSERT_TRUE(content.starts_with(text.substr(0, progress.n_before))) << n << " of " << text;
    }
  }
}

TEST(ToolFormat, ReadsWhatTemplatesWrite) {
  const Tools tools(kTools);
  const struct {
    std::string calls;
    size_t most;
  } forms[] = {{kHermes, 3}, {kMistral, 3}, {kBare, 1}, {kTagged, 3}, {kNested, 3}, {kLines, 1}, {kParameters, 3}};
  for (const auto& form : forms) {
    const ChatProgram program(template_with(form.calls), "", "", "FILE");
    const ToolFormat format(program);
    for (size_t n = 1; n <= form.most; ++n) {
      std::string text = written(program, {kCalls.begin(), kCalls.begin() + static_cast<std::ptrdiff_t>(n)});
      text = text.substr(0, text.find("<|im_end|>"));
      expect_calls(format.read(text, tools, false), n, text);
      expect_streams(format, tools, text);
      // Other blanks than the template's.
      expect_calls(format.read("\n" + text + "\n\n", tools, false), n, text);
      if (form.calls == kBare || form.calls == kLines) continue;
      const std::string said = "Let me look [at] <it>.\n\n" + text;
      EXPECT_EQ(format.read(said, tools, false).content, "Let me look [at] <it>.");
      expect_calls(format.read(said, tools, false), n, said);
      expect_streams(format, tools, said);
    }
  }
}

// An answer that begins as it must is read as one that began so by itself.
TEST(ToolFormat, BeginsAnswersThatMustCall) {
  const Tools tools(kTools);
  const struct {
    std::string calls, required, named, rest;
  } forms[] = {
      {kHermes, "<tool_call>\n{\"name\": \"",
       "<tool_call>\n{\"name\": \"find\", \"arguments\": ", "{\"n\": 1}}\n</tool_call>"},
      {kMistral, "[TOOL_CALLS] [{\"name\": \"", "[TOOL_CALLS] [{\"name\": \"find\", \"arguments\": ", "{\"n\": 1}}]"},
      {kBare, "{\"name\": \"", "{\"name\": \"find\", \"parameters\": ", "{\"n\": 1}}"},
      {kTagged, "[TOOL_CALLS]", "[TOOL_CALLS]find", "[CALL_ID]x[ARGS]{\"n\": 1}"},
      {kNested, "<calls><call>function<sep>", "<calls><call>function<sep>find\n```json\n",
       "{\"n\": 1}\n```</call>\n</calls>"},
      {kLines, "", "find\n", "{\"n\": 1}"},
      {kParameters, "<tool_call>\n<function=", "<tool_call>\n<function=find",
       ">\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>"}};
  for (const auto& form : forms) {
    const ToolFormat format(ChatProgram(template_with(form.calls), "", "", "FILE"));
    EXPECT_EQ(format.beginning("").view(), form.required);
    const jinja::Text named = format.beginning("find");
    EXPECT_EQ(named.view(), form.named);
    // The name is a client's word.
    ASSERT_EQ(named.foreign_ranges().size(), 1u);
    EXPECT_EQ(named.view().substr(named.foreign_ranges()[0].begin, 4), "find");
    const ToolFormat::Answer answer = format.read(std::string(named.view()) + form.rest, tools, false);
    ASSERT_EQ(answer.calls.size(), 1u) << form.named;
    EXPECT_EQ(answer.calls[0].name, "find");
    EXPECT_EQ(answer.calls[0].arguments, "{\"n\":1}");
    EXPECT_EQ(answer.content, "");
    ToolFormat::Progress progress;
    format.follow(named.view(), tools, false, progress);
    EXPECT_EQ(progress.n_before, 0u);
  }
}

TEST(ToolFormat, TakesNothingElseForACall) {
  const Tools tools(kTools);
  const std::string json = R"({"name": "find", "arguments": {"what": "x"}})";
  const ToolFormat hermes(ChatProgram(template_with(kHermes), "", "", "FILE")),
      bare(ChatProgram(template_with(kBare), "", "", "FILE")),
      lines(ChatProgram(template_with(kLines), "", "", "FILE")),
      parameters(ChatProgram(template_with(kParameters), "", "", "FILE"));
  for (const auto& [format, text] : std::initializer_list<std::pair<const ToolFormat*, std::string>>{
           {&hermes, "It is <tool_call> that begins one."},
           {&hermes, "<tool_call>\n{\"name\": \"find\", \"arguments\": {\"what\": "},
           {&hermes, "<tool_call>\n{\"name\": 1, \"arguments\": {}}\n</tool_call>"},
           {&hermes, "<tool_call>\n[1, 2]\n</tool_call>"},
           {&hermes, "<tool_call>" + std::string(100, '{')},
           {&hermes, "<tool_call>" + std::string(100'000, '[') + "{}" + std::string(100'000, ']')},
           {&hermes, json},
           {&bare, "The answer is " + json},
           {&bare, "{\"a\": 1}"},
           {&bare, ""},
           {&lines, "findings are {\"what\": 1}"},
           {&lines, "find nothing"},
           {&parameters, "<tool_call>\n<function=nothing>\n</function>\n</tool_call>"},
           {&parameters, "<tool_call>\n<function=find>\n<parameter=what>\nx"}}) {
    const ToolFormat::Answer answer = format->read(text, tools, false);
    EXPECT_TRUE(answer.calls.empty()) << text.substr(0, 80);
    EXPECT_EQ(answer.content, text);
    expect_streams(*format, tools, text.substr(0, 300));
  }
  // What is thought calls nothing.
  const std::string thought = "<think>Should I <tool_call>" + json + "</tool_call>? No.</think>\nThe answer is 4.";
  EXPECT_EQ(hermes.read(thought, tools, false).content, thought);
  expect_streams(hermes, tools, thought);
  EXPECT_EQ(hermes.read("<think>no</think>\n<tool_call>" + json + "</tool_call>", tools, false).content, "<think>no</think>");
  EXPECT_EQ(bare.read("<think>no</think>\n" + json, tools, false).calls.size(), 1u);
  // Thoughts that the prompt has begun, which end or do not.
  const std::string begun = "Should I <tool_call>" + json + "</tool_call>? No.";
  for (const std::string& text : {begun, begun + "</think>\nThe answer is 4."}) {
    EXPECT_EQ(hermes.read(text, tools, true).content, text);
    EXPECT_TRUE(hermes.read(text, tools, true).calls.empty());
    EXPECT_EQ(hermes.read(text, tools, false).calls.size(), 1u);
    expect_streams(hermes, tools, text, true);
  }
  const std::string then = begun + "</think><tool_call>" + json + "</tool_call>";
  EXPECT_EQ(hermes.read(then, tools, true).calls.size(), 1u);
  EXPECT_EQ(hermes.read(then, tools, true).content, begun + "</think>");
  expect_streams(hermes, tools, then, true);
  EXPECT_EQ(bare.read(json + "</think>" + json, tools, true).calls.size(), 1u);
  EXPECT_TRUE(bare.read(json, tools, true).calls.empty());
  expect_streams(bare, tools, json + "</think>" + json, true);
  expect_streams(bare, tools, "<think>no</think>\n" + json);
  // Nor does what is no tool's name, or no call yet.
  for (const char* other :
       {"<tool_call>\n<function=finder>\n<parameter=what>\nx\n</parameter>\n</function>",
        "Use <function=find> in html.", "<tool_call>\n<function=find", "<tool_call>\n<function=find>\n<para",
        "<tool_call>\n<function=find>\n<parameter=what>\nx\n</parameter>\n<param"}) {
    EXPECT_TRUE(parameters.read(other, tools, false).calls.empty()) << other;
  }
  for (const char* other :
       {R"({"name": "Bob", "age": 3})", R"({"name": "find", "age": 3})", R"({"name": "", "parameters": {}})"}) {
    EXPECT_TRUE(bare.read(other, tools, false).calls.empty()) << other;
  }
  EXPECT_TRUE(hermes.read("<tool_call>{\"name\": \"finder\", \"arguments\": {}}</tool_call>", tools, false).calls.empty());
  // One that fails is not in the way of one that does not.
  const ToolFormat::Answer second =
      hermes.read("<think>a <tool_call>?</think>\n<tool_call>\n" + json + "\n</tool_call>", tools, false);
  EXPECT_EQ(second.content, "<think>a <tool_call>?</think>");
  ASSERT_EQ(second.calls.size(), 1u);
  // What is said behind calls stays.
  EXPECT_EQ(hermes.read("<tool_call>" + json + "</tool_call> and so on", tools, false).content, "and so on");
  EXPECT_EQ(bare.read(json + "; " + json, tools, false).calls.size(), 2u);
  // Numbers and order are the model's; line breaks in strings are taken as what they mean.
  EXPECT_EQ(hermes
                .read("<tool_call>{\"name\": \"find\", \"arguments\": {\"z\": 123456789012345678901234567890, \"a\": "
                      "1.50, \"t\": \"a\nb\"}}</tool_call>",
                      tools, false)
                .calls.at(0)
                .arguments,
            R"({"z":123456789012345678901234567890,"a":1.50,"t":"a\nb"})");
  EXPECT_EQ(hermes
                .read("<tool_call>{\"name\": \"find\", \"arguments\": {\"w\": \"" + std::string(100, '{') +
                          "\"}}</tool_call>",
                      tools, false)
                .calls.size(),
            1u);
  for (const char* nothing : {"null", "\"\"", "{}"}) {
    EXPECT_EQ(
        hermes.read(std::string("<tool_call>{\"name\": \"find\", \"arguments\": ") + nothing + "}</tool_call>", tools, false)
            .calls.at(0)
            .arguments,
        "{}");
  }
  EXPECT_EQ(
      hermes.read(R"(<tool_call>{"name": "find", "arguments": "{\"a\": 1}"}</tool_call>)", tools, false).calls.at(0).arguments,
      "{\"a\":1}");
  // Of a name that is there twice the last one counts, as in Python.
  EXPECT_EQ(hermes
                .read(R"(<tool_call>{"name": "find", "arguments": {"b": {"c": 1, "c": [2]}, "a": 1, "a": 2}}</tool_call>)", tools,
                      false)
                .calls.at(0)
                .arguments,
            R"({"a":2,"b":{"c":[2]}})");
  EXPECT_EQ(parameters
                .read("<function=find><parameter=n>3</parameter><parameter=n>4</parameter></function>", tools, false)
                .calls.at(0)
                .arguments,
            R"({"n":4})");
  // No arguments are none; the other name of them is known.
  EXPECT_EQ(hermes.read("<tool_call>{\"name\": \"find\"}</tool_call>", tools, false).calls.at(0).arguments, "{}");
  EXPECT_EQ(bare.read(json, tools, false).calls.at(0).arguments, R"({"what":"x"})");
  EXPECT_EQ(parameters.read("<function=find>\n</function>\n</tool_call>", tools, false).calls.at(0).arguments, "{}");
  // Other white space, and none; Python's words.
  EXPECT_EQ(parameters.read("<function=find><parameter=what>x</parameter><parameter=n>3</parameter></function>", tools, false)
                .calls.at(0)
                .arguments,
            R"({"what":"x","n":3})");
  EXPECT_EQ(parameters
                .read("<function=find>\n\n  <parameter=n>\nTrue\n</parameter>\n\n <parameter=m>\n[1, {\"a\": "
                      "null}]\n</parameter>\n</function>",
                      tools, false)
                .calls.at(0)
                .arguments,
            R"({"n":true,"m":[1,{"a":null}]})");
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  EXPECT_EQ(parameters.read("<function=find>\n<parameter=n>\n" + deep + "\n</parameter>\n</function>", tools, false)
                .calls.at(0)
                .arguments,
            "{\"n\":\"" + deep + "\"}");
  // What has quotes already, of a text; and what is no text.
  EXPECT_EQ(
      parameters
          .read(
              "<function=find>\n<parameter=what>\n\"a\"\n</parameter>\n<parameter=n>\nmany\n</parameter>\n</function>",
              tools, false)
          .calls.at(0)
          .arguments,
      R"({"what":"\"a\"","n":"many"})");
}

// Some templates join what a call is given as a text, or write calls only where nothing is said.
TEST(ToolFormat, ReadsWhatOtherStylesWrite) {
  const Tools tools(kTools);
  const std::string joined =
      "{% for c in m.tool_calls %}<call>{{ c.function.name + '<sep>' + c.function.arguments + '</call>' }}{% endfor %}";
  const std::string silent = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is none %}" + joined +
                             "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if "
                             "add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  std::string silent_dicts = silent;
  silent_dicts.replace(silent_dicts.find("c.function.arguments"), 20, "(c.function.arguments | tojson)");
  for (const std::string& source : {template_with(joined), silent, silent_dicts}) {
    const ChatProgram program(source, "", "", "FILE");
    const ToolFormat format(program);
    for (size_t n = 1; n <= kCalls.size(); ++n) {
      std::string text = written(program, {kCalls.begin(), kCalls.begin() + static_cast<std::ptrdiff_t>(n)});
      text = text.substr(0, text.find("<|im_end|>"));
      expect_calls(format.read(text, tools, false), n, text);
    }
  }
}

// Nothing of a conversation is left out without a word.
TEST(ChatProgram, HasAPlaceForCalls) {
  const ChatOptions options{.date = {2024, 7, 26}};
  std::vector<ChatMessage> messages = {{ChatRole::kUser, "q"},
                                       {.role = ChatRole::kAssistant, .content = "", .calls = {kCalls[0], kCalls[1]}},
                                       {.role = ChatRole::kTool, .content = "it is find"}};
  EXPECT_NE(message_of([&] { ChatProgram(template_with("none"), "", "", "FILE").write(messages, options); })
                .find("no place for this call of \"find_all\""),
            std::string::npos);
  const ChatProgram first(template_with("{{ m.tool_calls[0].function | tojson }}"), "", "", "FILE");
  EXPECT_NE(message_of([&] { (void)first.write(messages, options); }).find("find_all"), std::string::npos);
  messages[1].calls.pop_back();
  EXPECT_EQ(message_of([&] { (void)first.write(messages, options); }), "no error");
}

TEST(ToolFormat, SaysWhatItCannotRead) {
  const auto refused = [](const std::string& calls) {
    return message_of([&] { ToolFormat(ChatProgram(template_with(calls), "", "", "FILE")); });
  };
  for (const char* calls :
       {"", "{{ m.tool_calls | length }}", "{{ m.tool_calls[0].function.name }}(word='a')",
        "{% for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments.tiercel_word }}{% endfor %}"}) {
    EXPECT_NE(refused(calls).find("not supported"), std::string::npos) << calls;
  }
  EXPECT_NE(refused("{{ raise_exception('no tools') }}").find("no tools"), std::string::npos);
}

TEST(Tools, AreChecked) {
  for (const auto& [json, what] : std::initializer_list<std::pair<const char*, const char*>>{
           {"{}", "array"},
           {"[]", "a tool or more"},
           {"[1]", "tools: [0]"},
           {R"([{"type": "web"}])", "\"function\""},
           {R"([{"type": "function"}])", "function"},
           {R"([{"type": "function", "function": {"name": ""}}])", "a name"},
           {R"([{"type": "function", "function": {"name": "a", "parameters": 1}}])", "parameters"},
           {R"([{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "a"}}])",
            "another name"}}) {
    const std::string message = message_of([&] { Tools tools{std::string(json)}; });
    EXPECT_NE(message.find(what), std::string::npos) << json << ": " << message;
  }
  // What a schema allows but text.
  const Tools types(R"([{"type": "function", "function": {"name": "f", "parameters": {"properties": {
      "a": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "b": {"type": ["string", "null"]}, "c": {"enum": ["x", "y"]},
      "d": {"anyOf": [{"type": "string"}, {"type": "integer"}]}, "e": {"type": "boolean"}, "g": {"enum": [1]}, "h": {"anyOf": []}}}}}])");
  for (const char* text : {"a", "b", "c"}) EXPECT_TRUE(types.is_text("f", text)) << text;
  for (const char* other : {"d", "e", "g", "h", "missing"}) EXPECT_FALSE(types.is_text("f", other)) << other;
  const Tools tools(kTools);
  EXPECT_EQ(tools.name_at("find_all{"), "find_all");
  EXPECT_EQ(tools.name_at("find{"), "find");
  EXPECT_EQ(tools.name_at("fin"), "");
  EXPECT_TRUE(tools.may_begin("fin"));
  EXPECT_FALSE(tools.may_begin("fins"));
}

// What a template asks for beside messages and tools.
TEST(ChatTemplate, TakesVariables) {
  const ChatTemplate chat = ChatTemplate::parse(
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if "
      "add_generation_prompt %}<|im_start|>assistant\n"
      "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{{ mood }}{% endif "
      "%}",
      "", "", "FILE");
  const std::vector<ChatMessage> messages = {{ChatRole::kUser, "x"}};
  const auto text = [&](const ChatTemplate& of) { return of.text(messages, {}); };
  EXPECT_EQ(text(chat.with_variables("{}")), text(chat));
  EXPECT_TRUE(text(chat.with_variables(R"({"enable_thinking": false})")).ends_with("</think>\n\n"));
  const ChatTemplate both =
      chat.with_variables(R"({"enable_thinking": false, "mood": "sad"})").with_variables(R"({"mood": "gay"})");
  EXPECT_TRUE(text(both).ends_with("</think>\n\ngay"));
  for (const auto& [json, what] : std::initializer_list<std::pair<const char*, const char*>>{
           {"[]", "object"},
           {"{", "variables"},
           {R"({"messages": []})", "messages"},
           {R"({"thinking": 1})", "does not ask for thinking"}}) {
    const std::string message = message_of([&] { chat.with_variables(json); });
    EXPECT_NE(message.find(what), std::string::npos) << json << ": " << message;
  }
  // A conversation goes on with them.
  const Tokenizer tokenizer = Tokenizer::load(golden_path("qwen2"));
  const ChatTemplate quick = chat.with_variables(R"({"enable_thinking": false})");
  EXPECT_TRUE(tokenizer.decode(quick.encode_next_turn(tokenizer, "y")).ends_with("</think>\n\n"));
  EXPECT_FALSE(tokenizer.decode(chat.encode_next_turn(tokenizer, "y")).ends_with("</think>\n\n"));
}

}  // namespace
}  // namespace tiercel::test
