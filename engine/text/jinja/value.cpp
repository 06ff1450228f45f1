#include "engine/text/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/text/jinja/strings.h"

namespace tiercel::jinja {

int nested_depth(int inner) {
  if (inner >= kMostNested) throw Problem(fmt::format("lists and dicts are in more than {} others", kMostNested));
  return inner + 1;
}

std::string Undefined::message() const {
  const std::string quoted = name != nullptr ? "'" + *name + "'" : "a key";
  switch (kind) {
    case Kind::kName: return quoted + " is undefined";
    case Kind::kMember: return "a value has no attribute " + quoted;
    case Kind::kItem: return "a value has no such item";
    case Kind::kArgument: return "the argument " + quoted + " was not given";
    case Kind::kElse: return "an if without else has no value";
    case Kind::kEmpty: return "an empty sequence has no such element";
    case Kind::kNeighbour: return "the loop has no such element";
    case Kind::kUnsafe: return "a template may not use the attribute " + quoted;
  }
  return quoted;
}

void need_defined(const Value& value) {
  if (const Undefined* undefined = value.undefined()) throw Problem(undefined->message());
}

const Sequence* Value::generator() const {
  const Sequence* s = sequence();
  return s != nullptr && s->kind == Sequence::Kind::kIterator ? s : nullptr;
}

double Value::number() const {
  if (const bool* b = boolean()) return *b ? 1 : 0;
  if (const int64_t* i = integer()) return static_cast<double>(*i);
  return *real();
}

std::optional<int64_t> Value::whole() const {
  if (const bool* b = boolean()) return *b ? 1 : 0;
  if (const int64_t* i = integer()) return *i;
  return std::nullopt;
}

const char* Value::type() const {
  if (const Sequence* s = sequence()) {
    constexpr const char* kKinds[] = {"list", "tuple", "range", "dict_keys", "dict_values", "dict_items", "generator"};
    return kKinds[static_cast<size_t>(s->kind)];
  }
  constexpr const char* kNames[] = {"undefined", "None", "bool",      "int",  "float",   "str",
                                    "list",      "dict", "namespace", "loop", "function"};
  return kNames[storage_.index()];
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return number() != 0;
  if (const Text* t = text()) return !t->empty();
  if (const Sequence* s = sequence()) return generator() != nullptr || !s->items.empty();
  if (const Dict* d = dict()) return d->size() > 0;
  return true;
}

int Value::depth() const {
  if (const Sequence* s = sequence()) return s->depth;
  if (const Dict* d = dict()) return d->depth();
  if (const Loop* l = loop()) return l->depth;
  if (const Function* f = function()) return f->object.depth();
  return 0;
}

Value ListMaker::take(Sequence::Kind kind) {
  auto sequence = std::make_shared<Sequence>();
  sequence->kind = kind;
  for (const Value& item : items_) sequence->depth = std::max(sequence->depth, item.depth());
  sequence->depth = nested_depth(sequence->depth);
  sequence->items = std::move(items_);
  sequence->held = std::move(held_);
  items_ = {};
  held_ = budget_.held();
  return Value(std::shared_ptr<const Sequence>(std::move(sequence)));
}

Iteration::Iteration(const Value& value, Budget& budget) : value_(value), held_(budget.held()) {
  if (const Sequence* sequence = value_.sequence()) {
    items_ = &sequence->items;
    if (value_.generator() != nullptr) first_ = std::exchange(sequence->next, items_->size());
  } else if (const Dict* dict = value_.dict()) {
    held_.grow(dict->size() * sizeof(Value));
    for (const auto& [key, ignored] : dict->items()) made_.push_back(key);
  } else if (const Text* text = value_.text()) {
    for (size_t at = 0; at < text->size();) {
      const size_t end = at + character_size(text->view(), at);
      held_.grow(sizeof(Value));
      made_.emplace_back(part_of(*text, at, end, budget).as_markup(false));
      at = end;
    }
  } else if (!value_.is_undefined()) {
    throw Problem(fmt::format("expected something to go through, found a value of type {}", value_.type()));
  }
  budget.step(size());
}

ListMaker listed(const Value& value, Budget& budget) {
  ListMaker list(budget);
  for (const Value& item : Iteration(value, budget)) list.push(item);
  return list;
}

std::optional<std::string> key_of(const Value& value, Budget& budget) {
  if (const Text* t = value.text()) {
    budget.read_characters(t->size());
    return "s" + std::string(t->view());
  }
  if (const auto whole = value.whole()) return fmt::format("i{}", *whole);
  if (const double* d = value.real()) {
    if (std::abs(*d) < 9.2e18 && std::trunc(*d) == *d) return fmt::format("i{}", static_cast<int64_t>(*d));
    return fmt::format("f{}", *d);
  }
  if (value.is_none()) return "n";
  const Sequence* sequence = value.sequence();
  if (sequence == nullptr || sequence->kind != Sequence::Kind::kTuple) return std::nullopt;
  std::string key = "t";
  for (const Value& item : sequence->items) {
    budget.step();
    const auto inner =
        item.sequence() == nullptr ? key_of(item, budget) : std::nullopt;  // of tuples in tuples there may be too many
    if (!inner) return std::nullopt;
    key += fmt::format("{}:{}", inner->size(), *inner);
  }
  return key;
}

const Value* Dict::find(std::string_view key, Budget& budget) const {
  budget.read_characters(key.size());  // compared some times
  const auto found = texts_.find(key);
  return found != texts_.end() ? &items_[found->second].second : nullptr;
}

const Value* Dict::find(const Value& key, Budget& budget) const {
  if (const Text* text = key.text()) return find(text->view(), budget);
  const auto other = key_of(key, budget);
  if (!other) throw Problem(fmt::format("a value of type {} is no key of a dict", key.type()));
  const auto found = others_.find(*other);
  return found != others_.end() ? &items_[found->second].second : nullptr;
}

void Dict::set(const Value& key, Value value, Budget& budget) {
  constexpr size_t kPerItem = 2 * sizeof(Value) + 64;
  if (items_.empty()) held_ = budget.held();
  depth_ = std::max(depth_, nested_depth(value.depth()));
  size_t place = items_.size();
  if (const Text* text = key.text()) {
    budget.read_characters(text->size());
    if (const auto found = texts_.find(text->view()); found != texts_.end()) place = found->second;
  } else {
    auto other = key_of(key, budget);
    if (!other) throw Problem(fmt::format("a value of type {} is no key of a dict", key.type()));
    held_.grow(other->size());
    place = others_.try_emplace(std::move(*other), place).first->second;
  }
  if (place < items_.size()) {
    items_[place].second = std::move(value);
    return;
  }
  held_.grow(kPerItem);
  items_.emplace_back(key, std::move(value));
  if (const Text* text = items_.back().first.text()) texts_.emplace(text->view(), place);
}

Value dict_of(Dict dict) { return Value(std::shared_ptr<const Dict>(std::make_shared<Dict>(std::move(dict)))); }

}  // namespace tiercel::jinja
