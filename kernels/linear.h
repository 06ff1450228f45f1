// Linear layers: out = x weight^T (+ bias) (+ out), bf16 in, fp32 sums, one rounding at the end.
//
// Up to kMaxSkinnyRows rows the weights are streamed straight into matrix instructions: the op is
// as fast as memory, and the bits of a row depend neither on the other rows nor on how many there
// are. More rows go to the matrix library (matmul.h). Rows whose addresses or widths are not
// multiples of 16 bytes take a slow kernel where the fast ones cannot.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

inline constexpr int64_t kMaxSkinnyRows = 8;

void linear(Stream& stream, const LinearParams& p);

// Scratch memory of the stream that linear takes, at most.
constexpr int64_t linear_scratch_bytes() { return int64_t{32} << 20; }

// The two products of a decode step with their neighbours folded in, for m <= kMaxSkinnyRows.
// Beside the seam: the decoder's generic path has rms_norm, linear and swiglu instead.

// out = RMSNorm(x) weight^T (+ bias). The normalised row is rounded to bf16, as rms_norm rounds it.
struct NormLinearParams {
  LinearParams linear;
  const bf16* norm_weight = nullptr;  // [k]
  float eps = 0;
};
bool can_fuse(const NormLinearParams& p);  // shapes and addresses; else the caller does it in steps
void norm_linear(Stream& stream, const NormLinearParams& p);

// out = silu(y gate^T) * (y up^T) with y = RMSNorm(x), or x without norm_weight. The two products
// are rounded to bf16 before, as linear rounds them.
struct GatedLinearParams {
  const bf16* x = nullptr;            // [m][k]
  const bf16* norm_weight = nullptr;  // [k] or null
  const bf16* gate = nullptr;         // [n][k]
  const bf16* up = nullptr;           // [n][k]
  bf16* out = nullptr;                // [m][n]
  int64_t m = 0, k = 0, n = 0;
  float eps = 0;
};
bool can_fuse(const GatedLinearParams& p);
void gated_linear(Stream& stream, const GatedLinearParams& p);

}  // namespace tiercel::cuda
