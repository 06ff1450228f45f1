// Attention, whole and in partial results.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/base/dtype.h"
#include "engine/base/ops/codes.h"
#include "engine/base/ops/position.h"

namespace tiercel {

// One of the parts that a prefill attention takes, where its queries have several views, or keys are in several
// places: of what they see, the keys begin .. end - 1. What parts have found out stays in state from one to the next,
// in the backend's own order. A row that is not finite is not computed again as it is without parts.
struct PrefillPart {
  float* state = nullptr;  // prefill_state_floats(); null: there is one part, of everything
  int64_t begin = 0;
  int64_t end = 0;  // at most first_position: seen by all queries; 0: causality ends it
  bool is_first = true, is_last = true;  // only the last one writes out
  // Where chunk_ids say where chunks have been brought to: which ones they are, likewise [n_blocks][n_kv_heads]
  // [max_chunks], ascending. The part has those from first_chunk to end_chunk - 1, and begin and end are of other
  // keys than listed ones. Null: begin and end are of both.
  const int32_t* chunks = nullptr;
  int64_t first_chunk = 0, end_chunk = 0;
};
constexpr int64_t prefill_state_floats(int64_t n_tokens, int64_t n_heads, int64_t head_dim) {
  return n_tokens * n_heads * ((head_dim + 63) / 64 * 64 + 2);
}

// Causal attention of n_tokens consecutive queries over one layer's exact planes. Row r of the
// planes holds position r. Query t (position p = first_position + t) sees keys max(0,
// p-window+1)..p.
//
// With block_tokens > 0 the queries are cut into blocks of block_tokens (the first block starts at
// query 0) and block b, KV head j sees only
//   - the chunks chunk_ids[b][j][0 .. chunk_counts[b][j]), all of them before local_begin[b], and
//   - keys local_begin[b] .. p, causally.
// With block_tokens == 0 everything is seen. window and blocks are not combined.
struct PrefillAttendParams {
  const bf16* q = nullptr;       // [n_tokens][n_heads][head_dim], after RoPE
  const bf16* keys = nullptr;    // plane
  const bf16* values = nullptr;  // plane
  bf16* out = nullptr;           // [n_tokens][n_heads][head_dim]
  int64_t head_stride = 0;
  int64_t n_tokens = 0;
  int64_t first_position = 0;
  int64_t window = 0;  // 0: unlimited
  int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float scale = 0;  // multiplies q . k before softmax (natural units)
  int64_t block_tokens = 0;
  const int32_t* chunk_ids = nullptr;     // [n_blocks][n_kv_heads][max_chunks], ascending
  const int32_t* chunk_counts = nullptr;  // [n_blocks][n_kv_heads]
  const int64_t* local_begin = nullptr;   // [n_blocks]
  int64_t max_chunks = 0;
  int32_t chunk_tokens = 0;
  bool exact_exp = false;  // fp32 polynomial exp2 instead of the 16-bit lookup
  // Added to every score of key row r of KV head j, log2 units: bias[j * bias_head_stride + r]; or null.
  const float* bias = nullptr;
  int64_t bias_head_stride = 0;
  PrefillPart part = {};  // without a window
};

// Some keys and values that a decode step attends, all of them visible. The rows of chunk c of KV
// head j start at keys + j*head_stride + c*chunk_stride, token_stride elements apart.
// With ids: KV head j sees chunks ids[j*ids_stride + 0 .. counts[j]), whole, in that order.
// Without ids: every KV head sees rows 0 .. n_tokens-1, chunk after chunk (a contiguous plane has
// chunk_tokens = 1 and chunk_stride = token_stride).
struct KvSource {
  const bf16* keys = nullptr;
  const bf16* values = nullptr;
  int64_t head_stride = 0;
  int64_t chunk_stride = 0;
  int64_t token_stride = 0;
  int32_t chunk_tokens = 1;
  const int32_t* ids = nullptr;     // [n_kv_heads][ids_stride]
  const int32_t* counts = nullptr;  // [n_kv_heads]
  int64_t ids_stride = 0;
  int64_t n_tokens = 0;
  const int64_t* later = nullptr;  // added to n_tokens, without ids; null: 0
  // What n_tokens and later may make together; 0: n_tokens. Work is cut by it, so that a step which is
  // replayed adds in the order of one which is not.
  int64_t most_tokens = 0;
  float bias = 0;  // added to every score, log2 units: log2(n) for a row that stands for n tokens
  // Added to the scores one by one, log2 units; or null. Of token i of chunk c of KV head j:
  //   key_bias[j * key_bias_head_stride + b * chunk_tokens + i],
  //   b = bias_chunks[j * bias_chunks_stride + c], or c where that is null
  const float* key_bias = nullptr;
  int64_t key_bias_head_stride = 0;
  const int32_t* bias_chunks = nullptr;
  int64_t bias_chunks_stride = 0;
  // Where queries have several views, the positions of its rows: token i of chunk c of KV head j is at
  //   first_position + b * position_step + i,
  // b = position_chunks[j * position_chunks_stride + c], or c where that is null. No chunk is in two spans.
  int64_t first_position = 0;
  int64_t position_step = 1;
  const int32_t* position_chunks = nullptr;
  int64_t position_chunks_stride = 0;
};

// A partial result of attention for n_heads queries: a value of the algebra in partial.h.
//   out[h] = sum_i exp2(s_i - max[h]) v_i,  sum[h] = sum_i exp2(s_i - max[h]);
// nothing attended: max = -inf, sum = 0, out = 0.
struct PartialView {
  float* max = nullptr;  // [n_heads], log2 units
  float* sum = nullptr;  // [n_heads]
  float* out = nullptr;  // [n_heads][head_dim], fp32, not normalised
};

// At most this many ranges per (source, KV head): the workspace that a decode step needs is known
// without knowing its length.
inline constexpr int64_t kMaxDecodeRanges = 64;
inline constexpr int32_t kMaxDecodeSources = 8;
inline constexpr int32_t kMaxMergeWith = 2;

// With final_out, also what merge_partials would make of merge_with, in its order, and then out:
// the same bits in one step less.
struct DecodeAttendParams {
  const bf16* q = nullptr;  // [n_heads][head_dim], after RoPE; as many of them as there are views
  QueryViews views = {};
  const KvSource* sources = nullptr;
  int32_t n_sources = 0;  // at most kMaxDecodeSources
  int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float scale = 0;
  PartialView out;             // written in any case
  float* workspace = nullptr;  // decode_workspace_floats(n_heads, head_dim)
  const PartialView* merge_with = nullptr;  // [n_merge], read at call time; what they view: later
  int32_t n_merge = 0;                      // at most kMaxMergeWith; 0 without final_out
  bf16* final_out = nullptr;                // [n_heads][head_dim] or null
};
constexpr int64_t decode_workspace_floats(int64_t n_heads, int64_t head_dim) {
  return n_heads * kMaxDecodeRanges * kMaxDecodeSources * (head_dim + 2);
}

// out = normalised merge of n_partials partial results. All empty: zeros.
struct MergeParams {
  const PartialView* partials = nullptr;
  int32_t n_partials = 0;
  int32_t n_heads = 0, head_dim = 0;
  bf16* out = nullptr;  // [n_heads][head_dim]
};

// Attention in two halves, for values that only the host holds: key_weights where the keys are, the
// product with the values where those are.
//
// Of token i of the list of KV head j (its chunks in order, whole; i < counts[j] * chunk_tokens), in
// range r = i / kWeightRange, with scores s as attend_decode has them:
//   maxima[h][r] = max of s over the range,  weights[h][i] = bf16(exp2(s_i - maxima[h][r]))
// A range of nothing but -inf has weights of 0. Nothing is written behind the end of a list.
inline constexpr int32_t kWeightRange = 64;
struct KeyWeightsParams {
  const bf16* q = nullptr;  // [n_heads][head_dim], after RoPE
  KvSource keys;            // with ids; its values are not read
  int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float scale = 0;
  bf16* weights = nullptr;  // [n_heads][weight_stride]; also in host memory that the device maps
  int64_t weight_stride = 0;
  float* maxima = nullptr;  // [n_heads][maximum_stride], log2 units; likewise
  int64_t maximum_stride = 0;
};

// The other half, an op of cpu::Queue: (max, sum, out) of what key_weights has weighed. The sum is of
// weights as they are rounded, so that sum and out agree.
struct WeightedValuesParams {
  const bf16* weights = nullptr;  // [n_heads][weight_stride]
  int64_t weight_stride = 0;
  const float* maxima = nullptr;  // [n_heads][maximum_stride]
  int64_t maximum_stride = 0;
  const int32_t* ids = nullptr;     // [n_kv_heads][ids_stride], the chunks that were weighed
  const int32_t* counts = nullptr;  // [n_kv_heads]
  int64_t ids_stride = 0;
  int32_t chunk_tokens = 0;
  const bf16* values = nullptr;  // plane, row r = token r; null where they are coded
  int64_t value_head_stride = 0;
  RowCodec codec = RowCodec::kBf16;
  const std::byte* codes = nullptr;  // [n_kv_heads][capacity][row_bytes(codec, head_dim)]
  int64_t code_head_stride = 0;      // in bytes
  int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  PartialView out;
  float* workspace = nullptr;  // weighted_values_workspace_floats(n_heads, head_dim)
};
constexpr int64_t weighted_values_workspace_floats(int64_t n_heads, int64_t head_dim) {
  return n_heads * kMaxDecodeRanges * (head_dim + 2);
}

}  // namespace tiercel
