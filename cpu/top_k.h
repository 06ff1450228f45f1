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

// Moves the k largest of n different integers to the front. Quickselect with a partition free of
// branches: on random data std::nth_element spends most of its time on mispredicted ones (journal:
// a third of prefill selection).
inline void select_largest(uint64_t* a, int64_t n, int64_t k) {
  int64_t begin = 0, end = n;
  for (int rounds = 0; end - begin > 24; ++rounds) {
    if (rounds == 40) break;  // an input made to defeat the choice of pivots
    const uint64_t x = a[begin], y = a[begin + (end - begin) / 2], z = a[end - 1];
    const uint64_t pivot = std::max(std::min(x, y), std::min(std::max(x, y), z));
    int64_t larger = begin;
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t value = a[i];
      a[i] = a[larger];
      a[larger] = value;
      larger += value > pivot;
    }
    // a[begin .. larger) > pivot >= a[larger .. end); the pivot itself is in the second part.
    if (k == larger) return;
    if (k < larger) {
      end = larger;
    } else {
      std::swap(a[larger], *std::find(a + larger, a + end, pivot));
      begin = larger + 1;
      if (k == begin) return;
    }
  }
  std::nth_element(a + begin, a + k - 1, a + end, std::greater<uint64_t>());
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
    select_largest(entries_, n_, k_);
    n_ = k_;
    threshold_ = score_of(*std::min_element(entries_, entries_ + k_));
  }

  uint64_t* entries_ = nullptr;
  int64_t k_ = 0, capacity_ = 0, n_ = 0;
  float threshold_ = -std::numeric_limits<float>::infinity();
};

}  // namespace tiercel::cpu
