// Exact top-k of a stream of (score, index), and the total order behind it: higher score first,
// then lower index. Internal to selection.
//
// The threshold is the k-th best so far. Everything above it goes to a buffer; a full buffer is cut
// back to its best k, which raises the threshold. In random order about k ln(n/k) of n scores pass.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <limits>

#include "engine/base/check.h"

namespace tiercel::cpu {

// (score, index) as one integer, larger is better. Scores are not NaN; -0 equals 0.
inline uint64_t ranked(float score, int32_t index) {
  const uint32_t u = std::bit_cast<uint32_t>(score + 0.0f);
  const uint32_t key = (u >> 31) != 0 ? ~u : u | 0x80000000u;
  return uint64_t{key} << 32 | static_cast<uint32_t>(~index);
}
inline int32_t index_of(uint64_t entry) {
  return static_cast<int32_t>(~static_cast<uint32_t>(entry));
}
inline float score_of(uint64_t entry) {
  const uint32_t key = static_cast<uint32_t>(entry >> 32);
  return std::bit_cast<float>((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}

class TopK {
 public:
  TopK() = default;
  // entries has room for capacity > k; indices must be pushed in ascending order if the caller
  // leaves out those at the threshold (they would lose the tie).
  TopK(uint64_t* entries, int64_t k, int64_t capacity)
      : entries_(entries), k_(k), capacity_(capacity) {
    CHECK(k > 0 && capacity > k, "top {} in {} places", k, capacity);
  }

  float threshold() const { return threshold_; }

  void push(float score, int32_t index) {
    entries_[n_++] = ranked(score, index);
    if (n_ == capacity_) keep_best();
  }

  // Leaves the best min(k, pushed), in no particular order.
  void finish() {
    if (n_ > k_) keep_best();
  }
  const uint64_t* begin() const { return entries_; }
  const uint64_t* end() const { return entries_ + n_; }
  int64_t size() const { return n_; }

 private:
  void keep_best() {
    std::nth_element(entries_, entries_ + k_ - 1, entries_ + n_, std::greater<uint64_t>());
    n_ = k_;
    threshold_ = score_of(entries_[k_ - 1]);
  }

  uint64_t* entries_ = nullptr;
  int64_t k_ = 0, capacity_ = 0, n_ = 0;
  float threshold_ = -std::numeric_limits<float>::infinity();
};

}  // namespace tiercel::cpu
