// The keywords of one schema: own_constraints.
#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "engine/base/check.h"
#include "engine/text/json_schema/json_formats.h"
#include "engine/text/json_schema/schema_constraints.h"

namespace tiercel::grammar {
namespace {

using Kind = SchemaNode::Kind;
using Node = const SchemaNode&;

constexpr int64_t kMostCount = 100'000;

struct Reading {
  const SchemaDocument& document;
  Constraints found;
};

void expect(const Reading& reading, Node node, Kind kind, std::string_view what) {
  if (!node.is(kind)) reading.document.refuse(&node, what);
}

Decimal number(const Reading& reading, Node node) {
  expect(reading, node, Kind::kNumber, "a number");
  const auto value = parse_decimal(node.text);
  if (!value) reading.document.refuse(&node, fmt::format("a number of at most {} digits", kMostDigits));
  return *value;
}

int64_t count(const Reading& reading, Node node) {
  const std::string what = fmt::format("an integer from 0 to {}", kMostCount);
  expect(reading, node, Kind::kNumber, what);
  const auto value = parse_decimal(node.text);
  if (!value || value->negative || !value->fraction.empty() || value->whole.size() > 6 ||
      std::stoll(value->whole) > kMostCount) {
    reading.document.refuse(&node, what);
  }
  return std::stoll(value->whole);
}

void expect_possible(const Reading& reading, Node node, const Counts& counts) {
  if (!counts.is_possible()) {
    reading.document.refuse(node.parent, "a minimum that is not above its maximum",
                            fmt::format("{} to {} is nothing: see \"{}\"", counts.least, counts.most, node.name));
  }
}

template <uint8_t types, Counts Constraints::*counts>
void least_count(Reading& reading, Node node) {
  reading.found.spoken_of |= types;
  (reading.found.*counts).least = count(reading, node);
  expect_possible(reading, node, reading.found.*counts);
}
template <uint8_t types, Counts Constraints::*counts>
void most_count(Reading& reading, Node node) {
  reading.found.spoken_of |= types;
  (reading.found.*counts).most = count(reading, node);
  expect_possible(reading, node, reading.found.*counts);
}
template <Counts Constraints::*counts, void (*read)(Reading&, Node)>
void property_count(Reading& reading, Node node) {
  read(reading, node);
  reading.found.counts_properties = &node;
}

// ---- any type ----

uint8_t type_bits(const Reading& reading, Node node) {
  static const std::unordered_map<std::string_view, uint8_t> kBits = {
      {"null", kNull},     {"boolean", kBoolean}, {"integer", kInteger}, {"number", kNumber},
      {"string", kString}, {"array", kArray},     {"object", kObject}};
  const auto found = node.is(Kind::kString) ? kBits.find(node.text) : kBits.end();
  if (found == kBits.end()) {
    reading.document.refuse(&node, "null, boolean, integer, number, string, array or object");
  }
  return found->second;
}

void type(Reading& reading, Node node) {
  reading.found.has_type = true;
  if (!node.is(Kind::kArray)) {
    reading.found.types = type_bits(reading, node);
    return;
  }
  if (node.parts.empty()) reading.document.refuse(&node, "at least one type");
  reading.found.types = 0;
  for (const auto& part : node.parts) reading.found.types |= type_bits(reading, *part);
}

void enumeration(Reading& reading, Node node) {
  expect(reading, node, Kind::kArray, "an array of values");
  if (node.parts.empty()) reading.document.refuse(&node, "at least one value");
  std::unordered_set<std::string> wanted, seen;
  if (reading.found.values) {  // of "const"
    for (const SchemaNode* value : *reading.found.values) wanted.insert(identity(*value));
  }
  std::vector<const SchemaNode*> values;
  for (const auto& part : node.parts) {
    std::string id = identity(*part);
    if ((!reading.found.values || wanted.contains(id)) && seen.insert(std::move(id)).second)
      values.push_back(part.get());
  }
  reading.found.values = std::move(values);
}

void constant(Reading& reading, Node node) {
  std::vector<const SchemaNode*> values = {&node};
  if (reading.found.values) {  // of "enum"
    const std::string id = identity(node);
    if (std::ranges::none_of(*reading.found.values, [&](const SchemaNode* v) { return identity(*v) == id; })) {
      values.clear();
    }
  }
  reading.found.values = std::move(values);
}

// ---- numbers ----

void expect_range(const Reading& reading, Node node) {
  const NumberRange& range = reading.found.range;
  if (range.lower && range.upper && compare(range.lower->value, range.upper->value) > 0) {
    reading.document.refuse(
        node.parent, "a minimum that is not above its maximum",
        fmt::format("{} to {} is nothing", to_text(range.lower->value), to_text(range.upper->value)));
  }
}

// exclusive: draft 4 has a member beside the bound that says so; later ones have bounds of their own.
void lower(Reading& reading, Node node) {
  const bool is_exclusive = node.name == "exclusiveMinimum";
  if (is_exclusive && node.is_boolean()) return;
  reading.found.spoken_of |= kNumber;
  const SchemaNode* beside = node.parent->find("exclusiveMinimum");
  tighten_lower(reading.found.range.lower,
                Bound{number(reading, node), is_exclusive || (beside != nullptr && beside->is(Kind::kTrue))});
  expect_range(reading, node);
}

void upper(Reading& reading, Node node) {
  const bool is_exclusive = node.name == "exclusiveMaximum";
  if (is_exclusive && node.is_boolean()) return;
  reading.found.spoken_of |= kNumber;
  const SchemaNode* beside = node.parent->find("exclusiveMaximum");
  tighten_upper(reading.found.range.upper,
                Bound{number(reading, node), is_exclusive || (beside != nullptr && beside->is(Kind::kTrue))});
  expect_range(reading, node);
}

void multiple_of(Reading& reading, Node node) {
  reading.found.spoken_of |= kNumber;
  const Decimal value = number(reading, node);
  if (value.negative || !value.fraction.empty() || value.whole[0] != '1' ||
      value.whole.find_first_not_of('0', 1) != value.whole.npos) {
    reading.document.refuse(&node, "1, 10, 100 or another power of ten", "remove it, if it may be ignored");
  }
  reading.found.n_zeros = static_cast<int>(value.whole.size()) - 1;
}

// ---- strings ----

void pattern(Reading& reading, Node node) {
  expect(reading, node, Kind::kString, "a regular expression");
  reading.found.spoken_of |= kString;
  reading.found.pattern = &node;
}

void format(Reading& reading, Node node) {
  expect(reading, node, Kind::kString, "the name of a format");
  if (!format_pattern(node.text).empty()) reading.found.spoken_of |= kString;
  reading.found.format = &node;
}

// ---- objects ----

void properties(Reading& reading, Node node) {
  expect(reading, node, Kind::kObject, "an object of schemas");
  reading.found.spoken_of |= kObject;
  reading.found.has_properties = true;
  for (const auto& part : node.parts) reading.found.properties.push_back({part->name, {part.get()}});
}

void required(Reading& reading, Node node) {
  expect(reading, node, Kind::kArray, "an array of names");  // draft 3 had a boolean in each property
  reading.found.spoken_of |= kObject;
  std::unordered_set<std::string_view> seen;
  for (const auto& part : node.parts) {
    expect(reading, *part, Kind::kString, "the name of a property");
    if (seen.insert(part->text).second) reading.found.required.push_back(part->text);
  }
}

void additional_properties(Reading& reading, Node node) {
  reading.found.spoken_of |= kObject;
  reading.found.additional = SchemaSet{&node};
}

// ---- arrays ----

void prefix_items(Reading& reading, Node node) {
  expect(reading, node, Kind::kArray, "an array of schemas");
  reading.found.spoken_of |= kArray;
  for (const auto& part : node.parts) reading.found.prefix.push_back({part.get()});
}

void items(Reading& reading, Node node) {
  if (node.is(Kind::kArray)) {  // drafts up to 2019-09
    if (const SchemaNode* both = node.parent->find("prefixItems")) reading.document.refuse(both, "one list of items");
    return prefix_items(reading, node);
  }
  reading.found.spoken_of |= kArray;
  reading.found.has_items = true;
  reading.found.items = {&node};
}

void additional_items(Reading& reading, Node node) {
  const SchemaNode* listed = node.parent->find("items");
  if (listed == nullptr || !listed->is(Kind::kArray)) return;  // it says nothing then
  reading.found.has_items = true;
  reading.found.items = {&node};
}

void unique_items(Reading& reading, Node node) {
  if (!node.is_boolean()) reading.document.refuse(&node, "true or false");
  if (node.is(Kind::kFalse)) return;
  reading.found.spoken_of |= kArray;
  reading.found.unique = &node;
}

// That names are strings goes without saying.
void property_names(Reading& reading, Node node) {
  const bool says_nothing =
      node.is(Kind::kTrue) || (node.is(Kind::kObject) && std::ranges::all_of(node.parts, [](const auto& part) {
                                 return is_annotation(part->name) || (part->name == "type" && part->text == "string");
                               }));
  if (!says_nothing)
    reading.document.refuse_as(&node, "this keyword is not supported; remove it, if it may be ignored");
}

void of_whole_schema(Reading&, Node) {}  // ConstraintReader's

using ReadKeyword = void (*)(Reading&, Node);
const std::unordered_map<std::string_view, ReadKeyword> kKeywords = {
    {"type", type},
    {"enum", enumeration},
    {"const", constant},
    {"minimum", lower},
    {"exclusiveMinimum", lower},
    {"maximum", upper},
    {"exclusiveMaximum", upper},
    {"multipleOf", multiple_of},
    {"minLength", least_count<kString, &Constraints::length>},
    {"maxLength", most_count<kString, &Constraints::length>},
    {"pattern", pattern},
    {"format", format},
    {"properties", properties},
    {"required", required},
    {"additionalProperties", additional_properties},
    {"minProperties", property_count<&Constraints::n_properties, least_count<kObject, &Constraints::n_properties>>},
    {"maxProperties", property_count<&Constraints::n_properties, most_count<kObject, &Constraints::n_properties>>},
    {"propertyNames", property_names},
    {"prefixItems", prefix_items},
    {"items", items},
    {"additionalItems", additional_items},
    {"minItems", least_count<kArray, &Constraints::n_items>},
    {"maxItems", most_count<kArray, &Constraints::n_items>},
    {"uniqueItems", unique_items},
    {"$ref", of_whole_schema},
    {"allOf", of_whole_schema},
    {"anyOf", of_whole_schema},
    {"oneOf", of_whole_schema},
    {"nullable", of_whole_schema},
    {"unevaluatedProperties", of_whole_schema},
    {"unevaluatedItems", of_whole_schema},
};

}  // namespace

// Keywords that say something of values and are not taken into account; all others are annotations, as the
// specification has it.
bool is_refused(std::string_view keyword) {
  static const std::unordered_set<std::string_view> kRefused = {"not",
                                                                "if",
                                                                "then",
                                                                "else",
                                                                "contains",
                                                                "minContains",
                                                                "maxContains",
                                                                "dependencies",
                                                                "$dynamicRef",
                                                                "patternProperties",
                                                                "dependentSchemas",
                                                                "$recursiveRef",
                                                                "disallow",
                                                                "extends",
                                                                "divisibleBy",
                                                                "dependentRequired"};
  return kRefused.contains(keyword);
}

bool is_annotation(std::string_view keyword) { return !kKeywords.contains(keyword) && !is_refused(keyword); }

Constraints own_constraints(const SchemaDocument& document, const SchemaNode* schema) {
  Reading reading{document, {}};
  for (const auto& part : schema->parts) {
    if (is_annotation(part->name)) continue;
    if (is_refused(part->name)) {
      document.refuse_as(part.get(), "this keyword is not supported; remove it, if it may be ignored");
    }
    kKeywords.at(part->name)(reading, *part);
  }
  return std::move(reading.found);
}

}  // namespace tiercel::grammar
