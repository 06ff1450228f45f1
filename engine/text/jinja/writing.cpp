// str(), repr() and json.dumps of values.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/text/jinja/operations.h"
#include "engine/text/jinja/strings.h"
#include "engine/text/utf8.h"

namespace tiercel::jinja {
namespace {

// Empty: a character is written as it is.
std::string escape_in_repr(char32_t c, char quote) {
  switch (c) {
    case '\n': return "\\n";
    case '\r': return "\\r";
    case '\t': return "\\t";
    case '\\': return "\\\\";
    default: break;
  }
  const auto code = static_cast<uint32_t>(c);
  if (code == static_cast<uint32_t>(quote)) return fmt::format("\\{}", quote);
  if (code >= 0x20 && code != 0x7f && (code < 0x7f || is_printable(c))) return {};
  if (code < 0x100) return fmt::format("\\x{:02x}", code);
  if (code < 0x10000) return fmt::format("\\u{:04x}", code);
  return fmt::format("\\U{:08x}", code);
}

void write_quoted(const Text& text, TextWriter& out) {
  const std::string_view view = text.view();
  const bool has_single = view.find('\'') != std::string_view::npos;
  const char quote = has_single && view.find('"') == std::string_view::npos ? '"' : '\'';
  const std::string_view quotes(&quote, 1);
  out.add(quotes);
  size_t plain = 0;  // from here on, what is written as it is
  for (size_t at = 0; at < view.size();) {
    const size_t begin = at;
    const char32_t c = read_code_point(view, &at);
    const std::string escape = escape_in_repr(c, quote);
    if (escape.empty()) continue;
    out.add(text, plain, begin);
    out.add(escape, text.is_foreign(begin));
    plain = at;
  }
  out.add(text, plain);
  out.add(quotes);
}

void write_repr(const Value& value, TextWriter& out, Budget& budget);

void write_items(const char* open, const List& items, const char* close, TextWriter& out, Budget& budget) {
  out.add(open);
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.add(", ");
    write_repr(items[i], out, budget);
  }
  out.add(close);
}

void write_repr(const Value& value, TextWriter& out, Budget& budget) {
  budget.step();
  if (value.is_undefined()) {
    out.add("Undefined");
  } else if (value.is_none()) {
    out.add("None");
  } else if (const bool* b = value.boolean()) {
    out.add(*b ? "True" : "False");
  } else if (const int64_t* i = value.integer()) {
    out.add(std::to_string(*i));
  } else if (const double* d = value.real()) {
    out.add(python_float(*d));
  } else if (const Text* t = value.text()) {
    if (t->is_markup()) out.add("Markup(");
    write_quoted(*t, out);
    if (t->is_markup()) out.add(")");
  } else if (const Dict* dict = value.dict()) {
    out.add("{");
    bool first = true;
    for (const auto& [key, member] : dict->items()) {
      if (!std::exchange(first, false)) out.add(", ");
      write_repr(key, out, budget);
      out.add(": ");
      write_repr(member, out, budget);
    }
    out.add("}");
  } else if (const Sequence* s = value.sequence(); s != nullptr && s->kind == Sequence::Kind::kList) {
    write_items("[", s->items, "]", out, budget);
  } else if (s != nullptr && s->kind == Sequence::Kind::kTuple) {
    write_items("(", s->items, s->items.size() == 1 ? ",)" : ")", out, budget);
  } else if (s != nullptr && s->kind >= Sequence::Kind::kKeys && s->kind <= Sequence::Kind::kItems) {
    out.add(fmt::format("{}(", value.type()));
    write_items("[", s->items, "]", out, budget);
    out.add(")");
  } else {
    throw Problem(fmt::format("expected something that has a text of its own, found a value of type {}", value.type()));
  }
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, TextWriter& out, Budget& budget) : style_(style), out_(out), budget_(budget) {}

  void write(const Value& value, int level) {
    budget_.step();
    if (value.is_none()) {
      out_.add("null");
    } else if (const bool* b = value.boolean()) {
      out_.add(*b ? "true" : "false");
    } else if (const int64_t* i = value.integer()) {
      out_.add(std::to_string(*i));
    } else if (const double* d = value.real()) {
      out_.add(number(*d));
    } else if (const Text* t = value.text()) {
      write_string(*t);
    } else if (const Dict* dict = value.dict()) {
      write_dict(*dict, level);
    } else if (const Sequence* s = value.sequence();
               s != nullptr && (s->kind == Sequence::Kind::kList || s->kind == Sequence::Kind::kTuple)) {
      out_.add("[");
      for (size_t n = 0; n < s->items.size(); ++n) {
        if (n > 0) out_.add(style_.item_separator);
        line(level + 1);
        write(s->items[n], level + 1);
      }
      if (!s->items.empty()) line(level);
      out_.add("]");
    } else {
      throw Problem(fmt::format("expected something that JSON has, found a value of type {}", value.type()));
    }
  }

 private:
  static std::string number(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return python_float(value);
  }

  void line(int level) {
    if (!style_.has_lines) return;
    out_.add("\n");
    for (int i = 0; i < level; ++i) out_.add(style_.indent);
  }

  void write_dict(const Dict& dict, int level) {
    std::vector<const Dict::Item*> items;
    for (const Dict::Item& item : dict.items()) items.push_back(&item);
    if (style_.sort_keys) {
      std::ranges::stable_sort(
          items, [&](const Dict::Item* a, const Dict::Item* b) { return compare("<", a->first, b->first, budget_); });
    }
    out_.add("{");
    for (size_t n = 0; n < items.size(); ++n) {
      if (n > 0) out_.add(style_.item_separator);
      line(level + 1);
      write_key(items[n]->first);
      out_.add(style_.key_separator);
      write(items[n]->second, level + 1);
    }
    if (!items.empty()) line(level);
    out_.add("}");
  }

  void write_key(const Value& key) {
    if (key.text() != nullptr) return write_string(*key.text());
    if (key.sequence() != nullptr) throw Problem("expected keys that JSON has, found a tuple");
    out_.add("\"");
    write(key, 0);  // numbers and None, as they are as values
    out_.add("\"");
  }

  void write_string(const Text& text) {
    const std::string_view view = text.view();
    out_.add("\"");
    size_t plain = 0;  // from here on, what is written as it is
    for (size_t at = 0; at < view.size();) {
      const size_t begin = at;
      const char32_t c = read_code_point(view, &at);
      const std::string escape = escaped(c);
      if (escape.empty()) continue;
      out_.add(text, plain, begin);
      out_.add(escape, text.is_foreign(begin));
      plain = at;
    }
    out_.add(text, plain);
    out_.add("\"");
  }

  // Empty: it is written as it is.
  std::string escaped(char32_t c) const {
    switch (c) {
      case '"': return "\\\"";
      case '\\': return "\\\\";
      case '\n': return "\\n";
      case '\r': return "\\r";
      case '\t': return "\\t";
      case '\b': return "\\b";
      case '\f': return "\\f";
      default: break;
    }
    const auto code = static_cast<uint32_t>(c);
    if (code >= 0x20 && (code < 0x7f || !style_.ensure_ascii)) return {};
    if (code < 0x10000) return fmt::format("\\u{:04x}", code);
    return fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + ((code - 0x10000) >> 10), 0xdc00 + ((code - 0x10000) & 0x3ff));
  }

  const JsonStyle& style_;
  TextWriter& out_;
  Budget& budget_;
};

}  // namespace

Text str(const Value& value, Budget& budget) {
  if (const Text* text = value.text()) return *text;
  return value.is_undefined() ? Text() : repr(value, budget);
}

Text repr(const Value& value, Budget& budget) {
  TextWriter out(budget);
  write_repr(value, out, budget);
  return out.take();
}

Text to_json(const Value& value, const JsonStyle& style, Budget& budget) {
  TextWriter out(budget);
  JsonWriter(style, out, budget).write(value, 0);
  return out.take();
}

}  // namespace tiercel::jinja
