// What a transformer is made of, but for attention.
#pragma once

#include <cstdint>

#include "engine/base/dtype.h"
#include "engine/base/ops/position.h"
#include "engine/base/weight_matrix.h"

namespace tiercel {

struct EmbedParams {
  const int32_t* ids = nullptr;  // [n_tokens], each in [0, vocab)
  WeightMatrix table;            // [vocab][width]
  bf16* out = nullptr;           // [n_tokens][width]
  int64_t n_tokens = 0, vocab = 0, width = 0;
};

// out = x / sqrt(mean(x^2) + eps) * weight (+ added), row by row; fp32 inside. out may be x or added.
struct NormParams {
  const bf16* x = nullptr;       // [n_rows][width]
  const bf16* weight = nullptr;  // [width]
  bf16* out = nullptr;           // [n_rows][width]
  int64_t n_rows = 0, width = 0;
  float eps = 0;
  const bf16* added = nullptr;  // [n_rows][width] or null
};

// out = x weight^T (+ bias) (+ out when accumulate); fp32 accumulation, one rounding at the end. On
// a GPU, more than eight rows and a bf16 out: the product is rounded to bf16 before bias and old
// out are added, as PyTorch does (cuBLASLt's epilogue).
// out_type is kBf16 or kF32. alone: every row has the bits that m = 1 gives it, whatever m is, so that
// a sequence's tokens do not depend on what is decoded beside it; for up to a few hundred rows.
struct LinearParams {
  const bf16* x = nullptr;     // [m][k]
  WeightMatrix weight;         // [n][k]
  const bf16* bias = nullptr;  // [n] or null
  void* out = nullptr;         // [m][n]
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
  WeightMatrix gate, up;              // [n][k]; of one codec
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
// k_norm (Qwen3) each head is RMS-normalised first. Channels of q that do not turn are multiplied by
// rope.still_scale.
// With n_views > 0 q stays as it is, and its views for spans first_span .. + n_views - 1 are written
// instead. Without q, or without k, the others only.
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
  QuerySpans spans = {};  // with n_views
  int32_t first_span = 0, n_views = 0;
  bf16* views = nullptr;  // [n_views], view_stride apart: [n_tokens][n_heads][head_dim]
  int64_t view_stride = 0;
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

}  // namespace tiercel
