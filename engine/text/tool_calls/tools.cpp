#include "engine/text/tool_calls/tools.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/check.h"
#include "engine/json.h"
#include "engine/text/json_schema/schema_document.h"

namespace tiercel {
namespace {

// Whether what a schema allows is text, or nothing.
bool is_text_schema(const nlohmann::json& schema) {
  if (!schema.is_object()) return false;
  const auto all = [](const nlohmann::json& list, const auto& is) {
    return list.is_array() && std::ranges::any_of(list, is) &&
           std::ranges::all_of(list, [&](const nlohmann::json& one) {
             return is(one) || one == "null" || one.is_null() ||
                    (one.is_object() && one.value("type", nlohmann::json()) == "null");
           });
  };
  if (schema.contains("type")) {
    return schema["type"] == "string" || all(schema["type"], [](const nlohmann::json& one) { return one == "string"; });
  }
  for (const char* several : {"anyOf", "oneOf"}) {
    if (schema.contains(several)) return all(schema[several], is_text_schema);
  }
  return schema.contains("enum") && all(schema["enum"], [](const nlohmann::json& one) { return one.is_string(); });
}

}  // namespace

Tools::Tools(std::string json) try : json_(std::move(json)) {
  const std::string place = "tools";
  const nlohmann::json parsed = parse_json(json_, place, {.max_depth = kMostJsonDepth});
  const JsonNode root(parsed, place);
  root.expect_array();
  const grammar::SchemaDocument written(json_, place);  // with members in their order
  const auto written_parameters = [&](size_t i) {
    const grammar::SchemaNode* node = written.root()->parts[i]->find("function")->find("parameters");
    return node != nullptr && !node->is(grammar::SchemaNode::Kind::kNull) ? to_json(*node) : std::string();
  };
  for (size_t i = 0; i < root.size(); ++i) {
    const JsonNode tool = root[i];
    tool.expect_object();
    if (tool.at("type").text() != "function") tool.at("type").unexpected("\"function\"");
    const JsonNode function = tool.at("function");
    const std::string& name = function.at("name").text();
    if (name.empty()) function.at("name").unexpected("a name");
    const auto [entry, is_new] = is_text_.try_emplace(name);
    if (!is_new) function.at("name").unexpected("another name for each tool");
    tools_[name] = {written_parameters(i), function.boolean_or("strict", false)};
    const auto parameters = function.find("parameters");
    if (!parameters) continue;
    parameters->expect_object();
    const auto properties = parameters->find("properties");
    if (!properties) continue;
    properties->expect_object();
    for (const auto& [key, schema] : properties->raw().items()) entry->second[key] = is_text_schema(schema);
  }
  if (is_text_.empty()) root.unexpected("a tool or more");
} catch (const Error& error) {  // of whatever kind it would be of a file
  fail(ErrorKind::kUsage, "{}", error.what());
}

bool Tools::any_strict() const {
  return std::ranges::any_of(tools_, [](const auto& tool) { return tool.second.is_strict; });
}

std::string_view Tools::name_at(std::string_view text) const {
  std::string_view longest;
  for (const auto& [name, parameters] : is_text_) {
    if (text.starts_with(name) && name.size() > longest.size()) longest = name;
  }
  return longest;
}

bool Tools::may_begin(std::string_view text) const {
  return std::ranges::any_of(is_text_, [&](const auto& tool) {
    const size_t n = std::min(text.size(), tool.first.size());
    return text.substr(0, n) == std::string_view(tool.first).substr(0, n);
  });
}

bool Tools::is_text(const std::string& tool, const std::string& parameter) const {
  const auto found = is_text_.find(tool);
  if (found == is_text_.end()) return false;
  const auto of = found->second.find(parameter);
  return of != found->second.end() && of->second;
}

}  // namespace tiercel
