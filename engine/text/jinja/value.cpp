#include "engine/text/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "engine/base/check.h"

namespace tiercel::jinja {

const Value* Dict::find(std::string_view key) const {
  for (const auto& [name, value] : items_) {
    if (name == key) return &value;
  }
  return nullptr;
}

void Dict::set(const std::string& key, Value value) {
  for (auto& [name, old] : items_) {
    if (name == key) {
      old = std::move(value);
      return;
    }
  }
  items_.emplace_back(key, std::move(value));
}

const Value* Arguments::get(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  return named.find(name);
}

Value::Value(List value) {
  for (const Value& inner : value) nest(inner);
  storage_ = std::make_shared<const List>(std::move(value));
}

Value::Value(Dict value) {
  for (const auto& [key, inner] : value.items()) nest(inner);
  storage_ = std::make_shared<const Dict>(std::move(value));
}

void Value::nest(const Value& inner) {
  constexpr int32_t kMost = 100;
  depth_ = std::max(depth_, inner.depth_ + 1);
  if (depth_ > kMost) fail(ErrorKind::kUsage, "expected lists and dicts in at most {} others", kMost);
}

double Value::number() const {
  if (const bool* b = boolean()) return *b ? 1 : 0;
  if (const int64_t* i = integer()) return static_cast<double>(*i);
  return *real();
}

const char* Value::type() const {
  constexpr const char* kNames[] = {"undefined", "None", "bool",      "int",      "float",
                                    "str",       "list", "dict", "namespace", "function"};
  return kNames[storage_.index()];
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return number() != 0;
  if (const Text* t = text()) return !t->empty();
  if (const List* l = list()) return !l->empty();
  if (const Dict* d = dict()) return d->size() > 0;
  return true;
}

// The shortest digits that mean it, as Python writes them.
std::string python_float(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char digits[32];
  const auto end = std::to_chars(std::begin(digits), std::end(digits), value, std::chars_format::scientific).ptr;
  std::string mantissa(digits, end);
  const size_t e = mantissa.find('e');
  const int exponent = std::stoi(mantissa.substr(e + 1));
  if (exponent < -4 || exponent >= 16) {
    mantissa.resize(e);
    return fmt::format("{}e{}{:02}", mantissa, exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  const auto fixed = std::to_chars(std::begin(digits), std::end(digits), value, std::chars_format::fixed).ptr;
  std::string text(digits, fixed);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

Text Value::str() const {
  if (const Text* t = text()) return *t;
  if (is_undefined()) return {};
  return repr();
}

Text Value::repr() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "None";
  if (const bool* b = boolean()) return *b ? "True" : "False";
  if (const int64_t* i = integer()) return std::to_string(*i);
  if (const double* d = real()) return python_float(*d);
  if (const Text* t = text()) {
    const bool double_quotes = t->view().find('\'') != std::string_view::npos && t->view().find('"') == std::string_view::npos;
    const char quote = double_quotes ? '"' : '\'';
    Text result(std::string(1, quote));
    for (size_t at = 0; at < t->size(); ++at) {
      const char c = t->view()[at];
      if (c == '\n') {
        result += "\\n";
      } else if (c == '\r') {
        result += "\\r";
      } else if (c == '\t') {
        result += "\\t";
      } else if (c == '\\' || c == quote) {
        result += Text(std::string("\\") + c);
      } else {
        result += t->substr(at, 1);
      }
    }
    return result += Text(std::string(1, quote));
  }
  if (const List* l = list()) {
    Text result("[");
    for (size_t i = 0; i < l->size(); ++i) {
      if (i > 0) result += ", ";
      result += (*l)[i].repr();
    }
    return result += "]";
  }
  if (const Dict* d = dict()) {
    Text result("{");
    bool first = true;
    for (const auto& [key, value] : d->items()) {
      if (!std::exchange(first, false)) result += ", ";
      result += Value(Text(key)).repr();
      result += ": ";
      result += value.repr();
    }
    return result += "}";
  }
  return Text(fmt::format("<{}>", type()));
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.integer() != nullptr && b.integer() != nullptr) return *a.integer() == *b.integer();
    return a.number() == b.number();
  }
  if (a.text() != nullptr && b.text() != nullptr) return a.text()->view() == b.text()->view();
  if (a.list() != nullptr && b.list() != nullptr) {
    return std::ranges::equal(*a.list(), *b.list(), equal);
  }
  if (const Dict *x = a.dict(), *y = b.dict(); x != nullptr && y != nullptr) {
    return x->size() == y->size() && std::ranges::all_of(x->items(), [&](const auto& item) {
             const Value* other = y->find(item.first);
             return other != nullptr && equal(item.second, *other);
           });
  }
  if (a.is_undefined() || a.is_none()) return a.storage().index() == b.storage().index();
  if (a.name_space() != nullptr) return a.name_space() == b.name_space();
  if (a.callable() != nullptr) return a.callable() == b.callable();
  return false;
}

namespace {

void write_string(const Text& text, Text& out) {
  out += "\"";
  size_t plain = 0;  // from here on, what is written as it is
  const auto flush = [&](size_t end) { out += text.substr(plain, end - plain); };
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text.view()[at];
    std::string escape;
    switch (c) {
      case '"': escape = "\\\""; break;
      case '\\': escape = "\\\\"; break;
      case '\n': escape = "\\n"; break;
      case '\r': escape = "\\r"; break;
      case '\t': escape = "\\t"; break;
      case '\b': escape = "\\b"; break;
      case '\f': escape = "\\f"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) escape = fmt::format("\\u{:04x}", static_cast<int>(c));
    }
    if (escape.empty()) continue;
    flush(at);
    out += Text(escape);
    plain = at + 1;
  }
  flush(text.size());
  out += "\"";
}

void write_json(const Value& value, int indent, int depth, Text& out) {
  const auto line = [&](int level) {
    if (indent >= 0) out += Text("\n" + std::string(static_cast<size_t>(indent * level), ' '));
  };
  const char* const comma = indent >= 0 ? "," : ", ";
  if (value.is_none()) {
    out += "null";
  } else if (const bool* b = value.boolean()) {
    out += *b ? "true" : "false";
  } else if (const int64_t* i = value.integer()) {
    out += Text(std::to_string(*i));
  } else if (const double* d = value.real()) {
    out += Text(std::isnan(*d) ? "NaN" : std::isinf(*d) ? (*d > 0 ? "Infinity" : "-Infinity") : python_float(*d));
  } else if (const Text* t = value.text()) {
    write_string(*t, out);
  } else if (const List* l = value.list()) {
    out += "[";
    for (size_t n = 0; n < l->size(); ++n) {
      if (n > 0) out += comma;
      line(depth + 1);
      write_json((*l)[n], indent, depth + 1, out);
    }
    if (!l->empty()) line(depth);
    out += "]";
  } else if (const Dict* d = value.dict()) {
    out += "{";
    bool first = true;
    for (const auto& [key, member] : d->items()) {
      if (!std::exchange(first, false)) out += comma;
      line(depth + 1);
      write_string(Text(key), out);
      out += ": ";
      write_json(member, indent, depth + 1, out);
    }
    if (d->size() > 0) line(depth);
    out += "}";
  } else {
    fail(ErrorKind::kUsage, "expected something that JSON has, found a value of type {}", value.type());
  }
}

}  // namespace

Text to_json(const Value& value, int indent) {
  Text out;
  write_json(value, indent, 0, out);
  return out;
}

}  // namespace tiercel::jinja
