// Turning heads by their position: the angle addition of RopeView, and the kernel of rope_append.
//
// The products and sums are those of cpu/elementwise_avx*.cpp, so that a head turned here has the
// bits of one turned there.
#pragma once

#include "engine/base/ops.h"
#include "kernels/clock.cuh"
#include "kernels/gpu.cuh"
#include "kernels/joint_launch.cuh"
#include "kernels/piece.cuh"

namespace tiercel::cuda {

struct Angle {
  float cos, sin;
};
// Of channel pair i at a position.
GPU Angle rope_angle(const RopeView& rope, int64_t position, int i) {
  const int64_t coarse = position / kRopeFine * rope.half + i;
  const int64_t fine = position % kRopeFine * rope.half + i;
  const float ac = rope.coarse_cos[coarse], as = rope.coarse_sin[coarse];
  const float bc = rope.fine_cos[fine], bs = rope.fine_sin[fine];
  return {fmaf(-as, bs, gpu::mul_rn(ac, bc)), fmaf(as, bc, gpu::mul_rn(ac, bs))};
}
// (low, high), channels i and i + half of a head, turned.
GPU void turn(float& low, float& high, Angle a) {
  const float before = low;
  low = fmaf(-high, a.sin, gpu::mul_rn(before, a.cos));
  high = fmaf(before, a.sin, gpu::mul_rn(high, a.cos));
}

// Rows are tokens; or, where there are views and queries only, all tokens of one view after the other.
struct RopeKernelParams {
  RopeAppendParams op;
  int64_t n_rows;
  int rows_per_block;
  int lanes_per_head;  // a power of two, at most 32
};

GPU int64_t rope_position(const RopeAppendParams& p, int64_t row, int64_t later) {
  if (p.n_views == 0) return p.first_position + later + row;
  const int64_t position = p.first_position + later + row % p.n_tokens;
  const int64_t span = p.first_span + row / p.n_tokens;
  const int64_t limit = (span + 1) * p.spans.tokens + p.spans.local;  // QuerySpans::limit_of
  return position < limit ? position : limit;
}

// The heads of a token in one numbering: the queries, then the keys, then the values.
struct HeadPlace {
  const bf16* source = nullptr;
  bf16* target = nullptr;
  const bf16* norm = nullptr;
  bool turns = false;
  float still_scale = 1;  // of channels that do not turn
};
GPU HeadPlace place_of(const RopeAppendParams& p, int64_t token, int head, int64_t later) {
  const int64_t d = p.head_dim;
  if (p.n_views > 0) {
    const int64_t at = (token % p.n_tokens * p.n_heads + head) * d;
    bf16* view = p.views + token / p.n_tokens * p.view_stride;
    return {p.q + at, view + at, p.q_norm, true, p.rope.still_scale};
  }
  if (head < p.n_heads) {
    bf16* q = p.q + (token * p.n_heads + head) * d;
    return {q, q, p.q_norm, true, p.rope.still_scale};
  }
  const bool is_key = head < p.n_heads + p.n_kv_heads;
  const int j = head - p.n_heads - (is_key ? 0 : p.n_kv_heads);
  const int64_t in = (token * p.n_kv_heads + j) * d;
  const int64_t out = j * p.head_stride + (p.first_row + later + token) * d;
  if (is_key) return {p.k + in, p.keys + out, p.k_norm, true};
  return {p.v + in, p.values + out, nullptr, false};
}

GPU float lanes_sum(float x, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) x += gpu::shuffle_xor(x, mask);
  return x;
}

// Channels i .. i + 7 and half + i .. of a head, in two pieces.
struct HeadPieces {
  float low[kPiece], high[kPiece];
};
GPU void normalise(HeadPieces& x, const bf16* norm, int i, int half, float scale) {
  float weight[kPiece];
  unpack(load_piece(norm + i), weight);
#pragma unroll
  for (int j = 0; j < kPiece; ++j) x.low[j] = x.low[j] * scale * weight[j];
  unpack(load_piece(norm + half + i), weight);
#pragma unroll
  for (int j = 0; j < kPiece; ++j) x.high[j] = x.high[j] * scale * weight[j];
}

// One head by lanes_per_head threads, a piece pair each; lanes past the head only take part in
// sums.
GPU void move_pieces(const RopeKernelParams& p, const HeadPlace& head, int lane,
                     const float* cosines, const float* sines) {
  const int half = p.op.rope.half, i = lane * kPiece;
  const bool busy = i < half && head.source != nullptr;
  uint4 low{0, 0, 0, 0}, high{0, 0, 0, 0};
  if (busy) {
    low = load_piece(head.source + i);
    high = load_piece(head.source + half + i);
  }
  HeadPieces x;
  unpack(low, x.low);
  unpack(high, x.high);
  if (p.op.q_norm != nullptr || p.op.k_norm != nullptr) {  // the same in every lane
    const float own = square_sum(x.high, square_sum(x.low, 0));
    const float scale = norm_scale(lanes_sum(own, p.lanes_per_head), 2 * half, p.op.eps);
    if (busy && head.norm != nullptr) normalise(x, head.norm, i, half, scale);
  }
  if (!busy) return;
  if (head.turns) {
#pragma unroll
    for (int j = 0; j < kPiece; ++j) {
      const float still = i + j < p.op.rope.n_turning ? 1.0f : head.still_scale;
      turn(x.low[j], x.high[j], {cosines[i + j] * still, sines[i + j]});
    }
    low = pack(x.low);
    high = pack(x.high);
  }
  store_piece(head.target + i, low);
  store_piece(head.target + half + i, high);
}

// The same for any head dimension and any address, by a warp.
GPU void move_channels(const RopeKernelParams& p, const HeadPlace& head, int lane,
                       const float* cosines, const float* sines) {
  using namespace gpu;
  const int half = head.source != nullptr ? p.op.rope.half : 0;
  float scale = 1;
  if (p.op.q_norm != nullptr || p.op.k_norm != nullptr) {
    float own = 0;
    for (int i = lane; i < 2 * half; i += 32) {
      own = fmaf(to_float(head.source[i]), to_float(head.source[i]), own);
    }
    scale = norm_scale(lanes_sum(own, 32), 2 * p.op.rope.half, p.op.eps);
  }
  for (int i = lane; i < half; i += 32) {
    float low = to_float(head.source[i]), high = to_float(head.source[half + i]);
    if (head.norm != nullptr) {
      low = low * scale * to_float(head.norm[i]);
      high = high * scale * to_float(head.norm[half + i]);
    }
    const float still = i < p.op.rope.n_turning ? 1.0f : head.still_scale;
    if (head.turns) turn(low, high, {cosines[i] * still, sines[i]});
    head.target[i] = to_bf16(low);
    head.target[half + i] = to_bf16(high);
  }
}

inline constexpr int kRopeThreads = 256;

// The blocks of one blockIdx.x share rows_per_block rows: first the angles, then the heads.
template <bool kPieces>
GPU void rope_append(const RopeKernelParams& p) {
  SHARED(smem);
  const int tid = threadIdx.x, half = p.op.rope.half;
  const int64_t first = int64_t{blockIdx.x} * p.rows_per_block;
  const int64_t left = p.n_rows - first;
  const int n_rows = left < p.rows_per_block ? static_cast<int>(left) : p.rows_per_block;
  auto* cosines = reinterpret_cast<float*>(smem);  // [n_rows][half]
  float* sines = cosines + p.rows_per_block * half;
  // The clock moves between steps; the layer's projection is what precedes this kernel.
  const int64_t later = steps_later(p.op.later);
  for (int i = tid; i < n_rows * half; i += kRopeThreads) {
    const Angle a = rope_angle(p.op.rope, rope_position(p.op, first + i / half, later), i % half);
    cosines[i] = a.cos;
    sines[i] = a.sin;
  }
  gpu::begin_dependent();
  gpu::sync_threads();

  const int lanes = p.lanes_per_head, lane = tid % lanes;
  const int n_heads = p.op.n_heads + 2 * p.op.n_kv_heads, n_places = n_rows * n_heads;
  // Every lane of a warp makes the same number of turns, as sums need all of them.
  const int at_once = kRopeThreads / lanes;
  for (int base = blockIdx.y * at_once; base < n_places; base += gridDim.y * at_once) {
    const int place = base + tid / lanes;
    const int row = place < n_places ? place / n_heads : 0;
    HeadPlace head;
    if (place < n_places) head = place_of(p.op, first + row, place % n_heads, later);
    if constexpr (kPieces) {
      move_pieces(p, head, lane, cosines + row * half, sines + row * half);
    } else {
      move_channels(p, head, lane, cosines + row * half, sines + row * half);
    }
  }
}
template <bool kPieces>
struct RopeAppend : JointKernel<RopeKernelParams, kRopeThreads, 4> {
  GPU static void run(const RopeKernelParams& p, const JointGrid&) { rope_append<kPieces>(p); }
};

}  // namespace tiercel::cuda
