// Linear layers of nine to sixty-four rows: sequences that take a step together, tokens that are
// appended. Every row has the bits that skinny_kernel gives it: its sums run over k in the same steps,
// in the same shares of eight warps, which are added in the same order (linear.cuh).
//
//   columns of a block     8 x kOctets rows of the weights, read once, straight into registers
//   rows                   all of x, in tiles of 16: what one matrix product takes
//   k                      panels of x, 512 elements: two steps of each warp; the next is on its way
//
// A panel lies in shared memory as [group of 32 elements][row][4 pieces of 16 bytes], so that a lane
// reads one piece for both halves of its step. Odd groups have rows 2i and 2i + 1 exchanged: then
// neither the copies, which walk along k, nor the reads, which walk along the rows, meet in a bank.
//
// Bytes that move: the weights once; and x from L2 once for every block, m x k x n / (8 kOctets)
// elements: at 64 rows as many as the weights where kOctets is 8, twice as many where it is 4.
#pragma once

#include "kernels/linear.cuh"

namespace tiercel::cuda {

inline constexpr int kRowTile = 16;
inline constexpr int kRowTiles = 4;
inline constexpr int kMostRows = kRowTile * kRowTiles;
inline constexpr int kRowPanel = kPairStride;  // elements of k

// Rows that tiles make of p.m.
GPU_AND_HOST int padded_rows(int m) { return (m + kRowTile - 1) / kRowTile * kRowTile; }

// Two panels of x; then, in their place, what every warp has of a tile of rows.
constexpr size_t linear_rows_shared_bytes(int padded, int octets) {
  const size_t panels = size_t{2} * static_cast<size_t>(padded) * kRowPanel * sizeof(bf16);
  const size_t sums = static_cast<size_t>(kSkinnyWarps * octets * kRowTile * 8) * sizeof(float);
  return panels > sums ? panels : sums;
}

// Where a piece of a panel is, in pieces.
GPU int place_of_piece(int rows, int group, int row, int piece) {
  return (group * rows + (row ^ (group & 1))) * 4 + piece;
}

// Asks for a panel of x; zeros past m and k.
GPU void copy_panel(const SkinnyParams& p, int rows, int panel, uint4* target) {
  constexpr int kPieces = kRowPanel / kPiece;
  const int first = panel * kRowPanel;
  for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += 32 * kSkinnyWarps) {
    const int row = i / kPieces, piece = i % kPieces, at = first + piece * kPiece;
    gpu::copy_async16(target + place_of_piece(rows, piece / 4, row, piece % 4),
                      p.x + int64_t{row} * p.k + at, row < p.m && at < p.k);
  }
}

// One warp's step: 32 elements of k, all rows, all columns of the block.
template <int kOctets>
GPU void multiply_step(float (&acc)[kRowTiles][kOctets][4], const uint4* panel, int rows, int group,
                       const uint4 (&w)[kOctets]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
    if (tile * kRowTile >= rows) break;
    const uint4 low = panel[place_of_piece(rows, group, tile * kRowTile + g, t)];
    const uint4 high = panel[place_of_piece(rows, group, tile * kRowTile + g + 8, t)];
    const uint32_t first[4] = {low.x, high.x, low.y, high.y};
    const uint32_t second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      gpu::mma_16x8x16(acc[tile][o], first, w[o].x, w[o].y);
      gpu::mma_16x8x16(acc[tile][o], second, w[o].z, w[o].w);
    }
  }
}

// The results of one tile of rows. kResults: of a thread.
template <int kOctets, bool kGated>
GPU void finish_tile(const SkinnyParams& p, int tile, const float (&acc)[kOctets][4], float* sums) {
  using namespace gpu;
  constexpr int kColumns = 8 * SkinnyWeights<kOctets, kGated>::kColumns;
  constexpr int kThreads = 32 * kSkinnyWarps;
  constexpr int kResults = kRowTile * kColumns / kThreads;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
  int64_t place[kResults];
  float old[kResults] = {};
#pragma unroll
  for (int i = 0; i < kResults; ++i) {
    const int result = tid + i * kThreads, row = tile * kRowTile + result / kColumns;
    const int64_t column = int64_t{blockIdx.x} * kColumns + result % kColumns;
    place[i] = row < p.m && column < p.n ? row * p.n + column : -1;
    if (p.accumulate && place[i] >= 0) old[i] = load_result(p, place[i]);
  }
  sync_threads();  // what was here has been read
#pragma unroll
  for (int o = 0; o < kOctets; ++o) {
    auto* mine = reinterpret_cast<float2*>(sums + ((warp * kOctets + o) * kRowTile + g) * 8 + 2 * t);
    mine[0] = {acc[o][0], acc[o][1]};
    mine[8 * 8 / 2] = {acc[o][2], acc[o][3]};
  }
  sync_threads();
#pragma unroll
  for (int i = 0; i < kResults; ++i) {
    if (place[i] < 0) continue;
    const int result = tid + i * kThreads, row = result / kColumns, column = result % kColumns;
    const auto total = [&](int octet) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kSkinnyWarps; ++w) {
        sum += sums[((w * kOctets + octet) * kRowTile + row) * 8 + column % 8];
      }
      return sum;
    };
    if constexpr (kGated) {
      static_cast<bf16*>(p.out)[place[i]] = gated(total(column / 8 * 2), total(column / 8 * 2 + 1));
    } else {
      float sum = total(column / 8);
      if (p.bias != nullptr) sum += to_float(p.bias[int64_t{blockIdx.x} * kColumns + column]);
      if (p.accumulate) sum += old[i];
      store_result(p, place[i], sum);
    }
  }
}

template <int kOctets, bool kGated>
KERNEL(32 * kSkinnyWarps, 1)
linear_rows_kernel(const GRID_CONST SkinnyParams p) {
  using namespace gpu;
  SHARED(smem);
  constexpr int kAhead = 8 / kOctets;  // steps of weights in flight: 4 KiB a warp
  static_assert(kAhead <= 2);
  const int warp = static_cast<int>(threadIdx.x) / 32, rows = padded_rows(p.m);
  auto* panels = reinterpret_cast<uint4*>(smem);
  const int panel_pieces = rows * (kRowPanel / kPiece);

  const SkinnyWeights<kOctets, kGated> weights(p);
  const int first = warp * 2 * kGroup;
  uint4 w[kAhead][kOctets];
#pragma unroll
  for (int a = 0; a < kAhead; ++a) weights.load(w[a], first + step_offset(a));
  wait_for_predecessors();

  float acc[kRowTiles][kOctets][4] = {};
  const int n_panels = (p.k + kRowPanel - 1) / kRowPanel;
  copy_panel(p, rows, 0, panels);
  copy_commit();
#pragma unroll 1
  for (int panel = 0; panel < n_panels; ++panel) {
    if (panel + 1 < n_panels) {
      copy_panel(p, rows, panel + 1, panels + (panel + 1) % 2 * panel_pieces);
    } else {
      launch_dependents();  // the last weights are asked for
    }
    copy_commit();
    copy_wait<1>();
    sync_threads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int step = 2 * panel + half;
      multiply_step(acc, panels + panel % 2 * panel_pieces, rows, 2 * warp + half, w[half % kAhead]);
      weights.load(w[half % kAhead], first + step_offset(step + kAhead));
    }
    sync_threads();  // the panel may be written again
  }
  copy_wait<0>();

#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
    if (tile * kRowTile >= rows) break;
    finish_tile<kOctets, kGated>(p, tile, acc[tile], reinterpret_cast<float*>(smem));
  }
}

// One block per row: as skinny_kernel normalises it.
struct NormRowsParams {
  const bf16* x = nullptr;       // [m][k]
  const bf16* weight = nullptr;  // [k]
  bf16* out = nullptr;           // [m][k]
  int32_t k = 0;
  float eps = 0;
};
KERNEL(32 * kSkinnyWarps, 4) norm_rows_kernel(const GRID_CONST NormRowsParams p) {
  SHARED(smem);
  auto* squares = reinterpret_cast<float*>(smem);
  gpu::begin_dependent();
  const bf16* x = p.x + int64_t{blockIdx.x} * p.k;
  bf16* out = p.out + int64_t{blockIdx.x} * p.k;
  sum_squares_of_row(x, p.k, squares);
  gpu::sync_threads();
  const float scale = scale_of_row(squares, p.k, p.eps);
  for (int at = static_cast<int>(threadIdx.x) * kPiece; at < p.k; at += kTurn) {
    store_piece(out + at, normalised(load_piece(x + at), load_piece(p.weight + at), scale));
  }
}

}  // namespace tiercel::cuda
