// The sum of what a token's experts give, added to the residual stream.
#pragma once

#include "engine/base/dtype.h"
#include "kernels/piece.cuh"

namespace tiercel::cuda {

inline constexpr int kMixThreads = 256;

struct AddMixedParams {
  const bf16* mixed = nullptr;     // [pairs][width], by experts
  const int32_t* place = nullptr;  // as of ExpertRoutes
  const float* weights = nullptr;
  bf16* out = nullptr;  // [n_tokens][width]
  int64_t n_tokens = 0;
  int32_t width = 0, n_chosen = 0;
};
KERNEL(kMixThreads, 4) add_mixed_kernel(const GRID_CONST AddMixedParams p) {
  gpu::begin_dependent();
  const int pieces = p.width / kPiece;
  const int64_t i = int64_t{blockIdx.x} * kMixThreads + threadIdx.x, token = i / pieces;
  if (token >= p.n_tokens) return;
  const int at = static_cast<int>(i % pieces) * kPiece;
  float sum[kPiece] = {};
  for (int64_t pair = token * p.n_chosen; pair < (token + 1) * p.n_chosen; ++pair) {
    float values[kPiece];
    unpack(load_piece(p.mixed + int64_t{p.place[pair]} * p.width + at), values);
    const float weight = p.weights[pair];
#pragma unroll
    for (int c = 0; c < kPiece; ++c) sum[c] = gpu::add_rn(sum[c], gpu::mul_rn(weight, values[c]));
  }
  bf16* out = p.out + token * p.width + at;
  float old[kPiece];
  unpack(load_piece(out), old);
#pragma unroll
  for (int c = 0; c < kPiece; ++c) sum[c] += old[c];
  store_piece(out, pack(sum));
}

}  // namespace tiercel::cuda
