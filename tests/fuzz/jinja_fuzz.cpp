// Arbitrary text as a template that is run. Only Error may come out, what is written is valid UTF-8, and words stay
// words: no byte of them becomes the template's own.
#include <cstdint>
#include <string>

#include "engine/base/check.h"
#include "engine/text/jinja/template.h"
#include "engine/text/utf8.h"

namespace {

using namespace tiercel;
using namespace tiercel::jinja;

constexpr std::string_view kWord = "\u0416";  // which no template here has

Value words(std::string text) { return Text::foreign(std::move(text)); }

Dict variables(Budget& budget) {
  const std::string w(kWord);
  Dict function, message;
  function.set(words(w), words(w + "<|x|>" + w), budget);
  function.set(Text::native("items"), int64_t{1}, budget);
  message.set(Text::native("role"), Text::native("user"), budget);
  message.set(Text::native("content"), words(" " + w + "\n<b>" + w + ", " + w + " "), budget);
  message.set(Text::native("f"), dict_of(std::move(function)), budget);
  ListMaker messages(budget), numbers(budget);
  const Value one = dict_of(std::move(message));
  for (int i = 0; i < 3; ++i) messages.push(one);
  for (const double number : {1.5, -2.0, 1e300}) numbers.push(number);
  Dict all;
  all.set(Text::native("messages"), messages.take(), budget);
  all.set(Text::native("x"), numbers.take(), budget);
  all.set(Text::native("s"), words(w + "a" + w + "a" + w), budget);
  all.set(Text::native("n"), Value(), budget);
  all.set(Text::native("t"), true, budget);
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string source(reinterpret_cast<const char*>(data), size);
  // Escapes can spell it, and the other case of a letter of the template is not a word's.
  for (const char* other : {"\u0416", "\u0436", "\\u04", "\\U0", "0x", "\\N"}) {
    if (source.find(other) != source.npos) return 0;
  }
  try {
    Budget budget = budget_of_input();
    const Template program = Template::parse(source, "fuzz");
    const Text text = program.render(
        variables(budget), [](const std::string& format) { return format; }, 20'000);
    CHECK(valid_utf8_prefix(text.view()) == text.size(), "");
    for (const std::string_view word : {kWord, std::string_view("\u0436")}) {
      for (size_t at = text.view().find(word); at != std::string_view::npos; at = text.view().find(word, at + 1)) {
        CHECK(text.is_foreign(at) && text.is_foreign(at + 1), "{}", source);
      }
    }
  } catch (const Error&) {
  }
  return 0;
}
