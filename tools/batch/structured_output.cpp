#include "tools/batch/structured_output.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

namespace tiercel {
namespace {

using Kind = AnswerForm::Kind;
using Path = std::vector<std::string_view>;

const AnswerForm kAnyObject = {Kind::kJsonSchema, R"({"type": "object"})"};

constexpr std::string_view kFormMembers[] = {"response_format", "structured_outputs", "json_schema",  "grammar",
                                         "regex",           "guided_json",        "guided_regex", "guided_grammar",
                                         "guided_choice"};

// A member as it was written.
std::string written(std::string_view text, const Path& path) {
  std::string member = ordered_member(text, path);
  if (!member.empty()) return member;
  Path in_body = {"body"};
  in_body.insert(in_body.end(), path.begin(), path.end());
  return ordered_member(text, in_body);
}

// A schema, or a text that is one.
AnswerForm schema_of(const JsonNode& node, std::string_view text, const Path& path) {
  if (node.raw().is_string()) return {Kind::kJsonSchema, node.text()};
  if (!node.raw().is_object() && !node.raw().is_boolean()) node.unexpected("a JSON schema");
  return {Kind::kJsonSchema, written(text, path)};
}

// One of these texts, as a grammar.
AnswerForm choice_of(const JsonNode& node) {
  node.expect_array();
  std::string grammar = "root ::= ";
  for (size_t i = 0; i < node.size(); ++i) {
    grammar += i > 0 ? " | \"" : "\"";
    for (const char c : node[i].text()) {
      if (c == '\n') {
        grammar += "\\n";
      } else if (c == '\r') {
        grammar += "\\r";
      } else {
        if (c == '"' || c == '\\') grammar += '\\';
        grammar += c;
      }
    }
    grammar += '"';
  }
  if (node.size() == 0) node.unexpected("a text or more");
  return {Kind::kGrammar, grammar};
}

AnswerForm response_format(const JsonNode& node, std::string_view text) {
  const JsonNode type = node.at("type");
  if (type.text() == "text") return {};
  if (type.text() == "json_object") {
    const auto schema = node.find("schema");  // llama.cpp's
    const bool says = schema && !(schema->raw().is_object() && schema->raw().empty()) && schema->raw() != true;
    return says ? schema_of(*schema, text, {"response_format", "schema"}) : kAnyObject;
  }
  if (type.text() != "json_schema") type.unexpected(R"("text", "json_object" or "json_schema")");
  if (node.find("schema")) return schema_of(node.at("schema"), text, {"response_format", "schema"});
  return schema_of(node.at("json_schema").at("schema"), text, {"response_format", "json_schema", "schema"});
}

AnswerForm structured_outputs(const JsonNode& node, std::string_view text) {
  node.expect_object();
  std::optional<AnswerForm> form;
  for (const auto& [key, value] : node.raw().items()) {
    if (value.is_null()) continue;
    const JsonNode member = node.at(key.c_str());
    if (key == "disable_fallback" || key == "disable_any_whitespace" || key == "disable_additional_properties") {
      member.boolean();  // of how vLLM does it
      continue;
    }
    if (form) node.unexpected("one form", "found \"" + printable(key, 40) + "\" beside another one");
    if (key == "json") {
      form = schema_of(member, text, {"structured_outputs", "json"});
    } else if (key == "regex") {
      form = {Kind::kRegex, member.text()};
    } else if (key == "grammar") {
      form = {Kind::kGrammar, member.text()};
    } else if (key == "choice") {
      form = choice_of(member);
    } else if (key == "json_object") {
      form = member.boolean() ? kAnyObject : AnswerForm();
    } else {
      member.unexpected(R"("json", "regex", "grammar", "choice" or "json_object")");
    }
  }
  return form.value_or(AnswerForm());
}

AnswerForm form_of(std::string_view name, const JsonNode& node, std::string_view text) {
  if (name == "response_format") return response_format(node, text);
  if (name == "structured_outputs") return structured_outputs(node, text);
  if (name == "grammar" || name == "guided_grammar") {
    return node.text().empty() ? AnswerForm() : AnswerForm{Kind::kGrammar, node.text()};
  }
  if (name == "regex" || name == "guided_regex") return {Kind::kRegex, node.text()};
  if (name == "guided_choice") return choice_of(node);
  return schema_of(node, text, {name});
}

}  // namespace

bool is_answer_form(std::string_view name) { return std::ranges::find(kFormMembers, name) != std::end(kFormMembers); }

AnswerForm read_answer_form(const JsonNode& asked, std::string_view text, const AnswerForm& otherwise) {
  std::optional<AnswerForm> form;
  std::string_view first;
  bool says_free = false;  // "text", or an empty grammar
  for (const std::string_view name : kFormMembers) {
    const auto node = asked.find(std::string(name).c_str());
    if (!node) continue;
    AnswerForm its = form_of(name, *node, text);
    if (its.kind == AnswerForm::Kind::kFree) {
      says_free = true;
      continue;
    }
    if (form) node->unexpected("one form of the answer", "\"" + std::string(first) + "\" has another one");
    form = std::move(its);
    first = name;
  }
  return form ? *form : says_free ? AnswerForm() : otherwise;
}

}  // namespace tiercel
