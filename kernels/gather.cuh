// Copies of chunks, and the first order of slots.
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"

namespace tiercel::cuda {

inline constexpr int kGatherThreads = 128;

// One block per (chunk, KV head, plane). Word: 16 bytes where everything is a multiple of that.
template <typename Word>
KERNEL(kGatherThreads, 8)
copy_chunks(const GRID_CONST GatherParams p) {
  const int64_t i = blockIdx.x, head = blockIdx.y;
  const int64_t chunk = int64_t{p.chunk_tokens} * p.head_dim;
  const bf16* plane = blockIdx.z == 0 ? p.keys : p.values;
  bf16* out = blockIdx.z == 0 ? p.out_keys : p.out_values;
  const int64_t id = p.ids[head * p.n_ids + i];
  const Word* source = reinterpret_cast<const Word*>(plane + head * p.head_stride + id * chunk);
  Word* target = reinterpret_cast<Word*>(out + head * p.out_head_stride + i * chunk);
  const int64_t n = chunk / static_cast<int64_t>(sizeof(Word) / sizeof(bf16));
  for (int64_t at = threadIdx.x; at < n; at += kGatherThreads) target[at] = source[at];
}

struct OrderParams {
  int32_t* order;  // [n_kv_heads][n_slots]
  int64_t n_slots;
};

KERNEL(kGatherThreads, 8) count_up(const GRID_CONST OrderParams p) {
  const int64_t i = int64_t{blockIdx.x} * kGatherThreads + threadIdx.x;
  if (i < p.n_slots) p.order[blockIdx.y * p.n_slots + i] = static_cast<int32_t>(i);
}

}  // namespace tiercel::cuda
