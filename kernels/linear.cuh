// Linear layers of at most eight rows, bound by the reading of the weights.
//
// skinny_kernel. A block owns kOctets * 8 rows of the weights; its eight warps split k:
//
//   k in groups of 32 elements   | 0 1 | 2 3 | 4 5 | .. | 14 15 | 16 17 | ..
//   warp                         |  0  |  1  |  2  | .. |   7   |   0   | ..
//
// A lane (g, t) = (lane / 4, lane % 4) reads the 16 bytes t of its group in weight row g: elements
// 8t .. 8t + 7. An m16n8k16 product takes the elements of k in any order, if both operands agree;
// so these are its B fragments as they come, 8t .. 8t + 3 for a first product and the rest for a
// second. x is the A operand, its rows 8..15 zero: it lies in shared memory in the order of the
// fragments. Sums of the warps are added in the order of the warps. Which warp takes which group
// does not depend on m, n or the instance: neither do the bits.
//
// Coded weights (weight_codes.cuh) come in as codes, sixteen bytes of a lane for two or four groups, and are
// decoded when they are multiplied; their params lie in shared memory. Of eight bits a warp takes two groups
// at a time, as of bf16, and gives the bits of the decoded weights; of four bits it takes four groups.
#pragma once

#include <algorithm>

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/piece.cuh"
#include "kernels/weight_codes.cuh"

namespace tiercel::cuda {

inline constexpr int kSkinnyWarps = 8;
inline constexpr int kGroup = 32;  // elements of k in one step of a warp
// Groups that a warp takes in a row, and elements from these to its next.
template <int kBits>
inline constexpr int kShareSteps = kBits == 4 ? 4 : 2;
template <int kBits>
inline constexpr int kShareStride = kShareSteps<kBits> * kSkinnyWarps * kGroup;
inline constexpr int kPanelUnit = 8 * kSkinnyWarps * kGroup;  // eight steps, the longest read-ahead

struct SkinnyParams {
  const bf16* x = nullptr;            // [m][k]
  const bf16* weight = nullptr;       // [n][k]
  const bf16* up = nullptr;           // [n][k]; with it the result is silu(x weight^T) * (x up^T)
  const bf16* norm_weight = nullptr;  // [k]: x is normalised first
  const bf16* bias = nullptr;         // [n]
  void* out = nullptr;                // [m][n]
  int64_t n = 0;
  int32_t m = 0, k = 0;
  int32_t panel = 0;  // elements of k of x that fit in shared memory, a multiple of kPanelUnit
  float eps = 0;
  bool out_f32 = false, accumulate = false;
  CodeLayout codes = {};  // of weight and up, in the kernels that take codes

  GPU_AND_HOST int n_groups() const { return k >> codes.shift; }
};

// Words from a row's params in shared memory to the next row's: no two rows of eight meet in a bank.
GPU_AND_HOST int param_stride(int n_groups) { return n_groups | 1; }

// Bytes of shared memory, see SkinnyShared. n_groups: of coded weights.
constexpr size_t skinny_shared_bytes(int m, int panel, int octets, int n_groups = 0) {
  const int params = n_groups > 0 ? octets * 8 * (n_groups | 1) : 0;
  return static_cast<size_t>(m) * static_cast<size_t>(panel) * sizeof(bf16) +
         static_cast<size_t>((kSkinnyWarps + 2) * octets * 64 + 8 * kSkinnyWarps + params) * sizeof(float);
}

// SkinnyParams::panel of m rows: three blocks of at most 75 KiB share the 228 KiB of a Hopper multiprocessor.
constexpr int32_t panel_of(int64_t m, int64_t k) {
  constexpr int64_t kPanelBytes = 64 << 10;
  const int64_t whole = (k + kPanelUnit - 1) / kPanelUnit * kPanelUnit;
  const int64_t fits = kPanelBytes / (2 * m) / kPanelUnit * kPanelUnit;
  return static_cast<int32_t>(std::min(whole, std::max<int64_t>(fits, kPanelUnit)));
}

// Beside the params of coded weights, on a device with so many bytes of shared memory.
constexpr int32_t panel_beside_params(int64_t m, int64_t k, int octets, int n_groups, int64_t shared_memory) {
  const auto others = static_cast<int64_t>(skinny_shared_bytes(0, 0, octets, n_groups));
  int32_t panel = panel_of(m, k);
  while (panel > kPanelUnit && others + 2 * m * panel > shared_memory) panel -= kPanelUnit;
  return panel;
}

template <int kOctets>
struct SkinnyShared {
  GPU explicit SkinnyShared(uint8_t* smem, const SkinnyParams& p)
      : x(reinterpret_cast<uint2*>(smem)),
        sums(reinterpret_cast<float*>(smem + int64_t{p.m} * p.panel * sizeof(bf16))),
        added(sums + kSkinnyWarps * kOctets * 64),
        squares(added + 2 * kOctets * 64),
        params(reinterpret_cast<uint32_t*>(squares + 8 * kSkinnyWarps)) {}
  uint2* x;        // a panel as [group][half][m rows][4 lanes] of 8 bytes
  float* sums;     // [warp][octet][row][column]
  float* added;    // [bias, what out held][octet][row][column]
  float* squares;  // [row][warp]
  uint32_t* params;  // of coded weights: [octet][row of it][param_stride]
};

inline constexpr int kTurn = 32 * kSkinnyWarps * kPiece;  // elements of a row that a block reads

GPU uint4 piece_of(const bf16* row, int at, int k) {
  return at < k ? load_piece(row + at) : uint4{0, 0, 0, 0};
}

// The sum of squares of a row of x, a part per warp, in [kSkinnyWarps].
GPU void sum_squares_of_row(const bf16* x, int k, float* squares) {
  constexpr int kBatch = 2;
  const int tid = threadIdx.x;
  float sum = 0;
#pragma unroll 1
  for (int i = tid * kPiece; i < k; i += kBatch * kTurn) {
    uint4 pieces[kBatch];  // in flight together; zeros add nothing
#pragma unroll
    for (int b = 0; b < kBatch; ++b) pieces[b] = piece_of(x, i + b * kTurn, k);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      float values[kPiece];
      unpack(pieces[b], values);
      sum = square_sum(values, sum);
    }
  }
  sum = warp_sum(sum);
  if (tid % 32 == 0) squares[tid / 32] = sum;
}
GPU void sum_squares(const SkinnyParams& p, float* squares) {
#pragma unroll 1
  for (int row = 0; row < p.m; ++row) {
    sum_squares_of_row(p.x + int64_t{row} * p.k, p.k, squares + row * kSkinnyWarps);
  }
}
GPU float scale_of_row(const float* squares, int k, float eps) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kSkinnyWarps; ++i) sum += squares[i];
  return norm_scale(sum, k, eps);
}
GPU uint4 normalised(uint4 x, uint4 norm, float scale) {
  float values[kPiece], weights[kPiece];
  unpack(x, values);
  unpack(norm, weights);
#pragma unroll
  for (int i = 0; i < kPiece; ++i) values[i] = values[i] * scale * weights[i];
  return pack(values);
}

// A piece of a row, of n_rows, where the fragments have it.
GPU void stage_piece(uint4 v, int piece, int row, int n_rows, uint2* staged) {
  uint2* target = staged + (piece / 4 * 2 * n_rows + row) * 4 + piece % 4;
  target[0] = {v.x, v.y};
  target[4 * n_rows] = {v.z, v.w};
}

// Elements first .. end of the rows of x in the order of the fragments, zeros past k.
template <bool kNorm>
GPU void stage_panel(const SkinnyParams& p, int first, int end, const float* squares,
                     uint2* staged) {
  constexpr int kBatch = kNorm ? 1 : 2;  // what registers allow
#pragma unroll 1
  for (int row = 0; row < p.m; ++row) {
    const bf16* x = p.x + int64_t{row} * p.k;
    float scale = 1;
    if constexpr (kNorm) scale = scale_of_row(squares + row * kSkinnyWarps, p.k, p.eps);
#pragma unroll 1
    for (int at = first + static_cast<int>(threadIdx.x) * kPiece; at < end; at += kBatch * kTurn) {
      uint4 pieces[kBatch], norms[kNorm ? kBatch : 1];  // in flight together
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        pieces[b] = piece_of(x, at + b * kTurn, p.k);
        if constexpr (kNorm) norms[b] = piece_of(p.norm_weight, at + b * kTurn, p.k);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (at + b * kTurn >= end) break;
        uint4 v = pieces[b];
        if constexpr (kNorm) {
          v = at + b * kTurn < p.k ? normalised(v, norms[b], scale) : uint4{0, 0, 0, 0};
        }
        stage_piece(v, (at + b * kTurn - first) / kPiece, row, p.m, staged);
      }
    }
  }
}

// The place in out of this thread's result, of those of the block's `octets`; -1: it has none.
GPU int64_t skinny_place(const SkinnyParams& p, int octets) {
  const int tid = threadIdx.x, row = tid / 8 % 8;
  const int64_t column = (int64_t{blockIdx.x} * octets + tid / 64) * 8 + tid % 8;
  return tid < octets * 64 && row < p.m && column < p.n ? row * p.n + column : -1;
}

GPU bf16 gated(float gate, float up) {
  using namespace gpu;
  return to_bf16(mul_rn(silu(to_float(to_bf16(gate))), to_float(to_bf16(up))));
}
GPU float load_result(const SkinnyParams& p, int64_t place) {
  return p.out_f32 ? static_cast<const float*>(p.out)[place]
                   : gpu::to_float(static_cast<const bf16*>(p.out)[place]);
}
GPU void store_result(const SkinnyParams& p, int64_t place, float sum) {
  if (p.out_f32) {
    static_cast<float*>(p.out)[place] = sum;
  } else {
    static_cast<bf16*>(p.out)[place] = gpu::to_bf16(sum);
  }
}

// The weights of a block, 8 * kOctets rows of them, as a lane reads them. kGated: the even octets are
// rows of weight, the odd ones the same rows of up.
template <int kOctets, bool kGated>
inline constexpr int kResultOctets = kGated ? kOctets / 2 : kOctets;

template <int kOctets, bool kGated, WeightCode kCode>
struct SkinnyWeights;

// The params of a row of the block's coded weights; null: there is no such row.
template <int kOctets, bool kGated>
GPU const uint32_t* params_of_row(const SkinnyParams& p, int row) {
  const int octet = row / 8;
  const int64_t first = int64_t{blockIdx.x} * (8 * kResultOctets<kOctets, kGated>);
  const int64_t of_matrix = first + (kGated ? octet / 2 : octet) * 8 + row % 8;
  if (of_matrix >= p.n) return nullptr;
  return params_of(p.codes, kGated && octet % 2 == 1 ? p.up : p.weight, of_matrix);
}

template <int kOctets, bool kGated>
struct SkinnyWeights<kOctets, kGated, WeightCode::kBf16> {
  static constexpr int kBits = 16;
  static constexpr int kColumns = kResultOctets<kOctets, kGated>;
  const bf16 *weight, *up;
  int64_t k;
  int k_left, rows_left;

  GPU explicit SkinnyWeights(const SkinnyParams& p) : k(p.k) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    const int64_t first_row = int64_t{blockIdx.x} * (8 * kColumns);
    const int n_rows = p.n - first_row < 64 ? static_cast<int>(p.n - first_row) : 64;
    weight = p.weight + (first_row + g) * p.k + t * kPiece;
    up = kGated ? p.up + (first_row + g) * p.k + t * kPiece : nullptr;
    k_left = p.k - t * kPiece;
    rows_left = n_rows - g;
  }
  // Those of 32 elements of k from offset on; zeros outside.
  GPU void load(uint4 (&target)[kOctets], int offset) const {
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      const int below = (kGated ? o / 2 : o) * 8;
      const bf16* source = (kGated && o % 2 == 1 ? up : weight) + below * k + offset;
      const bool inside = offset < k_left && below < rows_left;
      target[o] = inside ? gpu::load_stream(source) : uint4{0, 0, 0, 0};
    }
  }
  GPU void load_params(uint32_t*) const {}
  // Of what was loaded, the B fragments of one step.
  GPU uint4 fragments(const uint4& loaded, int, int, int, const uint32_t*) const { return loaded; }
};

// Codes; a piece is what kPieceSteps steps need.
template <int kOctets, bool kGated, WeightCode kCode>
struct SkinnyWeights {
  static constexpr int kBits = kBitsOf<kCode>;
  static constexpr int kColumns = kResultOctets<kOctets, kGated>;
  const SkinnyParams& p;
  const uint8_t *weight, *up;
  int rows_left;

  GPU explicit SkinnyWeights(const SkinnyParams& params) : p(params) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    const int64_t first_row = int64_t{blockIdx.x} * (8 * kColumns);
    const int n_rows = p.n - first_row < 64 ? static_cast<int>(p.n - first_row) : 64;
    const int64_t place = (first_row + g) * p.codes.row_bytes + t * 16;
    weight = reinterpret_cast<const uint8_t*>(p.weight) + place;
    up = kGated ? reinterpret_cast<const uint8_t*>(p.up) + place : nullptr;
    rows_left = n_rows - g;
  }
  // Those of a unit of elements of k from offset on; zeros outside.
  GPU void load(uint4 (&target)[kOctets], int offset) const {
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      const int below = (kGated ? o / 2 : o) * 8;
      const uint8_t* source =
          (kGated && o % 2 == 1 ? up : weight) + below * p.codes.row_bytes + offset / 8 * kBits;
      const bool inside = offset < p.k && below < rows_left;
      target[o] = inside ? gpu::load_stream(source) : uint4{0, 0, 0, 0};
    }
  }
  // All of the block's, zeros where it has no row: a scale of 0.
  GPU void load_params(uint32_t* shared) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int n_groups = p.n_groups(), stride = param_stride(n_groups);
    for (int row = warp; row < 8 * kOctets; row += kSkinnyWarps) {
      const uint32_t* source = params_of_row<kOctets, kGated>(p, row);
      for (int group = lane; group < n_groups; group += 32) {
        shared[row * stride + group] = source != nullptr ? source[group] : 0;
      }
    }
  }
  // Step `step` of a piece, which is that of the elements from offset on.
  GPU uint4 fragments(const uint4& loaded, int octet, int step, int offset, const uint32_t* shared) const {
    if (offset >= p.k) return {0, 0, 0, 0};
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    const uint32_t* of_row = shared + (octet * 8 + g) * param_stride(p.n_groups());
    return decode_step(loaded, step, t, GroupParam<kCode>::load(of_row, offset >> p.codes.shift));
  }
};
// Of a warp's steps, each of kGroup elements of k, the first element; without where the warp begins.
template <int kBits>
GPU int step_offset(int step) {
  constexpr int kSteps = kShareSteps<kBits>;
  return step / kSteps * kShareStride<kBits> + step % kSteps * kGroup;
}
template <int kBits>
GPU int first_offset() {
  return static_cast<int>(threadIdx.x) / 32 * (kShareSteps<kBits> * kGroup);
}

// Adds up what the warps have, and writes this thread's result.
template <int kOctets, bool kGated>
GPU void finish_skinny(const SkinnyParams& p, const SkinnyShared<kOctets>& shared, int64_t place) {
  using namespace gpu;
  if (place < 0) return;
  const int tid = threadIdx.x;
  const auto total = [&](int octet) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kSkinnyWarps; ++i)
      sum += shared.sums[(i * kOctets + octet) * 64 + tid % 64];
    return sum;
  };
  if constexpr (kGated) {
    static_cast<bf16*>(p.out)[place] = gated(total(tid / 64 * 2), total(tid / 64 * 2 + 1));
  } else {
    float sum = total(tid / 64);
    if (p.bias != nullptr) sum += shared.added[tid];
    if (p.accumulate) sum += shared.added[kOctets * 64 + tid];
    store_result(p, place, sum);
  }
}

// Weights in flight, in pieces of 16 bytes a lane: 32 or 64 KiB a block (ReadAhead).
inline constexpr int kShortAhead = 8, kLongAhead = 16;
// Pieces of each octet. Of codes at most as many as make eight steps.
template <int kOctets, int kBits, int kPieces>
inline constexpr int kPiecesAhead = kBits == 16 ? kPieces / kOctets
                                    : kBits == 8 ? 4 / kOctets
                                                 : (kOctets == 4 ? 1 : 2);
// Blocks of a multiprocessor, which its registers allow.
template <int kOctets, int kPieces>
inline constexpr int kSkinnyResident = kOctets == 4 || kPieces == kLongAhead ? 2 : 3;

// The products of a block: w are the weights from offset on that are on their way, stage(first, end) puts
// these elements of x into shared memory. What a warp has of each octet is left in shared.sums.
template <int kOctets, typename Weights, int kAhead, typename Stage>
GPU void multiply_panels(const SkinnyParams& p, const Weights& weights, uint4 (&w)[kAhead][kOctets], int offset,
                         const SkinnyShared<kOctets>& shared, const Stage& stage) {
  using namespace gpu;
  constexpr int kBits = Weights::kBits, kSteps = kPieceSteps<kBits>;
  constexpr int kStride = kAhead * kSteps * kSkinnyWarps * kGroup;
  static_assert(kPanelUnit % kStride == 0 && kAhead * kSteps % kShareSteps<kBits> == 0);
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
  float acc[kOctets][4] = {};
  for (int panel = 0; panel < p.k; panel += p.panel) {
    const int rest = (p.k - panel + kStride - 1) / kStride * kStride;
    const int end = panel + (rest < p.panel ? rest : p.panel);
    sync_threads();
    stage(panel, end);
    sync_threads();
    const uint2* x = shared.x + lane - panel / kGroup * 8 * p.m;
#pragma unroll 1
    for (; offset < end; offset += kStride) {
      if (offset + 2 * kStride >= p.k) launch_dependents();  // the last weights are asked for
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int at = offset + step_offset<kBits>(a * kSteps + s);
          const uint2* xs = x + at / kGroup * 8 * p.m;
          const bool row = g < p.m;
          const uint2 x0 = row ? xs[0] : uint2{0, 0}, x1 = row ? xs[4 * p.m] : uint2{0, 0};
          const uint32_t a0[4] = {x0.x, 0, x0.y, 0}, a1[4] = {x1.x, 0, x1.y, 0};
#pragma unroll
          for (int o = 0; o < kOctets; ++o) {
            const uint4 b = weights.fragments(w[a][o], o, s, at, shared.params);
            mma_16x8x16(acc[o], a0, b.x, b.y);
            mma_16x8x16(acc[o], a1, b.z, b.w);
          }
        }
        weights.load(w[a], offset + kStride + step_offset<kBits>(a * kSteps));
      }
    }
  }

#pragma unroll
  for (int o = 0; o < kOctets; ++o) {
    float* d = shared.sums + ((warp * kOctets + o) * 8 + g) * 8 + 2 * t;
    d[0] = acc[o][0];
    d[1] = acc[o][1];
  }
}

template <int kOctets, bool kNorm, bool kGated, int kPieces = kShortAhead, WeightCode kCode = WeightCode::kBf16>
KERNEL(32 * kSkinnyWarps, (kSkinnyResident<kOctets, kPieces>))
skinny_kernel(const GRID_CONST SkinnyParams p) {
  using namespace gpu;
  SHARED(smem);
  constexpr int kBits = kBitsOf<kCode>, kAhead = kPiecesAhead<kOctets, kBits, kPieces>;
  using Weights = SkinnyWeights<kOctets, kGated, kCode>;
  constexpr int kColumns = Weights::kColumns;
  const int tid = threadIdx.x;
  const SkinnyShared<kOctets> shared(smem, p);

  // The weights of the first steps, before anything that makes us wait: no kernel writes them.
  const Weights weights(p);
  uint4 w[kAhead][kOctets];
  const int offset = first_offset<kBits>();
#pragma unroll
  for (int a = 0; a < kAhead; ++a) weights.load(w[a], offset + step_offset<kBits>(a * kPieceSteps<kBits>));
  weights.load_params(shared.params);

  if (p.bias != nullptr && skinny_place(p, kColumns) >= 0) {
    const int64_t first_row = int64_t{blockIdx.x} * (8 * kColumns);
    shared.added[tid] = to_float(p.bias[first_row + tid / 64 * 8 + tid % 8]);
  }
  wait_for_predecessors();

  float old = 0;  // asked for now, and kept in shared memory when it has come with x
  if (const int64_t place = skinny_place(p, kColumns); p.accumulate && place >= 0) {
    old = load_result(p, place);
  }
  if constexpr (kNorm) sum_squares(p, shared.squares);

  multiply_panels(p, weights, w, offset, shared, [&](int panel, int end) {
    stage_panel<kNorm>(p, panel, end, shared.squares, shared.x);
    if (panel == 0 && tid < kColumns * 64) shared.added[kOctets * 64 + tid] = old;
  });
  sync_threads();
  finish_skinny<kOctets, kGated>(p, shared, skinny_place(p, kColumns));
}

}  // namespace tiercel::cuda
