#include "cpu/mass.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "cpu/levels.h"
#include "cpu/query.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kRangeChunks = 4096;  // of one work item
constexpr int64_t kStripChunks = 256;   // scored at a time, by up to kBatchQueries
constexpr int64_t kBatchQueries = 1024;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The queries of KV head j are its group's of token 0, of token 1, ..: [n_tokens][group].
// Workspace: (max, sum) of [n_kv_heads][queries][ranges], then log2 sums [n_kv_heads][queries].
struct Shape {
  explicit Shape(const MassParams& params)
      : p(params),
        group(p.n_heads / p.n_kv_heads),
        n_chunks(p.end_chunk - p.first_chunk),
        n_queries(p.n_tokens * group),
        n_ranges((n_chunks + kRangeChunks - 1) / kRangeChunks) {}

  float* part(int64_t kv_head, int64_t query, int64_t range) const {
    return p.workspace + 2 * ((kv_head * n_queries + query) * n_ranges + range);
  }
  float* log_sums(int64_t kv_head) const {
    return p.workspace + n_queries * (2 * p.n_kv_heads * n_ranges + kv_head);
  }
  int64_t range_end(int64_t range) const { return std::min((range + 1) * kRangeChunks, n_chunks); }

  const MassParams& p;
  int64_t group, n_chunks, n_queries, n_ranges;
};
// Per query head: 2 n_tokens ranges + n_tokens floats, with n / kRangeChunks + 1 ranges at most.
static_assert(2 * kMaxMassTokens <= kRangeChunks && 3 * kMaxMassTokens <= 4096);

// Scores of some queries against strips of landmarks, in a worker's scratch memory.
class Scorer {
 public:
  Scorer(const Shape& shape, const DecodeKernel& dot, const SelectKernel& kernel, int64_t kv_head,
         const Worker& worker)
      : shape_(shape), dot_(dot), kernel_(kernel), kv_head_(kv_head), scratch_(worker.scratch) {
    const int64_t most = padded_heads(static_cast<int32_t>(batch_tokens(shape) * shape.group));
    queries_ = scratch_.take<char>(most * packed_width(dot, shape.p.head_dim) * 4);
    scores_ = scratch_.take<float>(most * kStripChunks);
    offsets_ = scratch_.take<int64_t>(2 * kDecodeBlock);
  }

  static int64_t batch_tokens(const Shape& shape) {
    return std::max<int64_t>(std::min(kBatchQueries / shape.group, shape.p.n_tokens), 1);
  }
  Carver& scratch() { return scratch_; }
  int64_t n_queries() const { return n_queries_; }
  const float* scores(int64_t query) const { return scores_ + query * kStripChunks; }

  // Queries of tokens first .. end - 1 from now on.
  void take_queries(int64_t first, int64_t end) {
    const MassParams& p = shape_.p;
    n_queries_ = (end - first) * shape_.group;
    row_bytes_ = packed_width(dot_, p.head_dim) * static_cast<int64_t>(dot_.bf16_query ? 2 : 4);
    const int64_t n_padded = padded_heads(static_cast<int32_t>(n_queries_));
    std::memset(queries_, 0, static_cast<size_t>(n_padded * row_bytes_));
    for (int64_t i = 0; i < n_queries_; ++i) {
      const int64_t token = first + i / shape_.group;
      const int64_t head = kv_head_ * shape_.group + i % shape_.group;
      pack_queries(dot_, p.q + (token * p.n_heads + head) * p.head_dim, 1, p.head_dim,
                   queries_ + i * row_bytes_);
    }
  }

  // Chunks first_chunk + at .. + n - 1.
  void score(int64_t at, int64_t n) {
    const MassParams& p = shape_.p;
    ScoreRows rows{};
    rows.offsets = offsets_;
    rows.prefetch_rows = kDecodeBlock;
    rows.head_dim = p.head_dim;
    rows.n_heads = padded_heads(static_cast<int32_t>(n_queries_));
    rows.queries = queries_;
    rows.query_bytes = row_bytes_;
    rows.scale = p.scale * std::numbers::log2e_v<float>;
    rows.score_stride = kStripChunks;
    const uint16_t* landmarks = bits(p.landmarks + kv_head_ * p.landmark_head_stride);
    for (int64_t i = 0; i < n; i += kDecodeBlock) {
      rows.n_rows = static_cast<int32_t>(std::min<int64_t>(kDecodeBlock, n - i));
      for (int64_t r = 0; r < 2 * kDecodeBlock; ++r) {  // behind the end: the last row
        offsets_[r] = std::min<int64_t>(r, n - i - 1) * p.head_dim;
      }
      rows.row_base = landmarks + (p.first_chunk + at + i) * p.head_dim;
      rows.scores = scores_ + i;
      dot_.score_rows(rows);
    }
    for (int64_t q = 0; q < n_queries_; ++q) kernel_.clamp_scores(scores_ + q * kStripChunks, n);
  }

 private:
  const Shape& shape_;
  const DecodeKernel& dot_;
  const SelectKernel& kernel_;
  int64_t kv_head_;
  Carver scratch_;
  char* queries_;
  float* scores_;
  int64_t* offsets_;
  int64_t n_queries_ = 0, row_bytes_ = 0;
};

// Phase 1, one range of one KV head: maximum and sum of every query.
void sum_range(const Shape& shape, const SelectKernel& kernel, Scorer& scorer, int64_t kv_head,
               int64_t range) {
  const int64_t batch = Scorer::batch_tokens(shape);
  for (int64_t token = 0; token < shape.p.n_tokens; token += batch) {
    scorer.take_queries(token, std::min(token + batch, shape.p.n_tokens));
    const int64_t first = token * shape.group;
    for (int64_t q = 0; q < scorer.n_queries(); ++q) {
      shape.part(kv_head, first + q, range)[0] = -kInfinity;
      shape.part(kv_head, first + q, range)[1] = 0;
    }
    const int64_t end = shape.range_end(range);
    for (int64_t at = range * kRangeChunks; at < end; at += kStripChunks) {
      const int64_t n = std::min(kStripChunks, end - at);
      scorer.score(at, n);
      for (int64_t q = 0; q < scorer.n_queries(); ++q) {
        float* part = shape.part(kv_head, first + q, range);
        kernel.sum_scores(scorer.scores(q), n, part, part + 1);
      }
    }
  }
}

// Phase 2: log2 of the sum of exp2(score) of one query over all ranges, in order.
float log_sum(const Shape& shape, int64_t kv_head, int64_t query) {
  float max = -kInfinity;
  for (int64_t r = 0; r < shape.n_ranges; ++r) {
    max = std::max(max, shape.part(kv_head, query, r)[0]);
  }
  float sum = 0;
  for (int64_t r = 0; r < shape.n_ranges; ++r) {
    const float* part = shape.part(kv_head, query, r);
    sum += part[1] * std::exp2(part[0] - max);
  }
  return max + std::log2(sum);
}

// Phase 3, one range of one KV head: the weights of all queries, added up chunk by chunk.
void add_range(const Shape& shape, const SelectKernel& kernel, Scorer& scorer, int64_t kv_head,
               int64_t range) {
  float* weights = scorer.scratch().take<float>(kStripChunks);
  float* mass = shape.p.mass + kv_head * shape.p.mass_stride;
  const int64_t batch = Scorer::batch_tokens(shape);
  const int64_t end = shape.range_end(range);
  std::fill(mass + range * kRangeChunks, mass + end, 0.0f);
  for (int64_t token = 0; token < shape.p.n_tokens; token += batch) {
    scorer.take_queries(token, std::min(token + batch, shape.p.n_tokens));
    for (int64_t at = range * kRangeChunks; at < end; at += kStripChunks) {
      const int64_t n = std::min(kStripChunks, end - at);
      scorer.score(at, n);
      kernel.combine_scores({.scores = scorer.scores(0),
                             .score_stride = kStripChunks,
                             .n_heads = static_cast<int32_t>(scorer.n_queries()),
                             .log_sums = shape.log_sums(kv_head) + token * shape.group,
                             .max_of = 1,
                             .add = true,
                             .share = 1.0f,
                             .n = n,
                             .out = weights});
      for (int64_t i = 0; i < n; ++i) mass[at + i] += weights[i];
    }
  }
}

}  // namespace

void accumulate_mass(Queue& queue, const MassParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= 256 && p.head_dim % 2 == 0, "head_dim {}", p.head_dim);
  CHECK(p.n_tokens >= 0 && p.n_tokens <= kMaxMassTokens, "{} tokens", p.n_tokens);
  CHECK(p.first_chunk >= 0 && p.n_heads / p.n_kv_heads <= kBatchQueries, "first chunk {}, {} heads",
        p.first_chunk, p.n_heads);
  const Shape shape(p);
  if (shape.n_chunks <= 0) return;
  const DecodeKernel& dot = decode_kernel(queue.isa());
  const SelectKernel& kernel = select_kernel(queue.isa());
  const int64_t n_items = p.n_kv_heads * shape.n_ranges;
  queue.for_each(n_items, [&](int64_t item, const Worker& worker) {
    const int64_t kv_head = item / shape.n_ranges;
    Scorer scorer(shape, dot, kernel, kv_head, worker);
    sum_range(shape, kernel, scorer, kv_head, item % shape.n_ranges);
  });
  queue.for_each(p.n_kv_heads, [&](int64_t kv_head, const Worker&) {
    for (int64_t q = 0; q < shape.n_queries; ++q) {
      shape.log_sums(kv_head)[q] = log_sum(shape, kv_head, q);
    }
  });
  queue.for_each(n_items, [&](int64_t item, const Worker& worker) {
    const int64_t kv_head = item / shape.n_ranges;
    Scorer scorer(shape, dot, kernel, kv_head, worker);
    add_range(shape, kernel, scorer, kv_head, item % shape.n_ranges);
  });
}

}  // namespace tiercel::cpu
