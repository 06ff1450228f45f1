#include "cpu/select.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "cpu/query.h"
#include "cpu/select_levels.h"
#include "cpu/top_k.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kRangeLandmarks = 16384;  // one work item: 2 MiB of landmarks at head_dim 64
constexpr int64_t kStripLandmarks = 1024;   // scored, then summed while the scores are in L1
constexpr int64_t kMaxRanges = 1024;
constexpr int64_t kPrefetchBytes = 4096;

// The workspace: scores [n_heads][stride], merged [n_kv_heads][stride], and per query head 4096
// floats: (max, sum) of every range, then (of a group's first head) the length of every range's
// list. A range's list of local winners overwrites its scores of the group's first head.
class Workspace {
 public:
  explicit Workspace(const SelectParams& p)
      : p_(p), group_(p.n_heads / p.n_kv_heads), stride_(p.end_chunk - p.first_chunk + 64) {}

  int64_t stride() const { return stride_; }
  float* scores(int64_t kv_head) const { return p_.workspace + kv_head * group_ * stride_; }
  float* merged(int64_t kv_head) const { return p_.workspace + (p_.n_heads + kv_head) * stride_; }
  float* sums(int64_t head, int64_t range) const { return head_sums(head) + 2 * range; }
  int32_t* list(int64_t kv_head, int64_t range) const {
    return reinterpret_cast<int32_t*>(scores(kv_head)) + range * kRangeLandmarks;
  }
  int32_t* list_size(int64_t kv_head, int64_t range) const {
    return reinterpret_cast<int32_t*>(head_sums(kv_head * group_) + 2 * kMaxRanges + range);
  }

 private:
  float* head_sums(int64_t head) const {
    return p_.workspace + (p_.n_heads + p_.n_kv_heads) * stride_ + head * 4096;
  }
  const SelectParams& p_;
  int64_t group_, stride_;
};

// 64 bits of a bit map from any bit on.
uint64_t bits_from(const uint64_t* map, int64_t bit, int64_t n_words) {
  const int64_t word = bit >> 6;
  const int shift = static_cast<int>(bit & 63);
  uint64_t bits = map[word] >> shift;
  if (shift != 0 && word + 1 < n_words) bits |= map[word + 1] << (64 - shift);
  return bits;
}

// Marks the excluded of chunks first .. first + n - 1 with -inf in every head's scores.
void exclude(const SelectParams& p, int64_t kv_head, int64_t first, int64_t n, float* scores,
             int64_t stride, int64_t group) {
  if (p.excluded == nullptr) return;
  const uint64_t* map = p.excluded + kv_head * p.excluded_stride;
  for (int64_t i = 0; i < n; i += 64) {
    uint64_t bits = bits_from(map, first + i, p.excluded_stride);
    if (n - i < 64) bits &= (uint64_t{1} << (n - i)) - 1;
    for (; bits != 0; bits &= bits - 1) {
      const int64_t at = i + std::countr_zero(bits);
      for (int64_t h = 0; h < group; ++h) {
        scores[h * stride + at] = -std::numeric_limits<float>::infinity();
      }
    }
  }
}

// Phase 1, one range of one KV head: scores of all heads of the group, their maxima and sums.
void scan_range(const SelectParams& p, const Workspace& work, const DecodeKernel& dot,
                const SelectKernel& kernel, int64_t kv_head, int64_t range, const Worker& worker) {
  const int32_t group = p.n_heads / p.n_kv_heads;
  const int64_t begin = range * kRangeLandmarks;
  const int64_t end = std::min(begin + kRangeLandmarks, p.end_chunk - p.first_chunk);

  Carver scratch(worker.scratch);
  const int32_t n_heads = padded_heads(group);
  char* queries = scratch.take<char>(n_heads * packed_width(dot, p.head_dim) * 4);
  int64_t* offsets = scratch.take<int64_t>(2 * kDecodeBlock);
  float* strip = scratch.take<float>(n_heads * kStripLandmarks);
  for (int64_t i = 0; i < 2 * kDecodeBlock; ++i) offsets[i] = i * p.head_dim;

  ScoreRows rows{};
  rows.offsets = offsets;
  rows.prefetch_rows =
      static_cast<int32_t>(std::clamp<int64_t>(kPrefetchBytes / (2 * p.head_dim), 1, kDecodeBlock));
  rows.head_dim = p.head_dim;
  rows.n_heads = n_heads;
  rows.queries = queries;
  rows.query_bytes =
      pack_queries(dot, p.q + kv_head * group * p.head_dim, group, p.head_dim, queries);
  rows.scale = p.scale * std::numbers::log2e_v<float>;
  rows.score_stride = kStripLandmarks;

  float* scores = work.scores(kv_head);
  for (int64_t h = 0; h < group; ++h) {
    work.sums(kv_head * group + h, range)[0] = -std::numeric_limits<float>::infinity();
    work.sums(kv_head * group + h, range)[1] = 0;
  }
  const uint16_t* landmarks = bits(p.landmarks + kv_head * p.landmark_head_stride);
  for (int64_t at = begin; at < end; at += kStripLandmarks) {
    const int64_t n = std::min(kStripLandmarks, end - at);
    for (int64_t i = 0; i < n; i += kDecodeBlock) {
      rows.n_rows = static_cast<int32_t>(std::min<int64_t>(kDecodeBlock, n - i));
      if (rows.n_rows < kDecodeBlock) {  // the last block: rows behind the end repeat the last row
        for (int64_t r = rows.n_rows; r < 2 * kDecodeBlock; ++r) {
          offsets[r] = (rows.n_rows - 1) * int64_t{p.head_dim};
        }
      }
      rows.row_base = landmarks + (p.first_chunk + at + i) * p.head_dim;
      rows.scores = strip + i;
      dot.score_rows(rows);
    }
    for (int64_t h = 0; h < group; ++h) kernel.clamp_scores(strip + h * kStripLandmarks, n);
    exclude(p, kv_head, p.first_chunk + at, n, strip, kStripLandmarks, group);
    for (int64_t h = 0; h < group; ++h) {
      float* sums = work.sums(kv_head * group + h, range);
      kernel.sum_scores(strip + h * kStripLandmarks, n, sums, sums + 1);
      std::memcpy(scores + h * work.stride() + at, strip + h * kStripLandmarks,
                  static_cast<size_t>(n) * sizeof(float));
    }
  }
}

// log2 of the sum of exp2(score) over all ranges, merged in order. Without a candidate: 0.
float log_sum(const Workspace& work, int64_t head, int64_t n_ranges) {
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t r = 0; r < n_ranges; ++r) max = std::max(max, work.sums(head, r)[0]);
  if (max == -std::numeric_limits<float>::infinity()) return 0;
  float sum = 0;
  for (int64_t r = 0; r < n_ranges; ++r) {
    const float* part = work.sums(head, r);
    sum += part[1] * std::exp2(part[0] - max);
  }
  return max + std::log2(sum);
}

// Phase 2, one range of one KV head: one score per chunk, and the list of the range's best k.
void rank_range(const SelectParams& p, const Workspace& work, const SelectKernel& kernel,
                int64_t n_ranges, int64_t kv_head, int64_t range, const Worker& worker) {
  const int64_t group = p.n_heads / p.n_kv_heads;
  const int64_t begin = range * kRangeLandmarks;
  const int64_t end = std::min(begin + kRangeLandmarks, p.end_chunk - p.first_chunk);
  const int64_t k = std::min(p.k, end - begin);

  Carver scratch(worker.scratch);
  float* log_sums = scratch.take<float>(group);
  int32_t* found = scratch.take<int32_t>(kStripLandmarks + 16);
  const int64_t capacity = 2 * k + 256;
  TopK best(scratch.take<uint64_t>(capacity), k, capacity);
  for (int64_t h = 0; h < group; ++h) log_sums[h] = log_sum(work, kv_head * group + h, n_ranges);

  float* merged = work.merged(kv_head);
  for (int64_t at = begin; at < end; at += kStripLandmarks) {
    const int64_t n = std::min(kStripLandmarks, end - at);
    const CombineScores combine = {work.scores(kv_head) + at,
                                   work.stride(),
                                   static_cast<int32_t>(group),
                                   log_sums,
                                   p.group == GroupScore::kMean,
                                   n,
                                   merged + at};
    kernel.combine_scores(combine);
    const int64_t n_found = kernel.collect_above(merged + at, n, best.threshold(), found);
    for (int64_t i = 0; i < n_found; ++i) {
      const int64_t chunk = at + found[i];
      if (merged[chunk] > best.threshold()) best.push(merged[chunk], static_cast<int32_t>(chunk));
    }
  }
  best.finish();
  int32_t* list = work.list(kv_head, range);
  for (const uint64_t entry : best) *list++ = index_of(entry);
  *work.list_size(kv_head, range) = static_cast<int32_t>(best.size());
}

// Phase 3, one KV head: the best k of the ranges' lists, ascending. Works in place, whatever k is.
void merge_lists(const SelectParams& p, const Workspace& work, int64_t n_ranges, int64_t kv_head) {
  int32_t* all = work.list(kv_head, 0);
  int64_t n = 0;
  for (int64_t r = 0; r < n_ranges; ++r) {
    const int32_t size = *work.list_size(kv_head, r);
    std::memmove(all + n, work.list(kv_head, r), static_cast<size_t>(size) * sizeof(int32_t));
    n += size;
  }
  const float* merged = work.merged(kv_head);
  if (n > p.k) {
    std::nth_element(all, all + p.k - 1, all + n, [merged](int32_t a, int32_t b) {
      return merged[a] > merged[b] || (merged[a] == merged[b] && a < b);
    });
    n = p.k;
  }
  std::sort(all, all + n);
  int32_t* ids = p.ids + kv_head * p.k;
  for (int64_t i = 0; i < n; ++i) ids[i] = all[i] + static_cast<int32_t>(p.first_chunk);
  p.counts[kv_head] = static_cast<int32_t>(n);
}

}  // namespace

void select_chunks(Queue& queue, const SelectParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= 256 && p.head_dim % 2 == 0, "head_dim {}", p.head_dim);
  CHECK(p.first_chunk >= 0 && p.k >= 0, "first chunk {}, k {}", p.first_chunk, p.k);
  const int64_t n = p.end_chunk - p.first_chunk;
  const int64_t n_ranges = (n + kRangeLandmarks - 1) / kRangeLandmarks;
  CHECK(n_ranges <= kMaxRanges && p.end_chunk <= std::numeric_limits<int32_t>::max(), "{} chunks",
        n);
  if (n <= 0 || p.k == 0) {
    std::fill(p.counts, p.counts + p.n_kv_heads, 0);
    return;
  }
  const DecodeKernel& dot = decode_kernel(queue.isa());
  const SelectKernel& kernel = select_kernel(queue.isa());
  const Workspace work(p);
  queue.for_each(p.n_kv_heads * n_ranges, [&](int64_t item, const Worker& worker) {
    scan_range(p, work, dot, kernel, item / n_ranges, item % n_ranges, worker);
  });
  queue.for_each(p.n_kv_heads * n_ranges, [&](int64_t item, const Worker& worker) {
    rank_range(p, work, kernel, n_ranges, item / n_ranges, item % n_ranges, worker);
  });
  queue.for_each(p.n_kv_heads,
                 [&](int64_t kv_head, const Worker&) { merge_lists(p, work, n_ranges, kv_head); });
}

}  // namespace tiercel::cpu
