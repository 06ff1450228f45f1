// What the phases of decode selection share: which chunks compete, and where their scores are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine/base/ops.h"

namespace tiercel::cpu {

inline constexpr int64_t kRangeLandmarks = 16384;  // one scan: 2 MiB of landmarks at head_dim 64
inline constexpr int64_t kStripLandmarks = 1024;   // scored, then summed while scores are in L1
inline constexpr int64_t kMaxRanges = 1024;

// The chunks that compete, numbered from 0 in ascending order: all of [first_chunk, end_chunk), or,
// with two levels, those in the KV head's blocks and behind first_loose_chunk.
class Candidates {
 public:
  Candidates(const SelectParams& p, int64_t kv_head)
      : first_loose_(p.first_chunk), size_(p.end_chunk - p.first_chunk) {
    if (p.blocks == nullptr) return;
    const int32_t* list = p.blocks + kv_head * p.block_stride;
    const int32_t* list_end = list + p.block_counts[kv_head];
    length_ = p.block_chunks;
    first_loose_ = std::clamp(p.first_loose_chunk, p.first_chunk, p.end_chunk);
    // Only the first block may begin before first_chunk, and only the last end behind the blocks'
    // end.
    blocks_ = std::lower_bound(list, list_end, p.first_chunk / length_);
    list_end = std::lower_bound(blocks_, list_end, (first_loose_ + length_ - 1) / length_);
    if (blocks_ < list_end) {
      skip_ = std::max<int64_t>(p.first_chunk - *blocks_ * length_, 0);
      const int64_t beyond = (list_end[-1] + 1) * length_ - first_loose_;
      in_blocks_ = (list_end - blocks_) * length_ - skip_ - std::max<int64_t>(beyond, 0);
    }
    size_ = in_blocks_ + p.end_chunk - first_loose_;
  }

  int64_t size() const { return size_; }
  bool scattered() const { return in_blocks_ > 0; }
  int64_t chunk(int64_t i) const {
    if (i >= in_blocks_) return first_loose_ + i - in_blocks_;
    return blocks_[(i + skip_) / length_] * length_ + (i + skip_) % length_;
  }
  // How many candidates from i on are consecutive chunks, at least.
  int64_t run(int64_t i) const {
    if (i >= in_blocks_) return size_ - i;
    return std::min(length_ - (i + skip_) % length_, in_blocks_ - i);
  }

 private:
  const int32_t* blocks_ = nullptr;  // from the first that counts
  int64_t length_ = 1;               // chunks of a block
  int64_t skip_ = 0;                 // chunks of the first block that do not compete
  int64_t in_blocks_ = 0;            // candidates in blocks
  int64_t first_loose_, size_;
};

// Columns make ranking cheap. Segments of 16 * length scores are cut into 16 columns, scores i, i +
// 16, i + 32, .. of the segment. The k-th largest column maximum bounds the k-th largest score from
// below, because k different chunks reach it. So only columns whose maximum reaches it are looked
// at: little more than k of them. Both the columns and the scores of those few are passed over:
// half of sqrt(n k) columns are the fastest (journal).
//
//   segment:  0 1 2 .. 15 | 16 17 .. 31 | ..        column 2 = { 2, 18, 34, .. }
class Columns {
 public:
  static constexpr int64_t kMost = 2048;
  static constexpr int64_t kMaxLength = 1024;  // a segment is within one range
  static_assert(16 * kMaxLength <= kRangeLandmarks);

  Columns(int64_t n_candidates, int64_t k) : n_(n_candidates) {
    const int64_t most = std::min(
        kMost,
        static_cast<int64_t>(std::sqrt(static_cast<double>(n_) * static_cast<double>(k)) / 2));
    while (length_ < kMaxLength && count() > most) length_ *= 2;
  }
  bool usable() const { return count() <= kMost; }
  int64_t count() const { return (n_ + segment() - 1) / segment() * 16; }
  int64_t segment() const { return 16 * length_; }

 private:
  int64_t n_;
  int64_t length_ = 1;
};

// The workspace: scores [n_heads][stride], lists of candidates [n_kv_heads][stride], and 4096
// floats per query head: (max, sum) of every range, then the maxima of columns. Behind a head's
// scores there is room to fill up a group of 16, and for its log sum.
class SelectWorkspace {
 public:
  explicit SelectWorkspace(const SelectParams& p)
      : p_(p), stride_(p.end_chunk - p.first_chunk + 64) {}

  int64_t stride() const { return stride_; }
  float* scores(int64_t head) const { return p_.workspace + head * stride_; }
  float& log_sum(int64_t head) const { return scores(head)[stride_ - 1]; }
  int32_t* list(int64_t kv_head) const {
    return reinterpret_cast<int32_t*>(p_.workspace + (p_.n_heads + kv_head) * stride_);
  }
  float* sums(int64_t head, int64_t range) const { return head_part(head) + 2 * range; }
  float* columns(int64_t head) const { return head_part(head) + 2 * kMaxRanges; }

 private:
  float* head_part(int64_t head) const {
    return p_.workspace + (p_.n_heads + p_.n_kv_heads) * stride_ + head * 4096;
  }
  const SelectParams& p_;
  int64_t stride_;
};
static_assert(2 * kMaxRanges + Columns::kMost == 4096);

// Whether scores are sums of weights; else they are the greatest log2 weights.
inline bool adds_weights(const SelectParams& p) {
  return p.group != GroupScore::kMax || p.scope == SelectScope::kLayer;
}

// One list for the layer: it is made where KV head 0's would be, from KV head 0's blocks.
inline int64_t lists_of(const SelectParams& p) {
  return p.scope == SelectScope::kLayer ? 1 : p.n_kv_heads;
}
inline Candidates candidates_of(const SelectParams& p, int64_t kv_head) {
  return Candidates(p, p.scope == SelectScope::kLayer ? 0 : kv_head);
}

}  // namespace tiercel::cpu
