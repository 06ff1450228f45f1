#include "tools/serve/prefix_cache.h"

#include <algorithm>
#include <memory>

#include "tools/batch/prefixes.h"

namespace tiercel {
namespace {

int64_t shared_length(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return std::ranges::mismatch(a, b).in1 - a.begin();
}

}  // namespace

SharedPrefix PrefixCache::all_but_its_end(const std::vector<int32_t>& prompt) {
  return std::ssize(prompt) < kLeastPrompt ? nullptr : tiercel::all_but_its_end(prompt);
}

SharedPrefix PrefixCache::find(const std::vector<int32_t>& prompt) const {
  const int64_t n = std::ssize(prompt);
  if (n < kLeastPrompt) return nullptr;
  const std::lock_guard lock(mutex_);
  // The longest of either kind. Something is left behind it.
  SharedPrefix whole;
  int64_t most_shared = 0;
  for (const SharedPrefix& kept : kept_) {
    const int64_t length = std::ssize(*kept), shared = std::min(shared_length(*kept, prompt), n - 1);
    if (shared == length && (whole == nullptr || length > std::ssize(*whole))) whole = kept;
    most_shared = std::max(most_shared, shared);
  }
  if (whole != nullptr && 2 * std::ssize(*whole) >= n) return whole;
  if (2 * most_shared < n) return all_but_its_end(prompt);
  return std::make_shared<const std::vector<int32_t>>(prompt.begin(), prompt.begin() + most_shared);
}

void PrefixCache::keep(const SharedPrefix& prefix) {
  const std::lock_guard lock(mutex_);
  // Two at once may have found the same beginning new.
  std::erase_if(kept_, [&](const SharedPrefix& kept) { return kept == prefix || *kept == *prefix; });
  kept_.push_front(prefix);
  if (kept_.size() > kMostKept) kept_.pop_back();
}

}  // namespace tiercel
