// Values of chat templates: Python's, as far as templates use them.
//
// What lists and dicts hold is shared, never changed; only namespaces change. Values are in each other at most a
// hundred deep, so that what goes through them may recurse; it counts what it visits, as few bytes can mean a great
// deal.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "engine/text/jinja/budget.h"
#include "engine/text/jinja/text.h"

namespace tiercel::jinja {

class Value;
using List = std::vector<Value>;
struct Sequence;
class Dict;
struct Namespace;
struct Loop;
struct Function;

struct None {};
constexpr int kMostNested = 100;
// Of what holds something `inner` deep; throws Problem.
int nested_depth(int inner);

// What is missing. The names are the template's own, which outlives its values.
struct Undefined {
  enum class Kind { kName, kMember, kItem, kArgument, kElse, kEmpty, kNeighbour, kUnsafe };
  Kind kind = Kind::kItem;
  const std::string* name = nullptr;
  std::string message() const;
};

class Value {
 public:
  using Storage = std::variant<Undefined, None, bool, int64_t, double, Text, std::shared_ptr<const Sequence>,
                               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, std::shared_ptr<const Loop>,
                               std::shared_ptr<const Function>>;
  Value() : storage_(None{}) {}
  // Implicit: an operation's result, whatever it is, is a value.
  Value(Undefined value) : storage_(value) {}        // NOLINT
  Value(bool value) : storage_(value) {}             // NOLINT
  Value(int64_t value) : storage_(value) {}          // NOLINT
  Value(double value) : storage_(value) {}           // NOLINT
  Value(Text value) : storage_(std::move(value)) {}  // NOLINT
  template <typename T>
  Value(std::shared_ptr<T> value) : storage_(std::move(value)) {}  // NOLINT
  template <typename T>
  Value(T*) = delete;  // a pointer is no bool

  const Undefined* undefined() const { return std::get_if<Undefined>(&storage_); }
  bool is_undefined() const { return undefined() != nullptr; }
  bool is_none() const { return std::holds_alternative<None>(storage_); }
  const bool* boolean() const { return std::get_if<bool>(&storage_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&storage_); }
  const double* real() const { return std::get_if<double>(&storage_); }
  const Text* text() const { return std::get_if<Text>(&storage_); }
  const Sequence* sequence() const { return shared<const Sequence>(); }
  const Sequence* generator() const;  // a sequence that is gone through once
  const Dict* dict() const { return shared<const Dict>(); }
  Namespace* name_space() const { return shared<Namespace>(); }
  const Loop* loop() const { return shared<const Loop>(); }
  const Function* function() const { return shared<const Function>(); }

  bool is_number() const { return boolean() != nullptr || integer() != nullptr || real() != nullptr; }
  double number() const;                 // of is_number
  std::optional<int64_t> whole() const;  // of an int or a bool
  const char* type() const;              // Python's name, for messages
  bool truthy() const;
  int depth() const;  // of what is in it

 private:
  template <typename T>
  T* shared() const {
    const auto* p = std::get_if<std::shared_ptr<T>>(&storage_);
    return p != nullptr ? p->get() : nullptr;
  }
  Storage storage_;
};

// What is missing may be written, asked for and gone through; else this throws Problem.
void need_defined(const Value& value);

struct Sequence {
  enum class Kind { kList, kTuple, kRange, kKeys, kValues, kItems, kIterator };
  Kind kind = Kind::kList;
  List items;
  int depth = 0;
  mutable size_t next = 0;  // kIterator: what has not been taken yet
  Held held = {};

  bool is_indexed() const { return kind <= Kind::kRange; }
};

// Collects elements, each counted before it is there.
class ListMaker {
 public:
  explicit ListMaker(Budget& budget) : budget_(budget), held_(budget.held()) { held_.grow(sizeof(Sequence)); }
  void push(Value value) {
    budget_.step();
    held_.grow(sizeof(Value));
    items_.push_back(std::move(value));
  }
  List& items() { return items_; }
  // Throws Problem where too much is in each other.
  Value take(Sequence::Kind kind = Sequence::Kind::kList);

 private:
  Budget& budget_;
  Held held_;
  List items_;
};

// In the order of insertion. Keys are what Python can hash: strings, numbers, None, and tuples of them.
class Dict {
 public:
  using Item = std::pair<Value, Value>;
  const Value* find(std::string_view key, Budget& budget) const;
  // Throws Problem for what cannot be a key.
  const Value* find(const Value& key, Budget& budget) const;
  // Throws Problem for a key that cannot be one.
  void set(const Value& key, Value value, Budget& budget);
  const std::vector<Item>& items() const { return items_; }
  size_t size() const { return items_.size(); }
  int depth() const { return depth_; }

 private:
  std::vector<Item> items_;
  std::map<std::string_view, size_t> texts_;  // places in items_, whose texts these are
  std::map<std::string, size_t> others_;      // by key_of
  int depth_ = 0;
  Held held_;
};
Value dict_of(Dict dict);

// The same for equal values (1, 1.0 and True are); none: it cannot be a key.
std::optional<std::string> key_of(const Value& value, Budget& budget);

struct Namespace {
  Dict values;
};

// Goes through a value once. Elements of a sequence are looked at, not copied.
class Iteration {
 public:
  Iteration(const Value& value, Budget& budget);
  Iteration(const Iteration&) = delete;
  Iteration& operator=(const Iteration&) = delete;
  List::const_iterator begin() const { return items_->begin() + static_cast<std::ptrdiff_t>(first_); }
  List::const_iterator end() const { return items_->end(); }
  size_t size() const { return items_->size() - first_; }
  const Value& operator[](size_t i) const { return (*items_)[first_ + i]; }

 private:
  Value value_;  // keeps what is looked at
  List made_;
  Held held_;  // made_
  const List* items_ = &made_;
  size_t first_ = 0;
};
// As a list of its own.
ListMaker listed(const Value& value, Budget& budget);

// The loop of a {% for %}; it changes as that goes on.
struct Loop {
  Loop(const Value& value, Budget& budget) : items(value, budget), depth(nested_depth(value.depth())) {}
  Iteration items;
  size_t index = 0;
  int depth;
  Held held = {};
};

struct Statement;
struct Scope;

struct Function {
  enum class Kind { kRaise, kClock, kNamespace, kDict, kRange, kMethod, kMacro };
  Kind kind;
  Value object = {};                  // kMethod
  std::string_view name = {};         // kMethod
  const Statement* macro = nullptr;   // kMacro
  std::shared_ptr<Scope> scope = {};  // kMacro: where it was defined
  Held held = {};
};

}  // namespace tiercel::jinja
