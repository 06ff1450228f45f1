#include "tools/serve/prefix_cache.h"

#include <algorithm>
#include <memory>

namespace tiercel {
namespace {

// Of a prompt of n tokens, what stays behind a prefix of its own: a question may be in it, and it attends what it
// selects of the rest.
int64_t end_of(int64_t n) { return std::min<int64_t>(n / 4, 1024); }

int64_t shared_length(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return std::ranges::mismatch(a, b).in1 - a.begin();
}

}  // namespace

PrefixCache::Found PrefixCache::take(std::vector<int32_t>& prompt) {
  const int64_t n = std::ssize(prompt);
  if (n < kLeastPrompt) return {};
  const std::lock_guard lock(mutex_);
  // The longest of either kind. Something is left behind it.
  auto whole = kept_.end();
  int64_t most_shared = 0;
  for (auto it = kept_.begin(); it != kept_.end(); ++it) {
    const int64_t length = std::ssize(**it), shared = std::min(shared_length(**it, prompt), n - 1);
    const bool is_whole = shared == length;
    if (is_whole && (whole == kept_.end() || length > std::ssize(**whole))) whole = it;
    most_shared = std::max(most_shared, shared);
  }
  Found found;
  if (whole != kept_.end() && 2 * std::ssize(**whole) >= n) {
    found = {*whole, true};
    kept_.erase(whole);
  } else {
    const int64_t length = 2 * most_shared >= n ? most_shared : n - end_of(n);
    found.prefix = std::make_shared<const std::vector<int32_t>>(prompt.begin(), prompt.begin() + length);
  }
  kept_.push_front(found.prefix);
  if (kept_.size() > kMostKept) kept_.pop_back();
  prompt.erase(prompt.begin(), prompt.begin() + std::ssize(*found.prefix));
  return found;
}

}  // namespace tiercel
