// Selection for blocks of prefill queries. One pass over the landmarks serves many blocks: 48 rows
// of landmarks are multiplied by all mean queries of an item, scores stay in L1.
//
// The group's maximum of softmax needs sums over all candidates, which are known at the end only.
// So each query head keeps its own k best by raw score: a chunk among the group's best k is among
// the best k of the head that gives it its maximum (otherwise k chunks of that head would beat it),
// so merging the heads' lists after normalising gives the exact result without a second pass.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "cpu/levels.h"
#include "cpu/query.h"
#include "cpu/select.h"
#include "cpu/top_k.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kMaxBlocks = 32;    // of one item
constexpr int64_t kMaxQueries = 128;  // of one item, unless one block has more heads
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t local_begin_of(const PrefillSelectParams& p, int64_t block) {
  if (p.end_chunk >= 0) return p.end_chunk * p.chunk_tokens;
  const int64_t position = p.first_position + block * p.block_tokens - p.local_tokens;
  return std::max<int64_t>(position, 0) / p.chunk_tokens * p.chunk_tokens;
}

int64_t list_capacity(int64_t k) { return k + std::max<int64_t>(k / 2, 64); }

// How many blocks share a pass: functions of shapes only.
int64_t blocks_per_item(const PrefillSelectParams& p, int64_t n_blocks) {
  const int64_t group = p.n_heads / p.n_kv_heads;
  const int64_t list_bytes = (list_capacity(p.k) + p.k) * 8 * group;
  const int64_t fitting =
      static_cast<int64_t>(kScratchBytes / 2) / std::max<int64_t>(list_bytes, 1);
  const int64_t wide = std::min(kMaxBlocks, std::max<int64_t>(kMaxQueries / group, 1));
  // Fewer than 64 blocks: halves, so that few KV heads still occupy several cores.
  const int64_t balanced = n_blocks >= 2 * kMaxBlocks ? wide : std::min<int64_t>(wide, 16);
  return std::max<int64_t>(std::min(balanced, fitting), 1);
}

// One item: some blocks of one KV head.
class BlockSelection {
 public:
  BlockSelection(const PrefillSelectParams& p, const SelectKernel& kernel,
                 const LandmarkKernel& mean, int64_t kv_head, int64_t first_block, int64_t n_blocks,
                 const Worker& worker)
      : p_(p),
        kernel_(kernel),
        mean_(mean),
        scratch_(worker.scratch),
        kv_head_(kv_head),
        first_block_(first_block),
        n_blocks_(n_blocks),
        group_(p.n_heads / p.n_kv_heads),
        n_queries_(n_blocks * group_),
        n_padded_((n_queries_ + kernel.lanes - 1) / kernel.lanes * kernel.lanes) {}

  void run() {
    int64_t last = 0;
    bool any = false;
    for (int64_t b = 0; b < n_blocks_; ++b) {
      last = std::max(last, chunks_before(b));
      any = any || !takes_all(b);
    }
    if (any) {
      prepare();
      scan(last);
    }
    for (int64_t b = 0; b < n_blocks_; ++b) emit(b);
  }

 private:
  // Chunks before the block's local window; sinks are the first of them.
  int64_t chunks_before(int64_t b) const {
    return local_begin_of(p_, first_block_ + b) / p_.chunk_tokens;
  }
  bool takes_all(int64_t b) const { return chunks_before(b) <= p_.sink_chunks + p_.k || p_.k == 0; }

  // Mean queries, rounded to bf16, into the kernel's layout. Query b * group + h.
  void pack_means(int64_t view) {
    const int64_t d = p_.head_dim;
    for (int64_t b = 0; b < n_blocks_; ++b) {
      const uint16_t* mean = mean_of_block(b, view);
      for (int64_t h = 0; h < group_; ++h) {
        for (int64_t i = 0; i < d; ++i) put(b * group_ + h, i, mean[h * d + i]);
      }
    }
  }

  // [group][head_dim]
  const uint16_t* mean_of_block(int64_t b, int64_t view) {
    const int64_t d = p_.head_dim, block = first_block_ + b;
    if (p_.means != nullptr) {
      return bits(p_.means + view * p_.views.stride + (block * p_.n_heads + kv_head_ * group_) * d);
    }
    const int64_t begin = block * p_.block_tokens;
    const int64_t end = std::min(begin + p_.block_tokens, p_.n_tokens);
    MeanRows rows{};
    rows.means = mean_row_;
    rows.n_chunks = 1;
    rows.row_stride = p_.n_heads * d;
    rows.head_dim = static_cast<int32_t>(group_ * d);
    rows.rows = bits(p_.q + (begin * p_.n_heads + kv_head_ * group_) * d);
    rows.chunk_tokens = static_cast<int32_t>(end - begin);
    mean_.mean_rows(rows);
    return mean_row_;
  }

  void put(int64_t query, int64_t i, uint16_t value) {
    if (kernel_.bf16_query) {
      reinterpret_cast<uint16_t*>(queries_)[(i / 2 * n_padded_ + query) * 2 + i % 2] = value;
    } else {
      reinterpret_cast<float*>(queries_)[i * n_padded_ + query] =
          static_cast<float>(bf16::from_bits(value));
    }
  }

  void prepare() {
    const int64_t bytes = n_padded_ * p_.head_dim * (kernel_.bf16_query ? 2 : 4);
    queries_ = scratch_.take<char>(bytes);
    std::memset(queries_, 0, static_cast<size_t>(bytes));
    if (p_.means == nullptr) mean_row_ = scratch_.take<uint16_t>(group_ * p_.head_dim);
    best_ = scratch_.take<TopK>(n_queries_);
    const int64_t capacity = list_capacity(p_.k);
    for (int64_t i = 0; i < n_queries_; ++i) {
      best_[i] = TopK(scratch_.take<uint64_t>(capacity), p_.k, capacity);
    }
    candidates_ = scratch_.take<uint64_t>(group_ * p_.k);
    max_ = scratch_.take<float>(n_padded_);
    sum_ = scratch_.take<float>(n_padded_);
    thresholds_ = scratch_.take<float>(n_padded_);
    limits_ = scratch_.take<int32_t>(n_padded_);
    scores_ = scratch_.take<float>(kPrefillRows * n_padded_);
    hits_ = scratch_.take<PrefillHit>(kPrefillRows * n_padded_ / kernel_.lanes + 1);
    for (int64_t i = 0; i < n_padded_; ++i) {
      max_[i] = -kInfinity;
      sum_[i] = 0;
      const bool live = i < n_queries_ && !takes_all(i / group_);
      thresholds_[i] = live ? -kInfinity : kInfinity;
    }
  }

  void scan(int64_t last) {
    int64_t shortest = last;
    for (int64_t b = 0; b < n_blocks_; ++b) shortest = std::min(shortest, chunks_before(b));

    PrefillScores score{};
    score.head_dim = p_.head_dim;
    score.n_queries = static_cast<int32_t>(n_padded_);
    score.queries = queries_;
    score.scale = p_.scale * std::numbers::log2e_v<float>;
    score.scores = scores_;
    PrefillScan scan{};
    scan.scores = scores_;
    scan.n_queries = score.n_queries;
    scan.thresholds = thresholds_;
    scan.max =
        group_ > 1 ? max_ : nullptr;  // one head: the order of scores is the order of weights
    scan.sum = sum_;
    scan.hits = hits_;
    const bf16* landmarks = p_.landmarks + kv_head_ * p_.landmark_head_stride;
    const int64_t span = p_.views.n > 1 ? p_.views.span_tokens / p_.chunk_tokens : last;
    int64_t packed = -1;  // the view
    for (int64_t row = p_.sink_chunks, next; row < last; row = next) {
      const int64_t view = p_.views.view_at(row * p_.chunk_tokens);
      if (view != packed) pack_means(view);
      packed = view;
      next = std::min(row + kPrefillRows, view + 1 < p_.views.n ? std::min(last, (view + 1) * span) : last);
      score.landmarks = bits(landmarks + row * p_.head_dim);
      score.n_rows = static_cast<int32_t>(next - row);
      kernel_.score_blocks(score);
      scan.n_rows = score.n_rows;
      scan.limits = nullptr;
      if (row + score.n_rows > shortest) {
        for (int64_t i = 0; i < n_padded_; ++i) {
          const int64_t limit = i < n_queries_ ? chunks_before(i / group_) - row : 0;
          limits_[i] = static_cast<int32_t>(std::clamp<int64_t>(limit, 0, kPrefillRows));
        }
        scan.limits = limits_;
      }
      collect(row, kernel_.scan_blocks(scan));
    }
  }

  void collect(int64_t first_row, int64_t n_hits) {
    for (int64_t i = 0; i < n_hits; ++i) {
      const PrefillHit& hit = hits_[i];
      for (uint32_t lanes = hit.lanes; lanes != 0; lanes &= lanes - 1) {
        const int64_t query = hit.first_query + std::countr_zero(lanes);
        const float score = scores_[hit.row * n_padded_ + query];
        if (!(score > thresholds_[query])) continue;  // the threshold rose within these rows
        best_[query].push(score, static_cast<int32_t>(first_row + hit.row));
        thresholds_[query] = best_[query].threshold();
      }
    }
  }

  // Sinks, then the best k others.
  void emit(int64_t b) {
    const int64_t block = first_block_ + b;
    const int64_t width = p_.sink_chunks + p_.k;
    int32_t* ids = p_.chunk_ids + (block * p_.n_kv_heads + kv_head_) * width;
    int32_t* count = p_.chunk_counts + block * p_.n_kv_heads + kv_head_;
    int64_t n = std::min(chunks_before(b), takes_all(b) ? width : p_.sink_chunks);
    for (int64_t i = 0; i < n; ++i) ids[i] = static_cast<int32_t>(i);
    if (!takes_all(b)) {
      const int64_t n_best = merge_heads(b);
      for (int64_t i = 0; i < n_best; ++i) ids[n++] = index_of(candidates_[i]);
      std::sort(ids + p_.sink_chunks, ids + n);
    }
    *count = static_cast<int32_t>(n);
  }

  // The lists of the block's heads, with normalised scores, into candidates_: the best k, each
  // once.
  int64_t merge_heads(int64_t b) {
    int64_t n = 0;
    for (int64_t h = 0; h < group_; ++h) {
      const int64_t query = b * group_ + h;
      TopK& best = best_[query];
      best.finish();
      const float log_sum = group_ > 1 ? max_[query] + std::log2(sum_[query]) : 0.0f;
      for (const uint64_t entry : best) {
        candidates_[n++] = ranked(score_of(entry) - log_sum, index_of(entry));
      }
    }
    if (group_ > 1) {
      // By index, the best score of each first; then the others go.
      std::sort(candidates_, candidates_ + n, [](uint64_t a, uint64_t b) {
        const int32_t i = index_of(a), j = index_of(b);
        return i != j ? i < j : a > b;
      });
      n = std::unique(candidates_, candidates_ + n,
                      [](uint64_t a, uint64_t b) { return index_of(a) == index_of(b); }) -
          candidates_;
      if (n > p_.k) select_largest(candidates_, n, p_.k);
    }
    return std::min(n, p_.k);
  }

  const PrefillSelectParams& p_;
  const SelectKernel& kernel_;
  const LandmarkKernel& mean_;
  Carver scratch_;
  int64_t kv_head_, first_block_, n_blocks_, group_, n_queries_, n_padded_;
  char* queries_ = nullptr;
  uint16_t* mean_row_ = nullptr;    // [group][head_dim]
  TopK* best_ = nullptr;            // [n_queries]
  uint64_t* candidates_ = nullptr;  // [group * k]
  float* max_ = nullptr;            // [n_padded]
  float* sum_ = nullptr;            // [n_padded]
  float* thresholds_ = nullptr;     // [n_padded], +inf where nothing is wanted
  int32_t* limits_ = nullptr;       // [n_padded]
  float* scores_ = nullptr;         // [kPrefillRows][n_padded]
  PrefillHit* hits_ = nullptr;
};

}  // namespace

void mean_queries(Queue& queue, const MeanQueriesParams& p) {
  CHECK(p.block_tokens > 0 && p.n_tokens >= 0, "{} queries in blocks of {}", p.n_tokens, p.block_tokens);
  const LandmarkKernel& mean = landmark_kernel(queue.isa());
  const int64_t width = int64_t{p.n_heads} * p.head_dim;
  const int64_t n_blocks = (p.n_tokens + p.block_tokens - 1) / p.block_tokens;
  queue.for_each(n_blocks * p.n_heads, [&](int64_t item, const Worker&) {
    const int64_t begin = item / p.n_heads * p.block_tokens;
    const int64_t at = item % p.n_heads * p.head_dim;
    MeanRows rows{};
    rows.rows = bits(p.q + begin * width + at);
    rows.means = bits(p.means + item / p.n_heads * width + at);
    rows.n_chunks = 1;
    rows.chunk_tokens = static_cast<int32_t>(std::min(p.block_tokens, p.n_tokens - begin));
    rows.row_stride = width;
    rows.head_dim = p.head_dim;
    mean.mean_rows(rows);
  });
}

void select_prefill_chunks(Queue& queue, const PrefillSelectParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= 256 && p.head_dim % 2 == 0, "head_dim {}", p.head_dim);
  CHECK(p.block_tokens > 0 && p.chunk_tokens > 0 &&
            (p.end_chunk >= 0 || p.first_position % p.chunk_tokens == 0),
        "blocks of {}, chunks of {}, first position {}", p.block_tokens, p.chunk_tokens,
        p.first_position);
  CHECK(p.end_chunk * p.chunk_tokens <= p.first_position, "{} chunks of {}, first position {}", p.end_chunk,
        p.chunk_tokens, p.first_position);
  const int64_t group = p.n_heads / p.n_kv_heads;
  CHECK(p.k >= 0 && p.k <= max_prefill_chunks(group), "k {}, at most {}", p.k,
        max_prefill_chunks(group));
  CHECK(p.sink_chunks >= 0 && p.local_tokens >= 0);
  CHECK(p.views.n == 1 || (p.means != nullptr && p.views.span_tokens % (8 * p.chunk_tokens) == 0),
        "{} views of spans of {}, chunks of {}", p.views.n, p.views.span_tokens, p.chunk_tokens);
  const int64_t n_blocks = (p.n_tokens + p.block_tokens - 1) / p.block_tokens;
  for (int64_t b = 0; b < n_blocks; ++b) p.local_begin[b] = local_begin_of(p, b);

  const SelectKernel& kernel = select_kernel(queue.isa());
  const LandmarkKernel& mean = landmark_kernel(queue.isa());
  const int64_t size = blocks_per_item(p, n_blocks);
  const int64_t n_items = (n_blocks + size - 1) / size;
  // KV heads outermost: threads at work on the same landmarks share them in the last-level cache.
  queue.for_each(p.n_kv_heads * n_items, [&](int64_t item, const Worker& worker) {
    const int64_t first = item % n_items * size;
    BlockSelection(p, kernel, mean, item / n_items, first, std::min(size, n_blocks - first), worker)
        .run();
  });
}

}  // namespace tiercel::cpu
