// Which experts a token goes to, and which tokens an expert has.
#pragma once

#include "engine/base/ops.h"
#include "kernels/block_scan.cuh"
#include "kernels/gpu.cuh"
#include "kernels/piece.cuh"
#include "kernels/top_k.cuh"

namespace tiercel::cuda {

inline constexpr int kRouteThreads = 256;
inline constexpr int kLogitsOfLane = kMaxExperts / 32;

// The largest of a warp, the lower index of equals. NaN counts as large: an expert is found in any case.
struct BestExpert {
  uint32_t rank = 0;  // 0: none
  uint32_t expert = 0xffffffffu;
  float logit = 0;

  GPU void offer(uint32_t other_rank, uint32_t other, float other_logit) {
    if (other_rank < rank || (other_rank == rank && other >= expert)) return;
    rank = other_rank;
    expert = other;
    logit = other_logit;
  }
  GPU void of_warp() {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      offer(gpu::shuffle_xor(rank, mask), gpu::shuffle_xor(expert, mask), gpu::shuffle_xor(logit, mask));
    }
  }
};

// A warp per token; lane i keeps the i-th of its experts.
KERNEL(kRouteThreads, 3) route_kernel(const GRID_CONST RouteParams p) {
  using namespace gpu;
  begin_dependent();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t token = int64_t{blockIdx.x} * (kRouteThreads / 32) + threadIdx.x / 32;
  if (token >= p.n_tokens) return;  // whole warps
  const float* row = p.logits + token * p.n_experts;
  float logits[kLogitsOfLane];
#pragma unroll
  for (int j = 0; j < kLogitsOfLane; ++j) {
    const int e = lane + 32 * j;
    logits[j] = e < p.n_experts ? row[e] : -kInf;
  }
  uint32_t taken = 0;
  float largest = 0, mine = 0;
  uint32_t chosen = 0;
  for (int i = 0; i < p.n_chosen; ++i) {
    BestExpert best;
#pragma unroll
    for (int j = 0; j < kLogitsOfLane; ++j) {
      const int e = lane + 32 * j;
      if (e >= p.n_experts || (taken >> j & 1) != 0) continue;
      const uint32_t rank = ordered(logits[j]);
      best.offer(rank > 0 ? rank : 1, static_cast<uint32_t>(e), logits[j]);
    }
    best.of_warp();
    if (best.expert % 32 == static_cast<uint32_t>(lane)) taken |= 1u << best.expert / 32;
    if (i == 0) largest = best.logit;
    if (i == lane) {
      chosen = best.expert;
      mine = best.logit;
    }
  }
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kLogitsOfLane; ++j) {
    if (lane + 32 * j < p.n_experts) sum += exp2_fast((logits[j] - largest) * kLog2e);
  }
  sum = warp_sum(sum);
  float weight = lane < p.n_chosen ? exp2_fast((mine - largest) * kLog2e) / sum : 0;
  if (p.normalise) weight = weight / warp_sum(weight);
  if (lane >= p.n_chosen) return;
  p.routes.chosen[token * p.n_chosen + lane] = static_cast<int32_t>(chosen);
  p.routes.weights[token * p.n_chosen + lane] = weight;
}

// A block per expert: every thread looks at as many neighbouring pairs.
KERNEL(kRouteThreads, 4) group_kernel(const GRID_CONST RouteParams p) {
  using namespace gpu;
  SHARED(smem);
  auto* sums = reinterpret_cast<uint32_t*>(smem);  // [2][warps]
  begin_dependent();
  const int tid = threadIdx.x, expert = blockIdx.x;
  const int64_t n_pairs = p.n_tokens * p.n_chosen;
  const int64_t each = (n_pairs + kRouteThreads - 1) / kRouteThreads;
  const int64_t first = tid * each, end = first + each < n_pairs ? first + each : n_pairs;
  uint32_t lower = 0, equal = 0;
  for (int64_t pair = first; pair < end; ++pair) {
    const int e = p.routes.chosen[pair];
    lower += e < expert ? 1 : 0;
    equal += e == expert ? 1 : 0;
  }
  uint32_t start = 0, n_mine = 0;
  threads_before<kRouteThreads>(lower, sums, start);
  const uint32_t before = threads_before<kRouteThreads>(equal, sums + kRouteThreads / 32, n_mine);
  auto at = static_cast<int32_t>(start + before);
  for (int64_t pair = first; pair < end; ++pair) {
    if (p.routes.chosen[pair] != expert) continue;
    p.routes.order[at] = static_cast<int32_t>(pair);
    p.routes.place[pair] = at++;
  }
  if (tid != 0) return;
  p.routes.starts[expert] = static_cast<int32_t>(start);
  if (expert == p.n_experts - 1) p.routes.starts[p.n_experts] = static_cast<int32_t>(n_pairs);
}

}  // namespace tiercel::cuda
