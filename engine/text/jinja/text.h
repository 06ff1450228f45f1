// A string that knows which of its bytes somebody else wrote: a message's words, and what templates make of them, as
// opposed to what a template itself says. What ends a turn can then be told from what only spells it.
//
// Valid UTF-8, immutable, shared by its copies. Whatever makes one of others keeps each byte's origin; where a byte has
// several, it is foreign if one of them is.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/jinja/budget.h"

namespace tiercel::jinja {

class Text {
 public:
  Text() = default;
  // Of what the caller has counted, or need not count: literals, messages.
  static Text native(std::string bytes);
  static Text foreign(std::string bytes);

  std::string_view view() const { return data_ != nullptr ? std::string_view(data_->bytes) : std::string_view(); }
  size_t size() const { return view().size(); }
  bool empty() const { return size() == 0; }
  bool is_foreign(size_t at) const { return !data_->origin.empty() && data_->origin[at] != kNative; }
  bool has_foreign() const;

  // Jinja's Markup: what `safe` and `escape` give, and what is joined with that. Anything else is escaped for HTML
  // first.
  bool is_markup() const { return is_markup_; }
  Text as_markup(bool is_markup = true) const;

  // Runs of bytes that are foreign, in order, none empty, none touching the next.
  struct Range {
    size_t begin, end;
  };
  std::vector<Range> foreign_ranges() const;

 private:
  friend class TextWriter;
  static constexpr char kNative = 0, kForeign = 1;
  struct Data {
    std::string bytes, origin;  // origin: of each byte; empty: all are native
    Held held;
  };
  std::shared_ptr<const Data> data_;  // null: empty
  bool is_markup_ = false;
};

// Puts texts together, each byte counted before it is there.
class TextWriter {
 public:
  explicit TextWriter(Budget& budget) : budget_(budget), data_{{}, {}, budget.held()} {
    data_.held.grow(sizeof(Text::Data));
  }

  void add(std::string_view bytes, bool foreign = false);
  void add(const Text& text, size_t begin = 0, size_t end = std::string_view::npos);
  Text take();

 private:
  void know_origins();
  void count(size_t n_bytes);

  Budget& budget_;
  Text::Data data_;
};

// text[begin:end] in bytes, which must not cut a character; markup stays markup.
Text part_of(const Text& text, size_t begin, size_t end, Budget& budget);
// As markup: as it is, or with & < > ' and " escaped.
Text escaped(const Text& text, Budget& budget);

}  // namespace tiercel::jinja
