// The kernel of key_weights: a block per range of tokens, KV head and up to eight of its query
// heads.
//
// Eight lanes share a key, four keys share a warp's step, and a lane has four keys at once, whose
// loads are all in flight and which take a piece of a query from shared memory together:
//
//   lane   0 .. 7     8 .. 15    16 .. 23   24 .. 31
//   key    0 .. 3     4 .. 7     8 .. 11    12 .. 15     of a warp's sixteen; four warps a range
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/piece.cuh"

namespace tiercel::cuda::weights {

inline constexpr int kWarps = 4;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kLanes = 8;  // of one key
inline constexpr int kKeys = 4;   // of one lane
static_assert(kWarps * 32 / kLanes * kKeys == kWeightRange);

struct Params {
  KeyWeightsParams op;
  float scale = 0;       // from q . k to log2
  int32_t n_pieces = 0;  // of a row, the last one filled up with zeros
  bool whole = false;    // pieces are aligned and whole
  bool pairs = false;    // two weights of a range are an aligned word
};

struct Shared {
  int64_t offsets[kWeightRange];  // of keys from the KV head's first, at the end the last one's
  float bias[kWeightRange];
  float scores[8][kWeightRange];
};
// Behind it the queries in fp32, [heads][2][pieces][4]: the first halves of all pieces, then the
// second ones, so that eight lanes read from all banks.

// Lane's share of the sums over kLanes lanes of kN values each: kN / kLanes of them, at least one,
// first_sum() on. Every round halves the values.
template <int kN>
GPU void sum_lanes(float (&x)[kN], int lane) {
  int n = kN;
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    if (n > 1) {
      n /= 2;
      const bool upper = (lane & mask) != 0;
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) {
        if (i >= n) break;
        const float other = gpu::shuffle_xor(upper ? x[i] : x[i + n], mask);
        x[i] = (upper ? x[i + n] : x[i]) + other;
      }
    } else {
      x[0] += gpu::shuffle_xor(x[0], mask);
    }
  }
}
template <int kN>
GPU int first_sum(int lane) {
  return kN >= kLanes ? lane * (kN / kLanes) : lane / (kLanes / kN);
}

// Piece i of a key.
GPU uint4 load_key(const Params& p, const bf16* key, int i) {
  if (p.whole) return gpu::load_once(key + i * kPiece);
  uint32_t words[4] = {};
#pragma unroll
  for (int e = 0; e < kPiece; ++e) {
    const int column = i * kPiece + e;
    if (column < p.op.head_dim) words[e / 2] |= uint32_t{key[column].bits} << (e % 2 * 16);
  }
  return {words[0], words[1], words[2], words[3]};
}

// Where the keys of a range are, what is added to their scores, and the queries.
template <int kHeads>
GPU void prepare(const Params& p, int kv_head, int first_head, int n_heads, int begin, int n,
                 Shared& shared, float* queries) {
  const int tid = static_cast<int>(threadIdx.x), width = p.n_pieces * kPiece;
  const KvSource& source = p.op.keys;
  if (tid < kWeightRange) {
    const int token = begin + (tid < n ? tid : n - 1);
    const int chunk = token / source.chunk_tokens, row = token - chunk * source.chunk_tokens;
    int64_t id = source.ids[kv_head * source.ids_stride + chunk];
    shared.offsets[tid] = id * source.chunk_stride + row * source.token_stride;
    float bias = source.bias;
    if (source.key_bias != nullptr) {
      if (source.bias_chunks != nullptr) {
        id = source.bias_chunks[kv_head * source.bias_chunks_stride + id];
      }
      bias +=
          source.key_bias[kv_head * source.key_bias_head_stride + id * source.chunk_tokens + row];
    }
    shared.bias[tid] = bias;
  }
  for (int i = tid; i < kHeads * width; i += kThreads) {
    const int head = i / width, column = i - head * width;
    float x = 0.0f;
    if (head < n_heads && column < p.op.head_dim) {
      x = gpu::to_float(p.op.q[int64_t{first_head + head} * p.op.head_dim + column]);
    }
    const int piece = column / kPiece, e = column % kPiece;
    queries[head * width + (e / 4 * p.n_pieces + piece) * 4 + e % 4] = x;
  }
}

// Scores of a range, without what is added to them.
template <int kHeads>
GPU void score(const Params& p, int kv_head, Shared& shared, const float* queries) {
  constexpr int kSums = kHeads * kKeys;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kLanes;
  const int first_key = tid / kLanes * kKeys;
  const bf16* keys[kKeys];
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    keys[k] = p.op.keys.keys + kv_head * p.op.keys.head_stride + shared.offsets[first_key + k];
  }
  float sums[kSums] = {};
#pragma unroll 1
  for (int piece = lane; piece < p.n_pieces; piece += kLanes) {
    uint4 words[kKeys];
#pragma unroll
    for (int k = 0; k < kKeys; ++k) words[k] = load_key(p, keys[k], piece);
    float x[kKeys][kPiece];
#pragma unroll
    for (int k = 0; k < kKeys; ++k) unpack(words[k], x[k]);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const auto* q = reinterpret_cast<const float4*>(queries) + h * 2 * p.n_pieces + piece;
      const float4 low = q[0], high = q[p.n_pieces];
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
        float sum = sums[h * kKeys + k];
        sum = fmaf(low.x, x[k][0], sum);
        sum = fmaf(low.y, x[k][1], sum);
        sum = fmaf(low.z, x[k][2], sum);
        sum = fmaf(low.w, x[k][3], sum);
        sum = fmaf(high.x, x[k][4], sum);
        sum = fmaf(high.y, x[k][5], sum);
        sum = fmaf(high.z, x[k][6], sum);
        sum = fmaf(high.w, x[k][7], sum);
        sums[h * kKeys + k] = sum;
      }
    }
  }
  sum_lanes<kSums>(sums, lane);
  constexpr int kOwn = kSums > kLanes ? kSums / kLanes : 1;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int at = first_sum<kSums>(lane) + i;
    shared.scores[at / kKeys][first_key + at % kKeys] = sums[i];
  }
}

// Grid: ranges, KV heads, eights of the heads of a group.
template <int kHeads>
KERNEL(kThreads, 4)
key_weights_kernel(const GRID_CONST Params p) {
  using namespace gpu;
  SHARED(smem);
  begin_dependent();
  Shared& shared = *reinterpret_cast<Shared*>(smem);
  auto* queries = reinterpret_cast<float*>(smem + sizeof(Shared));
  const int range = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int begin = range * kWeightRange;
  const int left = p.op.keys.counts[kv_head] * p.op.keys.chunk_tokens - begin;
  if (left <= 0) return;
  const int n = left < kWeightRange ? left : kWeightRange;
  const int group = p.op.n_heads / p.op.n_kv_heads, skipped = static_cast<int>(blockIdx.z) * kHeads;
  const int first_head = kv_head * group + skipped;
  const int n_heads = group - skipped < kHeads ? group - skipped : kHeads;

  prepare<kHeads>(p, kv_head, first_head, n_heads, begin, n, shared, queries);
  sync_threads();
  score<kHeads>(p, kv_head, shared, queries);
  sync_threads();

  // A warp per head: a lane has two neighbours, so that a warp writes whole lines.
  const int lane = static_cast<int>(threadIdx.x) % 32, token = 2 * lane;
  for (int h = static_cast<int>(threadIdx.x) / 32; h < n_heads; h += kWarps) {
    float s[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      s[i] = token + i < n ? fmaf(shared.scores[h][token + i], p.scale, shared.bias[token + i])
                           : -kInf;
    }
    float max = fmaxf(fmaxf(s[0], s[1]), -kInf);  // not NaN
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) max = fmaxf(max, shuffle_xor(max, mask));
    const float base = max == -kInf ? 0.0f : max;
    const uint32_t pair = pack_bf16(exp2_fast(s[0] - base), exp2_fast(s[1] - base));
    bf16* target = p.op.weights + (first_head + h) * p.op.weight_stride + begin + token;
    if (p.pairs && token + 1 < n) {
      *reinterpret_cast<uint32_t*>(target) = pair;
    } else {
      if (token < n) target[0].bits = static_cast<uint16_t>(pair);
      if (token + 1 < n) target[1].bits = static_cast<uint16_t>(pair >> 16);
    }
    if (lane == 0) p.op.maxima[(first_head + h) * p.op.maximum_stride + range] = max;
  }
}

}  // namespace tiercel::cuda::weights
