// The kernels of fetch: gathers from mapped host memory into slots.
//
// The bus is 55 GB/s with a latency of 1.3 us or more: some 100 KiB must be on their way at any
// time, in all blocks together. The kernels are loops of warps over one list of parts:
//
//   part = ((miss of list j, misses in order) * n_kinds + kind) * n_parts + n     kind: keys,
//   values
//
// List j is of KV head j % n_kv_heads of fetch j / n_kv_heads: one launch serves several stores.
#pragma once

#include "engine/base/ops.h"
#include "kernels/block_scan.cuh"
#include "kernels/coded_row.cuh"
#include "kernels/gpu.cuh"
#include "kernels/lowrank.cuh"

namespace tiercel::cuda {

inline constexpr int kFetchWarps = 4;
inline constexpr int kFetchLine = 512;  // bytes that a warp loads at once

// What the fetches of one launch have in common, and each for itself.
template <int kMost>
struct FetchBatch {
  FetchParams ops[kMost];
  int32_t n_ops = 0;
  int32_t n_kv_heads = 0, chunk_tokens = 0;

  GPU int n_lists() const { return n_ops * n_kv_heads; }
};

template <int kMost>
struct FetchKernelParams {
  FetchBatch<kMost> batch;
  int64_t piece_bytes = 0;  // one chunk of one head, keys or values
  int32_t part_bytes = 0;   // a piece is cut into parts of at most this
  int32_t n_parts = 0;      // of a piece
  int32_t n_kinds = 0;      // 1: keys or values, 2: both
  int32_t value_kind = 0;   // which kind values are, the last; 1 with one kind: there are none
  int32_t n_stages = 0;     // of a ring
};

// first[j] = parts before list j; first[n_lists] = all of them. For the whole block.
template <int kMost>
GPU void list_parts(const FetchBatch<kMost>& p, int32_t parts_per_miss, int32_t* first) {
  const int n = p.n_lists();
  for (int j = threadIdx.x; j < n; j += kFetchWarps * 32) {
    first[j + 1] = p.ops[j / p.n_kv_heads].miss_counts[j % p.n_kv_heads] * parts_per_miss;
  }
  gpu::sync_threads();
  if (threadIdx.x < 32) {  // each lane adds up its share, then what comes before it
    const int lane = static_cast<int>(threadIdx.x), share = (n + 31) / 32;
    const int begin = lane * share < n ? lane * share : n;
    const int end = begin + share < n ? begin + share : n;
    int32_t sum = 0;
    for (int j = begin; j < end; ++j) sum += first[j + 1];
    int32_t before = static_cast<int32_t>(warp_scan(static_cast<uint32_t>(sum))) - sum;
    if (lane == 0) first[0] = 0;
    for (int j = begin; j < end; ++j) first[j + 1] = before += first[j + 1];
  }
  gpu::sync_threads();
}

// The list of a part.
GPU int list_of_part(const int32_t* first, int n_lists, int32_t part) {
  int low = 0, high = n_lists;  // first[low] <= part < first[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first[middle] <= part ? low : high) = middle;
  }
  return low;
}

struct FetchPart {
  const uint8_t* source;
  uint8_t* target;
  int32_t bytes;
};
template <int kMost>
GPU FetchPart locate_part(const FetchKernelParams<kMost>& p, const int32_t* first, int32_t part) {
  const int list = list_of_part(first, p.batch.n_lists(), part);
  const FetchParams& op = p.batch.ops[list / p.batch.n_kv_heads];
  const int head = list % p.batch.n_kv_heads;
  const int32_t in_list = part - first[list];
  const int32_t piece = in_list / p.n_parts, n = in_list - piece * p.n_parts;
  const int32_t miss = piece / p.n_kinds;
  const bool is_value = piece - miss * p.n_kinds == p.value_kind;
  const int64_t at = head * op.stride + miss;
  const int64_t begin = int64_t{n} * p.part_bytes, left = p.piece_bytes - begin;
  const bf16* plane = is_value ? op.values : op.keys;
  const int64_t chunk = op.miss_chunks[at], slot = op.miss_slots[at];
  const int64_t head_stride = is_value ? op.value_head_stride : op.key_head_stride;
  return {reinterpret_cast<const uint8_t*>(plane + head * head_stride) +
              chunk * p.piece_bytes + begin,
          reinterpret_cast<uint8_t*>(op.slots + head * op.slot_head_stride) +
              (2 * slot + (is_value ? 1 : 0)) * p.piece_bytes + begin,
          static_cast<int32_t>(left < p.part_bytes ? left : p.part_bytes)};
}

// kDepth lines at a time: their places, their loads, their stores.
template <int kDepth, int kMost>
KERNEL(kFetchWarps * 32, 1)
fetch_direct_kernel(const GRID_CONST FetchKernelParams<kMost> p) {
  using namespace gpu;
  SHARED(smem);
  auto* first = reinterpret_cast<int32_t*>(smem);
  list_parts(p.batch, p.n_kinds * p.n_parts, first);
  const int warp = threadIdx.x / 32, offset = threadIdx.x % 32 * 16;
  const int n_workers = gridDim.x * kFetchWarps, me = blockIdx.x * kFetchWarps + warp;
  const int32_t total = first[p.batch.n_lists()];
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
template <int kMost>
KERNEL(kFetchWarps * 32, 1)
fetch_elements_kernel(const GRID_CONST FetchKernelParams<kMost> p) {
  SHARED(smem);
  auto* first = reinterpret_cast<int32_t*>(smem);
  list_parts(p.batch, p.n_kinds * p.n_parts, first);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int32_t total = first[p.batch.n_lists()];
  for (int64_t i = blockIdx.x * kFetchWarps + warp; i < total; i += gridDim.x * kFetchWarps) {
    const FetchPart part = locate_part(p, first, static_cast<int32_t>(i));
    const auto* source = reinterpret_cast<const bf16*>(part.source);
    auto* target = reinterpret_cast<bf16*>(part.target);
    for (int e = lane; e < part.bytes / 2; e += 32) target[e] = source[e];
  }
}

// Shared memory: the rings [warps][n_stages][part_bytes], their barriers, the list of parts.
template <int kMost>
KERNEL(kFetchWarps * 32, 1)
fetch_bulk_kernel(const GRID_CONST FetchKernelParams<kMost> p) {
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
  list_parts(p.batch, p.n_kinds * p.n_parts, first);

  const int32_t total = first[p.batch.n_lists()];
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

// ---- coded values -------------------------------------------------------------------------------

inline constexpr int kCodedDepth = 8;  // units that a lane loads before it waits for the first

// A part is part_rows rows of one missed chunk, made of whole units; a warp takes n_together parts
// at a time.
template <int kMost>
struct FetchCodesParams {
  FetchBatch<kMost> batch;
  RowFormat format;
  int32_t part_rows = 0;
  int32_t n_parts = 0;     // of a chunk
  int32_t n_together = 0;  // at most kCodedDepth * 32 units in all
  int32_t part_units = 0;
  bool slot_units = false;  // slots are made of aligned units of 16 bytes
};

struct CodedPart {
  const uint8_t* source;
  bf16* target;
  int32_t n_rows;
};
template <int kMost>
GPU CodedPart locate_coded(const FetchCodesParams<kMost>& p, const int32_t* first, int32_t part) {
  const int list = list_of_part(first, p.batch.n_lists(), part);
  const FetchParams& op = p.batch.ops[list / p.batch.n_kv_heads];
  const int head = list % p.batch.n_kv_heads;
  const int32_t in_list = part - first[list], miss = in_list / p.n_parts;
  const int32_t row = (in_list - miss * p.n_parts) * p.part_rows;
  const int64_t at = head * op.stride + miss, tokens = p.batch.chunk_tokens;
  const int64_t chunk = op.miss_chunks[at], slot = op.miss_slots[at];
  const int32_t left = p.batch.chunk_tokens - row;
  return {
      reinterpret_cast<const uint8_t*>(op.value_codes) + head * op.value_code_head_stride +
          (chunk * tokens + row) * p.format.bytes,
      op.slots + head * op.slot_head_stride + ((2 * slot + 1) * tokens + row) * p.format.width,
      left < p.part_rows ? left : p.part_rows};
}

GPU void load_unit_of_host(const uint8_t* p, uint4& unit) { unit = gpu::load_host(p); }
GPU void load_unit_of_host(const uint8_t* p, uint32_t& unit) {
  unit = *reinterpret_cast<const uint32_t*>(p);
}

// A warp's next parts are on their way while those before are decoded from shared memory.
// Shared memory: [warps][kCodedDepth * 32] units, the list of parts.
template <typename Unit, int kMost>
KERNEL(kFetchWarps * 32, 1)
fetch_codes_kernel(const GRID_CONST FetchCodesParams<kMost> p) {
  using namespace gpu;
  SHARED(smem);
  constexpr int kUnits = kCodedDepth * 32, kBytes = static_cast<int>(sizeof(Unit));
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  auto* stage = reinterpret_cast<Unit*>(smem) + warp * kUnits;
  auto* first = reinterpret_cast<int32_t*>(smem + kFetchWarps * kUnits * kBytes);
  list_parts(p.batch, p.n_parts, first);
  const int32_t total = first[p.batch.n_lists()], n_units = p.n_together * p.part_units;

  Unit data[kCodedDepth] = {};
  const auto load = [&](int64_t batch) {
#pragma unroll
    for (int i = 0; i < kCodedDepth; ++i) {
      const int at = i * 32 + lane, n = at / p.part_units, unit = at - n * p.part_units;
      if (at >= n_units || batch + n >= total) continue;
      const CodedPart part = locate_coded(p, first, static_cast<int32_t>(batch) + n);
      if (unit * kBytes >= part.n_rows * p.format.bytes) continue;
      load_unit_of_host(part.source + unit * kBytes, data[i]);
    }
  };
  const int64_t step = int64_t{gridDim.x} * kFetchWarps * p.n_together;
  int64_t batch = (int64_t{blockIdx.x} * kFetchWarps + warp) * p.n_together;
  load(batch);
  for (; batch < total; batch += step) {
#pragma unroll
    for (int i = 0; i < kCodedDepth; ++i) {
      if (i * 32 + lane < n_units) stage[i * 32 + lane] = data[i];
    }
    sync_warp();
    load(batch + step);
    for (int n = 0; n < p.n_together && batch + n < total; ++n) {
      const CodedPart part = locate_coded(p, first, static_cast<int32_t>(batch) + n);
      const auto* codes = reinterpret_cast<const uint8_t*>(stage + n * p.part_units);
      const int per_row = p.format.width / 8;
      for (int i = lane; i < part.n_rows * per_row; i += 32) {
        const int row = i / per_row, column = (i - row * per_row) * 8;
        float x[8];
        decode_eight(p.format, load_coded(p.format, codes + row * p.format.bytes, column), x);
        lowrank::store_eight(part.target + i * 8, lowrank::round_eight(x), 8, p.slot_units);
      }
    }
    sync_warp();  // the stage has been read
  }
}

}  // namespace tiercel::cuda
