// The vocabulary of the seam: one plain parameter struct per op, shared by both halves.
//
// An op is a free function op(Queue&, const Params&) in cpu/ (for cpu::Queue) and in kernels/ (for
// cuda::Stream); engine/backend.h lists them as one concept. A params struct holds pointers, counts
// and strides only; the shape of every tensor stands beside its pointer, innermost dimension last.
// Strides are in elements. Positions, tokens and element counts are 64-bit everywhere.
//
// Conventions
//   G          query heads per KV head: n_heads / n_kv_heads; query head h reads KV head h / G
//   plane      [n_kv_heads][capacity][head_dim] bf16, one KV head after the other (head_stride
//              apart)
//   chunk c    tokens c*chunk_tokens .. (c+1)*chunk_tokens - 1 of a sequence
//   scores     in units of log2: s = (q . k) * scale * log2(e), so that weights are exp2(s - max)
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/base/dtype.h"

namespace tiercel {

// ---- rotary positions ---------------------------------------------------------------------------

// cos and sin of position * inv_freq, as a product of two small tables (angle addition), so that a
// position of many millions is as exact as position 1: angles are reduced in fp64 when the tables
// are made (engine/base/rope.h), and the sum of angles costs one rounding of fp32.
//   position = 1024 * a + b:  cos = ca*cb - sa*sb,  sin = sa*cb + ca*sb
// HF's "rotate half": element i pairs with i + head_dim/2 and turns by inv_freq[i].
struct RopeView {
  const float* coarse_cos = nullptr;  // [n_coarse][half]
  const float* coarse_sin = nullptr;  // [n_coarse][half]
  const float* fine_cos = nullptr;    // [1024][half]
  const float* fine_sin = nullptr;    // [1024][half]
  int64_t n_coarse = 0;               // positions below 1024 * n_coarse are valid
  int32_t half = 0;                   // head_dim / 2
};
inline constexpr int64_t kRopeFine = 1024;

// ---- recorded steps -----------------------------------------------------------------------------

// A decode step that has been recorded is replayed some steps later. What differs then is read from
// a clock, one int64 in device memory: the number of steps since the recording. Params that depend
// on the step point at it with `later`.
inline constexpr int64_t kMaxLater = 256;
struct ClockParams {
  int64_t* clock = nullptr;  // [1]
  bool reset = false;        // to zero; else one step on
};

// ---- coded rows ---------------------------------------------------------------------------------

// A row of `width` elements in few bits. Groups of code_group(width) elements share a step and a
// least value; a row is one run of row_bytes(codec, width) bytes:
//
//   | codes: width * bits / 8 bytes | step, least of group 0 | step, least of group 1 | ..   (bf16)
//
//   x ~ least + step * code, code 0 .. 2^bits - 1; int4: element i in byte i / 2, even i in its low
//   half
//
// least is the largest bf16 that is not above the group's minimum, step the smallest that is not
// below (max - least) / (2^bits - 1), both in fp32; code = rint((x - least) / step), at most 2^bits
// - 1; a step of 0 has codes of 0. So |error| <= step / 2 but for fp32 rounding, and every backend
// makes the same bits from the same x. A group with a NaN, an infinity or a range that is not
// finite has NaN (0x7fc0) for both and codes of 0: all of it decodes to NaN; zeros in a header are
// +0. Decoding is fmaf(step, code, least) in fp32, then one rounding to bf16.
enum class RowCodec : uint8_t { kBf16, kInt8, kInt4 };
constexpr int64_t code_group(int64_t width) { return width % 64 == 0 ? 64 : 32; }
constexpr int64_t code_bits(RowCodec codec) {
  return codec == RowCodec::kBf16 ? 16 : codec == RowCodec::kInt8 ? 8 : 4;
}
constexpr bool can_code(int64_t width) { return width > 0 && width % 32 == 0; }
constexpr int64_t row_bytes(RowCodec codec, int64_t width) {
  if (codec == RowCodec::kBf16) return 2 * width;
  return width * code_bits(codec) / 8 + width / code_group(width) * 4;
}

// Codes of rows first_token .. first_token + n_tokens - 1. Plane row of token t: t - first_row.
// With a mean the rows are keys: they are turned back (fp32) and mean is subtracted before.
struct EncodeParams {
  const bf16* rows = nullptr;  // plane [n_kv_heads][capacity][width]
  int64_t head_stride = 0;
  int64_t first_row = 0;
  int64_t first_token = 0, n_tokens = 0;
  int32_t n_kv_heads = 0;
  int64_t width = 0;           // head_dim; or the rank of coefficients, with n_kv_heads = 1
  RowCodec codec = RowCodec::kInt8;
  const float* mean = nullptr;  // [n_kv_heads][width] or null
  RopeView rope;                // with a mean
  // [n_kv_heads][capacity][row_bytes(codec, width)]; token t at row t - first_code
  std::byte* codes = nullptr;
  int64_t first_code = 0;
  int64_t code_head_stride = 0;  // in bytes, a multiple of 16; codes is aligned to 16
};

// mean[j][i] = mean over n_tokens of key channel i of KV head j, turned back in fp32, summed in
// fp64. The same bits for any number of threads.
struct MeanKeysParams {
  const bf16* keys = nullptr;  // plane, after RoPE; row r at position r
  int64_t head_stride = 0;
  int64_t n_tokens = 0;
  int32_t n_kv_heads = 0, head_dim = 0;
  RopeView rope;
  float* mean = nullptr;  // [n_kv_heads][head_dim]
};

// ---- embedding, norms, linear layers ------------------------------------------------------------

struct EmbedParams {
  const int32_t* ids = nullptr;  // [n_tokens], each in [0, vocab)
  const bf16* table = nullptr;   // [vocab][width]
  bf16* out = nullptr;           // [n_tokens][width]
  int64_t n_tokens = 0, vocab = 0, width = 0;
};

// out = x / sqrt(mean(x^2) + eps) * weight, row by row; fp32 inside. out may be x.
struct NormParams {
  const bf16* x = nullptr;       // [n_rows][width]
  const bf16* weight = nullptr;  // [width]
  bf16* out = nullptr;           // [n_rows][width]
  int64_t n_rows = 0, width = 0;
  float eps = 0;
};

// out = x weight^T (+ bias) (+ out when accumulate); fp32 accumulation, one rounding at the end. On
// a GPU, more than eight rows and a bf16 out: the product is rounded to bf16 before bias and old
// out are added, as PyTorch does (cuBLASLt's epilogue).
// out_type is kBf16 or kF32. alone: every row has the bits that m = 1 gives it, whatever m is, so that
// a sequence's tokens do not depend on what is decoded beside it; for up to a few hundred rows.
struct LinearParams {
  const bf16* x = nullptr;       // [m][k]
  const bf16* weight = nullptr;  // [n][k], as Hugging Face stores it
  const bf16* bias = nullptr;    // [n] or null
  void* out = nullptr;           // [m][n]
  int64_t m = 0, k = 0, n = 0;
  DType out_type = DType::kBf16;
  bool accumulate = false;
  bool alone = false;
};

// out = RMSNorm(x) weight^T (+ bias). The normalised rows are rounded to bf16, as rms_norm rounds
// them.
struct NormLinearParams {
  LinearParams linear;
  const bf16* norm_weight = nullptr;  // [k]
  float eps = 0;
  bf16* normed = nullptr;  // [m][k] for backends, or shapes, that are done in steps
};

// out = silu(y gate^T + gate_bias) * (y up^T + up_bias) with y = RMSNorm(x), or x
// itself without a norm weight. The two products are rounded to bf16 before, as linear rounds them.
struct GatedLinearParams {
  const bf16* x = nullptr;            // [m][k]
  const bf16* norm_weight = nullptr;  // [k] or null
  const bf16* gate = nullptr;         // [n][k]
  const bf16* up = nullptr;           // [n][k]
  const bf16* gate_bias = nullptr;    // [n] or null
  const bf16* up_bias = nullptr;      // [n] or null
  bf16* out = nullptr;                // [m][n]
  int64_t m = 0, k = 0, n = 0;
  float eps = 0;
  bool alone = false;        // as of LinearParams
  bf16* normed = nullptr;    // [m][k], as above
  bf16* up_result = nullptr;  // [m][n], likewise
};

// out = silu(gate) * up, fp32 inside. out may be gate.
struct SwigluParams {
  const bf16* gate = nullptr;  // [n]
  const bf16* up = nullptr;    // [n]
  bf16* out = nullptr;         // [n]
  int64_t n = 0;
};

// Turns q in place, turns k into the key plane, copies v into the value plane. With q_norm and
// k_norm (Qwen3) each head is RMS-normalised first.
struct RopeAppendParams {
  bf16* q = nullptr;             // [n_tokens][n_heads][head_dim], in place
  const bf16* k = nullptr;       // [n_tokens][n_kv_heads][head_dim], before RoPE
  const bf16* v = nullptr;       // [n_tokens][n_kv_heads][head_dim]
  const bf16* q_norm = nullptr;  // [head_dim] or null
  const bf16* k_norm = nullptr;  // [head_dim] or null
  bf16* keys = nullptr;          // plane, after RoPE; token t goes to row first_row + t
  bf16* values = nullptr;        // plane
  int64_t head_stride = 0;       // of both planes
  int64_t first_row = 0;
  int64_t first_position = 0;  // token t has position first_position + t
  const int64_t* later = nullptr;  // added to first_row and first_position; null: 0
  int64_t n_tokens = 0;
  int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float eps = 0;
  RopeView rope;
};

// What an eviction head (NOSA) says of a token: how much it will be attended, whatever the query. It is
// a bias of attention too:
//   bias[j][first_row + t] = a[j] * softplus(sum_i delta[j][i] v[t][i]) * log2(e),
// fp32, softplus(x) = log(1 + e^x).
struct KeyBiasParams {
  const bf16* v = nullptr;      // [n_tokens][n_kv_heads * head_dim]
  const bf16* delta = nullptr;  // [n_kv_heads][n_kv_heads * head_dim]
  const bf16* a = nullptr;      // [n_kv_heads]
  float* bias = nullptr;        // [n_kv_heads][capacity]
  int64_t bias_head_stride = 0;
  int64_t first_row = 0;
  const int64_t* later = nullptr;  // added to first_row; null: 0
  int64_t n_tokens = 0;
  int32_t n_kv_heads = 0, head_dim = 0;
};

// What the head says of chunks first_chunk .. first_chunk + n_chunks - 1: the greatest of the means
// over windows of kBiasWindow tokens, kBiasWindow / 2 apart, within the chunk; of a shorter chunk its
// mean. fp32 sums in the order of tokens.
inline constexpr int32_t kBiasWindow = 32;
struct PoolBiasParams {
  const float* bias = nullptr;  // [n_kv_heads][capacity]
  int64_t bias_head_stride = 0;
  int64_t first_chunk = 0, n_chunks = 0;
  int32_t chunk_tokens = 0, n_kv_heads = 0;
  float* score = nullptr;  // [n_kv_heads][score_stride]; chunk c at c - first_chunk
  int64_t score_stride = 0;
};

// logprobs[i] = log softmax(logits[i])[targets[i]], natural log, fp64 sums.
struct LogprobParams {
  const float* logits = nullptr;     // [n_rows][vocab]
  const int32_t* targets = nullptr;  // [n_rows]
  double* logprobs = nullptr;        // [n_rows]
  int64_t n_rows = 0, vocab = 0;
};

// ---- attention ----------------------------------------------------------------------------------

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
  const int64_t* later = nullptr;  // added to n_tokens, without ids: at most kMaxLater; null: 0
  float bias = 0;  // added to every score, log2 units: log2(n) for a row that stands for n tokens
  // Added to the scores one by one, log2 units; or null. Of token i of chunk c of KV head j:
  //   key_bias[j * key_bias_head_stride + b * chunk_tokens + i],
  //   b = bias_chunks[j * bias_chunks_stride + c], or c where that is null
  const float* key_bias = nullptr;
  int64_t key_bias_head_stride = 0;
  const int32_t* bias_chunks = nullptr;
  int64_t bias_chunks_stride = 0;
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
  const bf16* q = nullptr;  // [n_heads][head_dim], after RoPE
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

// ---- index and selection ------------------------------------------------------------------------

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
  const bf16* q = nullptr;          // [n_heads][head_dim], after RoPE
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
//                    local_tokens)
//   chunk_ids[b][j] = the sink chunks, then the k best others, ascending; all of them if they are
//   few
// The mean is an fp32 sum in token order, rounded to bf16. Softmax is over the chunks that compete:
// sinks do not.
struct PrefillSelectParams {
  const bf16* q = nullptr;          // [n_tokens][n_heads][head_dim], after RoPE
  const bf16* landmarks = nullptr;  // [n_kv_heads][capacity][head_dim], made up to the last block
  int64_t landmark_head_stride = 0;
  int64_t first_position = 0;  // a multiple of chunk_tokens
  int64_t n_tokens = 0, block_tokens = 0, local_tokens = 0;
  int64_t sink_chunks = 0, k = 0;
  int32_t chunk_tokens = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float scale = 0;
  int32_t* chunk_ids = nullptr;     // [n_blocks][n_kv_heads][sink_chunks + k]
  int32_t* chunk_counts = nullptr;  // [n_blocks][n_kv_heads]
  int64_t* local_begin = nullptr;   // [n_blocks]
};

// ---- low-rank keys ------------------------------------------------------------------------------

// A row of the w = n_kv_heads * head_dim key channels of one token, before RoPE, is
//   K ~ mean + U basis^T,   U = (K - mean) basis.
struct LowRankView {
  bf16* basis = nullptr;  // [w][rank], columns orthonormal up to rounding
  float* mean = nullptr;  // [w]
  int64_t rank = 0;
};

// Fits mean and basis to n_tokens rows of the (rotated) key plane, row r at position r: keys are
// turned back in fp32, shifted by the mean of the first 4096, their Gram matrix is summed in fp32
// per 4096 tokens and in fp64 across, centred exactly, and its leading eigenvectors taken.
struct FitBasisParams {
  const bf16* keys = nullptr;  // plane, after RoPE
  int64_t head_stride = 0;
  int64_t n_tokens = 0;
  int32_t n_kv_heads = 0, head_dim = 0;
  RopeView rope;
  LowRankView lowrank;
  double* residual_energy = nullptr;  // share of the centred energy outside the basis, 0..1
};

// U rows of tokens first_token .. first_token + n_tokens - 1. Plane row of token t: t - first_row.
struct ProjectParams {
  const bf16* keys = nullptr;  // plane, after RoPE
  int64_t head_stride = 0;
  int64_t first_row = 0;
  int64_t first_token = 0, n_tokens = 0;
  int32_t n_kv_heads = 0, head_dim = 0;
  RopeView rope;
  LowRankView lowrank;
  bf16* coefficients = nullptr;  // [capacity][rank]; token t at row t
};

// ---- the selection cache ------------------------------------------------------------------------

// State of the slots of one layer, per KV head. A slot is a record [K: chunk_tokens x head_dim |
// V: the same] of bf16. order lists the slots from least to most recently used.
struct SlotState {
  int32_t* slot_of_chunk = nullptr;  // [n_kv_heads][chunk_capacity], -1: not resident
  int32_t* chunk_of_slot = nullptr;  // [n_kv_heads][n_slots], -1: empty
  int32_t* order = nullptr;          // [n_kv_heads][n_slots]
  int64_t chunk_capacity = 0;
  int64_t n_slots = 0;
};

// Finds a slot for every selected chunk: hits keep theirs, misses take the least recently used
// slots that no selected chunk holds. Nothing is moved. n_slots >= counts[j] for every KV head j.
// New order: untouched slots in their old order, hits in their old order, misses in the order of
// ids.
struct MapSlotsParams {
  SlotState state;
  int32_t n_kv_heads = 0;
  const int32_t* ids = nullptr;  // [n_kv_heads][stride] selected chunks
  const int32_t* counts = nullptr;
  int64_t stride = 0;               // of ids and of the three lists below
  int32_t* hit_slots = nullptr;     // [n_kv_heads][stride]
  int32_t* hit_counts = nullptr;    // [n_kv_heads]
  int32_t* miss_chunks = nullptr;   // [n_kv_heads][stride]
  int32_t* miss_slots = nullptr;    // [n_kv_heads][stride]
  int32_t* miss_counts = nullptr;   // [n_kv_heads]
  int32_t* scratch = nullptr;       // [n_kv_heads][n_slots]
  // Running sums: selected, hit and missed chunks are added to them; or null.
  int64_t* totals = nullptr;        // [n_kv_heads][3]
};

// Copies the values (and, with keys, the keys) of the missed chunks from planes on either tier into
// their slots; coded values are decoded on the way. Runs on the copy queue. One op takes those of several
// stores, as far as they are alike.
struct FetchParams {
  const bf16* values = nullptr;  // plane, row r = token r; null where they are coded
  int64_t value_head_stride = 0;
  RowCodec value_codec = RowCodec::kBf16;
  const std::byte* value_codes = nullptr;  // [n_kv_heads][capacity][row_bytes(value_codec, head_dim)]
  int64_t value_code_head_stride = 0;      // in bytes
  const bf16* keys = nullptr;  // plane after RoPE, or null
  int64_t key_head_stride = 0;
  const int32_t* miss_chunks = nullptr;
  const int32_t* miss_slots = nullptr;
  const int32_t* miss_counts = nullptr;
  int64_t stride = 0;
  bf16* slots = nullptr;  // [n_kv_heads][n_slots][2][chunk_tokens][head_dim]
  int64_t slot_head_stride = 0;
  int32_t chunk_tokens = 0, n_kv_heads = 0, head_dim = 0;
};

// Whether one fetch may serve both: they differ in memory, lengths and strides only.
inline bool are_alike(const FetchParams& a, const FetchParams& b) {
  return a.chunk_tokens == b.chunk_tokens && a.n_kv_heads == b.n_kv_heads && a.head_dim == b.head_dim &&
         a.value_codec == b.value_codec && (a.keys == nullptr) == (b.keys == nullptr) &&
         (a.values == nullptr) == (b.values == nullptr);
}

// Copies whole chunks of two planes, per KV head in the order of ids, to consecutive rows.
struct GatherParams {
  const bf16* keys = nullptr;  // plane; row r is position r
  const bf16* values = nullptr;
  int64_t head_stride = 0;
  const int32_t* ids = nullptr;  // [n_kv_heads][n_ids]
  int64_t n_ids = 0;
  bf16* out_keys = nullptr;  // [n_kv_heads][..][head_dim], chunk i at rows i*chunk_tokens ..
  bf16* out_values = nullptr;
  int64_t out_head_stride = 0;
  int32_t chunk_tokens = 0, n_kv_heads = 0, head_dim = 0;
};

// Rebuilds the keys of the missed chunks into their slots: mean + U basis^T, then RoPE. U is bf16,
// or coded rows that are decoded to bf16 first.
struct RebuildParams {
  const bf16* coefficients = nullptr;      // [capacity][rank], or
  const std::byte* coded = nullptr;        // [capacity][row_bytes(codec, rank)]
  RowCodec codec = RowCodec::kBf16;
  LowRankView lowrank;
  RopeView rope;
  const int32_t* miss_chunks = nullptr;
  const int32_t* miss_slots = nullptr;
  const int32_t* miss_counts = nullptr;
  int64_t stride = 0;
  bf16* slots = nullptr;
  int64_t slot_head_stride = 0;
  int32_t chunk_tokens = 0, n_kv_heads = 0, head_dim = 0;
};

// Decodes the keys of the missed chunks into their slots: mean + x with x as coded (fp32, before
// any rounding to bf16), then RoPE, one rounding.
struct DecodeKeysParams {
  const std::byte* codes = nullptr;  // [n_kv_heads][capacity][row_bytes(codec, head_dim)]
  int64_t code_head_stride = 0;      // in bytes
  RowCodec codec = RowCodec::kInt8;
  const float* mean = nullptr;  // [n_kv_heads][head_dim]
  RopeView rope;
  const int32_t* miss_chunks = nullptr;
  const int32_t* miss_slots = nullptr;
  const int32_t* miss_counts = nullptr;
  int64_t stride = 0;
  bf16* slots = nullptr;
  int64_t slot_head_stride = 0;
  int32_t chunk_tokens = 0, n_kv_heads = 0, head_dim = 0;
};

// ---- synthetic runs -----------------------------------------------------------------------------

// out[i] = offset + scale * sqrt(3) * u_i with u_i uniform in [-1, 1), so scale is the standard
// deviation. u_i depends on seed and i only (splitmix64 of their sum), so every backend makes the
// same bits.
struct RandomParams {
  bf16* out = nullptr;  // [n]
  int64_t n = 0;
  uint64_t seed = 0;
  float scale = 1, offset = 0;
};
inline constexpr uint64_t kSplitmixStep = 0x9e3779b97f4a7c15;

// Replaces a selection by one of which a share of hit_rate was selected in the step before too: the
// candidates are cut into k strata, stratum i gives one chunk, and keeps it for about
// 1 / (1 - hit_rate) steps. For speed measurements on synthetic weights, where real locality is not
// to be had; never part of an answer.
struct ImposeParams {
  int32_t* ids = nullptr;     // [n_kv_heads][k], ascending
  int32_t* counts = nullptr;  // [n_kv_heads]
  int64_t k = 0;
  int64_t first_chunk = 0, end_chunk = 0;  // at least k
  int64_t step = 0;
  const int64_t* later = nullptr;  // added to step; null: 0
  int32_t n_kv_heads = 0;
  float hit_rate = 0;
};

// ---- movement -----------------------------------------------------------------------------------

// n_rows runs of row_bytes each; strides in bytes. Source and target may be on either tier.
struct CopyParams {
  const void* source = nullptr;
  void* target = nullptr;
  int64_t n_rows = 1, row_bytes = 0;
  int64_t source_stride = 0, target_stride = 0;
};

// The host calls function(data) when the queue gets there, and the queue goes on when it returns: what
// it wrote to host memory may be read then. It may not use the queue's backend, nor throw.
struct HostCallParams {
  void (*function)(void* data) = nullptr;
  void* data = nullptr;
};

}  // namespace tiercel
