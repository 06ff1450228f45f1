// Exact top-n of a row of masses by one block, for any n and any floats.
//
// The key of the n-th is found digit by digit, from the highest; then whatever is above it is
// taken, and of its equals the first ones. Two digits of 11 bits and one of 10:
//
//   key   31 .. 21 | 20 .. 10 | 9 .. 0
//
// Nothing depends on the order of threads: atomics count integers or set bits.
#pragma once

#include "engine/base/ops.h"
#include "kernels/block_scan.cuh"
#include "kernels/gpu.cuh"

namespace tiercel::cuda::pick {

inline constexpr int kThreads = kScanThreads;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kBins = 2 * kThreads;
inline constexpr int kAtOnce = 8;  // masses of a lane in flight
inline constexpr int kSegment = 32 * kAtOnce;

struct Shared {
  uint32_t bins[kBins];
  uint32_t sums[2 * kWarps];
  uint32_t bin, above;
};

// Integers in the order in which masses are taken; -0 equals 0.
GPU uint32_t key_of(float mass, bool greatest) {
  const uint32_t u = gpu::float_to_bits(mass + 0.0f);
  const uint32_t rising = mass != mass ? ~0u : (u >> 31) != 0 ? ~u : u | 0x80000000u;
  return greatest ? rising : ~rising;
}

struct Row {
  const float* mass;
  int64_t n;
  bool greatest;

  // visit(index, key, exists), by all lanes of a warp for 32 neighbours; warps have consecutive
  // shares.
  template <typename Visit>
  GPU void visit(Visit visit_one) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int64_t segments = (n + kSegment - 1) / kSegment,
                  share = (segments + kWarps - 1) / kWarps;
    const int64_t begin = warp * share;
    const int64_t end = begin + share < segments ? begin + share : segments;
    for (int64_t segment = begin; segment < end; ++segment) {
      const int64_t first = segment * kSegment + lane;
      float some[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        some[i] = first + 32 * i < n ? mass[first + 32 * i] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        visit_one(first + 32 * i, key_of(some[i], greatest), first + 32 * i < n);
      }
    }
  }
};

// The bin in which the n-th entry lies, best bins last, and how many are in bins above it.
GPU void find_bin(Shared& s, uint32_t n) {
  gpu::sync_threads();  // all have counted
  const int last = kBins - 1 - 2 * static_cast<int>(threadIdx.x);
  const uint32_t first = s.bins[last], second = s.bins[last - 1];
  uint32_t total;
  const uint32_t before = block_scan(first + second, s.sums, total);
  if (before < n && n <= before + first + second) {
    const bool is_first = n <= before + first;
    s.bin = static_cast<uint32_t>(is_first ? last : last - 1);
    s.above = is_first ? before : before + first;
  }
  gpu::sync_threads();
}

struct Threshold {
  uint32_t key, n_equal;  // taken are all above key, and the first n_equal of its equals
};
GPU Threshold find_threshold(const Row& row, uint32_t n, Shared& s) {
  uint32_t key = 0;
  for (int digit = 0; digit < 3; ++digit) {
    const int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
    const uint32_t mask = digit == 2 ? 1023u : 2047u;
    const uint32_t known = digit == 0 ? 0u : ~0u << (digit == 1 ? 21 : 10);
    s.bins[threadIdx.x] = 0;
    s.bins[threadIdx.x + kThreads] = 0;
    gpu::sync_threads();
    row.visit([&](int64_t, uint32_t other, bool exists) {
      if (!exists || ((other ^ key) & known) != 0) return;
      gpu::atomic_add(s.bins + (other >> shift & mask), 1u);
    });
    find_bin(s, n);
    key |= s.bin << shift;
    n -= s.above;
    gpu::sync_threads();  // everyone has read them
  }
  return {key, n};
}

// How many above the threshold, and how many equal to it, the warps before this one have.
struct Before {
  uint32_t above, equal;
};
GPU Before count_before(const Row& row, const Threshold& t, Shared& s) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  uint32_t above = 0, equal = 0;
  row.visit([&](int64_t, uint32_t key, bool exists) {
    above += exists && key > t.key;
    equal += exists && key == t.key;
  });
  for (int mask = 1; mask < 32; mask *= 2) {
    above += gpu::shuffle_xor(above, mask);
    equal += gpu::shuffle_xor(equal, mask);
  }
  if (lane == 0) {
    s.sums[warp] = above;
    s.sums[kWarps + warp] = equal;
  }
  gpu::sync_threads();
  const uint32_t above_until = warp_scan(s.sums[lane]);
  const uint32_t equal_until = warp_scan(s.sums[kWarps + lane]);
  const int last = warp == 0 ? 0 : warp - 1;
  const uint32_t above_before = gpu::shuffle(above_until, last);
  const uint32_t equal_before = gpu::shuffle(equal_until, last);
  return warp == 0 ? Before{0, 0} : Before{above_before, equal_before};
}

// One block per KV head.
KERNEL(kThreads, 1) pick_kernel(const GRID_CONST PickParams p) {
  SHARED(smem);
  Shared& s = *reinterpret_cast<Shared*>(smem);
  gpu::begin_dependent();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t head = blockIdx.x;
  const Row row{p.mass + head * p.mass_stride, p.end_chunk - p.first_chunk, p.greatest};
  const Threshold t = find_threshold(row, static_cast<uint32_t>(p.n), s);
  Before before = count_before(row, t, s);

  int32_t* ids = p.ids == nullptr ? nullptr : p.ids + head * p.n;
  // Little-endian: bit c of the map is bit c % 32 of its 32-bit word c / 32.
  auto* excluded = reinterpret_cast<uint32_t*>(p.excluded + head * p.excluded_stride);
  const uint32_t lanes_before = (1u << lane) - 1;
  row.visit([&](int64_t index, uint32_t key, bool exists) {
    const uint32_t higher = gpu::ballot(exists && key > t.key);
    const uint32_t equals = gpu::ballot(exists && key == t.key);
    const uint32_t n_above = before.above + gpu::popcount(higher & lanes_before);
    const uint32_t n_equal = before.equal + gpu::popcount(equals & lanes_before);
    const bool is_taken = exists && (key > t.key || (key == t.key && n_equal < t.n_equal));
    const uint32_t taken = gpu::ballot(is_taken);
    const int64_t chunk = p.first_chunk + index;
    if (is_taken && ids != nullptr) {
      ids[n_above + (n_equal < t.n_equal ? n_equal : t.n_equal)] = static_cast<int32_t>(chunk);
    }
    // 32 neighbours lie in two words: the first lane sets the bits of all.
    const int bit = static_cast<int>(chunk % 32);
    if (lane == 0 && taken << bit != 0) gpu::atomic_or(excluded + chunk / 32, taken << bit);
    if (lane == 0 && bit != 0 && taken >> (32 - bit) != 0) {
      gpu::atomic_or(excluded + chunk / 32 + 1, taken >> (32 - bit));
    }
    before.above += gpu::popcount(higher);
    before.equal += gpu::popcount(equals);
  });
}

}  // namespace tiercel::cuda::pick
