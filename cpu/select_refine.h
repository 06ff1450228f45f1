// What may be cut from the k best: top_p and max_misses of SelectParams. Lists are of candidates,
// in any order; better is the higher score, then the lower candidate.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tiercel::cpu {

struct BetterCandidate {
  const float* scores;
  bool operator()(int32_t a, int32_t b) const {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  }
};

// Moves the n best of the list to its front.
inline void move_best_first(const float* scores, int32_t* list, int64_t size, int64_t n) {
  if (n > 0 && n < size) std::nth_element(list, list + n - 1, list + size, BetterCandidate{scores});
}

// The fewest of the list, best first, whose weights add up to target (fp64 sums); at least one, at
// most all. They are moved to the front; their number. Halves the part in which the sum passes the
// target: linear time.
inline int64_t fewest_with_weight(const float* weights, int32_t* list, int64_t size,
                                  double target) {
  int64_t begin = 0, end = size;  // the last that is needed is in [begin, end)
  double sum = 0;                 // of what is before begin
  while (end - begin > 1) {
    const int64_t middle = begin + (end - begin) / 2;
    move_best_first(weights, list + begin, end - begin, middle - begin);
    double with = sum;
    for (int64_t i = begin; i < middle; ++i) with += static_cast<double>(weights[list[i]]);
    if (with >= target) {
      end = middle;
    } else {
      sum = with;
      begin = middle;
    }
  }
  return end;
}

// Moves what stays to the front: every candidate that has a slot, and the best max_misses of the
// others. is_hit(candidate). The number of those that stay.
template <typename IsHit>
int64_t drop_misses(const float* scores, int32_t* list, int64_t size, int64_t max_misses,
                    IsHit is_hit) {
  const int64_t n_hits = std::partition(list, list + size, is_hit) - list;
  const int64_t n_misses = size - n_hits;
  if (n_misses <= max_misses) return size;
  move_best_first(scores, list + n_hits, n_misses, max_misses);
  return n_hits + max_misses;
}

}  // namespace tiercel::cpu
