#include "engine/text/chat_program.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

using jinja::Text;
using jinja::Value;

// Words that nobody's template has.
constexpr const char *kSystem = "a rule of tiercel", *kQuestion = "a question for tiercel", *kThought = "a thought of tiercel",
                     *kAnswer = "an answer of tiercel";
constexpr ChatDate kSomeDay{.year = 2024, .month = 7, .day = 26};

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
  day.tm_isdst = -1;
  std::mktime(&day);  // which finds the day of the week
  char text[256];
  const size_t n = std::strftime(text, sizeof text, format.c_str(), &day);
  return {text, n};
}

// Behind the last of these words; npos: they are not there.
size_t end_of_words(const Text& text, std::string_view words) {
  const size_t at = text.view().rfind(words);
  return at == std::string_view::npos ? at : at + words.size();
}

jinja::Dict message_value(const ChatMessage& message, jinja::Budget& budget) {
  jinja::Dict one;
  one.set(Text::native("role"), Text::native(std::string(name_of(message.role))), budget);
  one.set(Text::native("content"), Text::foreign(valid_utf8(message.content)), budget);
  return one;
}

}  // namespace

ChatProgram::ChatProgram(std::string_view source, const std::string& bos, const std::string& eos, const std::string& name)
    : template_(jinja::Template::parse(source, name)), bos_(valid_utf8(bos)), eos_(valid_utf8(eos)), name_(name) {
  const std::vector<ChatMessage> question = {{ChatRole::kUser, kQuestion}};
  const Text text = write(question, true, kSomeDay);
  if (end_of_words(text, kQuestion) == std::string_view::npos) {
    fail(ErrorKind::kUsage, "{}: the template does not write what a user says", name);
  }
  rewrites_ = finds_rewriting();
}

// A session holds a conversation as it was when each turn was written, with all that was thought.
bool ChatProgram::finds_rewriting() const {
  for (const bool has_system : {true, false}) {
    try {
      std::vector<ChatMessage> messages;
      if (has_system) messages.push_back({ChatRole::kSystem, kSystem});
      messages.push_back({ChatRole::kUser, kQuestion});
      const Text asked = write(messages, true, kSomeDay);
      messages.push_back({ChatRole::kAssistant, std::string("<think>\n") + kThought + "\n</think>\n\n" + kAnswer});
      messages.push_back({ChatRole::kUser, "and more"});
      const Text later = write(messages, true, kSomeDay);
      const std::string_view before = asked.view().substr(0, end_of_words(asked, kQuestion));
      return !later.view().starts_with(before) || later.view().find(kThought) == std::string_view::npos;
    } catch (const Error&) {
      // No system message, or a template for one question only.
    }
  }
  return false;
}

Text ChatProgram::write(std::span<const ChatMessage> messages, bool add_generation_prompt, const ChatDate& date) const {
  jinja::Budget budget = jinja::budget_of_input();
  jinja::ListMaker list(budget);
  for (const ChatMessage& message : messages) list.push(jinja::dict_of(message_value(message, budget)));
  jinja::Dict variables;
  const auto set = [&](const char* name, Value value) { variables.set(Text::native(name), std::move(value), budget); };
  set("messages", list.take());
  set("add_generation_prompt", add_generation_prompt);
  set("tools", Value());
  set("documents", Value());
  if (!bos_.empty()) set("bos_token", Text::native(bos_));
  if (!eos_.empty()) set("eos_token", Text::native(eos_));
  jinja::Clock clock;
  if (date.year != 0) {
    clock = [&](const std::string& format) { return formatted(date, format); };
    // Which templates without a clock are given by whoever knows one.
    if (!asks_for_date()) set("date_string", Text::native(formatted(date, "%d %b %Y")));
  }
  return template_.render(variables, clock);
}

ChatProgram::NextTurn ChatProgram::next_turn(std::string_view user, const Tokenizer& tokenizer) const {
  const std::vector<ChatMessage> messages = {
      {ChatRole::kUser, kQuestion}, {ChatRole::kAssistant, kAnswer}, {ChatRole::kUser, std::string(user)}};
  const Text text = write(messages, true, kSomeDay);
  const size_t end = text.view().find(kAnswer);
  if (end == std::string_view::npos) {
    fail(ErrorKind::kUsage, "{}: the template does not write earlier answers as they were; it cannot go on in a session",
         name_);
  }
  jinja::Budget budget = jinja::budget_of_input();
  const Text behind = jinja::part_of(text, end + std::string_view(kAnswer).size(), text.size(), budget);
  // What is the user's is behind what the template itself says there.
  const std::vector<Text::Range> words = behind.foreign_ranges();
  const std::string_view own = behind.view().substr(0, words.empty() ? behind.size() : words[0].begin);
  NextTurn next;
  size_t used = 0;
  for (const TextSegment& segment : tokenizer.split_special(own)) {
    used += segment.text.size();
    if (segment.token < 0) continue;
    next.end_of_turn = std::string(segment.text);
    next.pieces = pieces(jinja::part_of(behind, used, behind.size(), budget), tokenizer);
    return next;
  }
  fail(ErrorKind::kUsage, "{}: the chat template ends an answer with no special token; it cannot go on in a session", name_);
}

Text ChatProgram::generation_prompt() const {
  const std::vector<ChatMessage> question = {{ChatRole::kUser, kQuestion}};
  const Text with = write(question, true, kSomeDay), without = write(question, false, kSomeDay);
  const bool goes_on = with.view().starts_with(without.view()) && with.size() > without.size();
  jinja::Budget budget = jinja::budget_of_input();
  return jinja::part_of(with, goes_on ? without.size() : end_of_words(with, kQuestion), with.size(), budget);
}

std::vector<ChatPiece> ChatProgram::pieces(const Text& text, const Tokenizer& tokenizer) {
  std::vector<ChatPiece> pieces;
  const auto add_words = [&](std::string_view words) {
    if (!words.empty()) pieces.push_back({ChatPiece::kText, std::string(words)});
  };
  const auto add_own = [&](std::string_view own) {
    for (const TextSegment& segment : tokenizer.split_special(own)) {
      if (segment.token < 0) {
        add_words(segment.text);
      } else {
        pieces.push_back({ChatPiece::kSpecial, std::string(segment.text)});
      }
    }
  };
  size_t at = 0;
  for (const Text::Range& range : text.foreign_ranges()) {
    add_own(text.view().substr(at, range.begin - at));
    add_words(text.view().substr(range.begin, range.end - range.begin));
    at = range.end;
  }
  add_own(text.view().substr(at));
  return pieces;
}

}  // namespace tiercel
