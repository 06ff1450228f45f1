// Prefill selection around score.cuh: mean queries before it, the best k of every (block, KV head)
// after it.
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/score.cuh"
#include "kernels/top_k_pieces.cuh"

namespace tiercel::cuda {

inline constexpr int kQueryThreads = 128;

struct BlockMeanParams {
  const bf16* q;  // [n_tokens][n_heads][head_dim]
  bf16* means;    // [n_kv_heads][n_blocks][padded_group][head_dim]
  int64_t n_tokens, block_tokens, first_block, n_blocks;
  int32_t n_heads, n_kv_heads, head_dim;
  int32_t first_head, group, padded_group;  // heads first_head .. + group - 1 of each KV head
};

// A thread sums two elements of a head over a block's tokens, in their order. Grid: (n_blocks *
// padded_group, n_kv_heads). Rows that pad a group are zero.
KERNEL(kQueryThreads, 8) mean_of_blocks(const GRID_CONST BlockMeanParams p) {
  using namespace gpu;
  const int64_t block = blockIdx.x / p.padded_group, kv_head = blockIdx.y;
  const int32_t head = static_cast<int32_t>(blockIdx.x) % p.padded_group;
  const int64_t begin = (p.first_block + block) * p.block_tokens;
  const int64_t end = begin + p.block_tokens < p.n_tokens ? begin + p.block_tokens : p.n_tokens;
  const int64_t row = int64_t{p.n_heads} * p.head_dim;
  const int64_t heads_before = kv_head * (p.n_heads / p.n_kv_heads) + p.first_head + head;
  bf16* mean = p.means + ((kv_head * p.n_blocks + block) * p.padded_group + head) * p.head_dim;
  for (int32_t i = static_cast<int32_t>(threadIdx.x) * 2; i < p.head_dim; i += 2 * kQueryThreads) {
    float low = 0, high = 0;
    if (head < p.group) {
      const bf16* q = p.q + begin * row + heads_before * p.head_dim + i;
#pragma unroll 8
      for (int64_t t = begin; t < end; ++t, q += row) {
        const uint32_t pair = *reinterpret_cast<const uint32_t*>(q);
        low += low_float(pair);
        high += high_float(pair);
      }
    }
    const float n = static_cast<float>(end - begin);
    *reinterpret_cast<uint32_t*>(mean + i) = pack_bf16(low / n, high / n);
  }
}

struct PrefillRankParams {
  const float* scores;  // [n_blocks][n_kv_heads][stride], of chunks from origin on
  float* maxima;        // [n_blocks][n_kv_heads]: of pieces, then room for a list of pieces
  int64_t stride, maximum_stride;
  int64_t origin;
  PrefillBlocks blocks;
  int64_t first_block;
  int32_t n_kv_heads;
  int32_t* chunk_ids;  // [..][n_kv_heads][sink_chunks + k]
  int32_t* chunk_counts;
  int64_t* local_begin;
};

// One block per (block of queries, KV head).
KERNEL(kPieceThreads, 1) rank_prefill(const GRID_CONST PrefillRankParams p) {
  SHARED(smem);
  PieceShared& s = *reinterpret_cast<PieceShared*>(smem);
  const int64_t block = p.first_block + blockIdx.x / p.n_kv_heads;
  const int64_t list = p.first_block * p.n_kv_heads + blockIdx.x;
  const int64_t n_before = p.blocks.chunks_before(block);
  const int64_t width = p.blocks.sink_chunks + p.blocks.k;
  const bool takes_all = p.blocks.takes_all(block);
  int32_t* ids = p.chunk_ids + list * width;
  const int64_t most = takes_all ? width : p.blocks.sink_chunks;
  const int64_t n_first = n_before < most ? n_before : most;
  for (int64_t i = threadIdx.x; i < n_first; i += kPieceThreads) ids[i] = static_cast<int32_t>(i);
  if (threadIdx.x == 0 && blockIdx.x % p.n_kv_heads == 0) {
    p.local_begin[block] = n_before * p.blocks.chunk_tokens;
  }
  int64_t n_best = 0;
  if (!takes_all) {
    float* maxima = p.maxima + blockIdx.x * p.maximum_stride;
    PieceRow row{};
    row.scores = p.scores + blockIdx.x * p.stride;
    row.maxima = maxima;
    row.n = static_cast<int32_t>(n_before - p.origin);
    row.k = static_cast<int32_t>(p.blocks.k);
    row.listed = reinterpret_cast<int32_t*>(maxima + p.maximum_stride / 2);
    row.binning = Binning::kLog2;
    reinterpret_cast<uint4*>(s.bins)[threadIdx.x] = uint4{0, 0, 0, 0};
    fill_maxima(row, maxima);
    const int32_t origin = static_cast<int32_t>(p.origin);
    int32_t* best = ids + n_first;
    const auto emit = [&](uint32_t i, int32_t index) { best[i] = origin + index; };
    n_best = choose_best(
        row, s, [](int32_t) {}, emit);
  }
  if (threadIdx.x == 0) p.chunk_counts[list] = static_cast<int32_t>(n_first + n_best);
}

}  // namespace tiercel::cuda
