#include "engine/text/json_schema/schema_constraints.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

namespace tiercel::grammar {
namespace {

using Kind = SchemaNode::Kind;

constexpr int kMostDepth = 200;
constexpr size_t kMostAlternatives = 500;
constexpr size_t kMostWork = 2'000'000;  // properties copied

// With a "not above" for lower bounds and a "not below" for upper ones: the one that lets through less.
void tighten(std::optional<Bound>& bound, const std::optional<Bound>& other, int direction) {
  if (!other) return;
  const int order = bound ? direction * compare(other->value, bound->value) : 1;
  if (order > 0) {
    bound = other;
  } else if (order == 0) {
    bound->exclusive |= other->exclusive;
  }
}

void tighten(Counts& counts, const Counts& other) {
  counts.least = std::max(counts.least, other.least);
  if (counts.most == kUnlimited || (other.most != kUnlimited && other.most < counts.most)) counts.most = other.most;
}

void join(SchemaSet& set, const SchemaSet& other) {
  for (const SchemaNode* schema : other) {
    if (std::ranges::find(set, schema) == set.end()) set.push_back(schema);
  }
}

void merge_values(Constraints& into, const Constraints& other) {
  if (!other.values) return;
  if (!into.values) {
    into.values = other.values;
    return;
  }
  std::unordered_set<std::string> wanted;
  for (const SchemaNode* value : *other.values) wanted.insert(identity(*value));
  std::erase_if(*into.values, [&](const SchemaNode* value) { return !wanted.contains(identity(*value)); });
}

// What one says of "additional" properties holds for those that only the other one names.
void merge_objects(Constraints& into, const Constraints& other) {
  std::unordered_map<std::string_view, const SchemaProperty*> theirs;
  for (const SchemaProperty& property : other.properties) theirs[property.name] = &property;
  std::unordered_set<std::string> ours;
  for (SchemaProperty& property : into.properties) {
    ours.insert(property.name);
    const auto found = theirs.find(property.name);
    if (found != theirs.end()) {
      join(property.schema, found->second->schema);
    } else if (other.additional) {
      join(property.schema, *other.additional);
    }
  }
  for (const SchemaProperty& property : other.properties) {
    if (ours.contains(property.name)) continue;
    into.properties.push_back(property);
    if (into.additional) join(into.properties.back().schema, *into.additional);
  }
  if (into.additional && other.additional) {
    join(*into.additional, *other.additional);
  } else if (other.additional) {
    into.additional = other.additional;
  }
  const std::unordered_set<std::string> known(into.required.begin(), into.required.end());
  for (const std::string& name : other.required) {
    if (!known.contains(name)) into.required.push_back(name);
  }
  into.has_properties |= other.has_properties;
  tighten(into.n_properties, other.n_properties);
  if (into.counts_properties == nullptr) into.counts_properties = other.counts_properties;
}

void merge_arrays(Constraints& into, const Constraints& other) {
  for (size_t i = 0; i < std::max(into.prefix.size(), other.prefix.size()); ++i) {
    if (i == into.prefix.size()) into.prefix.push_back(into.items);
    join(into.prefix[i], i < other.prefix.size() ? other.prefix[i] : other.items);
  }
  join(into.items, other.items);
  into.has_items |= other.has_items;
  tighten(into.n_items, other.n_items);
  if (into.unique == nullptr) into.unique = other.unique;
}

// What copying it costs.
size_t size_of(const Constraints& c) {
  size_t n = 1 + c.properties.size() + c.prefix.size() + c.required.size() + c.items.size();
  if (c.values) n += c.values->size();
  if (c.additional) n += c.additional->size() * (1 + c.properties.size());
  return n;
}

bool refers(std::string_view keyword) {
  return keyword == "$ref" || keyword == "allOf" || keyword == "anyOf" || keyword == "oneOf";
}

}  // namespace

void tighten_lower(std::optional<Bound>& bound, const std::optional<Bound>& other) { tighten(bound, other, 1); }
void tighten_upper(std::optional<Bound>& bound, const std::optional<Bound>& other) { tighten(bound, other, -1); }

// ---- looking at schemas ----

const SchemaNode* ConstraintReader::only_keyword(const SchemaNode* schema) {
  const SchemaNode* found = nullptr;
  if (!schema->is(Kind::kObject)) return nullptr;
  for (const auto& part : schema->parts) {
    if (is_annotation(part->name)) continue;
    if (found != nullptr) return nullptr;
    found = part.get();
  }
  return found;
}

bool ConstraintReader::is_trivial(const SchemaNode* schema) {
  return schema->is(Kind::kTrue) ||
         (schema->is(Kind::kObject) &&
          std::ranges::all_of(schema->parts, [](const auto& part) { return is_annotation(part->name); }));
}

const SchemaNode* ConstraintReader::list_of(const SchemaNode* keyword) const {
  if (!keyword->is(Kind::kArray) || keyword->parts.empty())
    document_.refuse(keyword, "an array of at least one schema");
  return keyword;
}

void ConstraintReader::refuse_depth(const SchemaNode* where) const {
  document_.refuse_as(where,
                      "more than 200 schemas, one within the other, are about one value; write some of them out");
}

void ConstraintReader::refuse_work(const SchemaNode* where) const {
  document_.refuse_as(where, "together with the keywords around it, it has too many alternatives");
}

void ConstraintReader::check(const SchemaNode* schema, int depth) {
  if (schema->is_boolean() || checked_.contains(schema)) return;
  if (!schema->is(Kind::kObject)) document_.refuse(schema, "a schema: an object, true or false");
  if (depth > kMostDepth) refuse_depth(schema);
  if (!being_checked_.insert(schema).second) {
    document_.refuse_as(schema, "it is defined by itself, and by nothing that a text could begin with");
  }
  for (const auto& part : schema->parts) {
    if (!refers(part->name)) continue;
    if (part->name == "$ref") {
      check(document_.target(part.get()), depth + 1);
    } else {
      for (const auto& one : list_of(part.get())->parts) check(one.get(), depth + 1);
    }
  }
  being_checked_.erase(schema);
  checked_.insert(schema);
}

// ---- bringing schemas together ----

std::vector<Constraints> ConstraintReader::alternatives(const SchemaSet& set) {
  std::vector<Constraints> all = {Constraints{}};
  for (const SchemaNode* schema : set) {
    check(schema);
    all = product(all, alternatives(schema), schema);
  }
  return all;
}

std::vector<Constraints> ConstraintReader::alternatives(const SchemaNode* schema) {
  if (schema->is(Kind::kTrue)) return {Constraints{}};
  if (schema->is(Kind::kFalse)) return {};
  if (depth_ >= kMostDepth) refuse_depth(schema);
  if (++work_ > kMostWork) refuse_work(schema);
  ++depth_;
  // Properties come in the order of the keywords that bring them.
  std::vector<Constraints> all = {Constraints{}};
  bool has_own = false;
  const auto add_own = [&] {
    if (!has_own) all = product(all, {own_constraints(document_, schema)}, schema);
    has_own = true;
  };
  for (const auto& part : schema->parts) {
    if (part->name == "properties") add_own();
    if (refers(part->name)) all = product(all, branch(part.get()), part.get());
  }
  add_own();
  --depth_;

  if (const SchemaNode* closed = schema->find("unevaluatedProperties"); closed && !closed->is(Kind::kTrue)) {
    if (!closed->is(Kind::kFalse)) document_.refuse(closed, "true or false");
    for (Constraints& one : all) {
      one.spoken_of |= kObject;
      if (!one.additional) one.additional = SchemaSet{closed};
    }
  }
  if (const SchemaNode* closed = schema->find("unevaluatedItems"); closed && !closed->is(Kind::kTrue)) {
    if (!closed->is(Kind::kFalse)) document_.refuse(closed, "true or false");
    for (Constraints& one : all) {
      one.spoken_of |= kArray;
      if (!one.has_items) one.items = {closed};
      one.has_items = true;
    }
  }
  if (const SchemaNode* nullable = schema->find("nullable")) {
    if (!nullable->is_boolean()) document_.refuse(nullable, "true or false");
    Constraints null;
    null.types = kNull;
    null.has_type = true;
    if (nullable->is(Kind::kTrue)) all.push_back(null);
  }
  return all;
}

// Of $ref, allOf, anyOf or oneOf.
std::vector<Constraints> ConstraintReader::branch(const SchemaNode* keyword) {
  std::vector<Constraints> all;
  if (keyword->name == "$ref") {
    all = alternatives(document_.target(keyword));
    for (Constraints& one : all) one.is_from_reference = true;
    return all;
  }
  if (keyword->name == "allOf") {
    all = {Constraints{}};
    for (const auto& one : list_of(keyword)->parts) all = product(all, alternatives(one.get()), one.get());
    return all;
  }
  for (const auto& one : list_of(keyword)->parts) {
    std::vector<Constraints> more = alternatives(one.get());
    if (all.size() + more.size() > kMostAlternatives) {
      document_.refuse_as(keyword, "it has more than 500 alternatives beside other keywords; write it without those");
    }
    std::ranges::move(more, std::back_inserter(all));
  }
  return all;
}

std::vector<Constraints> ConstraintReader::product(const std::vector<Constraints>& a, const std::vector<Constraints>& b,
                                                   const SchemaNode* where) {
  std::vector<Constraints> all;
  for (const Constraints& one : a) {
    for (const Constraints& other : b) {
      work_ += size_of(one) + size_of(other);
      if (all.size() == kMostAlternatives || work_ > kMostWork) refuse_work(where);
      if (auto both = merged(one, other)) all.push_back(std::move(*both));
    }
  }
  return all;
}

// None: no value satisfies both.
std::optional<Constraints> ConstraintReader::merged(const Constraints& a, const Constraints& b) const {
  Constraints all = a;
  all.types &= b.types;
  all.has_type |= b.has_type;
  all.spoken_of |= b.spoken_of;
  all.is_from_reference |= b.is_from_reference;
  merge_values(all, b);
  if (all.types == 0 || (all.values && all.values->empty())) return std::nullopt;
  tighten_lower(all.range.lower, b.range.lower);
  tighten_upper(all.range.upper, b.range.upper);
  all.n_zeros = std::max(a.n_zeros, b.n_zeros);
  tighten(all.length, b.length);
  if (a.pattern != nullptr && b.pattern != nullptr && a.pattern->text != b.pattern->text) {
    document_.refuse(b.pattern, "one pattern for a value",
                     "it comes together with the one at " + document_.place(a.pattern));
  }
  if (all.pattern == nullptr) all.pattern = b.pattern;
  if (all.format == nullptr) all.format = b.format;
  merge_objects(all, b);
  merge_arrays(all, b);
  return all;
}

}  // namespace tiercel::grammar
