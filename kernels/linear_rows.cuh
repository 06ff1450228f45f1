// Linear layers of nine to sixty-four rows: sequences that take a step together, tokens that are
// appended. Every row has the bits that skinny_kernel gives it: its sums run over k in the same steps,
// in the same shares of eight warps, which are added in the same order (linear.cuh).
//
//   columns of a block     8 x kOctets rows of the weights, read once, straight into registers
//   rows                   all of x, in tiles of 16: what one matrix product takes
//   k                      panels of x, 512 elements: two steps of each warp; the next is on its way. With weights
//                          of four bits 1,024, four steps, and beside them the params of the panel
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
template <int kBits>
inline constexpr int kRowPanel = kShareStride<kBits>;  // elements of k

// Rows that tiles make of p.m.
GPU_AND_HOST int padded_rows(int m) { return (m + kRowTile - 1) / kRowTile * kRowTile; }

// Pieces of four params in a row's share of a panel: groups have 32 columns at least.
template <int kBits>
inline constexpr int kParamPieces = kRowPanel<kBits> / 32 / 4;

// Two panels of x; then, in their place, what every warp has of a tile of rows. Of codes two panels' params before.
template <int kBits>
constexpr size_t linear_rows_shared_bytes(int padded, int octets) {
  const size_t panels = size_t{2} * static_cast<size_t>(padded) * kRowPanel<kBits> * sizeof(bf16);
  const size_t sums = static_cast<size_t>(kSkinnyWarps * octets * kRowTile * 8) * sizeof(float);
  const size_t params = kBits == 16 ? 0 : static_cast<size_t>(2 * 8 * octets * kParamPieces<kBits> * 16);
  return params + (panels > sums ? panels : sums);
}

// Where a piece of a panel is, in pieces.
GPU int place_of_piece(int rows, int group, int row, int piece) {
  return (group * rows + (row ^ (group & 1))) * 4 + piece;
}

// Asks for a panel of x; zeros past m and k.
template <int kBits>
GPU void copy_panel(const SkinnyParams& p, int rows, int panel, uint4* target) {
  constexpr int kPieces = kRowPanel<kBits> / kPiece;
  const int first = panel * kRowPanel<kBits>;
  for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += 32 * kSkinnyWarps) {
    const int row = i / kPieces, piece = i % kPieces, at = first + piece * kPiece;
    gpu::copy_async16(target + place_of_piece(rows, piece / 4, row, piece % 4),
                      p.x + int64_t{row} * p.k + at, row < p.m && at < p.k);
  }
}

// Asks for the params of a panel: [row of the block][kParamPieces pieces]; zeros past n and k.
template <int kOctets, bool kGated, int kBits>
GPU void copy_params(const SkinnyParams& p, int panel, uint4* target) {
  const int first = panel * kRowPanel<kBits> >> p.codes.shift;
  const int n_pieces = kRowPanel<kBits> >> p.codes.shift >> 2, n_groups = p.n_groups();
  for (int i = static_cast<int>(threadIdx.x); i < 8 * kOctets * kParamPieces<kBits>; i += 32 * kSkinnyWarps) {
    const int row = i / kParamPieces<kBits>, piece = i % kParamPieces<kBits>;
    if (piece >= n_pieces) continue;
    const uint32_t* source = params_of_row<kOctets, kGated>(p, row);
    const bool inside = source != nullptr && first + 4 * piece < n_groups;
    gpu::copy_async16(target + i, inside ? source + first + 4 * piece : params_of(p.codes, p.weight, 0), inside);
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
  constexpr int kColumns = 8 * kResultOctets<kOctets, kGated>;
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

template <int kOctets, bool kGated, WeightCode kCode>
KERNEL(32 * kSkinnyWarps, 1)
linear_rows_kernel(const GRID_CONST SkinnyParams p) {
  using namespace gpu;
  SHARED(smem);
  constexpr int kBits = kBitsOf<kCode>;
  constexpr int kSteps = kShareSteps<kBits>;  // of a warp in a panel
  constexpr int kPieces = kSteps / kPieceSteps<kBits>;
  constexpr int kAhead = kBits == 16 ? 8 / kOctets : 1;  // pieces of weights in flight: of bf16 4 KiB a warp
  static_assert(kAhead <= kPieces);
  const int warp = static_cast<int>(threadIdx.x) / 32, rows = padded_rows(p.m);
  constexpr int kParams = kBits == 16 ? 0 : 8 * kOctets * kParamPieces<kBits>;  // pieces of a panel
  auto* params = reinterpret_cast<uint4*>(smem);
  auto* panels = params + 2 * kParams;
  const int panel_pieces = rows * (kRowPanel<kBits> / kPiece);

  const SkinnyWeights<kOctets, kGated, kCode> weights(p);
  const int first = first_offset<kBits>();
  uint4 w[kAhead][kOctets];
#pragma unroll
  for (int a = 0; a < kAhead; ++a) weights.load(w[a], first + step_offset<kBits>(a * kPieceSteps<kBits>));
  const auto copy = [&](int panel) {
    copy_panel<kBits>(p, rows, panel, panels + panel % 2 * panel_pieces);
    if constexpr (kBits != 16) copy_params<kOctets, kGated, kBits>(p, panel, params + panel % 2 * kParams);
  };
  wait_for_predecessors();

  float acc[kRowTiles][kOctets][4] = {};
  const int n_panels = (p.k + kRowPanel<kBits> - 1) / kRowPanel<kBits>;
  copy(0);
  copy_commit();
#pragma unroll 1
  for (int panel = 0; panel < n_panels; ++panel) {
    if (panel + 1 < n_panels) {
      copy(panel + 1);
    } else {
      launch_dependents();  // the last weights are asked for
    }
    copy_commit();
    copy_wait<1>();
    sync_threads();
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      uint4(&loaded)[kOctets] = w[piece % kAhead];
#pragma unroll
      for (int s = 0; s < kPieceSteps<kBits>; ++s) {
        const int group = kSteps * warp + piece * kPieceSteps<kBits> + s;  // of the panel
        const uint4* x = panels + panel % 2 * panel_pieces;
        if constexpr (kBits == 16) {
          multiply_step(acc, x, rows, group, loaded);
        } else {
          uint4 decoded[kOctets];
          const auto* of_panel = reinterpret_cast<const uint32_t*>(params + panel % 2 * kParams);
          const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, t = lane % 4;
#pragma unroll
          for (int o = 0; o < kOctets; ++o) {
            const uint32_t* of_row = of_panel + (o * 8 + row) * (4 * kParamPieces<kBits>);
            const auto param = GroupParam<kCode>::load(of_row, group * kGroup >> p.codes.shift);
            decoded[o] = decode_step(loaded[o], s, t, param);
          }
          multiply_step(acc, x, rows, group, decoded);
        }
      }
      weights.load(loaded, first + step_offset<kBits>((panel * kPieces + piece + kAhead) * kPieceSteps<kBits>));
    }
    sync_threads();  // the panel may be written again
  }
  copy_wait<0>();

#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
    if (tile * kRowTile >= rows) break;
    finish_tile<kOctets, kGated>(p, tile, acc[tile], reinterpret_cast<float*>(panels));
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
