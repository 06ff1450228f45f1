#include "engine/text/chat_program.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

using jinja::Dict;
using jinja::List;
using jinja::Text;
using jinja::Value;

// Words that nobody's template has.
constexpr const char *kQuestion = "a question for tiercel", *kAnswer = "an answer of tiercel";

std::string valid_utf8(std::string_view text) {
  std::string valid;
  append_valid_utf8(text, &valid);
  return valid;
}

std::string formatted(const ChatDate& date, const std::string& format) {
  std::tm day = {};
  day.tm_year = date.year - 1900;
  day.tm_mon = date.month - 1;
  day.tm_mday = date.day;
  day.tm_hour = 12;
  std::mktime(&day);  // which finds the day of the week
  char text[256];
  const size_t n = std::strftime(text, sizeof text, format.c_str(), &day);
  return {text, n};
}

// Where the last of these words ends; npos: they are not there.
size_t end_of_words(const Text& text, std::string_view words) {
  const size_t at = text.view().rfind(words);
  return at == std::string_view::npos ? at : at + words.size();
}

}  // namespace

std::shared_ptr<const ChatProgram> ChatProgram::parse(std::string_view source, const std::string& bos,
                                                      const std::string& eos, const std::string& name) {
  auto program = std::make_shared<ChatProgram>();
  program->template_ = jinja::Template::parse(source, name);
  program->bos_ = bos;
  program->eos_ = eos;
  program->name_ = name;
  program->asks_for_date_ = source.find("strftime_now") != source.npos;
  const ChatDate some_day{.year = 2024, .month = 7, .day = 26};
  const std::vector<ChatMessage> question = {{ChatRole::kUser, kQuestion}};
  if (end_of_words(program->write(question, true, some_day), kQuestion) == std::string_view::npos) {
    fail(ErrorKind::kUsage, "{}: the template does not write what a user says", name);
  }
  // Thoughts, for one, are often left out of all but the last answer.
  try {
    std::vector<ChatMessage> messages = question;
    messages.push_back({ChatRole::kAssistant, std::string("<think>\nhm\n</think>\n\n") + kAnswer});
    const Text before = program->write(messages, false, some_day);
    messages.push_back({ChatRole::kUser, kQuestion});
    program->rewrites_ = !program->write(messages, false, some_day).view().starts_with(before.view());
  } catch (const Error&) {
    // A template for one question and one answer.
  }
  return program;
}

Text ChatProgram::write(std::span<const ChatMessage> messages, bool add_generation_prompt, const ChatDate& date) const {
  List list;
  for (const ChatMessage& message : messages) {
    Dict one;
    one.set("role", Value(std::string(name_of(message.role))));
    one.set("content", Value(Text(valid_utf8(message.content), /*foreign=*/true)));
    list.emplace_back(std::move(one));
  }
  Dict variables;
  variables.set("messages", Value(std::move(list)));
  variables.set("add_generation_prompt", Value(add_generation_prompt));
  variables.set("tools", Value());
  variables.set("documents", Value());
  if (!bos_.empty()) variables.set("bos_token", Value(bos_));
  if (!eos_.empty()) variables.set("eos_token", Value(eos_));
  std::function<std::string(const std::string&)> clock;
  if (date.year != 0) {
    clock = [&](const std::string& format) { return formatted(date, format); };
    variables.set("date_string", Value(formatted(date, "%d %b %Y")));
  }
  return template_.render(variables, clock);
}

Text ChatProgram::behind_answer(std::string_view user) const {
  const std::vector<ChatMessage> messages = {
      {ChatRole::kUser, kQuestion}, {ChatRole::kAssistant, kAnswer}, {ChatRole::kUser, std::string(user)}};
  const Text text = write(messages, true, {.year = 2024, .month = 7, .day = 26});
  const size_t end = text.view().find(kAnswer);
  if (end == std::string_view::npos) {
    fail(ErrorKind::kUsage, "{}: the template does not write earlier answers as they were; it cannot go on in a session",
         name_);
  }
  return text.substr(end + std::string_view(kAnswer).size());
}

Text ChatProgram::generation_prompt() const {
  const std::vector<ChatMessage> question = {{ChatRole::kUser, kQuestion}};
  const ChatDate some_day{.year = 2024, .month = 7, .day = 26};
  const Text with = write(question, true, some_day), without = write(question, false, some_day);
  if (with.view().starts_with(without.view()) && with.size() > without.size()) return with.substr(without.size());
  return with.substr(end_of_words(with, kQuestion));
}

std::vector<ChatPiece> ChatProgram::pieces(const Text& text, const Tokenizer& tokenizer) {
  std::vector<std::string_view> special;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.is_special(id) && !tokenizer.token(id).empty()) special.push_back(tokenizer.token(id));
  }
  std::ranges::sort(special, [](std::string_view a, std::string_view b) { return a.size() > b.size(); });
  std::vector<ChatPiece> pieces;
  const auto add_text = [&](std::string_view words) {
    if (!words.empty()) pieces.push_back({ChatPiece::kText, std::string(words)});
  };
  // The template's own words, in which the longest token at the first place counts.
  const auto add_own = [&](std::string_view words) {
    size_t plain = 0;
    for (size_t at = 0; at < words.size();) {
      const auto found = std::ranges::find_if(special, [&](std::string_view s) { return words.substr(at).starts_with(s); });
      if (found == special.end()) {
        ++at;
        continue;
      }
      add_text(words.substr(plain, at - plain));
      pieces.push_back({ChatPiece::kSpecial, std::string(*found)});
      plain = at += found->size();
    }
    add_text(words.substr(plain));
  };
  size_t at = 0;
  for (const Text::Range& range : text.foreign()) {
    add_own(text.view().substr(at, range.begin - at));
    add_text(text.view().substr(range.begin, range.end - range.begin));
    at = range.end;
  }
  add_own(text.view().substr(at));
  return pieces;
}

}  // namespace tiercel
