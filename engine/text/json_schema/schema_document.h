// A JSON Schema as it was written: members in their order, numbers digit by digit, every value with its place.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tiercel::grammar {

struct SchemaNode {
  enum class Kind : uint8_t { kNull, kFalse, kTrue, kNumber, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  std::string text;                                // a string, decoded; a number as it was written
  std::vector<std::unique_ptr<SchemaNode>> parts;  // elements, or values of members, in their order
  std::vector<uint32_t> by_name;                   // an object's parts, sorted by name

  const SchemaNode* parent = nullptr;
  std::string name;  // as a member
  size_t index = 0;  // among the parent's parts
  size_t order = 0;  // in the document

  bool is(Kind other) const { return kind == other; }
  bool is_boolean() const { return kind == Kind::kTrue || kind == Kind::kFalse; }
  const SchemaNode* find(std::string_view member) const;  // null: no such member, or no object
};

// Without white space. in_one_form: the same for equal values, whatever their members' order and their numbers' digits.
std::string to_json(const SchemaNode& node, bool in_one_form = false);

class SchemaDocument {
 public:
  // Errors, all kUsage: above kMostBytes, deeper than clients may send, not JSON, a key twice.
  SchemaDocument(std::string_view schema, std::string name);
  static constexpr size_t kMostBytes = size_t{1} << 20;

  const SchemaNode* root() const { return root_.get(); }
  // "NAME: #/properties/a"; long names are cut.
  std::string place(const SchemaNode* node) const;
  // What the string of a $ref means. Errors: no place within this document.
  const SchemaNode* target(const SchemaNode* reference) const;

  // Throws "NAME: PLACE: expected WHAT, found (the node); HELP".
  [[noreturn]] void refuse(const SchemaNode* node, std::string_view expected, std::string_view help = {}) const;
  // Throws "NAME: PLACE: MESSAGE".
  [[noreturn]] void refuse_as(const SchemaNode* node, std::string_view message) const;

 private:
  std::string name_;
  std::unique_ptr<SchemaNode> root_;
};

}  // namespace tiercel::grammar
