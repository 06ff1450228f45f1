// Reads answers by the form that was found.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/text/thoughts.h"
#include "engine/text/tool_calls/model_text.h"
#include "engine/text/tool_calls/tool_format.h"

namespace tiercel {

using Json = nlohmann::json;

bool ToolFormat::read_object(std::string_view& text, const Tools& tools, ToolCall& call) const {
  const std::string object = object_in(text);
  if (object.empty()) return false;
  const std::string name = member_at(object, name_path_);
  if (!name.starts_with('"')) return false;
  call.name = Json::parse(name).get<std::string>();
  // Some models say the one for the other.
  std::string given;
  for (const std::string_view path :
       {std::string_view(arguments_path_), std::string_view("/arguments"), std::string_view("/parameters")}) {
    if (given.empty()) given = member_at(object, path);
  }
  const auto arguments = arguments_of(given);
  // An answer that is nothing but an object may be one that is wanted.
  if (!tools.has(call.name) || !arguments || (given.empty() && marker_.empty())) return false;
  call.arguments = *arguments;
  text.remove_prefix(object_size(text));
  return true;
}

bool ToolFormat::read_arguments(std::string_view& text, const Tools& tools, ToolCall& call) const {
  call.name = std::string(tools.name_at(text));
  if (call.name.empty()) return false;
  std::string_view rest = without_blanks_before(text.substr(call.name.size()));
  if (!take(rest, middle_)) return false;
  if (!behind_id_.empty()) {
    const size_t id_end = rest.find(behind_id_);
    if (id_end == rest.npos) return false;
    rest = rest.substr(id_end + behind_id_.size());
  }
  rest = without_blanks_before(rest);
  call.arguments = object_in(rest);
  if (call.arguments.empty()) return false;
  text = rest.substr(object_size(rest));
  return true;
}

bool ToolFormat::read_parameters(std::string_view& text, const Tools& tools, ToolCall& call) const {
  call.name = std::string(tools.name_at(text));
  if (call.name.empty()) return false;
  std::string_view rest = without_blanks_before(text.substr(call.name.size()));
  if (!take(rest, behind_name_)) return false;
  std::string arguments;
  for (rest = without_blanks_before(rest); take(rest, before_key_); rest = without_blanks_before(rest)) {
    // Up to the value, and its end, whatever white space there is.
    const size_t key_end = rest.find(behind_key_.substr(0, behind_key_.find_first_of(kBlanks)));
    if (key_end == rest.npos) return false;
    const std::string key(trimmed(rest.substr(0, key_end)));
    rest.remove_prefix(key_end);
    const size_t n_behind_key = match(rest, behind_key_);
    const size_t value_end = n_behind_key == rest.npos ? rest.npos : rest.find(behind_value_, n_behind_key);
    if (value_end == rest.npos) return false;
    // A line break each is the form's, the rest the value's.
    std::string_view value = rest.substr(n_behind_key, value_end - n_behind_key);
    if (value.starts_with('\n')) value.remove_prefix(1);
    if (value.ends_with('\n')) value.remove_suffix(1);
    arguments += fmt::format("{}{}:{}", arguments.empty() ? "" : ",", dump(Json(key)),
                             json_of(value, tools.is_text(call.name, key)));
    rest.remove_prefix(value_end + behind_value_.size());
  }
  // What has no end was cut off.
  if (match(rest, closing_.substr(0, closing_.find('>', 1) + 1)) == rest.npos) return false;
  call.arguments = "{" + arguments + "}";
  text = rest;
  return true;
}

bool ToolFormat::read_call(std::string_view& text, const Tools& tools, ToolCall& call) const {
  switch (shape_) {
    case Shape::kObject: return read_object(text, tools, call);
    case Shape::kArguments: return read_arguments(text, tools, call);
    case Shape::kParameters: return read_parameters(text, tools, call);
  }
  return false;
}

// From the first call's marker on, which has been taken; up to what is behind the last call.
bool ToolFormat::read_calls(std::string_view& text, const Tools& tools, Answer& answer) const {
  std::string_view next = without_blanks_before(text);
  if (is_list_ && next.starts_with('[')) next = without_blanks_before(next.substr(1));
  ToolCall call;
  while (read_call(next, tools, call)) {
    call.arguments = once_each(std::move(call.arguments));
    answer.calls.push_back(std::move(call));
    text = next;
    next = without_blanks_before(next);
    if (shape_ == Shape::kObject && (next.starts_with(',') || next.starts_with(';')))
      next = without_blanks_before(next.substr(1));
    if (marker_.empty() || (shape_ == Shape::kObject && next.starts_with('{'))) continue;
    const size_t marker = next.find(marker_);
    if (marker == next.npos) break;
    next = without_blanks_before(next.substr(marker + marker_.size()));
  }
  return !answer.calls.empty();
}

ToolFormat::Answer ToolFormat::read(std::string_view text, const Tools& tools, bool thinks) const {
  constexpr int kMostFailures = 16;  // each may look at all that follows
  Answer answer;
  size_t begin = 0;  // of what may call
  if (thinks || without_blanks_before(text).starts_with(kThoughtsBegin)) {
    const size_t end = text.find(kThoughtsEnd);
    begin = end == text.npos ? text.size() : end + kThoughtsEnd.size();
  }
  std::string_view rest;
  if (marker_.empty()) {
    rest = text.substr(begin);
    if (!read_calls(rest, tools, answer)) return {.content = std::string(text), .calls = {}};
    answer.content = std::string(without_blanks_behind(text.substr(0, begin)));
  } else {
    int n_failures = 0;
    size_t at = text.find(marker_, begin);
    for (; at != text.npos && n_failures < kMostFailures; at = text.find(marker_, at + marker_.size()), ++n_failures) {
      rest = text.substr(at + marker_.size());
      if (read_calls(rest, tools, answer)) break;
    }
    if (answer.calls.empty()) return {.content = std::string(text), .calls = {}};
    answer.content = std::string(without_openings(text.substr(0, at)));
  }
  // What closes calls, tag by tag; the rest was said.
  for (std::string_view closing = closing_; !closing.empty();) {
    const size_t n = std::min(closing.find('>', 1), closing.size() - 1) + 1;
    rest = without_blanks_before(rest);
    take(rest, closing.substr(0, n));
    closing = without_blanks_before(closing.substr(n));
  }
  if (const std::string_view behind = trimmed(rest); !behind.empty()) {
    answer.content += (answer.content.empty() ? "" : "\n\n") + std::string(behind);
  }
  return answer;
}

std::string_view ToolFormat::without_openings(std::string_view text) const {
  text = without_blanks_behind(text);
  for (auto opening = openings_.rbegin(); opening != openings_.rend(); ++opening) {
    if (text.ends_with(*opening)) text = without_blanks_behind(text.substr(0, text.size() - opening->size()));
  }
  return text;
}

bool ToolFormat::may_begin_with_call(std::string_view text, const Tools& tools) const {
  const std::string_view begin = without_blanks_before(text);
  if (begin.empty()) return true;
  if (shape_ == Shape::kObject) return begin[0] == '{' || (is_list_ && begin[0] == '[');
  return tools.may_begin(begin);
}

void ToolFormat::follow(std::string_view answer, const Tools& tools, bool thinks, Progress& progress) const {
  if (progress.calls) return;
  const size_t solid = answer.substr(progress.n_searched).find_last_not_of(kBlanks);
  if (solid != answer.npos) progress.n_solid = progress.n_searched + solid + 1;
  const size_t from = progress.n_searched;
  progress.n_searched = answer.size();
  // Thoughts call nothing, as long as they last.
  if (!progress.thoughts_end) {
    const std::string_view begin = without_blanks_before(answer);
    if (!thinks && begin.size() < kThoughtsBegin.size() && kThoughtsBegin.starts_with(begin)) return;  // may be
    if (!thinks && !begin.starts_with(kThoughtsBegin)) {
      progress.thoughts_end = 0;
    } else if (const size_t end = answer.find(kThoughtsEnd, from - std::min(from, kThoughtsEnd.size() - 1));
               end != answer.npos) {
      progress.thoughts_end = end + kThoughtsEnd.size();
    } else {
      progress.n_before = progress.n_solid;
      return;
    }
  }
  if (marker_.empty()) {
    const size_t thought = *progress.thoughts_end;
    const bool may_call = progress.n_before <= thought && may_begin_with_call(answer.substr(thought), tools);
    if (!may_call) progress.n_before = answer.size();
    // A blank may be followed by anything, and the beginning of a name by another one.
    progress.calls = may_call && shape_ == Shape::kObject && !without_blanks_before(answer.substr(thought)).empty();
    return;
  }
  std::vector<std::string_view> beginnings(openings_.begin(), openings_.end());
  beginnings.push_back(marker_);
  size_t n = progress.n_solid;
  for (const std::string_view begin_of_call : beginnings) {
    // From where one may have begun before.
    const size_t since =
        std::max({progress.n_before, *progress.thoughts_end, from - std::min(from, begin_of_call.size() - 1)});
    if (const size_t found = answer.find(begin_of_call, since); found != answer.npos) {
      n = std::min(n, found);
      progress.calls = true;
    }
    // The end may be the beginning of one.
    for (size_t length = std::min(begin_of_call.size() - 1, answer.size() - progress.n_before); length > 0; --length) {
      if (!answer.ends_with(begin_of_call.substr(0, length))) continue;
      n = std::min(n, answer.size() - length);
      break;
    }
  }
  progress.n_before =
      without_blanks_behind(answer.substr(progress.n_before, n - progress.n_before)).size() + progress.n_before;
}

}  // namespace tiercel
