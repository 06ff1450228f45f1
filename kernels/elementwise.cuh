// The kernels behind elementwise.cu. Rows whose addresses and widths allow it move in pieces of 16
// bytes, eight channels; all others channel by channel.
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/piece.cuh"
#include "kernels/weight_codes.cuh"

namespace tiercel::cuda {

// ---- embed --------------------------------------------------------------------------------------

struct EmbedKernelParams {
  EmbedParams op;
  int threads_per_row;  // a power of two, at most the block's
  CodeLayout codes;
};

// Eight elements of a row, from i on.
template <WeightCode kCode>
GPU uint4 decoded_piece(const CodeLayout& codes, const bf16* table, int64_t row, int64_t i) {
  constexpr int kUnit = 32 * kPieceSteps<kBitsOf<kCode>>;
  const auto* of_row = reinterpret_cast<const uint8_t*>(table) + row * codes.row_bytes;
  const auto* words = reinterpret_cast<const uint4*>(of_row + i / kUnit * kUnitBytes + i % 32 / kPiece * 16);
  return decode_step(*words, static_cast<int>(i % kUnit / 32), static_cast<int>(i % 32 / kPiece),
                     GroupParam<kCode>::load(params_of(codes, table, row), i >> codes.shift));
}

// kPieces: eight elements at a time, as codes always are; else bf16 at any address.
template <bool kPieces, WeightCode kCode>
KERNEL(256, 4)
embed_kernel(const GRID_CONST EmbedKernelParams p) {
  gpu::begin_dependent();
  const int row_threads = p.threads_per_row;
  const int64_t token =
      int64_t{blockIdx.x} * (256 / row_threads) + static_cast<int>(threadIdx.x) / row_threads;
  if (token >= p.op.n_tokens) return;
  const int64_t id = p.op.ids[token];
  const bool known = id >= 0 && id < p.op.vocab;
  const bf16* table = p.op.table.values;
  const bf16* source = table + (known ? id : 0) * p.op.width;
  bf16* target = p.op.out + token * p.op.width;
  constexpr int kStep = kPieces ? kPiece : 1;
  for (int64_t i = static_cast<int>(threadIdx.x) % row_threads * kStep; i < p.op.width;
       i += row_threads * kStep) {
    if constexpr (kPieces) {
      constexpr uint32_t kNans = 0x7fff7fff;
      uint4 piece = {kNans, kNans, kNans, kNans};
      if (known) {
        if constexpr (kCode == WeightCode::kBf16) {
          piece = load_piece(source + i);
        } else {
          piece = decoded_piece<kCode>(p.codes, table, id, i);
        }
      }
      store_piece(target + i, piece);
    } else {
      target[i] = known ? source[i] : gpu::to_bf16(gpu::bits_to_float(0x7fc00000));
    }
  }
}

// ---- rms_norm -----------------------------------------------------------------------------------

// Sum over the kWarps warps that share a row, the same bits in each of their threads.
template <int kWarps>
GPU float row_sum(float x, uint8_t* shared) {
  using namespace gpu;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  if constexpr (kWarps == 1) return x;
  auto* sums = reinterpret_cast<float*>(shared);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  sync_threads();
  float total = sums[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) total += sums[warp];
  return total;
}

// A row per kWarps warps, held in registers: its width is at most kWarps * 32 * kPiece * kHeld.
template <int kWarps, int kHeld>
KERNEL(256, 4)
norm_held_kernel(const GRID_CONST NormParams p) {
  SHARED(smem);
  gpu::begin_dependent();
  constexpr int kRowThreads = 32 * kWarps;
  static_assert(kWarps == 1 || kWarps == 8);
  const int lane = static_cast<int>(threadIdx.x) % kRowThreads;
  const int64_t row =
      int64_t{blockIdx.x} * (256 / kRowThreads) + static_cast<int>(threadIdx.x) / kRowThreads;
  if (row >= p.n_rows) return;  // whole warps
  const bf16* x = p.x + row * p.width;
  uint4 held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = (i * kRowThreads + lane) * kPiece;
    held[i] = at < p.width ? load_piece(x + at) : uint4{0, 0, 0, 0};
  }
  uint4 weight[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = (i * kRowThreads + lane) * kPiece;
    weight[i] = at < p.width ? load_piece(p.weight + at) : uint4{0, 0, 0, 0};
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    float values[kPiece];
    unpack(held[i], values);
    sum = square_sum(values, sum);
  }
  const float scale = norm_scale(row_sum<kWarps>(sum, smem), p.width, p.eps);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = (i * kRowThreads + lane) * kPiece;
    if (at >= p.width) break;
    float values[kPiece], weights[kPiece];
    unpack(held[i], values);
    unpack(weight[i], weights);
#pragma unroll
    for (int j = 0; j < kPiece; ++j) values[j] = gpu::mul_rn(values[j] * scale, weights[j]);
    if (p.added != nullptr) {
      float added[kPiece];
      unpack(load_piece(p.added + row * p.width + at), added);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) values[j] = added[j] + values[j];
    }
    store_piece(p.out + row * p.width + at, pack(values));
  }
}

// Any width, any address: a row per block, read twice.
KERNEL(256, 4) norm_any_kernel(const GRID_CONST NormParams p) {
  SHARED(smem);
  gpu::begin_dependent();
  const bf16* x = p.x + int64_t{blockIdx.x} * p.width;
  const bf16* added = p.added != nullptr ? p.added + int64_t{blockIdx.x} * p.width : nullptr;
  bf16* out = p.out + int64_t{blockIdx.x} * p.width;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < p.width; i += 256) {
    const float value = gpu::to_float(x[i]);
    sum = fmaf(value, value, sum);
  }
  const float scale = norm_scale(row_sum<8>(sum, smem), p.width, p.eps);
  for (int64_t i = threadIdx.x; i < p.width; i += 256) {
    const float normed = gpu::mul_rn(gpu::to_float(x[i]) * scale, gpu::to_float(p.weight[i]));
    out[i] = gpu::to_bf16(added != nullptr ? gpu::to_float(added[i]) + normed : normed);
  }
}

// ---- swiglu -------------------------------------------------------------------------------------

// A thread per piece; with kPieces false, and for the rest of n / 8, per channel.
template <bool kPieces>
KERNEL(256, 4)
swiglu_kernel(const GRID_CONST SwigluParams p) {
  using namespace gpu;
  begin_dependent();
  int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if constexpr (kPieces) {
    const int64_t n_pieces = p.n / kPiece;
    if (i < n_pieces) {
      float gate[kPiece], up[kPiece];
      unpack(load_piece(p.gate + i * kPiece), gate);
      unpack(load_piece(p.up + i * kPiece), up);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) gate[j] = mul_rn(silu(gate[j]), up[j]);
      store_piece(p.out + i * kPiece, pack(gate));
      return;
    }
    i += n_pieces * (kPiece - 1);
  }
  if (i < p.n) p.out[i] = to_bf16(mul_rn(silu(to_float(p.gate[i])), to_float(p.up[i])));
}

// ---- token_logprobs -----------------------------------------------------------------------------

// sum = sum of exp(x - max) over what has been seen; nothing finite or infinite seen: max = -inf.
struct ExpSum {
  float max;
  double sum;
};
GPU void add(ExpSum& a, float x) {
  if (x > a.max) {
    if (a.sum != 0) a.sum *= exp(static_cast<double>(a.max) - static_cast<double>(x));
    a.max = x;
  }
  // -inf adds nothing, also while there is no maximum to subtract; NaN stays.
  if (x != -gpu::kInf) a.sum += static_cast<double>(expf(x - a.max));
}
GPU ExpSum merge(const ExpSum& a, const ExpSum& b) {
  const float max = fmaxf(a.max, b.max);
  const auto scaled = [&](const ExpSum& e) {
    return e.sum == 0 ? 0.0 : e.sum * exp(static_cast<double>(e.max) - static_cast<double>(max));
  };
  return {max, scaled(a) + scaled(b)};
}

inline constexpr int kLogprobThreads = 512;

// A block per row: thread t adds up columns t, t + 512, .., then halves meet in a fixed tree.
KERNEL(kLogprobThreads, 2) logprob_kernel(const GRID_CONST LogprobParams p) {
  using namespace gpu;
  SHARED(smem);
  const int tid = threadIdx.x;
  const int64_t row = blockIdx.x;
  const float* x = p.logits + row * p.vocab;
  ExpSum own{-kInf, 0.0};
  constexpr int kAhead = 8;
  int64_t i = tid;
  for (; i + (kAhead - 1) * kLogprobThreads < p.vocab; i += kAhead * kLogprobThreads) {
    float values[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) values[a] = x[i + a * kLogprobThreads];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) add(own, values[a]);
  }
  for (; i < p.vocab; i += kLogprobThreads) add(own, x[i]);

  auto* sums = reinterpret_cast<ExpSum*>(smem);
  sums[tid] = own;
  for (int half = kLogprobThreads / 2; half > 0; half /= 2) {
    sync_threads();
    if (tid < half) sums[tid] = merge(sums[tid], sums[tid + half]);
  }
  if (tid == 0) {
    const int64_t target = p.targets[row];
    const bool known = target >= 0 && target < p.vocab;
    const double logit = known ? static_cast<double>(x[target]) : 0.0;
    const double logprob = logit - static_cast<double>(sums[0].max) - log(sums[0].sum);
    p.logprobs[row] = known ? logprob : static_cast<double>(bits_to_float(0x7fc00000));
  }
}

}  // namespace tiercel::cuda
