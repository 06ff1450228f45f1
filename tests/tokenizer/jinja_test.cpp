// Chat templates that are run: identity with jinja2 (tests/golden/chat/jinja.json) and with transformers, what is
// refused, and whose words are whose.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <iostream>

#include "engine/base/check.h"
#include "engine/text/chat_program.h"
#include "engine/text/chat_template.h"
#include "engine/text/jinja/template.h"
#include "tests/tokenizer/corpus.h"

namespace tiercel::test {
namespace {

using Json = nlohmann::ordered_json;
using jinja::Budget;
using jinja::Dict;
using jinja::ListMaker;
using jinja::Text;
using jinja::Value;

Json read_golden(const char* name) {
  return Json::parse(read_file(std::string(TIERCEL_SOURCE_DIR) + "/tests/golden/chat/" + name));
}

// Strings are somebody's words.
Value value_of(const Json& json, Budget& budget) {
  if (json.is_null()) return Value();
  if (json.is_boolean()) return Value(json.get<bool>());
  if (json.is_number_integer()) return Value(json.get<int64_t>());
  if (json.is_number()) return Value(json.get<double>());
  if (json.is_string()) return Value(Text::foreign(json.get<std::string>()));
  if (json.is_array()) {
    ListMaker list(budget);
    for (const Json& element : json) list.push(value_of(element, budget));
    return list.take();
  }
  Dict dict;
  for (const auto& [key, member] : json.items()) dict.set(Text::foreign(key), value_of(member, budget), budget);
  return dict_of(std::move(dict));
}

Text rendered(const std::string& source, const Json& variables = Json::object()) {
  Budget budget = jinja::budget_of_input();
  return jinja::Template::parse(source, "FILE").render(*value_of(variables, budget).dict(), {});
}
std::string written(const std::string& source, const Json& variables = Json::object()) {
  return std::string(rendered(source, variables).view());
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

// Of the templates that were drawn at random, a few are refused: what jinja2 would compute later or never is computed
// at once.
TEST(Jinja, WritesWhatJinja2Writes) {
  const Json golden = read_golden("jinja.json");
  const Json& variables = golden["variables"];
  EXPECT_GT(golden["cases"].size(), 1000u);
  size_t n_refused = 0;
  for (const Json& c : golden["cases"]) {
    const std::string source = c["template"];
    std::string text;
    const std::string message = error_of([&] { text = written(source, variables); });
    const bool is_refused = message != "no error", may_be = c.value("drawn", false) || !c.contains("text");
    if (is_refused) {
      EXPECT_TRUE(may_be) << source << "\n" << message;
      EXPECT_TRUE(message.starts_with("FILE: line ")) << source << "\n" << message;
      if (c.contains("text")) ++n_refused;
    } else if (c.contains("text")) {
      EXPECT_EQ(text, c["text"].get<std::string>()) << source;
    } else {
      ADD_FAILURE() << source << "\njinja2: " << c["error"] << "\nhere: " << text;
    }
  }
  EXPECT_LT(n_refused, golden["cases"].size() / 50);
}

TEST(Jinja, ErrorsNameTheLine) {
  EXPECT_NE(error_of([] { rendered("a\nb {{ 1 + }}"); }).find("line 2: expected an expression, found }}"),
            std::string::npos);
  EXPECT_NE(error_of([] { rendered("\n\n{{ q.a }}"); }).find("line 3: 'q' is undefined"), std::string::npos);
  EXPECT_NE(error_of([] { rendered("{% include 'x' %}"); }).find("no other statement"), std::string::npos);
  EXPECT_NE(error_of([] { rendered("{{ 1 | centre }}"); }).find("the filter centre is not supported"),
            std::string::npos);
  EXPECT_NE(
      error_of([] { rendered("{% macro m() %}\n{{ 1 / 0 }}\n{% endmacro %}\n{{ m() }}"); }).find("line 2: division"),
      std::string::npos);
}

// What a hostile file may ask for ends with a message, soon and within some memory.
TEST(Jinja, EndsWhatHasNoEnd) {
  const auto begin = std::chrono::steady_clock::now();
  const auto refused = [](const std::string& source, const Json& variables = Json::object()) {
    EXPECT_NE(error_of([&] { rendered(source, variables); }), "no error") << source.substr(0, 80);
  };
  const std::string grow = "{% set ns = namespace(x='aaaaaaaa', y=[1, 2], z={}) %}{% for i in range(200) %}",
                    end = "{% endfor %}";
  // Steps, and bytes.
  refused("{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}");
  for (const char* twice : {"x = ns.x ~ ns.x", "x = ns.x + ns.x", "x = ns.x * 2", "x = ns.x | replace('a', 'aa')",
                            "x = ns.x.join(['a', ns.x])", "x = [ns.x, ns.x] | join", "x = '%s%s' % (ns.x, ns.x)",
                            "x = '{}{}'.format(ns.x, ns.x)", "x = ns.x.replace('', ns.x)",
                            "x = ns.x.center(ns.x | length * 2)", "y = ns.y + ns.y", "y = ns.y * 2"}) {
    refused(grow + "{% set ns." + twice + " %}" + end);
  }
  refused("{{ 'a' * 10000000000 }}");
  refused("{{ '' * 9000000000000000000 }}{{ [] * 9000000000000000000 }}{{ 'a' * 900000000000000000 }}");
  refused("{{ 'a\na' | indent(100000000000) }}");
  refused("{{ {'a': {'b': 1}} | tojson(indent='" + std::string(100'000, ' ') + "') * 100000 }}");
  // Little that stands for a great deal: 2^80 numbers.
  const std::string pairs =
      "{% set ns = namespace(y=[1]) %}{% for i in range(80) %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
  for (const char* use : {"{{ ns.y }}", "{{ ns.y | tojson }}",
                          "{% set ms = namespace(y=[1]) %}{% for i in range(80) %}{% set ms.y = [ms.y, ms.y] %}{% "
                          "endfor %}{{ ns.y == ms.y }}",
                          "{{ ns.y | string }}", "{{ ns.y ~ '' }}"}) {
    refused(pairs + use);
  }
  refused(
      "{% set ns = namespace(y=(1, 2)) %}{% for i in range(80) %}{% set ns.y = (ns.y, ns.y) %}{% endfor %}{{ {ns.y: 1} "
      "}}");
  // Much of what is quadratic.
  const std::string strings =
      "{% set ns = namespace(y=[]) %}{% for i in range(100000) %}{% set ns.y = ns.y + [i | string] %}{% endfor %}";
  refused(strings);
  EXPECT_EQ(written("{{ range(100000) | map('string') | unique | list | length }}{{ range(100000) | map('string') | "
                    "sort | length }}"),
            "100000100000");
  // What each step takes longer for than it looks.
  const Json words = {{"m", std::string(100'000, 'w')}};
  std::string parameters, sets, members, named;
  for (int i = 0; i < 150; ++i) parameters += fmt::format("a{},", i);
  for (int i = 0; i < 5000; ++i) sets += fmt::format("{{% set a{} = 1 %}}", i);
  for (int i = 0; i < 5000; ++i) members += "{(c,): 1},";
  for (int i = 0; i < 5000; ++i) named += fmt::format("b{}=1,", i);
  const std::string often = "{% for i in range(100000) %}{% for j in range(1000) %}";
  for (const std::string& source : std::initializer_list<std::string>{
           "{% macro q(" + parameters + ") %}{% endmacro %}" + often + "{{ q() }}{% endfor %}{% endfor %}",
           sets + often + "{{ z ~ z ~ z }}{% endfor %}{% endfor %}",
           "{% set c = 'x' * 1000000 %}{% set d = {} %}" + often +
               "{{ d[c] }}{{ d.get((c,)) }}{% endfor %}{% endfor %}",
           "{% set c = 'x' * 10000000 %}{{ [" + members + "] | length }}",
           "{% set f = '{a}' * 1000000 %}" + often + "{{ f.format(a=1, " + named +
               ") | length }}{% endfor %}{% endfor %}",
           "{% set b = 'b' ~ 'a' * 500000 %}{{ ('a' * 10000000).rfind(b) }}"}) {
    refused(source);
  }
  for (const char* use : {"m.isalpha()", "m.strip('abcdefghijklmnopqrstuvw')", "m.count('b')", "m[3]",
                          "m | upper | length", "m.split('b') | length", "m | wordcount", "m.splitlines() | length"}) {
    refused(often + "{{ " + use + " }}{% endfor %}{% endfor %}", words);
  }
  refused("{% set ns = namespace(a=m) %}{% for i in range(20) %}{% set ns.a = ns.a + ns.a %}{% endfor %}", words);
  EXPECT_EQ(written("{% set a = 'a' * 1000000 %}{{ 'a' * 500000 ~ 'b' in a }}"), "False");
  refused("{% macro m(" + parameters + parameters + ") %}{% endmacro %}");
  // What is in each other.
  refused("{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}");
  refused(
      "{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x }}");
  refused(
      "{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% for j in [ns.x] %}{% set ns.x = loop %}{% endfor "
      "%}{% endfor %}");
  refused("{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = [ns.x.index] %}{% endfor %}");
  refused("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
  refused("{{ [[1]] | map('map', 'map', 'map') | list | map('sum') | list }}");
  std::string maps = "{{ [1] | map('map'";
  for (int i = 0; i < 5000; ++i) maps += ", 'map'";
  refused(maps + ") | list }}");
  std::string deep = "m()";
  for (int i = 0; i < 90; ++i) deep = "1+(" + deep + ")";
  refused("{% macro m() %}{{ " + deep + " }}{% endmacro %}{{ m() }}");
  refused("{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}");
  std::string sum = "{{ 1", nested, calls = "{{ 'a'";
  for (int i = 0; i < 20000; ++i) sum += "+1";
  for (int i = 0; i < 5000; ++i) nested += "{% if true %}";
  for (int i = 0; i < 5000; ++i) calls += ".strip()";
  refused(sum + " }}");
  refused(nested);
  refused(calls + " }}");
  // Numbers that are none.
  for (const char* number :
       {"9223372036854775807 + 1", "(-9223372036854775807 - 1) // -1", "-(-9223372036854775807 - 1)", "1e300 | int",
        "1e999", "('9' * 30) | int", "2 ** 64", "99999999999999999999"}) {
    refused(std::string("{{ ") + number + " }}");
  }
  EXPECT_EQ(written("{{ (-9223372036854775807 - 1) % -1 }} {{ (-9223372036854775807 - 1) is divisibleby(-1) }} {{ [1, "
                    "2][-9223372036854775807 - 1:] }}"
                    "{{ [1, 2][::9223372036854775807] }}{{ range(0, 9223372036854775807, 9223372036854775806) | list | "
                    "length }}"),
            "0 True [1, 2][1]2");
  EXPECT_EQ(
      written("{{ ''.split('a') }}{{ 'a' in '' }}{{ ''.find('a') }}{{ ''.replace('a', 'b') }}{{ ''.count('a') }}"),
      "['']False-10");
  // What is no text.
  refused("{{ '\\ud800' | upper }}");
  EXPECT_EQ(written("{{ '\xff' | upper }}"), "\uFFFD");
  // Namespaces and macros that hold each other go all the same (leaks are the sanitizer's to find).
  EXPECT_EQ(written("{% set ns = namespace() %}{% for i in [1] %}{% macro g() %}{% endmacro %}{% set ns.f = g %}{% "
                    "endfor %}{% set h = ns.f %}x"),
            "x");
  EXPECT_EQ(written("{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{% macro m() %}x{% endmacro "
                    "%}{% set a.m = m %}x"),
            "x");
  EXPECT_EQ(written("{% set ns = namespace() %}{% for i in [1] %}{% macro m() %}{{ i }}{{ m is defined }}{% endmacro "
                    "%}{% set ns.m = m %}"
                    "{% endfor %}{{ ns.m() }}"),
            "1True");
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  std::cout << fmt::format("{:.1f} s\n", took.count());
}

// A prompt of a million tokens is some megabytes, a conversation has thousands of messages.
TEST(Jinja, TakesLongWords) {
  const Json words = {{"u", std::string(6'000'000, 'a') + "\" "}};
  const Text text = rendered(
      "{% if u | length > 3 and u[0] == 'a' and 'x' not in u %}<{{ u | trim }}>{{ u[-2:] }}{{ u[:1] }}"
      "{{ u.split('b')[0] | upper | length }}{{ (u | tojson | length) }}{% endif %}",
      words);
  EXPECT_EQ(text.size(), 6'000'001u + 2 + 2 + 1 + 7 + 7);
  EXPECT_EQ(text.foreign_ranges().size(), 2u);
  // As many runs of words as there are quotes.
  const Text json = rendered("{{ u | tojson | upper }}", {{"u", Json::array({std::string(150'000, '"')})}});
  EXPECT_EQ(json.size(), 300'004u);
  Json messages = Json::array();
  for (int i = 0; i < 10'000; ++i)
    messages.push_back({{"role", i % 2 == 0 ? "user" : "assistant"}, {"content", fmt::format("words {}", i)}});
  const Text all = rendered(
      "{% for m in messages %}{% if loop.index0 < messages | length and m.role in ['user', 'assistant'] %}"
      "{{ m['content'] | trim ~ (',' if not loop.last) }}{% set q = messages[loop.index0 - 1].role %}{% endif %}{% "
      "endfor %}",
      {{"messages", messages}});
  EXPECT_EQ(all.foreign_ranges().size(), 10'000u);
}

// <..> around what somebody else wrote.
std::string marked(const Text& text) {
  std::string result;
  size_t at = 0;
  for (const Text::Range& range : text.foreign_ranges()) {
    result += std::string(text.view().substr(at, range.begin - at)) + "<" +
              std::string(text.view().substr(range.begin, range.end - range.begin)) + ">";
    at = range.end;
  }
  return result + std::string(text.view().substr(at));
}

TEST(Jinja, KnowsWhoseWordsAreWhose) {
  const Json variables = {{"u", " ab,CD "}, {"m", {"x", "y"}}, {"d", {{"k", "v"}}}, {"q", "a\"b"}, {"n", "a\nb"}};
  const auto said = [&](const std::string& source) { return marked(rendered(source, variables)); };
  EXPECT_EQ(said("[{{ u }}]"), "[< ab,CD >]");
  EXPECT_EQ(said("{{ 'a' + u + 'b' ~ u }}"), "a< ab,CD >b< ab,CD >");
  EXPECT_EQ(said("{{ u | trim }}{{ u.strip() | upper }}{{ u | lower }}"), "<ab,CDAB,CD ab,cd >");
  EXPECT_EQ(said("{{ u.split(',')[0] }}|{{ u[1:3] }}|{{ u | trim | reverse }}|{{ u[1] }}|{{ u | list | join }}"),
            "< ab>|<ab>|<DC,ba>|<a>|< ab,CD >");
  EXPECT_EQ(said("{{ u | replace(',', '--') }}"), "< ab>--<CD >");
  EXPECT_EQ(said("{{ 'a-b' | replace('-', u) }}{{ 'ab'.replace('', m[0]) }}"), "a< ab,CD >b<x>a<x>b<x>");
  EXPECT_EQ(said("{{ m | join('+') }} {{ m }}"), "<x>+<y> ['<x>', '<y>']");
  EXPECT_EQ(said("{{ {'k': u} | tojson }}{{ q | tojson }}{{ q | e }}"), "{\"k\": \"< ab,CD >\"}\"<a\\\"b>\"<a&#34;b>");
  EXPECT_EQ(said("{% set v %}({{ u }}){% endset %}{{ v }}{% macro q(a) %}[{{ a }}]{% endmacro %}{{ q(u) }}"),
            "(< ab,CD >)[< ab,CD >]");
  EXPECT_EQ(said("{{ 'yes' if 'ab' in u else 'no' }}"), "yes");
  // Keys of dicts are words as well.
  EXPECT_EQ(said("{% for k in {u: 1} %}{{ k }}{% endfor %}{% for k, v in d.items() %}{{ k }}={{ v }}{% endfor %}{{ d | "
                 "list | join }}{{ d | tojson }}"),
            "< ab,CD k>=<vk>{\"<k>\": \"<v>\"}");
  EXPECT_EQ(said("{{ '%s!' % m[0] }}{{ '{}!'.format(m[1]) }}{{ u.partition(',')[1] }}{{ 'a\nb' | indent(m[0]) }}"),
            "<x>!<y>!<,>a\n<x>b");
  EXPECT_EQ(said("{{ [1] | tojson(indent=m[0]) }}{{ 'a'.ljust(3, m[1]) }}{{ 'a\nb' ~ u.split(',')[0] | indent(1) }}"),
            "[\n<x>1\n]a<yy>a\nb< ab>");
  EXPECT_EQ(said("{{ n | indent(1) }}"), "<a\n> <b>");
  EXPECT_EQ(
      said("{% filter upper %}a{{ m[0] }}{% endfilter %}{{ dict(a=u).a }}{{ namespace(a=u).a }}{{ u.center(9, '-') }}"),
      "A<X ab,CD  ab,CD >-< ab,CD >-");
  // A clock writes what it is asked to.
  Budget budget = jinja::budget_of_input();
  const auto clock = [](const std::string& format) { return format; };
  EXPECT_EQ(marked(jinja::Template::parse("{{ strftime_now('%d') }}{{ strftime_now(u) }}", "FILE")
                       .render(*value_of(variables, budget).dict(), clock)),
            "%d< ab,CD >");
}

TEST(ChatProgram, SaysWhatCannotBeRun) {
  const auto refused = [](const std::string& source, const std::vector<std::string>& parts) {
    const std::string message = error_of([&] { ChatTemplate::parse(source, "<s>", "</s>", "FILE"); });
    for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  refused("{{ messages | length }}",
          {"FILE: expected a chat template that can be run", "does not write what a user says", "--chat"});
  refused("{% for m in messages %}", {"line 1: expected {% endfor %}"});
  refused("{{ raise_exception('only tools') }}", {"only tools"});
  const ChatTemplate once =
      ChatTemplate::parse("{{ bos_token }}Q: {{ messages[-1].content }} A:", "<s>", "</s>", "FILE");
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
