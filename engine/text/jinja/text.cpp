#include "engine/text/jinja/text.h"

#include <algorithm>
#include <utility>

namespace tiercel::jinja {

Text Text::native(std::string bytes) {
  Text text;
  if (!bytes.empty()) text.data_ = std::make_shared<const Data>(Data{std::move(bytes), {}, {}});
  return text;
}

Text Text::foreign(std::string bytes) {
  Text text;
  if (bytes.empty()) return text;
  std::string origin(bytes.size(), kForeign);
  text.data_ = std::make_shared<const Data>(Data{std::move(bytes), std::move(origin), {}});
  return text;
}

Text Text::as_markup(bool is_markup) const {
  Text text = *this;
  text.is_markup_ = is_markup;
  return text;
}

bool Text::has_foreign() const { return data_ != nullptr && data_->origin.find(kForeign) != std::string::npos; }

std::vector<Text::Range> Text::foreign_ranges() const {
  std::vector<Range> ranges;
  if (data_ == nullptr) return ranges;
  const std::string& origin = data_->origin;
  for (size_t at = origin.find(kForeign); at != std::string::npos;) {
    const size_t end = std::min(origin.find(kNative, at), origin.size());
    ranges.push_back({at, end});
    at = origin.find(kForeign, end);
  }
  return ranges;
}

void TextWriter::count(size_t n_bytes) {
  budget_.read(n_bytes);
  data_.held.grow(n_bytes);
}

void TextWriter::know_origins() {
  if (!data_.origin.empty() || data_.bytes.empty()) return;
  count(data_.bytes.size());
  data_.origin.assign(data_.bytes.size(), Text::kNative);
}

void TextWriter::add(std::string_view bytes, bool foreign) {
  if (bytes.empty()) return;
  count(bytes.size());
  if (foreign) know_origins();
  const bool knows = foreign || !data_.origin.empty();
  data_.bytes += bytes;
  if (knows) {
    count(bytes.size());
    data_.origin.append(bytes.size(), foreign ? Text::kForeign : Text::kNative);
  }
}

void TextWriter::add(const Text& text, size_t begin, size_t end) {
  end = std::min(end, text.size());
  if (begin >= end) return;
  const std::string& origin = text.data_->origin;
  if (origin.empty()) return add(text.view().substr(begin, end - begin));
  count(2 * (end - begin));
  know_origins();
  data_.bytes.append(text.data_->bytes, begin, end - begin);
  data_.origin.append(origin, begin, end - begin);
}

Text TextWriter::take() {
  Text text;
  if (data_.bytes.empty()) return text;
  text.data_ = std::make_shared<const Text::Data>(std::move(data_));
  data_ = {{}, {}, budget_.held()};
  return text;
}

Text part_of(const Text& text, size_t begin, size_t end, Budget& budget) {
  if (begin == 0 && end >= text.size()) return text;
  TextWriter part(budget);
  part.add(text, begin, end);
  return part.take().as_markup(text.is_markup());
}

Text escaped(const Text& text, Budget& budget) {
  if (text.is_markup()) return text;
  constexpr std::string_view kSpecial = "&<>'\"";
  constexpr const char* kEscapes[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
  const std::string_view view = text.view();
  TextWriter out(budget);
  size_t plain = 0;
  for (size_t at = view.find_first_of(kSpecial); at != view.npos; at = view.find_first_of(kSpecial, plain)) {
    out.add(text, plain, at);
    out.add(kEscapes[kSpecial.find(view[at])], text.is_foreign(at));
    plain = at + 1;
  }
  out.add(text, plain);
  return out.take().as_markup();
}

}  // namespace tiercel::jinja
