// The kernel of decide_reuse: one block, as a query is some KB and the answer is one bit.
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/joint_launch.cuh"

namespace tiercel::cuda {

inline constexpr int kReuseThreads = 512;

struct ReuseShared {
  double ab[kReuseThreads], aa[kReuseThreads], bb[kReuseThreads];
};

// Products in fp32, where those of bf16 are exact, sums in fp64.
struct CosineSums {
  double ab = 0, aa = 0, bb = 0;

  GPU void add(float a, float b) {
    ab = gpu::add_rn(ab, static_cast<double>(gpu::mul_rn(a, b)));
    aa = gpu::add_rn(aa, static_cast<double>(gpu::mul_rn(a, a)));
    bb = gpu::add_rn(bb, static_cast<double>(gpu::mul_rn(b, b)));
  }
};

// The same in all threads; NaN where a query has no direction. is_wide: pairs are words.
GPU double query_cosine(const ReuseParams& p, bool is_wide, ReuseShared& s) {
  CosineSums sums;
  const int thread = static_cast<int>(threadIdx.x);
  if (is_wide) {
    const uint32_t* a = reinterpret_cast<const uint32_t*>(p.q);
    const uint32_t* b = reinterpret_cast<const uint32_t*>(p.previous);
#pragma unroll 4
    for (int64_t i = thread; i < p.n / 2; i += kReuseThreads) {
      const uint32_t x = a[i], y = b[i];
      sums.add(gpu::low_float(x), gpu::low_float(y));
      sums.add(gpu::high_float(x), gpu::high_float(y));
    }
  } else {
    for (int64_t i = thread; i < p.n; i += kReuseThreads) {
      sums.add(gpu::to_float(p.q[i]), gpu::to_float(p.previous[i]));
    }
  }
  s.ab[thread] = sums.ab;
  s.aa[thread] = sums.aa;
  s.bb[thread] = sums.bb;
  gpu::sync_threads();
  for (int half = kReuseThreads / 2; half > 0; half /= 2) {
    if (thread < half) {
      s.ab[thread] += s.ab[thread + half];
      s.aa[thread] += s.aa[thread + half];
      s.bb[thread] += s.bb[thread + half];
    }
    gpu::sync_threads();
  }
  return s.ab[0] / sqrt(gpu::mul_rn(s.aa[0], s.bb[0]));  // equal queries: exactly 1
}

GPU void decide_reuse(const ReuseParams& p) {
  SHARED(smem);
  gpu::begin_dependent();
  const bool is_wide =
      ((reinterpret_cast<uintptr_t>(p.q) | reinterpret_cast<uintptr_t>(p.previous)) % 4) == 0 &&
      p.n % 2 == 0;
  const int32_t served = p.state[1];
  bool stays = served >= 1 && (p.every == 0 || served < p.every);
  if (stays && !(p.min_cosine <= -1.0f)) {
    stays = query_cosine(p, is_wide, *reinterpret_cast<ReuseShared*>(smem)) >=
            static_cast<double>(p.min_cosine);
  }
  gpu::sync_threads();  // all have read the state and the query of record
  if (threadIdx.x == 0) {
    p.state[0] = stays ? 1 : 0;
    p.state[1] = stays ? served + 1 : 1;
    if (p.totals != nullptr) {
      p.totals[0] += 1;
      p.totals[1] += stays ? 1 : 0;
    }
  }
  if (stays) return;
  if (is_wide) {
    const uint32_t* source = reinterpret_cast<const uint32_t*>(p.q);
    uint32_t* target = reinterpret_cast<uint32_t*>(p.previous);
    for (int64_t i = threadIdx.x; i < p.n / 2; i += kReuseThreads) target[i] = source[i];
  } else {
    for (int64_t i = threadIdx.x; i < p.n; i += kReuseThreads) p.previous[i] = p.q[i];
  }
}
struct DecideReuse : JointKernel<ReuseParams, kReuseThreads, 1> {
  GPU static void run(const ReuseParams& p, const JointGrid&) { decide_reuse(p); }
};

}  // namespace tiercel::cuda
