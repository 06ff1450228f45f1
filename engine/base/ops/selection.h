// The index over chunks, and what is chosen by it.
#pragma once

#include <cstdint>

#include "engine/base/dtype.h"
#include "engine/base/ops/position.h"

namespace tiercel {

// What the index keeps of a chunk, its landmark: width(kind, head_dim) elements.
//   kMean    the mean of its keys (ShadowKV). A chunk of one token: the key itself (TokenSelect)
//   kMinMax  per channel the least, then per channel the greatest of its keys (Quest)
enum class IndexKind : uint8_t { kMean, kMinMax };
constexpr int32_t landmark_width(IndexKind kind, int32_t head_dim) {
  return kind == IndexKind::kMinMax ? 2 * head_dim : head_dim;
}

// Landmarks of chunks first_chunk .. first_chunk + n_chunks - 1 (means: fp32 sum, one rounding;
// least and greatest are exact, a NaN among the keys makes both NaN). Rows of the key plane: chunk
// c starts at row c*chunk_tokens - first_row. Also means of values, from a value plane.
struct LandmarkParams {
  const bf16* keys = nullptr;  // plane, after RoPE
  int64_t key_head_stride = 0;
  int64_t first_row = 0;
  IndexKind kind = IndexKind::kMean;
  // [n_kv_heads][capacity][landmark_width(kind, head_dim)]; chunk c at row c - first_landmark
  bf16* landmarks = nullptr;
  int64_t landmark_head_stride = 0;
  int64_t first_landmark = 0;
  int64_t first_chunk = 0, n_chunks = 0;
  int32_t chunk_tokens = 0, n_kv_heads = 0, head_dim = 0;
};

// Landmarks in int8: code = rint(x / scale) within +-127, scale = max |x| (1 + 2^-20) / 127 over
// the landmark (fp32). kMinMax rounds its first half down and its second up, so that bounds stay
// bounds. A landmark of zeros has scale 0; one that is not finite has scale NaN and codes 0: its
// score is NaN.
struct EncodeLandmarksParams {
  const bf16* landmarks = nullptr;  // [n_kv_heads][..][width]; chunk c at row c - first_landmark
  int64_t landmark_head_stride = 0;
  int64_t first_landmark = 0;
  int64_t first_chunk = 0, n_chunks = 0;
  int32_t n_kv_heads = 0, width = 0;
  IndexKind kind = IndexKind::kMean;
  int8_t* codes = nullptr;   // [n_kv_heads][capacity][width]; chunk c at row c
  float* scales = nullptr;   // [n_kv_heads][capacity]
  int64_t capacity = 0;      // chunks
};

// mass[j][c - first_chunk] = the sum, over n_tokens queries and the heads of the group of KV head
// j, of softmax over chunks first_chunk .. end_chunk - 1 of (q . landmark) * scale: the attention
// that chunks got, as far as landmarks tell. Scores as in SelectParams.
struct MassParams {
  const bf16* q = nullptr;          // [n_tokens][n_heads][head_dim], after RoPE
  const bf16* landmarks = nullptr;  // means, [n_kv_heads][capacity][head_dim]
  int64_t landmark_head_stride = 0;
  int64_t n_tokens = 0;  // at most kMaxMassTokens
  int64_t first_chunk = 0, end_chunk = 0;
  int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float scale = 0;
  float* mass = nullptr;  // [n_kv_heads][mass_stride]
  int64_t mass_stride = 0;
  float* workspace = nullptr;  // mass_workspace_floats(n_heads, candidates)
};
inline constexpr int64_t kMaxMassTokens = 64;
// Scores of every candidate for every query head of one token, plus per-range sums.
constexpr int64_t mass_workspace_floats(int64_t n_heads, int64_t n_candidates) {
  return n_heads * (n_candidates + 64) + n_heads * 4096;
}

// Per KV head the n chunks of [first_chunk, end_chunk) with the greatest (or the lowest) mass; ties
// go to the lower chunk, NaN counts as the greatest. Their bits are set in excluded; ids, where
// wanted, are ascending.
struct PickParams {
  const float* mass = nullptr;  // [n_kv_heads][mass_stride]; chunk c at c - first_chunk
  int64_t mass_stride = 0;
  int64_t first_chunk = 0, end_chunk = 0;
  int64_t n = 0;  // at most end_chunk - first_chunk
  bool greatest = true;
  int32_t n_kv_heads = 0;
  int32_t* ids = nullptr;        // [n_kv_heads][n] or null
  uint64_t* excluded = nullptr;  // [n_kv_heads][excluded_stride] bit maps over chunks
  int64_t excluded_stride = 0;   // in words
};

// Per KV head the n_outliers chunks of [first_chunk, end_chunk) with the lowest
// min over members of cos(landmark, key): the chunks that a mean describes worst (ShadowKV, 1.2).
// Ties go to the lower chunk. ids ascending; their bits are set in excluded.
struct OutlierParams {
  const bf16* keys = nullptr;  // plane; row r is position r
  int64_t key_head_stride = 0;
  const bf16* landmarks = nullptr;
  int64_t landmark_head_stride = 0;
  int64_t first_chunk = 0, end_chunk = 0;
  int64_t n_outliers = 0;  // at most end_chunk - first_chunk
  int32_t chunk_tokens = 0, n_kv_heads = 0, head_dim = 0;
  int32_t* ids = nullptr;        // [n_kv_heads][n_outliers]
  uint64_t* excluded = nullptr;  // [n_kv_heads][excluded_stride] bit maps over chunks
  int64_t excluded_stride = 0;   // in words
  float* workspace = nullptr;    // [n_kv_heads][end_chunk - first_chunk]
};

// The same of chunks that come later, one after the other: per KV head the n_most of them with the
// lowest min over members of cos(landmark, key) are kept. While there is room each one is; then it
// takes the place of the kept chunk with the greatest cosine (the first of equals) if its own is
// lower, and that one is an ordinary chunk again: its bit goes, its place is overwritten. With choose
// false, ids, cosines and bits stay as they are: of these chunks those that ids name are copied, as
// another layer chose them.
struct LateOutlierParams {
  const bf16* keys = nullptr;    // planes; chunk c starts at row c*chunk_tokens - first_row
  const bf16* values = nullptr;
  int64_t head_stride = 0;
  int64_t first_row = 0;
  const bf16* landmarks = nullptr;  // means; chunk c at row c - first_landmark; with choose
  int64_t landmark_head_stride = 0;
  int64_t first_landmark = 0;
  int64_t first_chunk = 0, n_chunks = 0;
  int32_t chunk_tokens = 0, n_kv_heads = 0, head_dim = 0;
  bool choose = true;
  int64_t n_kept = 0, n_most = 0;  // of every KV head, before; n_most > 0
  int32_t* ids = nullptr;          // [n_kv_heads][n_most]
  float* cosines = nullptr;        // [n_kv_heads][n_most]
  uint64_t* excluded = nullptr;    // [n_kv_heads][excluded_stride] bit maps over chunks
  int64_t excluded_stride = 0;     // in words
  bf16* kept_keys = nullptr;       // [n_kv_heads][n_most][chunk_tokens][head_dim]
  bf16* kept_values = nullptr;
};

// What the heads of a group make of their weights: ShadowKV takes the max, FreeKV the mean. The sum
// ranks as the mean does; over a layer (SelectScope::kLayer) it is TokenSelect's soft vote.
enum class GroupScore : uint8_t { kMax, kMean, kSum };
enum class SelectScope : uint8_t {
  kKvHead,  // a list for every KV head
  // One list: the sum of what the groups say. All KV heads get the same ids and counts; where lists
  // are read (blocks, slot_of_chunk), KV head 0 speaks for all.
  kLayer
};

// Per KV head the k chunks with the highest score over candidates [first_chunk, end_chunk) that are
// not excluded: p_h = softmax over the candidates of s_h * scale for each query head h of the
// group, then max, mean or sum over the group. s_h = q_h . landmark; for kMinMax the bound
// sum_i max(q_i least_i, q_i greatest_i) (Quest), which is [min(q,0) | max(q,0)] . [least |
// greatest]. Ties go to the lower chunk. Fewer candidates than k: all of them. ids ascending.
// Scores are clamped to +-2^126 (log2 units), NaN counts as the lowest.
//
// Three refinements, in this order:
//   blocks      two levels: only chunks of these blocks (ascending, distinct; clipped to the
//               candidates) compete, and those from first_loose_chunk on
//   top_p       of the k best the fewest, best first, whose weights add up to top_p of all weight
//               there is: 1 for kMean, the group for kSum, times n_kv_heads in scope kLayer. At
//               least one. Not with kMax, whose weights have no known sum.
//   max_misses  best first, chunks without a slot are kept while there are at most max_misses of
//               them; the others are dropped: listed apart, ascending
// With keep, and *keep != 0 on the device: ids, counts and the dropped lists stay what they are.
struct SelectParams {
  const bf16* q = nullptr;          // [n_heads][head_dim], after RoPE; as many as there are views
  QueryViews views = {};            // not with blocks; spans are multiples of 8 chunks
  int32_t chunk_tokens = 0;         // with several views
  IndexKind index = IndexKind::kMean;
  // Either landmarks or codes with scales (EncodeLandmarksParams), of landmark_width(index,
  // head_dim). A backend may round the query to 16 bits for codes: step max |q| / 32639 per head.
  const bf16* landmarks = nullptr;  // [n_kv_heads][capacity][width]
  const int8_t* codes = nullptr;    // likewise
  const float* scales = nullptr;    // [n_kv_heads][capacity]
  int64_t landmark_head_stride = 0;  // capacity * width
  const uint64_t* excluded = nullptr;  // [n_kv_heads][excluded_stride] or null; null in scope kLayer
  int64_t excluded_stride = 0;
  int64_t first_chunk = 0, end_chunk = 0;
  int64_t k = 0;
  int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float scale = 0;
  GroupScore group = GroupScore::kMax;
  SelectScope scope = SelectScope::kKvHead;
  const int32_t* blocks = nullptr;        // [n_kv_heads][block_stride], ascending, or null
  const int32_t* block_counts = nullptr;  // [n_kv_heads]
  int64_t block_stride = 0;
  int32_t block_chunks = 0;         // block b: chunks b*block_chunks .. (b+1)*block_chunks - 1
  int64_t first_loose_chunk = 0;    // behind every block
  float top_p = 0;                  // 0: off
  int64_t max_misses = -1;          // -1: off
  const int32_t* slot_of_chunk = nullptr;  // SlotState's, with max_misses
  int64_t chunk_capacity = 0;
  int32_t* dropped_ids = nullptr;      // [n_kv_heads][k], with max_misses
  int32_t* dropped_counts = nullptr;   // [n_kv_heads]
  const int32_t* keep = nullptr;       // [1] or null
  int32_t* ids = nullptr;      // [n_kv_heads][k]
  int32_t* counts = nullptr;   // [n_kv_heads]
  float* workspace = nullptr;  // select_workspace_floats(n_heads, n_kv_heads, candidates)
};
// Scores of every candidate for every query head, plus per-range sums.
constexpr int64_t select_workspace_floats(int64_t n_heads, int64_t n_kv_heads,
                                          int64_t n_candidates) {
  return (n_heads + n_kv_heads) * (n_candidates + 64) + n_heads * 4096;
}

// Whether the selection of a layer may stay for another step (TokenSelect 2.4, FreeKV): the cosine
// of q and the query that it was made for, over all heads as one vector (fp32 products, fp64 sums),
// is at least min_cosine, and it served fewer than `every` steps. state: [0] = 1: keep; [1] = steps
// that the selection has served, 0: there is none. Where the answer is no, q becomes the query of
// record.
struct ReuseParams {
  const bf16* q = nullptr;  // [n]
  bf16* previous = nullptr;  // [n]
  int64_t n = 0;
  float min_cosine = -1;   // -1: any; a NaN cosine keeps nothing
  int32_t every = 0;       // 0: without end
  int32_t* state = nullptr;   // [2], zero at first
  int64_t* totals = nullptr;  // [2]: decisions and those that kept are added; or null
};

// Selection for prefill: queries in blocks of block_tokens; the mean query of a block (per query
// head) scores all chunks that end before the block's local_begin, as in SelectParams with kMax.
//   local_begin[b] = the chunk boundary at or below max(0, position of the block's first query -
//                    local_tokens); or the end of chunk end_chunk - 1, of all blocks
//   chunk_ids[b][j] = the sink chunks, then the k best others, ascending; all of them if they are
//   few
// The mean is an fp32 sum in token order, rounded to bf16 (mean_queries). Softmax is over the chunks that
// compete: sinks do not.
struct PrefillSelectParams {
  const bf16* q = nullptr;          // [n_tokens][n_heads][head_dim], after RoPE; or, not null,
  const bf16* means = nullptr;      // [n_blocks][n_heads][head_dim], as many as there are views
  QueryViews views = {};            // of means; spans are multiples of 8 chunks
  const bf16* landmarks = nullptr;  // [n_kv_heads][capacity][head_dim], made up to the last block
  int64_t landmark_head_stride = 0;
  int64_t first_position = 0;  // a multiple of chunk_tokens, unless there is an end_chunk
  int64_t n_tokens = 0, block_tokens = 0, local_tokens = 0;
  int64_t end_chunk = -1;  // all blocks choose among the chunks before it, if it is not negative
  int64_t sink_chunks = 0, k = 0;
  int32_t chunk_tokens = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float scale = 0;
  int32_t* chunk_ids = nullptr;     // [n_blocks][n_kv_heads][sink_chunks + k]
  int32_t* chunk_counts = nullptr;  // [n_blocks][n_kv_heads]
  int64_t* local_begin = nullptr;   // [n_blocks]
};

// The mean query of each block.
struct MeanQueriesParams {
  const bf16* q = nullptr;  // [n_tokens][n_heads][head_dim]
  int64_t n_tokens = 0, block_tokens = 0;
  int32_t n_heads = 0, head_dim = 0;
  bf16* means = nullptr;  // [n_blocks][n_heads][head_dim]
};

}  // namespace tiercel
