// Keys as coefficients of a basis.
#pragma once

#include <cstdint>

#include "engine/base/dtype.h"
#include "engine/base/ops/position.h"

namespace tiercel {

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

}  // namespace tiercel
