#include "cpu/select.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "cpu/levels.h"
#include "cpu/query.h"
#include "cpu/select_refine.h"
#include "cpu/select_scan.h"
#include "cpu/slots.h"
#include "cpu/top_k.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// log2 of the sum of exp2(score) over all ranges, merged in order. Without a candidate: 0.
float log_sum(const SelectWorkspace& work, int64_t head, int64_t n_ranges) {
  float max = -kInfinity;
  for (int64_t r = 0; r < n_ranges; ++r) max = std::max(max, work.sums(head, r)[0]);
  if (max == -kInfinity) return 0;
  float sum = 0;
  for (int64_t r = 0; r < n_ranges; ++r) {
    const float* part = work.sums(head, r);
    sum += part[1] * std::exp2(part[0] - max);
  }
  return max + std::log2(sum);
}

// Phase 2 where weights are added: they are not known from maxima. One piece of a list's scores,
// from those of n_heads heads over those of the first.
struct Combination {
  const SelectParams& p;
  const SelectWorkspace work;
  const SelectKernel& kernel;

  int64_t heads_of_list() const { return p.n_heads / lists_of(p); }
  static int64_t piece(const Columns& columns) {
    return std::max(columns.segment(), 4 * kStripLandmarks);
  }

  void prepare(int64_t head, int64_t n_ranges) const {
    work.log_sum(head) = log_sum(work, head, n_ranges);
  }
  void run(int64_t list, int64_t at, const Worker& worker) const {
    const Candidates candidates = candidates_of(p, list);
    const Columns columns(candidates.size(), p.k);
    const int64_t begin = at * piece(columns);
    const int64_t end = std::min(begin + piece(columns), candidates.size());
    if (begin >= end) return;  // few blocks
    const int64_t n_heads = heads_of_list(), first_head = list * n_heads;
    float* log_sums = Carver(worker.scratch).take<float>(n_heads);
    for (int64_t h = 0; h < n_heads; ++h) log_sums[h] = work.log_sum(first_head + h);
    clear_columns(columns, begin, end - begin, work.columns(first_head));
    for (int64_t i = begin; i < end; i += kStripLandmarks) {
      const int64_t n = std::min(kStripLandmarks, end - i);
      float* scores = work.scores(first_head) + i;
      kernel.combine_scores(sum_of(scores, n_heads, log_sums, n));
      fold_columns(columns, kernel, i, n, scores, work.columns(first_head));
    }
  }

 private:
  CombineScores sum_of(float* scores, int64_t n_heads, const float* log_sums, int64_t n) const {
    CombineScores sum{};
    sum.scores = scores;
    sum.score_stride = work.stride();
    sum.n_heads = static_cast<int32_t>(n_heads);
    sum.log_sums = log_sums;
    const int32_t group = p.n_heads / p.n_kv_heads;
    sum.max_of = p.group == GroupScore::kMax ? group : 1;
    sum.add = true;
    sum.share = p.group == GroupScore::kMean ? 1.0f / static_cast<float>(group) : 1.0f;
    sum.n = n;
    sum.out = scores;
    return sum;
  }
};

// Phase 3, one list: the best k. Works in place, whatever k is.
class Ranking {
 public:
  Ranking(const SelectParams& p, const SelectWorkspace& work, const SelectKernel& kernel,
          int64_t n_ranges, int64_t list, const Worker& worker)
      : p_(p),
        work_(work),
        kernel_(kernel),
        index_(list),
        n_heads_(p.n_heads / p.n_kv_heads),
        first_head_(list * n_heads_),
        candidates_(candidates_of(p, list)),
        columns_(candidates_.size(), p.k),
        scores_(work.scores(first_head_)),
        list_(work.list(list)) {
    Carver scratch(worker.scratch);
    log_sums_ = scratch.take<float>(n_heads_);
    sorted_ = scratch.take<float>(Columns::kMost);
    // Beyond this many candidates the list is cut in place.
    entries_room_ = std::min(candidates_.size(), static_cast<int64_t>(kScratchBytes / 4 / sizeof(uint64_t)));
    entries_ = scratch.take<uint64_t>(entries_room_);
    for (int64_t h = 0; !adds_weights(p) && h < n_heads_; ++h) {
      log_sums_[h] = log_sum(work, first_head_ + h, n_ranges);
    }
  }

  void run() {
    int64_t n = cut_to_best(list_best());
    if (p_.top_p > 0 && n > 0) n = fewest_with_weight(scores_, list_, n, p_.top_p * all_weight());
    int64_t n_kept = n;
    if (p_.max_misses >= 0) {
      const int32_t* slots = p_.slot_of_chunk + index_ * p_.chunk_capacity;
      n_kept = drop_misses(scores_, list_, n, p_.max_misses,
                           [&](int32_t i) { return slots[candidates_.chunk(i)] >= 0; });
      write(list_ + n_kept, n - n_kept, p_.dropped_ids, p_.dropped_counts);
    }
    write(list_, n_kept, p_.ids, p_.counts);
  }

 private:
  // Leaves the best k of the list, in the order that it had.
  int64_t cut_to_best(int64_t n) {
    const int64_t k = p_.k;
    if (n <= k) return n;
    if (n > entries_room_) {
      move_best_first(scores_, list_, n, k);
      return k;
    }
    for (int64_t i = 0; i < n; ++i) entries_[i] = ranked(scores_[list_[i]], list_[i]);
    select_largest(entries_, n, k);
    const uint64_t least = *std::min_element(entries_, entries_ + k);
    int64_t n_kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int32_t candidate = list_[i];
      list_[n_kept] = candidate;
      n_kept += ranked(scores_[candidate], candidate) >= least;
    }
    return n_kept;
  }

  // A superset of the best k, with scores_[i] the final score of each of them.
  int64_t list_best() {
    const float least = bound();
    if (least > -kInfinity) return list_from_columns(least);
    const int64_t n = candidates_.size();
    if (!adds_weights(p_)) {
      const int32_t n_heads = static_cast<int32_t>(n_heads_);
      kernel_.combine_scores(
          {scores_, work_.stride(), n_heads, log_sums_, n_heads, false, 1.0f, n, scores_});
    }
    return kernel_.collect_above(scores_, n, -kInfinity, list_);
  }

  // The bound below the k-th largest score, after the first head's columns became the group's.
  float bound() {
    if (!columns_.usable() || p_.k > columns_.count()) return -kInfinity;
    float* maxima = work_.columns(first_head_);
    if (!adds_weights(p_)) {
      for (int64_t c = 0; c < columns_.count(); ++c) {
        float top = -kInfinity;
        for (int64_t h = 0; h < n_heads_; ++h) {
          top = std::max(top, work_.columns(first_head_ + h)[c] - log_sums_[h]);
        }
        maxima[c] = top;
      }
    }
    std::copy(maxima, maxima + columns_.count(), sorted_);
    std::nth_element(sorted_, sorted_ + p_.k - 1, sorted_ + columns_.count(),
                     std::greater<float>());
    return sorted_[p_.k - 1];
  }

  // Candidates whose scores reach the bound, from the columns that do. Leaves the group's scores of
  // those in the first head's.
  int64_t list_from_columns(float bound) {
    int64_t n_listed = 0;
    for (int64_t c = 0; c < columns_.count(); ++c) {
      if (!(work_.columns(first_head_)[c] >= bound)) continue;
      const int64_t begin = c / 16 * columns_.segment();
      const int64_t end = std::min(candidates_.size(), begin + columns_.segment());
      for (int64_t i = begin + c % 16; i < end; i += 16) {
        float score = scores_[i];
        if (!adds_weights(p_)) {
          score -= log_sums_[0];
          for (int64_t h = 1; h < n_heads_; ++h) {
            score = std::max(score, scores_[h * work_.stride() + i] - log_sums_[h]);
          }
          scores_[i] = score;
        }
        if (score >= bound) list_[n_listed++] = static_cast<int32_t>(i);
      }
    }
    return n_listed;
  }

  double all_weight() const {
    const double of_group = p_.group == GroupScore::kSum ? static_cast<double>(n_heads_) : 1.0;
    return p_.scope == SelectScope::kLayer ? of_group * p_.n_kv_heads : of_group;
  }

  // Ascending; for every KV head where there is one list.
  void write(int32_t* list, int64_t n, int32_t* ids, int32_t* counts) const {
    if (!std::is_sorted(list, list + n)) std::sort(list, list + n);
    int32_t* first = ids + index_ * p_.k;
    for (int64_t i = 0; i < n; ++i) first[i] = static_cast<int32_t>(candidates_.chunk(list[i]));
    counts[index_] = static_cast<int32_t>(n);
    for (int64_t j = 1; p_.scope == SelectScope::kLayer && j < p_.n_kv_heads; ++j) {
      std::copy(first, first + n, ids + j * p_.k);
      counts[j] = counts[0];
    }
  }

  const SelectParams& p_;
  const SelectWorkspace work_;
  const SelectKernel& kernel_;
  int64_t index_, n_heads_, first_head_;
  Candidates candidates_;
  Columns columns_;
  float* scores_;
  int32_t* list_;
  float* log_sums_;
  float* sorted_;  // [Columns::kMost]
  int64_t entries_room_;
  uint64_t* entries_;
};

void check(const SelectParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= 256 && p.head_dim % 2 == 0, "head_dim {}", p.head_dim);
  CHECK(p.first_chunk >= 0 && p.k >= 0, "first chunk {}, k {}", p.first_chunk, p.k);
  CHECK(p.end_chunk <= std::numeric_limits<int32_t>::max() &&
            p.end_chunk - p.first_chunk <= kMaxRanges * kRangeLandmarks,
        "chunks {} to {}", p.first_chunk, p.end_chunk);
  CHECK(p.scope == SelectScope::kKvHead || p.excluded == nullptr, "exclusions are per KV head");
  CHECK(p.top_p == 0 || p.group != GroupScore::kMax, "the sum of maxima is not known");
  CHECK(p.views.n == 1 || (p.blocks == nullptr && p.chunk_tokens > 0 &&
                           p.views.span_tokens % (8 * p.chunk_tokens) == 0),
        "{} views of spans of {}, chunks of {}", p.views.n, p.views.span_tokens, p.chunk_tokens);
  CHECK(p.blocks == nullptr || (p.block_counts != nullptr && p.block_chunks > 0), "blocks of {}",
        p.block_chunks);
  CHECK(p.max_misses < 0 ||
        (p.slot_of_chunk != nullptr && p.dropped_ids != nullptr && p.dropped_counts != nullptr));
}

bool have_same_candidates(const SelectParams& a, const SelectParams& b) {
  return a.landmarks == b.landmarks && a.codes == b.codes && a.scales == b.scales &&
         a.index == b.index && a.landmark_head_stride == b.landmark_head_stride &&
         a.first_chunk == b.first_chunk && a.end_chunk == b.end_chunk && a.k == b.k &&
         a.blocks == nullptr && b.blocks == nullptr && a.n_heads == b.n_heads &&
         a.n_kv_heads == b.n_kv_heads && a.head_dim == b.head_dim && a.group == b.group &&
         a.scope == b.scope && a.scale == b.scale && a.views.n == b.views.n && a.views.span_tokens == b.views.span_tokens;
}

// With the same candidates, of which there are some.
void select_alike(Queue& queue, std::span<const SelectParams> all) {
  const SelectParams& first = all.front();
  CHECK((first.landmarks != nullptr) != (first.codes != nullptr) &&
        (first.codes == nullptr || first.scales != nullptr));
  const auto n_all = std::ssize(all);
  const auto at = [&](int64_t i) -> const SelectParams& { return all[static_cast<size_t>(i)]; };
  const SelectKernel& kernel = select_kernel(queue.isa());
  const int64_t n = first.end_chunk - first.first_chunk, n_lists = lists_of(first);
  const int64_t n_ranges = (n + kRangeLandmarks - 1) / kRangeLandmarks;
  queue.for_each(first.n_kv_heads * n_ranges, [&](int64_t item, const Worker& worker) {
    scan_range(all, queue.isa(), item / n_ranges, item % n_ranges, worker);
  });
  if (adds_weights(first)) {
    const int64_t n_heads = first.n_heads;
    queue.for_each(n_all * n_heads, [&](int64_t item, const Worker&) {
      const SelectParams& p = at(item / n_heads);
      Combination{p, SelectWorkspace(p), kernel}.prepare(item % n_heads, n_ranges);
    });
    // Pieces of fewer candidates are no longer than those of all.
    const int64_t n_pieces = n / (4 * kStripLandmarks) + 1;
    queue.for_each(n_all * n_lists * n_pieces, [&](int64_t item, const Worker& worker) {
      const SelectParams& p = at(item / n_pieces / n_lists);
      Combination{p, SelectWorkspace(p), kernel}.run(item / n_pieces % n_lists, item % n_pieces, worker);
    });
  }
  queue.for_each(n_all * n_lists, [&](int64_t item, const Worker& worker) {
    const SelectParams& p = at(item / n_lists);
    Ranking(p, SelectWorkspace(p), kernel, n_ranges, item % n_lists, worker).run();
  });
}

}  // namespace

void select_chunks(Queue& queue, std::span<const SelectParams> all) {
  std::array<SelectParams, kScoredTogether> alike;
  size_t n = 0;
  const auto select_those = [&] {
    if (n > 0) select_alike(queue, std::span(alike).first(n));
    n = 0;
  };
  for (const SelectParams& p : all) {
    check(p);
    if (p.keep != nullptr && *p.keep != 0) continue;
    if (p.end_chunk <= p.first_chunk || p.k == 0) {
      std::fill(p.counts, p.counts + p.n_kv_heads, 0);
      if (p.max_misses >= 0) std::fill(p.dropped_counts, p.dropped_counts + p.n_kv_heads, 0);
      continue;
    }
    if (n == alike.size() || (n > 0 && !have_same_candidates(alike[0], p))) select_those();
    alike[n++] = p;
  }
  select_those();
}

void select_chunks(Queue& queue, const SelectParams& params) {
  select_chunks(queue, std::span(&params, 1));
}

void select_and_map(Queue& queue, const SelectParams& select, const MapSlotsParams& map) {
  select_chunks(queue, select);
  map_slots(queue, map);
}

}  // namespace tiercel::cpu
