// Finds the form: how the parts of a call are told apart that a template has written.
#include "engine/text/tool_calls/tool_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/tool_calls/model_text.h"
#include "engine/text/tool_calls/probe_call.h"

namespace tiercel {
namespace {

using Json = nlohmann::json;
using namespace probe_call;

bool is_wanted_arguments(const Json& value) {
  const auto json = value.is_object() || value.is_string() ? arguments_of(dump(value)) : std::nullopt;
  return json && Json::parse(*json) == Json::parse(arguments_json());
}

// Where in an object something is, as a JSON pointer; empty: nowhere.
template <typename F>
std::string place_in(const Json& object, const F& is_it) {
  for (const auto& [key, value] : object.items()) {
    if (is_it(value)) return "/" + key;
    if (!value.is_object()) continue;
    if (const std::string inner = place_in(value, is_it); !inner.empty()) return "/" + key + inner;
  }
  return {};
}

// The texts of the calls that a template writes: what is between the beginning of an answer and its end.
std::string body_of(const ChatProgram& program, const std::vector<ToolCall>& calls) {
  constexpr ChatDate kSomeDay{.year = 2024, .month = 7, .day = 26};
  const ChatOptions due{.add_generation_prompt = true, .date = kSomeDay, .tools = kToolsJson};
  const ChatOptions past{.add_generation_prompt = false, .date = kSomeDay, .tools = kToolsJson};
  std::vector<ChatMessage> messages = {{ChatRole::kUser, kQuestion}};
  const std::string prompt(program.write(messages, due).view());
  messages.push_back({.role = ChatRole::kAssistant, .content = kAnswer});
  const std::string plain(program.write(messages, past).view());
  messages.back() = {.role = ChatRole::kAssistant, .content = "", .calls = calls};
  const std::string called(program.write(messages, past).view());
  const size_t answer = plain.find(kAnswer);
  if (answer == std::string::npos) return {};
  size_t begin = prompt.size();
  if (!called.starts_with(prompt)) {
    begin = std::min(common_prefix(plain, called), answer);
    // Not within a tag.
    const size_t tag = called.find_last_of("<[", begin - std::min<size_t>(begin, 1));
    if (tag != std::string::npos && called.substr(tag, begin - tag).find_first_of(">]\n") == std::string::npos)
      begin = tag;
  }
  const std::string_view tail = std::string_view(plain).substr(answer + std::string_view(kAnswer).size());
  const size_t n_end = common_suffix(tail, called);
  return begin + n_end < called.size() ? called.substr(begin, called.size() - n_end - begin) : std::string();
}

}  // namespace

ToolFormat::ToolFormat(const ChatProgram& program) {
  constexpr const char* kNotSupported =
      "the chat template writes calls of tools in a form that is not supported, or not at all";
  if (const auto& why = program.why_no_calls()) {
    fail(ErrorKind::kUsage, "{}{}{}", kNotSupported, why->empty() ? "" : ": ", *why);
  }
  // Mistral's takes ids of nine letters and digits only.
  const ToolCall first{.id = kId, .name = kTool, .arguments = arguments_json()};
  const ToolCall second{.id = "tiercel02", .name = kOther, .arguments = arguments_json()};
  const std::string one = body_of(program, {first});
  std::string two;
  try {
    two = body_of(program, {first, second});
  } catch (const Error&) {
    // A template for one call at a time.
  }
  written_ = one + two;
  const auto is_general = [&] {  // what is read by has nothing of this call
    return std::ranges::none_of(
        std::initializer_list<std::string_view>{marker_, middle_, behind_id_, behind_name_, before_key_, behind_key_},
        [](std::string_view part) { return part.find("tiercel") != part.npos; });
  };
  const bool is_found = find_object(one, two) || find_arguments(one, two) || find_parameters(one, two);
  if (!is_found || !is_general() || !is_sound(two)) {
    fail(ErrorKind::kUsage, "{}", kNotSupported);
  }
  find_writing(one, two);
}

// Whether what the template writes is read as what it is: where several calls are in a form of their own, some would be
// lost.
bool ToolFormat::is_sound(std::string_view two) const {
  const Tools tools{std::string(kToolsJson)};
  const size_t n = two.find(kOther) == two.npos ? 0 : 2;
  return n == 0 || read(two, tools, /*thinks=*/false).calls.size() == n;
}

// arguments: where what is given begins.
void ToolFormat::set_call(std::string_view one, size_t arguments) {
  const size_t name = one.find(kTool), name_end = name + std::string_view(kTool).size();
  if (name == one.npos || arguments < name_end) return;  // the name comes last: nothing to begin with
  const size_t thought = one.substr(0, name).rfind("</think>");
  const size_t begin = thought == one.npos ? 0 : thought + 8;
  before_name_ = without_blanks_before(one.substr(begin, name - begin));
  from_name_ = one.substr(name_end, arguments - name_end);
  if (from_name_.find("tiercel") != std::string::npos) from_name_.clear();  // an id, which the model may give
}

// before: the first call, in an answer that says nothing else. between: from the end of a call to the beginning of the
// next one, or empty where that is not known.
void ToolFormat::set_beginning(std::string_view before, std::string_view between) {
  // What is thought comes before.
  if (const size_t thought = before.rfind("</think>"); thought != before.npos) before.remove_prefix(thought + 8);
  is_list_ = trimmed(between) == "," || (between.empty() && trimmed(before).ends_with('['));
  if (is_list_ && trimmed(before).ends_with('[')) before = before.substr(0, before.rfind('['));
  before = trimmed(before);
  size_t begin = before.size() - common_suffix(before, without_blanks_behind(between));
  // From where a tag begins: what is common may begin within one.
  if (const size_t tag = before.find_last_of("<[", begin == before.size() ? before.npos : begin); tag != before.npos) {
    const bool is_within = tag < begin && before.substr(tag, begin - tag).find_first_of(">]\n") == before.npos;
    if (is_within) begin = std::min(before.find_first_of("<[", begin), before.size());
  }
  if (trimmed(before.substr(begin)).empty()) begin = 0;
  // Lines are parts, as some models write another one.
  if (const size_t line = before.rfind('\n'); line != before.npos) begin = std::max(begin, line + 1);
  marker_ = trimmed(before.substr(begin));
  for (size_t at = 0; at < begin;) {
    const size_t line = std::min(before.find('\n', at), begin);
    std::string_view part = trimmed(before.substr(at, line - at));
    part = part.substr(0, part.find("tiercel"));  // up to an id
    if (!part.empty()) openings_.emplace_back(part);
    at = line + 1;
  }
}

bool ToolFormat::find_object(std::string_view one, std::string_view two) {
  const auto is_name = [](const char* name) { return [name](const Json& value) { return value == name; }; };
  const auto is_call = [&](std::string_view text, const char* name) {
    const Json json = Json::parse(object_in(text), nullptr, false);
    if (!json.is_object()) return false;
    name_path_ = place_in(json, is_name(name));
    arguments_path_ = place_in(json, is_wanted_arguments);
    return !name_path_.empty() && !arguments_path_.empty();
  };
  const auto find_call = [&](std::string_view text, const char* name, size_t from) -> std::pair<size_t, size_t> {
    for (size_t at = text.find('{', from); at != text.npos; at = text.find('{', at + 1)) {
      const size_t n = object_size(text.substr(at));
      if (n > 0 && is_call(text.substr(at, n), name)) return {at, at + n};
    }
    return {0, 0};
  };
  const auto [begin, end] = find_call(one, kTool, 0);
  if (end == 0) return false;
  std::string_view between;
  const auto [first, first_end] = find_call(two, kTool, 0);
  const auto [next, next_end] = find_call(two, kOther, first_end);
  if (first_end > 0 && next_end > 0) between = two.substr(first_end, next - first_end);
  find_call(one, kTool, 0);  // whose paths count
  shape_ = Shape::kObject;
  set_beginning(one.substr(0, begin), between);
  closing_ = trimmed(one.substr(end));
  set_call(one, one.rfind('{', one.find(kTextKey)));
  return true;
}

bool ToolFormat::find_arguments(std::string_view one, std::string_view two) {
  struct Found {
    size_t name = 0, object = 0, end = 0;
  };
  const auto find_call = [](std::string_view text, std::string_view name, size_t from) -> std::optional<Found> {
    const size_t place = text.find(name, from);
    if (place == text.npos) return std::nullopt;
    const size_t object = text.find('{', place + name.size());
    if (object == text.npos) return std::nullopt;
    const Json json = Json::parse(object_in(text.substr(object)), nullptr, false);
    if (!is_wanted_arguments(json)) return std::nullopt;
    return Found{place, object, object + object_size(text.substr(object))};
  };
  const auto call = find_call(one, kTool, 0);
  if (!call) return false;
  const auto middle_of = [](std::string_view text, const Found& found, std::string_view name) {
    return trimmed(text.substr(found.name + name.size(), found.object - found.name - name.size()));
  };
  std::string_view between, middle = middle_of(one, *call, kTool), other = middle;
  if (const auto first = find_call(two, kTool, 0)) {
    if (const auto next = find_call(two, kOther, first->end)) {
      between = two.substr(first->end, next->name - first->end);
      other = middle_of(two, *next, kOther);
    }
  }
  shape_ = Shape::kArguments;
  set_beginning(one.substr(0, call->name), between);
  middle_ = middle;
  // An id may be in it, or a number that counts calls.
  const size_t id = middle.find(kId), n_same = common_prefix(middle, other);
  if (id != middle.npos) {
    middle_ = middle.substr(0, id);
    behind_id_ = middle.substr(id + std::string_view(kId).size());
  } else if (middle != other) {
    middle_ = middle.substr(0, n_same);
    behind_id_ = middle.substr(middle.size() - std::min(middle.size() - n_same, common_suffix(middle, other)));
  }
  if ((id != middle.npos || middle != other) && behind_id_.empty()) return false;
  closing_ = trimmed(one.substr(call->end));
  set_call(one, call->object);
  return true;
}

bool ToolFormat::find_parameters(std::string_view one, std::string_view two) {
  size_t at = 0;
  const auto behind = [&](std::string_view what) {  // what is before it; npos behind it: it is not there
    const size_t found = at == one.npos ? one.npos : one.find(what, at);
    const std::string_view before = found == one.npos ? std::string_view() : one.substr(at, found - at);
    at = found == one.npos ? found : found + what.size();
    return before;
  };
  const std::string_view before = behind(kTool), to_key = behind(kTextKey), to_text = behind(kText),
                         to_next = behind(kNumberKey), to_number = behind(kNumber);
  if (at == one.npos || to_text != to_number) return false;
  // From where a tag begins: what is common may begin within one.
  const std::string_view end = one.substr(at), common = to_next.substr(to_next.size() - common_suffix(to_key, to_next));
  const std::string_view before_key = common.substr(std::min(common.find_first_of("<["), common.size()));
  before_key_ = trimmed(before_key.empty() ? common : before_key);
  const auto without_key = [&](std::string_view text) {
    return trimmed(text.substr(0, text.size() - (before_key.empty() ? common : before_key).size()));
  };
  behind_name_ = without_key(to_key);
  behind_value_ = without_key(to_next);
  behind_key_ = trimmed(to_text);
  std::string_view rest = end;
  if (before_key_.empty() || behind_key_.empty() || behind_value_.empty() || !take(rest, behind_value_)) return false;
  closing_ = trimmed(rest);
  if (closing_.empty()) return false;  // nothing says that a call has ended
  std::string_view between;
  const size_t first = two.find(kNumber), next = two.find(kOther);
  if (first != two.npos && next != two.npos && first < next) {
    between = two.substr(first + std::string_view(kNumber).size(), next - first - std::string_view(kNumber).size());
    take(between, behind_value_);
  }
  shape_ = Shape::kParameters;
  set_call(one, before.size() + std::string_view(kTool).size());
  set_beginning(before, between);
  return !marker_.empty();
}

// A tool's name in a call: within a JSON text, without its quotes, or as it is.
std::string ToolFormat::spelled(const std::string& name) const {
  if (shape_ != Shape::kObject) return name;
  const std::string quoted = dump(Json(name));
  return quoted.substr(1, quoted.size() - 2);
}

jinja::Text ToolFormat::beginning(const std::string& name) const {
  jinja::Budget budget = jinja::budget_of_input();
  jinja::TextWriter text(budget);
  text.add(before_name_);
  if (name.empty()) return text.take();
  text.add(spelled(name), /*foreign=*/true);
  text.add(from_name_);
  return text.take();
}

std::vector<int32_t> ToolFormat::special_tokens(const Tokenizer& tokenizer) const {
  std::vector<int32_t> tokens;
  for (const TextSegment& segment : tokenizer.split_special(written_)) {
    if (segment.token >= 0 && std::ranges::find(tokens, segment.token) == tokens.end()) tokens.push_back(segment.token);
  }
  return tokens;
}

}  // namespace tiercel
