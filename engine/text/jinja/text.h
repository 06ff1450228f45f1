// A string that knows which of its bytes somebody else wrote: a message's words, and what templates make of them, as
// opposed to what a template itself says. What ends a turn can then be told from what only spells it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tiercel::jinja {

class Text {
 public:
  Text() = default;
  Text(std::string bytes, bool foreign = false) : bytes_(std::move(bytes)) {  // NOLINT: a string is one
    if (foreign && !bytes_.empty()) foreign_.push_back({0, bytes_.size()});
  }
  Text(const char* bytes) : bytes_(bytes) {}  // NOLINT

  const std::string& bytes() const { return bytes_; }
  std::string_view view() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }

  // Runs of bytes that are foreign, in order, none empty, none touching the next.
  struct Range {
    size_t begin, end;
  };
  const std::vector<Range>& foreign() const { return foreign_; }

  Text substr(size_t begin, size_t n = std::string::npos) const {
    Text part;
    if (begin >= size()) return part;
    part.bytes_ = bytes_.substr(begin, n);
    const size_t end = begin + part.size();
    for (const Range& range : foreign_) {
      const size_t first = std::max(range.begin, begin), last = std::min(range.end, end);
      if (first < last) part.foreign_.push_back({first - begin, last - begin});
    }
    return part;
  }
  Text& operator+=(const Text& other) {
    const size_t at = size();
    bytes_ += other.bytes_;
    for (const Range& range : other.foreign_) {
      if (!foreign_.empty() && foreign_.back().end == at + range.begin) {
        foreign_.back().end = at + range.end;
      } else {
        foreign_.push_back({at + range.begin, at + range.end});
      }
    }
    return *this;
  }
  friend Text operator+(Text a, const Text& b) { return a += b; }
  bool is_foreign(size_t at) const {
    return std::any_of(foreign_.begin(), foreign_.end(),
                       [&](const Range& range) { return at >= range.begin && at < range.end; });
  }
  // One pass: `to` for every `from` (not empty), at most so many times.
  Text replaced(std::string_view from, const Text& to, int64_t most = -1) const {
    Text result;
    size_t at = 0;
    for (int64_t n = 0; n != most; ++n) {
      const size_t found = bytes_.find(from, at);
      if (found == std::string::npos) break;
      result += substr(at, found - at);
      result += to;
      at = found + from.size();
    }
    return result += substr(at);
  }

 private:
  std::string bytes_;
  std::vector<Range> foreign_;
};

}  // namespace tiercel::jinja
