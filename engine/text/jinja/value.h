// Values of chat templates: Python's, as far as templates use them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "engine/text/jinja/text.h"

namespace tiercel::jinja {

class Value;
using List = std::vector<Value>;
// In the order of insertion.
class Dict {
 public:
  const Value* find(std::string_view key) const;
  void set(const std::string& key, Value value);
  const std::vector<std::pair<std::string, Value>>& items() const { return items_; }
  size_t size() const { return items_.size(); }

 private:
  std::vector<std::pair<std::string, Value>> items_;
};

struct Undefined {
  std::string name;  // for messages
};
struct None {};
struct Namespace {
  Dict values;
};
struct Arguments {
  List positional;
  Dict named;
  const Value* get(size_t index, std::string_view name) const;
};
struct Callable {
  std::string name;
  std::function<Value(const Arguments&)> call;
};

class Value {
 public:
  using Storage = std::variant<Undefined, None, bool, int64_t, double, Text, std::shared_ptr<const List>,
                               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, std::shared_ptr<const Callable>>;
  Value() : storage_(None{}) {}
  Value(Undefined value) : storage_(std::move(value)) {}        // NOLINT
  Value(None) : storage_(None{}) {}                             // NOLINT
  Value(bool value) : storage_(value) {}                        // NOLINT
  Value(int64_t value) : storage_(value) {}                     // NOLINT
  Value(double value) : storage_(value) {}                      // NOLINT
  Value(Text value) : storage_(std::move(value)) {}             // NOLINT
  Value(const char* value) : storage_(Text(value)) {}           // NOLINT
  Value(std::string value) : storage_(Text(std::move(value))) {}  // NOLINT
  // Errors: what is in it is in more than a hundred others: stacks are finite.
  Value(List value);  // NOLINT
  Value(Dict value);  // NOLINT
  Value(std::shared_ptr<Namespace> value) : storage_(std::move(value)) {}          // NOLINT
  Value(Callable value) : storage_(std::make_shared<const Callable>(std::move(value))) {}  // NOLINT

  bool is_undefined() const { return std::holds_alternative<Undefined>(storage_); }
  bool is_none() const { return std::holds_alternative<None>(storage_); }
  const bool* boolean() const { return std::get_if<bool>(&storage_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&storage_); }
  const double* real() const { return std::get_if<double>(&storage_); }
  const Text* text() const { return std::get_if<Text>(&storage_); }
  const List* list() const {
    const auto* p = std::get_if<std::shared_ptr<const List>>(&storage_);
    return p != nullptr ? p->get() : nullptr;
  }
  const Dict* dict() const {
    const auto* p = std::get_if<std::shared_ptr<const Dict>>(&storage_);
    return p != nullptr ? p->get() : nullptr;
  }
  Namespace* name_space() const {
    const auto* p = std::get_if<std::shared_ptr<Namespace>>(&storage_);
    return p != nullptr ? p->get() : nullptr;
  }
  const Callable* callable() const {
    const auto* p = std::get_if<std::shared_ptr<const Callable>>(&storage_);
    return p != nullptr ? p->get() : nullptr;
  }
  const Storage& storage() const { return storage_; }

  bool is_number() const { return boolean() != nullptr || integer() != nullptr || real() != nullptr; }
  double number() const;        // of is_number
  const char* type() const;     // Python's name, for messages
  bool truthy() const;
  Text str() const;             // str(value); undefined: empty
  Text repr() const;

 private:
  void nest(const Value& inner);

  Storage storage_;
  int32_t depth_ = 0;  // of lists and dicts within each other
};

bool equal(const Value& a, const Value& b);
// json.dumps(value, ensure_ascii=False, indent=indent): -1, one line with ", " and ": ".
Text to_json(const Value& value, int indent);
std::string python_float(double value);

}  // namespace tiercel::jinja
