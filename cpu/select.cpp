#include "cpu/select.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "cpu/levels.h"
#include "cpu/query.h"
#include "cpu/slots.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kRangeLandmarks = 16384;  // one work item: 2 MiB of landmarks at head_dim 64
constexpr int64_t kStripLandmarks = 1024;   // scored, then summed while the scores are in L1
constexpr int64_t kMaxRanges = 1024;
constexpr int64_t kMaxColumns = 2048;
constexpr int64_t kMaxColumnLength = 1024;  // a segment is within one work item
static_assert(16 * kMaxColumnLength <= kRangeLandmarks);
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The workspace: scores [n_heads][stride], lists of chunks [n_kv_heads][stride], and 4096 floats
// per query head: (max, sum) of every range, then the maxima of columns.
//
// Columns make ranking cheap. Segments of 16 * length scores are cut into 16 columns, scores i, i +
// 16, i + 32, .. of the segment. The k-th largest column maximum bounds the k-th largest score from
// below, because k different chunks reach it. So only columns whose maximum reaches it are looked
// at: little more than k of them, of 2048.
//
//   segment:  0 1 2 .. 15 | 16 17 .. 31 | ..        column 2 = { 2, 18, 34, .. }
class Workspace {
 public:
  explicit Workspace(const SelectParams& p)
      : p_(p), group_(p.n_heads / p.n_kv_heads), n_(p.end_chunk - p.first_chunk), stride_(n_ + 64) {
    while (length_ < kMaxColumnLength && n_columns() > kMaxColumns) length_ *= 2;
  }

  int64_t stride() const { return stride_; }
  float* scores(int64_t kv_head) const { return p_.workspace + kv_head * group_ * stride_; }
  int32_t* list(int64_t kv_head) const {
    return reinterpret_cast<int32_t*>(p_.workspace + (p_.n_heads + kv_head) * stride_);
  }
  float* sums(int64_t head, int64_t range) const { return head_part(head) + 2 * range; }

  bool has_columns() const { return n_columns() <= kMaxColumns; }
  int64_t n_columns() const { return (n_ + 16 * length_ - 1) / (16 * length_) * 16; }
  int64_t segment() const { return 16 * length_; }
  float* columns(int64_t head) const { return head_part(head) + 2 * kMaxRanges; }

 private:
  float* head_part(int64_t head) const {
    return p_.workspace + (p_.n_heads + p_.n_kv_heads) * stride_ + head * 4096;
  }
  const SelectParams& p_;
  int64_t group_, n_, stride_;
  int64_t length_ = 16;
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
        scores[h * stride + at] = -kInfinity;
      }
    }
  }
}

// Column maxima of one range of scores of a head. A range holds whole segments, the last one aside.
void clear_columns(const Workspace& work, int64_t head, int64_t n_heads, int64_t begin,
                   int64_t end) {
  if (!work.has_columns()) return;
  const int64_t first = begin / work.segment() * 16;
  const int64_t last = (end + work.segment() - 1) / work.segment() * 16;
  for (int64_t h = head; h < head + n_heads; ++h) {
    std::fill(work.columns(h) + first, work.columns(h) + last, -kInfinity);
  }
}

// Scores at .. at + n - 1; what is behind them, up to a whole group of 16, becomes -inf.
void fold_columns(const Workspace& work, const SelectKernel& kernel, int64_t head, int64_t at,
                  int64_t n, float* scores) {
  if (!work.has_columns()) return;
  for (int64_t i = n; i % 16 != 0; ++i) scores[i] = -kInfinity;
  for (int64_t i = 0; i < n;) {
    const int64_t segment = (at + i) / work.segment();
    const int64_t end = std::min(n, (segment + 1) * work.segment() - at);
    kernel.fold_max(scores + i, (end - i + 15) / 16 * 16, work.columns(head) + segment * 16);
    i = end;
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
  rows.prefetch_rows = kDecodeBlock;
  rows.head_dim = p.head_dim;
  rows.n_heads = n_heads;
  rows.queries = queries;
  rows.query_bytes =
      pack_queries(dot, p.q + kv_head * group * p.head_dim, group, p.head_dim, queries);
  rows.scale = p.scale * std::numbers::log2e_v<float>;
  rows.score_stride = kStripLandmarks;

  float* scores = work.scores(kv_head);
  for (int64_t h = 0; h < group; ++h) {
    work.sums(kv_head * group + h, range)[0] = -kInfinity;
    work.sums(kv_head * group + h, range)[1] = 0;
  }
  clear_columns(work, kv_head * group, group, begin, end);
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
      float* target = scores + h * work.stride() + at;
      std::memcpy(target, strip + h * kStripLandmarks, static_cast<size_t>(n) * sizeof(float));
      if (p.group == GroupScore::kMax)
        fold_columns(work, kernel, kv_head * group + h, at, n, target);
    }
  }
}

// log2 of the sum of exp2(score) over all ranges, merged in order. Without a candidate: 0.
float log_sum(const Workspace& work, int64_t head, int64_t n_ranges) {
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

void log_sums_of(const Workspace& work, int64_t kv_head, int64_t group, int64_t n_ranges,
                 float* log_sums) {
  for (int64_t h = 0; h < group; ++h) log_sums[h] = log_sum(work, kv_head * group + h, n_ranges);
}

// One score per chunk, over those of the group's first head.
void combine(const SelectParams& p, const Workspace& work, const SelectKernel& kernel,
             int64_t kv_head, const float* log_sums, int64_t begin, int64_t end) {
  float* scores = work.scores(kv_head) + begin;
  kernel.combine_scores({scores, work.stride(), p.n_heads / p.n_kv_heads, log_sums,
                         p.group == GroupScore::kMean, end - begin, scores});
}

// Phase 2 of GroupScore::kMean, one range of one KV head: a mean is not known from maxima.
void combine_range(const SelectParams& p, const Workspace& work, const SelectKernel& kernel,
                   int64_t n_ranges, int64_t kv_head, int64_t range, const Worker& worker) {
  const int64_t group = p.n_heads / p.n_kv_heads;
  float* log_sums = Carver(worker.scratch).take<float>(group);
  log_sums_of(work, kv_head, group, n_ranges, log_sums);
  const int64_t end = std::min((range + 1) * kRangeLandmarks, p.end_chunk - p.first_chunk);
  for (int64_t at = range * kRangeLandmarks; at < end; at += kStripLandmarks) {
    const int64_t n = std::min(kStripLandmarks, end - at);
    combine(p, work, kernel, kv_head, log_sums, at, at + n);
    fold_columns(work, kernel, kv_head * group, at, n, work.scores(kv_head) + at);
  }
}

// The bound below the k-th largest score, after the first head's columns became the group's.
float bound(const SelectParams& p, const Workspace& work, int64_t kv_head, const float* log_sums,
            float* sorted) {
  const int64_t group = p.n_heads / p.n_kv_heads;
  if (!work.has_columns() || p.k > work.n_columns()) return -kInfinity;
  float* columns = work.columns(kv_head * group);
  if (p.group == GroupScore::kMax) {
    for (int64_t c = 0; c < work.n_columns(); ++c) {
      float top = -kInfinity;
      for (int64_t h = 0; h < group; ++h) {
        top = std::max(top, work.columns(kv_head * group + h)[c] - log_sums[h]);
      }
      columns[c] = top;
    }
  }
  std::copy(columns, columns + work.n_columns(), sorted);
  std::nth_element(sorted, sorted + p.k - 1, sorted + work.n_columns(), std::greater<float>());
  return sorted[p.k - 1];
}

// Chunks whose scores reach the bound, from the columns that do. Leaves the group's scores of those
// chunks in the first head's.
int64_t list_from_columns(const SelectParams& p, const Workspace& work, int64_t kv_head,
                          const float* log_sums, float bound) {
  const int64_t group = p.n_heads / p.n_kv_heads;
  const int64_t n = p.end_chunk - p.first_chunk;
  float* scores = work.scores(kv_head);
  int32_t* list = work.list(kv_head);
  int64_t n_listed = 0;
  for (int64_t c = 0; c < work.n_columns(); ++c) {
    if (!(work.columns(kv_head * group)[c] >= bound)) continue;
    const int64_t begin = c / 16 * work.segment();
    const int64_t end = std::min(n, begin + work.segment());
    for (int64_t i = begin + c % 16; i < end; i += 16) {
      float score = scores[i];
      if (p.group == GroupScore::kMax) {
        score -= log_sums[0];
        for (int64_t h = 1; h < group; ++h) {
          score = std::max(score, scores[h * work.stride() + i] - log_sums[h]);
        }
        scores[i] = score;
      }
      if (score >= bound) list[n_listed++] = static_cast<int32_t>(i);
    }
  }
  return n_listed;
}

// Phase 3, one KV head: the best k, ascending. Works in place, whatever k is.
void rank(const SelectParams& p, const Workspace& work, const SelectKernel& kernel,
          int64_t n_ranges, int64_t kv_head, const Worker& worker) {
  Carver scratch(worker.scratch);
  float* log_sums = scratch.take<float>(p.n_heads / p.n_kv_heads);
  log_sums_of(work, kv_head, p.n_heads / p.n_kv_heads, n_ranges, log_sums);
  const float least = bound(p, work, kv_head, log_sums, scratch.take<float>(kMaxColumns));
  const float* scores = work.scores(kv_head);
  int32_t* list = work.list(kv_head);
  int64_t n = p.end_chunk - p.first_chunk;
  if (least > -kInfinity) {
    n = list_from_columns(p, work, kv_head, log_sums, least);
  } else {
    if (p.group == GroupScore::kMax) combine(p, work, kernel, kv_head, log_sums, 0, n);
    n = kernel.collect_above(scores, n, -kInfinity, list);
  }
  if (n > p.k) {
    std::nth_element(list, list + p.k - 1, list + n, [scores](int32_t a, int32_t b) {
      return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    });
    n = p.k;
  }
  std::sort(list, list + n);
  int32_t* ids = p.ids + kv_head * p.k;
  for (int64_t i = 0; i < n; ++i) ids[i] = list[i] + static_cast<int32_t>(p.first_chunk);
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
  if (p.group == GroupScore::kMean) {
    queue.for_each(p.n_kv_heads * n_ranges, [&](int64_t item, const Worker& worker) {
      combine_range(p, work, kernel, n_ranges, item / n_ranges, item % n_ranges, worker);
    });
  }
  queue.for_each(p.n_kv_heads, [&](int64_t kv_head, const Worker& worker) {
    rank(p, work, kernel, n_ranges, kv_head, worker);
  });
}

void select_and_map(Queue& queue, const SelectParams& select, const MapSlotsParams& map) {
  select_chunks(queue, select);
  map_slots(queue, map);
}

}  // namespace tiercel::cpu
