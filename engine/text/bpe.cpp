#include "engine/text/bpe.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
constexpr uint64_t kFreePair = std::numeric_limits<uint64_t>::max();  // ids are never negative
constexpr size_t kInitialSlots = 1 << 12;
constexpr size_t kMaxSlots = 1 << 20;
// Up to here a repeated scan for the lowest rank beats the heap's bookkeeping.
constexpr size_t kShortPiece = 48;

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Fibonacci hashing of both halves; the high bits are the well-mixed ones.
size_t pair_slot(uint64_t key, size_t n_slots) {
  uint64_t mixed = key * 0x9E3779B97F4A7C15u;
  mixed ^= mixed >> 32;
  mixed *= 0xD6E8FEB86659FD93u;
  return static_cast<size_t>(mixed >> 32) & (n_slots - 1);
}

}  // namespace

PieceCache::PieceCache() : slots_(kInitialSlots, Slot{}) {}

std::span<const int32_t> PieceCache::find(std::string_view piece, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  for (size_t i = hash & mask;; i = (i + 1) & mask) {
    const Slot& slot = slots_[i];
    if (slot.n_ids == 0) return {};
    if (slot.hash == hash && slot.key_bytes == piece.size() &&
        std::memcmp(keys_.data() + slot.key_offset, piece.data(), piece.size()) == 0) {
      return {ids_.data() + slot.ids_offset, slot.n_ids};
    }
  }
}

void PieceCache::grow() {
  if (slots_.size() == kMaxSlots) {
    slots_.assign(kInitialSlots, Slot{});
    keys_.clear();
    ids_.clear();
    n_used_ = 0;
    return;
  }
  std::vector<Slot> old(slots_.size() * 4, Slot{});
  old.swap(slots_);
  const size_t mask = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.n_ids == 0) continue;
    size_t i = slot.hash & mask;
    while (slots_[i].n_ids != 0) i = (i + 1) & mask;
    slots_[i] = slot;
  }
}

void PieceCache::insert(std::string_view piece, uint64_t hash, std::span<const int32_t> ids) {
  DCHECK(!ids.empty() && piece.size() <= kMaxPieceBytes, "{} ids, {} bytes", ids.size(),
         piece.size());
  if (n_used_ * 2 >= slots_.size()) grow();
  const size_t mask = slots_.size() - 1;
  size_t i = hash & mask;
  while (slots_[i].n_ids != 0) i = (i + 1) & mask;
  // kMaxSlots / 2 pieces of kMaxPieceBytes bound both offsets well below 2^32.
  slots_[i] = {hash, static_cast<uint32_t>(keys_.size()), static_cast<uint32_t>(ids_.size()),
               static_cast<uint32_t>(piece.size()), static_cast<uint32_t>(ids.size())};
  keys_.insert(keys_.end(), piece.begin(), piece.end());
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  ++n_used_;
}

void MergeQueue::push(uint32_t rank, uint32_t position) {
  if (rank >= bucket_of_.size()) bucket_of_.resize(size_t{rank} + 1, 0);
  if (bucket_of_[rank] == 0) {
    if (free_.empty()) {
      buckets_.emplace_back();
      free_.push_back(static_cast<uint32_t>(buckets_.size()));
    }
    bucket_of_[rank] = free_.back();
    free_.pop_back();
    ranks_.push_back(rank);
    std::push_heap(ranks_.begin(), ranks_.end(), std::greater<>());
  }
  Bucket& bucket = buckets_[bucket_of_[rank] - 1];
  if (bucket.ordered.empty() || bucket.ordered.back() < position) {
    bucket.ordered.push_back(position);
  } else {
    bucket.late.push_back(position);
    std::push_heap(bucket.late.begin(), bucket.late.end(), std::greater<>());
  }
}

bool MergeQueue::pop(uint32_t* rank, uint32_t* position) {
  if (ranks_.empty()) return false;
  *rank = ranks_.front();
  Bucket& bucket = buckets_[bucket_of_[*rank] - 1];
  const bool ordered_left = bucket.n_taken < bucket.ordered.size();
  if (!bucket.late.empty() &&
      (!ordered_left || bucket.late.front() < bucket.ordered[bucket.n_taken])) {
    *position = bucket.late.front();
    std::pop_heap(bucket.late.begin(), bucket.late.end(), std::greater<>());
    bucket.late.pop_back();
  } else {
    *position = bucket.ordered[bucket.n_taken++];
  }
  if (bucket.n_taken == bucket.ordered.size() && bucket.late.empty()) {
    bucket.ordered.clear();
    bucket.n_taken = 0;
    free_.push_back(std::exchange(bucket_of_[*rank], 0));
    std::pop_heap(ranks_.begin(), ranks_.end(), std::greater<>());
    ranks_.pop_back();
  }
  return true;
}

Bpe::Bpe(const BpeAlphabet& alphabet, std::span<const BpeMerge> merges,
         std::unordered_map<std::string, int32_t> whole_pieces)
    : alphabet_(alphabet), whole_pieces_(std::move(whole_pieces)) {
  CHECK(merges.size() < kNoRank, "{} merges", merges.size());
  ascii_.fill(-1);
  for (const auto& [character, id] : alphabet_.characters) {
    if (character < ascii_.size()) ascii_[character] = id;
  }
  table_.assign(std::bit_ceil(merges.size() * 2 + 2), Entry{kFreePair, kNoRank, -1});
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const BpeMerge& merge = merges[rank];
    const uint64_t key = pair_key(merge.left, merge.right);
    size_t i = pair_slot(key, table_.size());
    while (table_[i].pair != kFreePair && table_[i].pair != key) i = (i + 1) & (table_.size() - 1);
    table_[i] = {key, static_cast<uint32_t>(rank), merge.merged};
  }
}

const Bpe::Entry* Bpe::find(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  for (size_t i = pair_slot(key, table_.size());; i = (i + 1) & (table_.size() - 1)) {
    if (table_[i].pair == key) return &table_[i];
    if (table_[i].pair == kFreePair) return nullptr;
  }
}

uint32_t Bpe::rank_of(int32_t left, int32_t right) const {
  const Entry* entry = find(left, right);
  return entry == nullptr ? kNoRank : entry->rank;
}

void Bpe::encode(std::string_view piece, BpeScratch* scratch, std::vector<int32_t>* ids) const {
  if (piece.size() > PieceCache::kMaxPieceBytes) {
    merge_piece(piece, scratch, ids);
    return;
  }
  const uint64_t hash = XXH3_64bits(piece.data(), piece.size());
  const std::span<const int32_t> known = scratch->cache.find(piece, hash);
  if (!known.empty()) {
    ids->insert(ids->end(), known.begin(), known.end());
    return;
  }
  const size_t before = ids->size();
  merge_piece(piece, scratch, ids);
  scratch->cache.insert(piece, hash, std::span<const int32_t>(*ids).subspan(before));
}

void Bpe::merge_piece(std::string_view piece, BpeScratch* scratch,
                      std::vector<int32_t>* ids) const {
  if (!whole_pieces_.empty()) {
    const auto whole = whole_pieces_.find(std::string(piece));
    if (whole != whole_pieces_.end()) {
      ids->push_back(whole->second);
      return;
    }
  }
  if (piece.size() >= kNone) {
    fail("tokenizer: a piece of {} bytes without a split; at most {} are supported", piece.size(),
         kNone - 1);
  }
  scratch->tokens.clear();
  if (alphabet_.characters.empty()) {
    append_bytes(piece, &scratch->tokens);
  } else {
    append_characters(piece, &scratch->tokens);
  }
  if (scratch->tokens.size() <= kShortPiece) {
    merge_short(scratch);
  } else {
    merge_long(scratch);
  }
  ids->insert(ids->end(), scratch->tokens.begin(), scratch->tokens.end());
}

void Bpe::append_bytes(std::string_view bytes, std::vector<int32_t>* symbols) const {
  for (const char c : bytes) {
    const int32_t id = alphabet_.bytes[static_cast<uint8_t>(c)];
    if (id < 0) {
      fail(
          "tokenizer: the vocabulary has no token for the byte 0x{:02X}, so this text cannot be "
          "encoded with it",
          static_cast<uint8_t>(c));
    }
    symbols->push_back(id);
  }
}

void Bpe::append_characters(std::string_view text, std::vector<int32_t>* symbols) const {
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = read_code_point(text, &at);
    int32_t id = -1;
    if (c < ascii_.size()) {
      id = ascii_[c];
    } else if (const auto found = alphabet_.characters.find(c);
               found != alphabet_.characters.end()) {
      id = found->second;
    }
    if (id >= 0) {
      symbols->push_back(id);
    } else {
      append_bytes(text.substr(begin, at - begin), symbols);
    }
  }
}

// Leaves the merged tokens in scratch->tokens. ranks[i] is the rank of (tokens[i], tokens[i+1]).
void Bpe::merge_short(BpeScratch* scratch) const {
  int32_t* tokens = scratch->tokens.data();
  size_t n = scratch->tokens.size();
  std::array<uint32_t, kShortPiece> ranks;
  for (size_t i = 0; i + 1 < n; ++i) ranks[i] = rank_of(tokens[i], tokens[i + 1]);
  while (n > 1) {
    // min_element returns the first of equals: the leftmost.
    const auto last = ranks.begin() + static_cast<std::ptrdiff_t>(n - 1);
    const auto best = std::min_element(ranks.begin(), last);
    if (*best == kNoRank) break;
    const size_t at = static_cast<size_t>(best - ranks.begin());
    tokens[at] = find(tokens[at], tokens[at + 1])->merged;
    std::copy(tokens + at + 2, tokens + n, tokens + at + 1);
    std::copy(best + 1, last, best);
    --n;
    if (at > 0) ranks[at - 1] = rank_of(tokens[at - 1], tokens[at]);
    if (at + 1 < n) ranks[at] = rank_of(tokens[at], tokens[at + 1]);
  }
  scratch->tokens.resize(n);
}

// A queue of (rank, position) over a linked list of symbols. An entry is stale, and skipped, unless
// its rank is still the rank of the pair that now starts at its position: ranks are unique to
// pairs, so the rank serves as the version stamp. Each merge removes a symbol and adds at most two
// entries: O(n log n) in all.
void Bpe::merge_long(BpeScratch* scratch) const {
  std::vector<int32_t>& tokens = scratch->tokens;
  const uint32_t n = static_cast<uint32_t>(tokens.size());
  std::vector<uint32_t>& ranks =
      scratch->ranks;  // of the pair (i, next[i]); kNoRank also when dead
  std::vector<uint32_t>& next = scratch->next;
  std::vector<uint32_t>& previous = scratch->previous;
  MergeQueue& queue = scratch->queue;
  ranks.assign(n, kNoRank);
  next.resize(n);
  previous.resize(n);
  const auto update = [&](uint32_t at) {
    ranks[at] = next[at] == kNone ? kNoRank : rank_of(tokens[at], tokens[next[at]]);
    if (ranks[at] != kNoRank) queue.push(ranks[at], at);
  };
  for (uint32_t i = 0; i < n; ++i) {
    next[i] = i + 1 < n ? i + 1 : kNone;
    previous[i] = i > 0 ? i - 1 : kNone;
    update(i);
  }
  uint32_t rank = 0;
  uint32_t at = 0;
  while (queue.pop(&rank, &at)) {
    if (ranks[at] != rank) continue;
    const uint32_t gone = next[at];
    tokens[at] = find(tokens[at], tokens[gone])->merged;
    ranks[gone] = kNoRank;
    next[at] = next[gone];
    if (next[at] != kNone) previous[next[at]] = at;
    if (previous[at] != kNone) update(previous[at]);
    update(at);
  }
  size_t n_left = 0;
  for (uint32_t i = 0; i != kNone; i = next[i]) tokens[n_left++] = tokens[i];
  tokens.resize(n_left);
  // One enormous piece must not pin its working memory for the life of the tokenizer.
  constexpr uint32_t kKeepSymbols = 1 << 20;
  if (n > kKeepSymbols) {
    ranks = {};
    next = {};
    previous = {};
    queue = {};
  }
}

}  // namespace tiercel
