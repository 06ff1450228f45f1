// The kernels of fetch: gathers from mapped host memory into slots.
//
// The bus is 55 GB/s with a latency of 1.3 us or more: some 100 KiB must be on their way at any
// time, in all blocks together. Both kernels are loops of warps over one list of parts:
//
//   part = ((miss of head j, misses in order) * n_kinds + kind) * n_parts + n     kind: keys,
//   values
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"

namespace tiercel::cuda {

inline constexpr int kFetchWarps = 4;
inline constexpr int kFetchLine = 512;  // bytes that a warp loads at once

struct FetchKernelParams {
  FetchParams op;
  int64_t piece_bytes = 0;  // one chunk of one head, keys or values
  int32_t part_bytes = 0;   // a piece is cut into parts of at most this
  int32_t n_parts = 0;      // of a piece
  int32_t n_kinds = 0;      // 1: values, 2: keys and values
  int32_t n_stages = 0;     // of a ring
};

// first[j] = parts before KV head j; first[n_kv_heads] = all of them. For the whole block.
GPU void list_parts(const FetchKernelParams& p, int32_t* first) {
  const int n = p.op.n_kv_heads;
  for (int j = threadIdx.x; j < n; j += kFetchWarps * 32) {
    first[j + 1] = p.op.miss_counts[j] * p.n_kinds * p.n_parts;
  }
  gpu::sync_threads();
  if (threadIdx.x == 0) {
    first[0] = 0;
    for (int j = 0; j < n; ++j) first[j + 1] += first[j];
  }
  gpu::sync_threads();
}

struct FetchPart {
  const uint8_t* source;
  uint8_t* target;
  int32_t bytes;
};
GPU FetchPart locate_part(const FetchKernelParams& p, const int32_t* first, int32_t part) {
  int low = 0, high = p.op.n_kv_heads;  // the head: first[low] <= part < first[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first[middle] <= part ? low : high) = middle;
  }
  const int32_t in_head = part - first[low];
  const int32_t piece = in_head / p.n_parts, n = in_head - piece * p.n_parts;
  const int32_t miss = piece / p.n_kinds;
  const bool is_value = piece - miss * p.n_kinds == p.n_kinds - 1;
  const int64_t at = low * p.op.stride + miss;
  const int64_t begin = int64_t{n} * p.part_bytes, left = p.piece_bytes - begin;
  const bf16* plane = is_value ? p.op.values : p.op.keys;
  const int64_t chunk = p.op.miss_chunks[at], slot = p.op.miss_slots[at];
  const int64_t head_stride = is_value ? p.op.value_head_stride : p.op.key_head_stride;
  return {reinterpret_cast<const uint8_t*>(plane + low * head_stride) +
              chunk * p.piece_bytes + begin,
          reinterpret_cast<uint8_t*>(p.op.slots + low * p.op.slot_head_stride) +
              (2 * slot + (is_value ? 1 : 0)) * p.piece_bytes + begin,
          static_cast<int32_t>(left < p.part_bytes ? left : p.part_bytes)};
}

// kDepth lines at a time: their places, their loads, their stores.
template <int kDepth>
KERNEL(kFetchWarps * 32, 1)
fetch_direct_kernel(const GRID_CONST FetchKernelParams p) {
  using namespace gpu;
  SHARED(smem);
  auto* first = reinterpret_cast<int32_t*>(smem);
  list_parts(p, first);
  const int warp = threadIdx.x / 32, offset = threadIdx.x % 32 * 16;
  const int n_workers = gridDim.x * kFetchWarps, me = blockIdx.x * kFetchWarps + warp;
  const int32_t total = first[p.op.n_kv_heads];
  for (int64_t batch = int64_t{me} * kDepth; batch < total; batch += int64_t{n_workers} * kDepth) {
    uint8_t* target[kDepth];
    const uint8_t* source[kDepth];
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      target[i] = nullptr;
      if (batch + i >= total) continue;
      const FetchPart part = locate_part(p, first, static_cast<int32_t>(batch) + i);
      source[i] = part.source + offset;
      if (offset < part.bytes) target[i] = part.target + offset;
    }
    uint4 data[kDepth];
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      if (target[i] != nullptr) data[i] = load_host(source[i]);
    }
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      if (target[i] != nullptr) *reinterpret_cast<uint4*>(target[i]) = data[i];
    }
  }
}

// Any alignment and length: two bytes per lane.
KERNEL(kFetchWarps * 32, 1) fetch_elements_kernel(const GRID_CONST FetchKernelParams p) {
  SHARED(smem);
  auto* first = reinterpret_cast<int32_t*>(smem);
  list_parts(p, first);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int32_t total = first[p.op.n_kv_heads];
  for (int64_t i = blockIdx.x * kFetchWarps + warp; i < total; i += gridDim.x * kFetchWarps) {
    const FetchPart part = locate_part(p, first, static_cast<int32_t>(i));
    const auto* source = reinterpret_cast<const bf16*>(part.source);
    auto* target = reinterpret_cast<bf16*>(part.target);
    for (int e = lane; e < part.bytes / 2; e += 32) target[e] = source[e];
  }
}

// Shared memory: the rings [warps][n_stages][part_bytes], their barriers, the list of parts.
KERNEL(kFetchWarps * 32, 1) fetch_bulk_kernel(const GRID_CONST FetchKernelParams p) {
#if TIERCEL_HOPPER_BODY
  using namespace gpu;
  SHARED(smem);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_stages = p.n_stages;
  uint8_t* ring = smem + warp * n_stages * p.part_bytes;
  auto* bars = reinterpret_cast<uint64_t*>(smem + kFetchWarps * n_stages * p.part_bytes);
  auto* first = reinterpret_cast<int32_t*>(bars + kFetchWarps * n_stages);
  uint64_t* full = bars + warp * n_stages;
  if (lane == 0) {
    for (int i = 0; i < n_stages; ++i) mbar_init(full + i, 1);
    mbar_fence_init();
  }
  list_parts(p, first);

  const int32_t total = first[p.op.n_kv_heads];
  const int64_t step = int64_t{gridDim.x} * kFetchWarps;
  const auto issue = [&](int64_t part, int stage) {
    if (part >= total || lane != 0) return;
    const FetchPart place = locate_part(p, first, static_cast<int32_t>(part));
    mbar_expect_bytes(full + stage, static_cast<uint32_t>(place.bytes));
    copy_bulk(ring + stage * p.part_bytes, place.source, static_cast<uint32_t>(place.bytes),
              full + stage);
  };
  int64_t part = blockIdx.x * kFetchWarps + warp, ahead = part;
  for (int i = 0; i < n_stages - 1; ++i, ahead += step) issue(ahead, i);

  uint32_t parity = 0;
  for (int stage = 0; part < total; part += step, ahead += step) {
    // The stage before this one was read in the last turn: it is the next to be filled.
    issue(ahead, stage == 0 ? n_stages - 1 : stage - 1);
    const FetchPart place = locate_part(p, first, static_cast<int32_t>(part));
    mbar_wait(full + stage, parity);
    const auto* source = reinterpret_cast<const uint4*>(ring + stage * p.part_bytes);
    auto* target = reinterpret_cast<uint4*>(place.target);
#pragma unroll 4
    for (int i = lane; i < place.bytes / 16; i += 32) target[i] = source[i];
    sync_warp();
    if (++stage == n_stages) {
      stage = 0;
      parity ^= 1;
    }
  }
#endif
}

}  // namespace tiercel::cuda
