#include "engine/prompt_lookup.h"

#include <algorithm>
#include <bit>

#include "engine/base/check.h"

namespace tiercel {
namespace {

// Places that are looked at: of those with four tokens in common, else of those with two.
constexpr int64_t kLongMatch = 4, kLongPlaces = 64, kShortPlaces = 16;

int64_t buckets(int64_t capacity) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(capacity, 1024))));
}

}  // namespace

void GuessRecord::add(bool is_right) {
  constexpr double kMemory = 64;
  seen_ += 1;
  right_ += is_right ? 1 : 0;
  if (seen_ <= kMemory) return;
  seen_ /= 2;
  right_ /= 2;
}

PromptLookup::PromptLookup(int64_t capacity) : capacity_(capacity) {
  CHECK(capacity <= INT32_MAX, "{} tokens", capacity);
  tokens_.reserve(static_cast<size_t>(capacity));
  guess_.reserve(kMaxDraft);
  chains_[0].n = kLongMatch;
  chains_[0].most_places = kLongPlaces;
  chains_[1].n = kLeastMatch;
  chains_[1].most_places = kShortPlaces;
  for (Chain& chain : chains_) {
    chain.newest.assign(static_cast<size_t>(buckets(capacity)), -1);
    chain.before.resize(static_cast<size_t>(capacity));
  }
}

int64_t PromptLookup::bytes(int64_t capacity) {
  return static_cast<int64_t>(sizeof(int32_t)) * (capacity + 2 * (capacity + buckets(capacity)));
}

int64_t PromptLookup::bucket_of(const Chain& chain, int64_t end) const {
  uint64_t hash = 0;
  for (int64_t i = end + 1 - chain.n; i <= end; ++i) {
    hash = (hash ^ static_cast<uint32_t>(tokens_[static_cast<size_t>(i)])) * 0x9e3779b97f4a7c15ull;
    hash ^= hash >> 32;
  }
  return static_cast<int64_t>(hash & (chain.newest.size() - 1));
}

void PromptLookup::link(int64_t end) {
  for (Chain& chain : chains_) {
    if (end + 1 < chain.n) continue;
    int32_t& newest = chain.newest[static_cast<size_t>(bucket_of(chain, end))];
    chain.before[static_cast<size_t>(end)] = newest;
    newest = static_cast<int32_t>(end);
  }
}

void PromptLookup::append(std::span<const int32_t> tokens) {
  CHECK(n_tokens() + std::ssize(tokens) <= capacity_, "{} of {}", n_tokens() + std::ssize(tokens), capacity_);
  for (const int32_t token : tokens) {
    tokens_.push_back(token);
    link(n_tokens() - 1);
  }
  search();
}

void PromptLookup::push(int32_t token) {
  CHECK(n_tokens() < capacity_, "{} tokens", capacity_);
  bool right = false;
  if (next_ >= 0) {
    right = tokens_[static_cast<size_t>(next_)] == token;
    records_[class_of(match_)].add(right);
  }
  tokens_.push_back(token);
  link(n_tokens() - 1);
  if (right) {
    ++next_;
    ++match_;
  } else {
    search();
  }
}

// What was linked last is what its bucket begins with, so taking it out from the end restores every bucket.
void PromptLookup::truncate(int64_t n) {
  for (int64_t end = n_tokens() - 1; end >= n; --end) {
    for (Chain& chain : chains_) {
      if (end + 1 < chain.n) continue;
      chain.newest[static_cast<size_t>(bucket_of(chain, end))] = chain.before[static_cast<size_t>(end)];
    }
  }
  if (n < n_tokens()) tokens_.resize(static_cast<size_t>(n));
  search();
}

// Newest tokens that are those before `place`, too; at most kMostMatch.
int64_t PromptLookup::match_at(int64_t place) const {
  const auto end = static_cast<size_t>(n_tokens()), before = static_cast<size_t>(place);
  const auto most = static_cast<size_t>(std::min(kMostMatch, place));
  size_t n = 0;
  while (n < most && tokens_[before - 1 - n] == tokens_[end - 1 - n]) ++n;
  return static_cast<int64_t>(n);
}

// The longest match, of several the newest.
void PromptLookup::search() {
  next_ = -1;
  match_ = 0;
  const int64_t end = n_tokens() - 1;
  for (const Chain& chain : chains_) {
    if (end + 1 < chain.n) continue;
    int64_t place = chain.before[static_cast<size_t>(end)];
    for (int64_t i = 0; i < chain.most_places && place >= 0; ++i) {
      const int64_t match = match_at(place + 1);
      if (match >= chain.n && match > match_) {
        match_ = match;
        next_ = place + 1;
        if (match == kMostMatch) return;
      }
      place = chain.before[static_cast<size_t>(place)];
    }
    if (next_ >= 0) return;
  }
}

std::span<const int32_t> PromptLookup::guess(int64_t most) {
  guess_.clear();
  if (next_ < 0) return guess_;
  for (int64_t place = next_; std::ssize(guess_) < std::min(most, kMaxDraft); ++place) {
    const int64_t behind = place - n_tokens();  // what is guessed itself, if not negative
    guess_.push_back(behind < 0 ? tokens_[static_cast<size_t>(place)] : guess_[static_cast<size_t>(behind)]);
  }
  return guess_;
}

// 2, 3, 4, 5 and 6, 7 to 9, 10 to 15, more.
size_t PromptLookup::class_of(int64_t match) {
  constexpr std::array<int64_t, 7> kFrom = {2, 3, 4, 5, 7, 10, 16};
  size_t c = 0;
  while (c + 1 < kFrom.size() && match >= kFrom[c + 1]) ++c;
  return c;
}

}  // namespace tiercel
