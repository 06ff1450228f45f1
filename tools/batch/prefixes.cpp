#include "tools/batch/prefixes.h"

#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <utility>

namespace tiercel {

int64_t PrefixFinder::shared_with(const std::vector<int32_t>& prompt) const {
  if (members_.empty()) return 0;
  const auto n = static_cast<int64_t>(prompt.size());
  // Of each of them something is left behind it.
  int64_t most = std::min(n, shortest_) - 1;
  if (members_.size() > 1) most = std::min(most, n_shared_);
  if (most < kLeastShared) return 0;
  const auto [differs, other] = std::mismatch(first_.begin(), first_.begin() + most, prompt.begin());
  const int64_t shared = differs - first_.begin();
  return shared >= kLeastShared && 2 * shared >= std::max(n, longest_) ? shared : 0;
}

void PrefixFinder::add_last() {
  const size_t index = requests_.size() - 1;
  BatchRequest& request = requests_[index];
  const auto n = static_cast<int64_t>(request.prompt.size());
  const int64_t shared = shared_with(request.prompt);
  if (shared == 0) {
    end_group();
    first_ = share_ ? std::exchange(request.prompt, {}) : request.prompt;
    members_ = {{index, n}};
    n_shared_ = 0;
    shortest_ = longest_ = n;
    return;
  }
  n_shared_ = shared;
  shortest_ = std::min(shortest_, n);
  longest_ = std::max(longest_, n);
  members_.push_back({index, shared});
  if (!share_) return;
  request.prompt.erase(request.prompt.begin(), request.prompt.begin() + shared);
  request.prompt.shrink_to_fit();
}

void PrefixFinder::finish() {
  end_group();
  members_.clear();
}

void PrefixFinder::end_group() {
  n_saved_ += std::max<int64_t>(std::ssize(members_) - 1, 0) * n_shared_;
  if (!share_) return;
  if (members_.size() == 1) requests_[members_[0].index].prompt = std::move(first_);
  if (members_.size() < 2) return;
  const auto begin = first_.begin();
  const auto prefix = std::make_shared<const std::vector<int32_t>>(begin, begin + n_shared_);
  for (const Member& member : members_) {
    BatchRequest& request = requests_[member.index];
    request.prompt.insert(request.prompt.begin(), begin + n_shared_, begin + member.from);
    request.prefix = prefix;
    request.hash = XXH64(&n_shared_, sizeof n_shared_, request.hash);
  }
}

}  // namespace tiercel
