// Products of many rows with the weights of their experts, by mma.sync.
//
//   a block    128 rows of one expert x 128 columns; as two halves of 64, which are neighbours, or with
//              kGated the same columns of gate and of up, so that SwiGLU is done in registers
//   a warp     32 rows x 32 columns of each half
//   k          slices of 32 elements, four of them on their way or in use
//
// Coded weights come a unit of two or four slices at a time, each thread's sixteen bytes to a place of its own,
// and are decoded into the slice's.
//
// Rows in shared memory have 64 bytes, in four units of 16 that are permuted so that eight rows lie in eight
// bank groups.
#pragma once

#include "kernels/expert_product.cuh"
#include "kernels/linear.cuh"

namespace tiercel::cuda {

inline constexpr int kTileRows = 128, kTileDepth = 32, kTileStages = 4, kTileThreads = 256;
inline constexpr int kHalf = 64;                            // columns of each of two
inline constexpr int kTileBytes = kTileRows * kTileDepth * 2;  // of rows, and of weights
inline constexpr size_t kTilesSharedBytes = size_t{2} * kTileStages * kTileBytes;
// Of codes: a unit is asked for so early that it has come when its first slice is decoded, which is kTileStages - 1
// slices before that is multiplied.
template <int kBits>
inline constexpr int kUnitBuffers = kBits == 4 ? 2 : 3;
template <int kBits>
inline constexpr size_t kCodesSharedBytes = kBits == 16 ? 0 : size_t{2} * kUnitBuffers<kBits> * kTileThreads * 16;

GPU int place_of_unit(int row, int unit) { return (row * 4 + (unit ^ (row >> 1 & 3))) * 16; }

// A thread's part of the copies: units of two rows and of two rows of weights.
template <bool kGated, WeightCode kCode>
struct TileLoader {
  static constexpr int kBits = kBitsOf<kCode>;
  const bf16 *rows[2], *weights[2];
  bool row_valid[2], weight_valid[2];
  int k, unit;
  // Of codes: params of the next slice are on their way in registers, units in shared memory.
  static constexpr int kSlices = kPieceSteps<kBits>;
  int shift;
  GroupParam<kCode> param[2];
  uint8_t* codes;

  GPU void ask_params(int slice) {
    const int first = slice * kTileDepth;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto* of_row = reinterpret_cast<const uint32_t*>(weights[i] + k / 16 * kBits);
      const bool inside = weight_valid[i] && first < k;
      param[i] = inside ? GroupParam<kCode>::load(of_row, first >> shift) : GroupParam<kCode>{};
    }
  }
  // Asks for unit n.
  GPU void ask(int n) const {
    const int first = n * kSlices * kTileDepth;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = weight_valid[i] && first < k;
      const auto* source = reinterpret_cast<const uint8_t*>(weights[i]) + (inside ? first / 8 * kBits + unit * 16 : 0);
      gpu::copy_async16(place_of_codes(n, i), source, inside);
    }
  }
  GPU uint8_t* place_of_codes(int n, int i) const {
    return codes + ((n % kUnitBuffers<kBits> * 2 + i) * kTileThreads + static_cast<int>(threadIdx.x)) * 16;
  }

  // codes_of_units: shared memory for kCodesSharedBytes.
  GPU TileLoader(const ExpertProduct& p, const ExpertTile& tile, uint8_t* codes_of_units)
      : k(p.k), unit(static_cast<int>(threadIdx.x) % 4), codes(codes_of_units) {
    const int line = static_cast<int>(threadIdx.x) / 4;
    const int64_t first = int64_t{blockIdx.x} * (kGated ? kHalf : 2 * kHalf);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = line + i * kHalf;
      row_valid[i] = row < tile.n_rows;
      rows[i] = p.x + (row_valid[i] ? p.row_of(tile.first + row) : 0) * k;
      const int64_t column = first + (kGated ? line : row);
      const bool up = kGated && i == 1;
      weight_valid[i] = column < p.n;
      weights[i] = (up ? p.up + tile.expert * p.up_stride : p.weight + tile.expert * p.weight_stride) +
                   (weight_valid[i] ? column : 0) * (kBits == 16 ? int64_t{k} : p.codes.row_bytes / 2);
    }
    shift = p.codes.shift;
  }

  // Slice `slice` of k. Of codes each slice once, in order.
  GPU void load(uint8_t* stage, int slice) {
    const int at = slice * kTileDepth + unit * kPiece, line = static_cast<int>(threadIdx.x) / 4;
    const int inside = at < k ? at : 0;
    if constexpr (kBits != 16) {
      if (slice % kSlices == 0) ask(slice / kSlices + kUnitBuffers<kBits> - 1);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int place = place_of_unit(line + i * kHalf, unit);
      gpu::copy_async16(stage + place, rows[i] + inside, row_valid[i] && at < k);
      if constexpr (kBits == 16) {
        gpu::copy_async16(stage + kTileBytes + place, weights[i] + inside, weight_valid[i] && at < k);
      } else {
        const uint4 coded = *reinterpret_cast<const uint4*>(place_of_codes(slice / kSlices, i));
        *reinterpret_cast<uint4*>(stage + kTileBytes + place) = decode_step(coded, slice % kSlices, unit, param[i]);
      }
    }
    if constexpr (kBits != 16) ask_params(slice + 1);
  }
};

// acc: [16 rows][half][8 columns].
GPU void multiply_slice(const uint8_t* stage, float (&acc)[2][2][4][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_row = warp % 4 * 32, first_column = warp / 4 * 32;
#pragma unroll
  for (int step = 0; step < kTileDepth / 16; ++step) {
    uint32_t a[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      gpu::load_matrix(a[m], stage + place_of_unit(first_row + m * 16 + lane % 16, step * 2 + lane / 16));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t b[4];
        const int column = half * kHalf + first_column + j * 16 + lane % 8 + lane / 16 * 8;
        gpu::load_matrix(b, stage + kTileBytes + place_of_unit(column, step * 2 + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          gpu::mma_16x8x16(acc[m][half][2 * j], a[m], b[0], b[1]);
          gpu::mma_16x8x16(acc[m][half][2 * j + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
}

// Two neighbouring results.
GPU void store_pair(bf16* out, float low, float high) {
  *reinterpret_cast<uint32_t*>(out) = gpu::pack_bf16(low, high);
}

template <bool kGated>
GPU void store_tile(const ExpertProduct& p, const ExpertTile& tile, const float (&acc)[2][2][4][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first = int64_t{blockIdx.x} * (kGated ? kHalf : 2 * kHalf) + warp / 4 * 32 + lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int low = 0; low < 2; ++low) {  // rows g and g + 8 of a product
      const int row = warp % 4 * 32 + m * 16 + low * 8 + lane / 4;
      if (row >= tile.n_rows) continue;
      bf16* out = p.out + int64_t{tile.first + row} * p.n;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* one = acc[m][0][j] + 2 * low;
        const float* other = acc[m][1][j] + 2 * low;
        const int64_t column = first + j * 8;
        if constexpr (kGated) {
          if (column >= p.n) continue;
          out[column] = gated(one[0], other[0]);
          out[column + 1] = gated(one[1], other[1]);
        } else {
          if (column < p.n) store_pair(out + column, one[0], one[1]);
          if (column + kHalf < p.n) store_pair(out + column + kHalf, other[0], other[1]);
        }
      }
    }
  }
}

template <bool kGated, WeightCode kCode>
KERNEL(kTileThreads, 2)
expert_tiles_kernel(const GRID_CONST ExpertProduct p) {
  using namespace gpu;
  constexpr int kBits = kBitsOf<kCode>;
  SHARED(smem);
  begin_dependent();
  const ExpertTile tile = find_tile<kTileRows>(p, static_cast<int>(blockIdx.y));
  if (tile.expert < 0) return;
  TileLoader<kGated, kCode> loader(p, tile, smem + kTilesSharedBytes);
  if constexpr (kBits != 16) {
#pragma unroll
    for (int unit = 0; unit < kUnitBuffers<kBits> - 1; ++unit) loader.ask(unit);
    loader.ask_params(0);
    copy_commit();
    copy_wait<0>();
  }
  const int n_slices = (p.k + kTileDepth - 1) / kTileDepth;
  const auto stage = [&](int slice) { return smem + slice % kTileStages * 2 * kTileBytes; };
#pragma unroll
  for (int slice = 0; slice < kTileStages - 1; ++slice) {
    if (slice < n_slices) loader.load(stage(slice), slice);
    copy_commit();
  }
  float acc[2][2][4][4] = {};
#pragma unroll 1
  for (int slice = 0; slice < n_slices; ++slice) {
    copy_wait<kTileStages - 2>();
    sync_threads();  // the slice is here, and everybody is done with the one before
    const int next = slice + kTileStages - 1;
    if (next < n_slices) loader.load(stage(next), next);
    copy_commit();
    multiply_slice(stage(slice), acc);
  }
  copy_wait<0>();
  store_tile<kGated>(p, tile, acc);
}

}  // namespace tiercel::cuda
