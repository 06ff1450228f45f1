#include "tools/stop_text.h"

#include <algorithm>

namespace tiercel {

bool StopText::push(std::string_view text, std::string* output) {
  held_ += text;
  // The one that is complete first, however the text is cut into pushes.
  size_t begin = std::string::npos, end = begin;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos || at + stop.size() > end) continue;
    begin = at + stop.size() < end ? at : std::min(begin, at);
    end = at + stop.size();
  }
  if (begin != std::string::npos) {
    output->append(held_, 0, begin);
    held_.clear();
    return true;
  }
  // The longest end of the text that a stop begins with.
  size_t n_kept = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > n_kept; --n) {
      if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) n_kept = n;
    }
  }
  output->append(held_, 0, held_.size() - n_kept);
  held_.erase(0, held_.size() - n_kept);
  return false;
}

void StopText::finish(std::string_view last, std::string* output) {
  if (push(last, output)) return;
  output->append(held_);
  held_.clear();
}

}  // namespace tiercel
