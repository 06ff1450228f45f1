// What schemas demand of a value, keyword by keyword, and what several demand together.
//
// Refuses, with its place, whatever it does not take into account: nothing is dropped but annotations.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/text/grammar/expression.h"
#include "engine/text/json_schema/json_numbers.h"
#include "engine/text/json_schema/schema_document.h"

namespace tiercel::grammar {

// Schemas that a value satisfies together; none: any value.
using SchemaSet = std::vector<const SchemaNode*>;

enum Types : uint8_t {
  kNull = 1,
  kBoolean = 2,
  kInteger = 4,
  kFraction = 8,  // numbers that are no integers
  kNumber = kInteger | kFraction,
  kString = 16,
  kArray = 32,
  kObject = 64,
  kAnyType = 127
};

struct Counts {
  int64_t least = 0, most = kUnlimited;

  bool is_possible() const { return most == kUnlimited || least <= most; }
  bool contains(int64_t count) const { return count >= least && (most == kUnlimited || count <= most); }
};

struct SchemaProperty {
  std::string name;
  SchemaSet schema;
};

struct Constraints {
  uint8_t types = kAnyType;
  bool has_type = false;
  uint8_t spoken_of = 0;                                 // the types that keywords other than "type" are about
  std::optional<std::vector<const SchemaNode*>> values;  // enum, const

  NumberRange range;
  int n_zeros = -1;  // a multiple of 10^n_zeros; -1: of nothing
  Counts length;
  const SchemaNode* pattern = nullptr;
  const SchemaNode* format = nullptr;

  std::vector<SchemaProperty> properties;
  bool has_properties = false;
  std::vector<std::string> required;
  std::optional<SchemaSet> additional;
  Counts n_properties;
  const SchemaNode* counts_properties = nullptr;  // the keyword that does

  std::vector<SchemaSet> prefix;
  SchemaSet items;
  bool has_items = false;
  Counts n_items;
  const SchemaNode* unique = nullptr;

  bool is_from_reference = false;  // so it may be met again inside of itself
};

// What equal values of JSON have in common.
inline std::string identity(const SchemaNode& value) { return to_json(value, /*in_one_form=*/true); }

class ConstraintReader {
 public:
  explicit ConstraintReader(const SchemaDocument& document) : document_(document) {}

  // A value satisfies all schemas of the set if it satisfies one of these.
  std::vector<Constraints> alternatives(const SchemaSet& set);
  // Of a schema that says one thing, that keyword; null: several, or none.
  static const SchemaNode* only_keyword(const SchemaNode* schema);
  // Whether any value satisfies it, at a glance.
  static bool is_trivial(const SchemaNode* schema);
  // Errors: a schema that is defined by itself; one that is none.
  void check(const SchemaNode* schema) { check(schema, 0); }
  // A keyword's list of schemas.
  const SchemaNode* list_of(const SchemaNode* keyword) const;

 private:
  std::vector<Constraints> alternatives(const SchemaNode* schema);
  std::vector<Constraints> branch(const SchemaNode* keyword);
  std::vector<Constraints> product(const std::vector<Constraints>& a, const std::vector<Constraints>& b,
                                   const SchemaNode* where);
  std::optional<Constraints> merged(const Constraints& a, const Constraints& b) const;
  void check(const SchemaNode* schema, int depth);
  [[noreturn]] void refuse_work(const SchemaNode* where) const;
  [[noreturn]] void refuse_depth(const SchemaNode* where) const;

  const SchemaDocument& document_;
  std::set<const SchemaNode*> checked_, being_checked_;
  int depth_ = 0;
  size_t work_ = 0;
};

// The keywords of one schema that do not refer to schemas it must satisfy as a whole.
Constraints own_constraints(const SchemaDocument& document, const SchemaNode* schema);
// Of a lower bound: the one that lets through less.
void tighten_lower(std::optional<Bound>& bound, const std::optional<Bound>& other);
void tighten_upper(std::optional<Bound>& bound, const std::optional<Bound>& other);
bool is_annotation(std::string_view keyword);

}  // namespace tiercel::grammar
