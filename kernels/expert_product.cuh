// A product of rows with their experts' weights, and which rows and which expert a block has of it.
#pragma once

#include "engine/base/ops.h"
#include "kernels/block_scan.cuh"
#include "kernels/gpu.cuh"
#include "kernels/weight_codes.cuh"

namespace tiercel::cuda {

// out[i] = x weight^T of the expert whose pair order[i] is; with up, silu of that times x up^T.
struct ExpertProduct {
  const bf16* x = nullptr;
  const int32_t* order = nullptr;  // row i is x[order[i] / n_chosen]; null: x[i]
  const bf16 *weight = nullptr, *up = nullptr;  // [n][k], of the first expert; those of the next
  int64_t weight_stride = 0, up_stride = 0;     // so many elements behind
  const int32_t* starts = nullptr;  // as of ExpertRoutes
  bf16* out = nullptr;              // [pairs][n]
  int64_t n = 0;
  int32_t k = 0, n_chosen = 0, n_experts = 0;
  int32_t panel = 0;  // as of SkinnyParams, for kFewRows rows
  CodeLayout codes = {};  // likewise

  GPU int64_t row_of(int i) const { return order != nullptr ? order[i] / n_chosen : i; }
};

// Tiles of rows that n_pairs of any experts make at most.
GPU_AND_HOST int64_t most_tiles(int64_t n_pairs, int64_t n_experts, int64_t tile_rows) {
  const int64_t partial = n_pairs < n_experts ? n_pairs : n_experts;
  return (n_pairs - partial) / tile_rows + partial;
}

struct ExpertTile {
  int expert = -1;
  int first = 0, n_rows = 0;
};

// The tile-th: a lane counts those of as many neighbouring experts.
template <int kRows>
GPU ExpertTile find_tile(const ExpertProduct& p, int tile) {
  using namespace gpu;
  const int lane = static_cast<int>(threadIdx.x) % 32, each = (p.n_experts + 31) / 32;
  const int begin = lane * each, end = begin + each < p.n_experts ? begin + each : p.n_experts;
  const auto tiles_of = [&](int expert) {
    return (p.starts[expert + 1] - p.starts[expert] + kRows - 1) / kRows;
  };
  int mine = 0;
  for (int e = begin; e < end; ++e) mine += tiles_of(e);
  const int before = static_cast<int>(warp_scan(static_cast<uint32_t>(mine))) - mine;
  const uint32_t owner = ballot(before <= tile && tile < before + mine);
  if (owner == 0) return {};
  int expert = begin, rest = tile - before;
  if (before <= tile && tile < before + mine) {
    while (rest >= tiles_of(expert)) rest -= tiles_of(expert++);
  }
  const int source = popcount((owner & (~owner + 1)) - 1);
  expert = static_cast<int>(shuffle(static_cast<uint32_t>(expert), source));
  rest = static_cast<int>(shuffle(static_cast<uint32_t>(rest), source));
  const int first = p.starts[expert] + rest * kRows, left = p.starts[expert + 1] - first;
  return {expert, first, left < kRows ? left : kRows};
}

}  // namespace tiercel::cuda
