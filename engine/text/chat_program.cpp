#include "engine/text/chat_program.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/jinja/from_json.h"
#include "engine/text/jinja/strings.h"
#include "engine/text/tool_calls/probe_call.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

using jinja::Text;
using jinja::Value;

// Words that nobody's template has.
constexpr const char *kSystem = "a rule of tiercel", *kSomeQuestion = "a question for tiercel",
                     *kThought = "a thought of tiercel", *kSomeAnswer = "an answer of tiercel";
constexpr ChatDate kSomeDay{.year = 2024, .month = 7, .day = 26};

std::string valid_utf8(std::string_view text) {
  std::string valid;
  append_valid_utf8(text, &valid);
  return valid;
}

// Without white space around it, as templates write it.
std::string stripped(std::string_view words) {
  const std::string valid = valid_utf8(words);
  const size_t begin = jinja::leading_space(valid);
  return begin == valid.size() ? std::string()
                               : valid.substr(begin, valid.size() - begin - jinja::trailing_space(valid));
}

// Throws Problem: strftime would not end where the format does.
std::string formatted(const ChatDate& date, const std::string& format) {
  std::tm day = {};
  day.tm_year = date.year - 1900;
  day.tm_mon = date.month - 1;
  day.tm_mday = date.day;
  day.tm_hour = 12;
  day.tm_isdst = -1;
  std::mktime(&day);  // which finds the day of the week
  char text[1024];
  const size_t n = std::strftime(text, sizeof text, (format + "|").c_str(), &day);  // never empty
  if (n == 0 || format.find('\0') != format.npos) throw jinja::Problem("strftime_now: expected a shorter format");
  return {text, n - 1};
}

// Behind the last of these words; npos: they are not there.
size_t end_of_words(const Text& text, std::string_view words) {
  const size_t at = text.view().rfind(words);
  return at == std::string_view::npos ? at : at + words.size();
}

Value call_value(const ToolCall& call, bool arguments_are_text, jinja::Budget& budget) {
  jinja::Dict one, function;
  function.set(Text::native("name"), Text::foreign(valid_utf8(call.name)), budget);
  function.set(Text::native("arguments"),
               arguments_are_text ? Value(Text::foreign(valid_utf8(call.arguments)))
                                  : jinja::value_of_json(call.arguments, budget),
               budget);
  one.set(Text::native("id"), Text::foreign(valid_utf8(call.id)), budget);
  one.set(Text::native("type"), Text::native("function"), budget);
  one.set(Text::native("function"), jinja::dict_of(std::move(function)), budget);
  return jinja::dict_of(std::move(one));
}

// Whether what was asked is followed by the answer, later on; but for white space between them.
bool continues(std::string_view asked, std::string_view later) {
  constexpr std::string_view kBlanks = " \t\n";
  const size_t end = asked.find_last_not_of(kBlanks) + 1;
  if (!later.starts_with(asked.substr(0, end))) return false;
  later.remove_prefix(end);
  return later.substr(std::min(later.find_first_not_of(kBlanks), later.size())).starts_with(kSomeAnswer);
}

Value message_value(const ChatMessage& message, const ChatProgram::CallStyle& style, jinja::Budget& budget) {
  jinja::Dict one;
  const auto set = [&](const char* name, Value value) { one.set(Text::native(name), std::move(value), budget); };
  const auto set_words = [&](const char* name, const std::string& words) {
    if (!words.empty()) set(name, Text::foreign(valid_utf8(words)));
  };
  set("role", Text::native(std::string(name_of(message.role))));
  const bool is_none = style.content_is_none && message.content.empty() && !message.calls.empty();
  set("content", is_none ? Value() : Value(Text::foreign(valid_utf8(message.content))));
  set_words("reasoning_content", message.reasoning);
  set_words("tool_call_id", message.call_id);
  set_words("name", message.name);
  if (!message.calls.empty()) {
    jinja::ListMaker calls(budget);
    for (const ToolCall& call : message.calls) calls.push(call_value(call, style.arguments_are_text, budget));
    set("tool_calls", calls.take());
  }
  return jinja::dict_of(std::move(one));
}

}  // namespace

ChatProgram::ChatProgram(std::string_view source, const std::string& bos, const std::string& eos,
                         const std::string& name)
    : template_(jinja::Template::parse(source, name)), bos_(valid_utf8(bos)), eos_(valid_utf8(eos)), name_(name),
      writes_thoughts_(source.find("</think>") != source.npos) {
  const std::vector<ChatMessage> question = {{ChatRole::kUser, kSomeQuestion}};
  const Text text = write(question, {.date = kSomeDay});
  if (end_of_words(text, kSomeQuestion) == std::string_view::npos) {
    fail(ErrorKind::kUsage, "{}: the template does not write what a user says", name);
  }
  rewrites_ = find_rewriting();
  if (source.find("tool_calls") != source.npos) {
    find_call_style();
  } else {
    why_no_calls_ = "";
  }
}

// The first that writes a call, in a conversation that declares tools or does not.
void ChatProgram::find_call_style() {
  const std::vector<ChatMessage> messages = {
      {ChatRole::kUser, kSomeQuestion},
      {.role = ChatRole::kAssistant,
       .content = {},
       .calls = {{.id = probe_call::kId, .name = probe_call::kTool, .arguments = probe_call::arguments_json()}}}};
  std::string why;
  for (const char* tools : {"", probe_call::kToolsJson}) {
    for (const CallStyle style : {CallStyle{false, false}, CallStyle{false, true}, CallStyle{true, false},
                                  CallStyle{true, true}}) {
      call_style_ = style;
      try {
        const Text text = rendered(messages, {.add_generation_prompt = false, .date = kSomeDay, .tools = tools});
        if (text.view().find(probe_call::kText) != std::string_view::npos) return;
      } catch (const Error& error) {
        if (why.empty()) why = error.what();
      }
    }
  }
  call_style_ = {};
  why_no_calls_ = why;
}

// A session holds a conversation as it was when each turn was written, with all that was thought.
std::string_view ChatProgram::find_rewriting() const {
  for (const bool has_system : {true, false}) {
    try {
      std::vector<ChatMessage> messages;
      if (has_system) messages.push_back({ChatRole::kSystem, kSystem});
      messages.push_back({ChatRole::kUser, kSomeQuestion});
      const Text asked = write(messages, {.date = kSomeDay});
      messages.push_back({ChatRole::kAssistant, kSomeAnswer});
      messages.push_back({ChatRole::kUser, "and more"});
      const Text plain = write(messages, {.date = kSomeDay});
      messages[messages.size() - 2].content = std::string("<think>\n") + kThought + "\n</think>\n\n" + kSomeAnswer;
      const Text thoughtful = write(messages, {.date = kSomeDay});
      const std::string_view before = asked.view().substr(0, end_of_words(asked, kSomeQuestion));
      if (thoughtful.view().find(kThought) == std::string_view::npos) {
        return "the template leaves out of earlier answers what was thought; here it stays";
      }
      if (!continues(asked.view(), plain.view()) || !thoughtful.view().starts_with(before)) {
        return "the template writes earlier messages differently once more is said; here they stay as they were";
      }
      return {};
    } catch (const Error&) {
      // No system message, or a template for one question only.
    }
  }
  return {};
}

Text ChatProgram::rendered(std::span<const ChatMessage> messages, const ChatOptions& options) const {
  jinja::Dict variables;
  try {
    variables = variables_of(messages, options);
  } catch (const jinja::Problem& problem) {
    fail(ErrorKind::kUsage, "{}: what the chat template is given: {}", name_, problem.what());
  }
  jinja::Clock clock;
  if (options.date.year != 0) clock = [&](const std::string& format) { return formatted(options.date, format); };
  return template_.render(variables, clock);
}

Text ChatProgram::write(std::span<const ChatMessage> messages, const ChatOptions& options) const {
  Text text = rendered(messages, options);
  // Which some templates drop without a word, where they have no place for it.
  size_t behind = 0;
  int n_moved = 0;
  jinja::Budget any = jinja::budget_of_input();
  for (const ChatMessage& message : messages) {
    const std::string words = message.role == ChatRole::kSystem ? stripped(message.content) : std::string();
    if (words.empty()) continue;
    size_t place = jinja::place_of(text.view(), words, behind, any);
    // A few are written in another place.
    if (place == std::string_view::npos && behind > 0 && n_moved++ < 16) place = jinja::place_of(text.view(), words, 0, any);
    if (place == std::string_view::npos) {
      fail(ErrorKind::kUsage,
           "{}: the chat template has no place for this system message: it writes the conversation without it", name_);
    }
    behind = std::max(behind, place);
  }
  size_t from = 0;
  for (const ChatMessage& message : messages) {
    for (const ToolCall& call : message.calls) {
      const size_t place = text.view().find(valid_utf8(call.name), from);
      if (place == std::string_view::npos) {
        fail(ErrorKind::kUsage,
             "{}: the chat template has no place for this call of \"{}\": it writes the conversation without it", name_,
             call.name);
      }
      from = place;
    }
  }
  return text;
}

jinja::Dict ChatProgram::variables_of(std::span<const ChatMessage> messages, const ChatOptions& options) const {
  jinja::Budget budget = jinja::budget_of_input();
  jinja::ListMaker list(budget);
  for (const ChatMessage& message : messages) list.push(message_value(message, call_style_, budget));
  jinja::Dict variables;
  const auto set = [&](const char* name, Value value) { variables.set(Text::native(name), std::move(value), budget); };
  set("messages", list.take());
  set("add_generation_prompt", options.add_generation_prompt);
  set("tools", options.tools.empty() ? Value() : jinja::value_of_json(options.tools, budget));
  set("documents", Value());
  if (!bos_.empty()) set("bos_token", Text::native(bos_));
  if (!eos_.empty()) set("eos_token", Text::native(eos_));
  // Which templates without a clock are given by whoever knows one.
  if (options.date.year != 0 && !asks_for_date()) set("date_string", Text::native(formatted(options.date, "%d %b %Y")));
  if (!options.variables.empty()) {
    const Value given = jinja::value_of_json(options.variables, budget);
    if (given.dict() == nullptr) throw jinja::Problem("expected an object of variables");
    for (const auto& [name, value] : given.dict()->items()) variables.set(name, value, budget);
  }
  return variables;
}

std::string ChatProgram::end_of_turn(const Tokenizer& tokenizer, const std::string& variables) const {
  std::vector<ChatMessage> messages = {
      {ChatRole::kUser, kSomeQuestion}, {ChatRole::kAssistant, kSomeAnswer}, {ChatRole::kUser, kSomeQuestion}};
  const auto answer_in = [&](const Text& text) {
    const size_t at = text.view().find(kSomeAnswer);
    if (at == std::string_view::npos) {
      fail(ErrorKind::kUsage,
           "{}: the template does not write earlier answers as they were; it cannot go on in a session", name_);
    }
    return at;
  };
  const Text text = write(messages, {.date = kSomeDay, .variables = variables});
  const size_t begin = answer_in(text), behind = begin + std::string_view(kSomeAnswer).size();
  const size_t next = text.view().find(kSomeQuestion, behind);
  std::string end;
  for (const TextSegment& segment : tokenizer.split_special(text.view().substr(behind, next - behind))) {
    if (segment.token >= 0 && end.empty()) end = segment.text;
  }
  if (next == std::string_view::npos || end.empty()) {
    fail(ErrorKind::kUsage, "{}: the chat template ends an answer with no special token; it cannot go on in a session",
         name_);
  }
  // Where thoughts end with it too, it does not say that an answer has ended.
  messages[1].reasoning = kThought;
  const Text thoughtful = write(messages, {.date = kSomeDay, .variables = variables});
  const auto n_ends = [&](const Text& of) {
    const size_t first = of.view().find(kSomeQuestion), n = answer_in(of);
    int64_t count = 0;
    for (size_t at = of.view().find(end, first); at < n; at = of.view().find(end, at + 1)) ++count;
    return count;
  };
  if (n_ends(thoughtful) > n_ends(text)) {
    fail(ErrorKind::kUsage,
         "{}: the chat template ends thoughts with {}, as it ends answers; it cannot go on in a session", name_, end);
  }
  return end;
}

ChatProgram::NextTurn ChatProgram::next_turn(std::string_view user, const std::optional<std::string>& system,
                                             const Tokenizer& tokenizer, const std::string& variables) const {
  NextTurn next{.end_of_turn = end_of_turn(tokenizer, variables), .pieces = {}};
  std::vector<ChatMessage> messages;
  if (system) messages.push_back({ChatRole::kSystem, *system});
  messages.push_back({ChatRole::kUser, kSomeQuestion});
  messages.push_back({ChatRole::kAssistant, kSomeAnswer});
  messages.push_back({ChatRole::kUser, std::string(user)});
  const Text text = write(messages, {.date = kSomeDay, .variables = variables});
  const size_t answer = text.view().find(kSomeAnswer, text.view().find(kSomeQuestion));
  const size_t end = answer == std::string_view::npos ? answer : text.view().find(next.end_of_turn, answer);
  if (end == std::string_view::npos) {
    fail(ErrorKind::kUsage, "{}: the chat template does not go on as it began; it cannot go on in a session", name_);
  }
  jinja::Budget budget = jinja::budget_of_input();
  next.pieces = pieces(jinja::part_of(text, end + next.end_of_turn.size(), text.size(), budget), tokenizer);
  return next;
}

Text ChatProgram::generation_prompt(const std::string& variables) const {
  const std::vector<ChatMessage> question = {{ChatRole::kUser, kSomeQuestion}};
  const Text with = write(question, {.date = kSomeDay, .variables = variables});
  const Text without = write(question, {.add_generation_prompt = false, .date = kSomeDay, .variables = variables});
  const bool goes_on = with.view().starts_with(without.view()) && with.size() > without.size();
  jinja::Budget budget = jinja::budget_of_input();
  return jinja::part_of(with, goes_on ? without.size() : end_of_words(with, kSomeQuestion), with.size(), budget);
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
