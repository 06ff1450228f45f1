#include "tools/batch/prefixes.h"

#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <utility>

namespace tiercel {

int64_t tokens_at_the_end(int64_t n) { return std::min<int64_t>(n / 4, 1024); }

SharedPrefix all_but_its_end(std::span<const int32_t> prompt) {
  return std::make_shared<const std::vector<int32_t>>(prompt.begin(),
                                                      prompt.end() - tokens_at_the_end(std::ssize(prompt)));
}

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
  if (members_.empty()) return;
  SharedPrefix prefix;
  if (members_.size() > 1) {
    prefix = std::make_shared<const std::vector<int32_t>>(first_.begin(), first_.begin() + n_shared_);
  } else if (requests_[members_[0].index].n_answers > 1) {
    prefix = all_but_its_end(first_);
    if (std::ssize(*prefix) < kLeastShared) prefix = nullptr;
  }
  if (prefix != nullptr) {
    int64_t n_answers = 0;
    for (const Member& member : members_) n_answers += requests_[member.index].n_answers;
    n_saved_ += (n_answers - 1) * std::ssize(*prefix);
  }
  if (!share_) return;
  if (prefix == nullptr) {
    requests_[members_[0].index].prompt = std::move(first_);
    return;
  }
  for (const Member& member : members_) share(prefix, member);
}

void PrefixFinder::share(const SharedPrefix& prefix, const Member& member) {
  BatchRequest& request = requests_[member.index];
  const int64_t n = std::ssize(*prefix);
  request.prompt.insert(request.prompt.begin(), first_.begin() + n, first_.begin() + member.from);
  request.prefix = prefix;
  request.hash = XXH64(&n, sizeof n, request.hash);
}

}  // namespace tiercel
