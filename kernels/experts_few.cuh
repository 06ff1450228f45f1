// Products of few rows with the weights of their experts, as linear.cuh has them: blockIdx.y is a tile of up to
// eight rows of one expert.
#pragma once

#include "kernels/expert_product.cuh"
#include "kernels/linear.cuh"

namespace tiercel::cuda {

inline constexpr int kFewRows = 8;

template <int kOctets, bool kGated, WeightCode kCode>
KERNEL(32 * kSkinnyWarps, (kSkinnyResident<kOctets, kShortAhead>))
expert_rows_kernel(const GRID_CONST ExpertProduct p) {
  using namespace gpu;
  SHARED(smem);
  wait_for_predecessors();
  const ExpertTile tile = find_tile<kFewRows>(p, static_cast<int>(blockIdx.y));
  if (tile.expert < 0) return;
  const SkinnyParams rows{.weight = p.weight + tile.expert * p.weight_stride,
                          .up = kGated ? p.up + tile.expert * p.up_stride : nullptr,
                          .out = p.out + tile.first * p.n,
                          .n = p.n,
                          .m = tile.n_rows,
                          .k = p.k,
                          .panel = p.panel,
                          .codes = p.codes};
  const SkinnyShared<kOctets> shared(smem, rows);
  using Weights = SkinnyWeights<kOctets, kGated, kCode>;
  constexpr int kBits = Weights::kBits, kAhead = kPiecesAhead<kOctets, kBits, kShortAhead>;
  const int tid = threadIdx.x;
  const Weights weights(rows);
  uint4 w[kAhead][kOctets];
  const int offset = first_offset<kBits>();
#pragma unroll
  for (int a = 0; a < kAhead; ++a) weights.load(w[a], offset + step_offset<kBits>(a * kPieceSteps<kBits>));
  weights.load_params(shared.params);
  multiply_panels(rows, weights, w, offset, shared, [&](int panel, int end) {
#pragma unroll 1
    for (int row = 0; row < rows.m; ++row) {
      const bf16* x = p.x + p.row_of(tile.first + row) * p.k;
#pragma unroll 1
      for (int at = panel + tid * kPiece; at < end; at += kTurn) {
        stage_piece(piece_of(x, at, p.k), (at - panel) / kPiece, row, rows.m, shared.x);
      }
    }
  });
  sync_threads();
  finish_skinny<kOctets, kGated>(rows, shared, skinny_place(rows, Weights::kColumns));
}

}  // namespace tiercel::cuda
