// The kernels behind sample.cu: adjust, find the best, collect the candidates, draw.
//
// A candidate is a key and a weight. Keys order the tokens, most likely first, ties by their
// number:
//
//   key = [ logit, as an unsigned number of the same order | ~token ]
//
// The weight is the probability relative to the best token's, in units of 2^-40
// (engine/sampler.cpp; the arithmetic is copied from there operation by operation). Tokens of
// weight 0 are never drawn and follow all others in the order, so they are not collected.
#pragma once

#include "kernels/gpu.cuh"
#include "kernels/joint_launch.cuh"
#include "kernels/sample.h"

namespace tiercel::cuda {

// ---- keys and weights ---------------------------------------------------------------------------

inline constexpr uint64_t kNanKey = ~uint64_t{0};
inline constexpr uint64_t kWeightOne = uint64_t{1} << 40;

GPU uint64_t key_of(float logit, int64_t token) {
  if (logit != logit) return kNanKey;
  const uint32_t bits = gpu::float_to_bits(logit == 0 ? 0.0f : logit);  // -0 equals 0
  const uint32_t ordered = bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
  return uint64_t{ordered} << 32 | static_cast<uint32_t>(~token);
}
GPU float logit_of(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return gpu::bits_to_float(ordered ^ ((ordered >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}
// -1: there is a NaN, or nothing above minus infinity.
GPU int32_t token_of(uint64_t key) {
  if (key == kNanKey || logit_of(key) == -gpu::kInf) return -1;
  return static_cast<int32_t>(~static_cast<uint32_t>(key));
}

// exp(x) for x <= 0; see engine/sampler.cpp. Nothing may be contracted.
GPU double exp_negative(double x) {
  using namespace gpu;
  if (!(x > -27.8)) return 0.0;
  const double n = floor(add_rn(mul_rn(x, 1.4426950408889634), 0.5));
  const double r = add_rn(add_rn(x, -mul_rn(n, 0.693147180369123816490)),
                          -mul_rn(n, 1.90821492927058770002e-10));
  constexpr double kInverse[] = {1.0,     1.0,     1.0 / 2, 1.0 / 3, 1.0 / 4, 1.0 / 5,
                                 1.0 / 6, 1.0 / 7, 1.0 / 8, 1.0 / 9, 1.0 / 10};
  double sum = 1.0;
#pragma unroll
  for (int k = 10; k >= 1; --k) sum = add_rn(1.0, mul_rn(mul_rn(sum, r), kInverse[k]));
  return mul_rn(sum, bits_to_double(static_cast<uint64_t>(1023 + static_cast<int64_t>(n)) << 52));
}
GPU uint64_t weight_of(float logit, float best, double temperature) {
  if (logit == best) return kWeightOne;
  const double scaled = (static_cast<double>(logit) - static_cast<double>(best)) / temperature;
  return static_cast<uint64_t>(gpu::mul_rn(exp_negative(scaled), static_cast<double>(kWeightOne)));
}

// ---- the workspace ------------------------------------------------------------------------------

inline constexpr int kSampleThreads = 1024;

struct SampleState {
  uint64_t best = 0;   // key
  uint64_t total = 0;  // of the candidates' weights
  uint32_t n_arrived = 0;
  uint32_t n_candidates = 0;
};

// Candidates in any order: what is taken from them is sums and extremes.
struct CandidateList {
  uint64_t* keys = nullptr;
  uint64_t* weights = nullptr;
  uint32_t n = 0;
};

struct SampleKernelParams {
  SampleParams op;
  const float* logits = nullptr;  // op's, to be read
  SampleState* state = nullptr;
  float* saved = nullptr;  // [n_adjustments] logits as they were
  CandidateList lists[2];  // of up to vocab; n is found by the kernels
  bool undo = false;       // adjust_logits: what it did
  bool is_last = false;    // find_best: nothing follows, so it leaves the state clean
};

GPU float adjusted(float logit, const LogitAdjustment& adjustment) {
  const float factor = adjustment.factor;
  return gpu::add_rn(logit > 0 ? logit / factor : gpu::mul_rn(logit, factor), adjustment.addend);
}

GPU void adjust_logits(const SampleKernelParams& p) {
  gpu::begin_dependent();
  const int64_t i = int64_t{blockIdx.x} * kSampleThreads + threadIdx.x;
  if (i >= p.op.n_adjustments) return;
  const LogitAdjustment adjustment = p.op.adjustments[i];
  if (adjustment.token < 0 || adjustment.token >= p.op.vocab) return;
  float& logit = p.op.logits[adjustment.token];
  if (p.undo) {
    logit = p.saved[i];
  } else {
    p.saved[i] = logit;
    logit = adjusted(logit, adjustment);
  }
}
struct AdjustLogits : JointKernel<SampleKernelParams, kSampleThreads, 1> {
  GPU static void run(const SampleKernelParams& p, const JointGrid&) { adjust_logits(p); }
};

GPU bool is_allowed(const SampleKernelParams& p, int64_t token) {
  return p.op.allowed == nullptr || (p.op.allowed[token / 32] >> (token % 32) & 1) != 0;
}

// ---- the best -----------------------------------------------------------------------------------

// The highest key of all that may come; the last block to arrive knows it. A NaN is the highest, allowed or not.
GPU void find_best(const SampleKernelParams& p, const JointGrid& grid) {
  using namespace gpu;
  SHARED(smem);
  begin_dependent();
  auto* keys = reinterpret_cast<uint64_t*>(smem);
  const int tid = threadIdx.x;
  const int64_t stride = int64_t{grid.n_x} * kSampleThreads;
  uint64_t best = 0;
  for (int64_t i = int64_t{blockIdx.x} * kSampleThreads + tid; i < p.op.vocab; i += stride) {
    const float logit = p.logits[i];
    if (logit == logit && !is_allowed(p, i)) continue;
    const uint64_t key = key_of(logit, i);
    best = key > best ? key : best;
  }
  keys[tid] = best;
  for (int half = kSampleThreads / 2; half > 0; half /= 2) {
    sync_threads();
    if (tid < half && keys[tid + half] > keys[tid]) keys[tid] = keys[tid + half];
  }
  if (tid != 0) return;
  atomic_max(&p.state->best, keys[0]);
  thread_fence();
  if (atomic_add(&p.state->n_arrived, 1) != grid.n_x - 1) return;
  thread_fence();
  if (p.is_last) {
    *p.op.token = token_of(atomic_max(&p.state->best, 0));
    p.state->best = 0;
  }
  p.state->n_arrived = 0;
}
struct FindBest : JointKernel<SampleKernelParams, kSampleThreads, 1> {
  GPU static void run(const SampleKernelParams& p, const JointGrid& grid) { find_best(p, grid); }
};

// ---- candidates ---------------------------------------------------------------------------------

GPU uint64_t warp_sum(uint64_t value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32_t low = gpu::shuffle_xor(static_cast<uint32_t>(value), mask);
    const uint32_t high = gpu::shuffle_xor(static_cast<uint32_t>(value >> 32), mask);
    value += uint64_t{high} << 32 | low;
  }
  return value;
}

// Places for the lanes that want one, after *n, which grows. All lanes of the warp call.
GPU uint32_t append(uint32_t* n, bool wanted) {
  using namespace gpu;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t with = ballot(wanted);
  uint32_t first = 0;
  if (lane == 0 && with != 0) first = atomic_add(n, static_cast<uint32_t>(popcount(with)));
  return shuffle(first, 0) + static_cast<uint32_t>(popcount(with & ((1u << lane) - 1)));
}

GPU void collect_candidates(const SampleKernelParams& p) {
  using namespace gpu;
  begin_dependent();
  const uint64_t best_key = p.state->best;
  if (token_of(best_key) < 0) return;
  const float best = logit_of(best_key);
  const int64_t i = int64_t{blockIdx.x} * kSampleThreads + threadIdx.x;
  const float logit = i < p.op.vocab && is_allowed(p, i) ? p.logits[i] : -kInf;
  const uint64_t weight = logit == -kInf ? 0 : weight_of(logit, best, p.op.temperature);
  const uint32_t at = append(&p.state->n_candidates, weight != 0);
  const uint64_t sum = warp_sum(weight);
  if (threadIdx.x % 32 == 0 && sum != 0) atomic_add(&p.state->total, sum);
  if (weight == 0) return;
  p.lists[0].keys[at] = key_of(logit, i);
  p.lists[0].weights[at] = weight;
}
struct CollectCandidates : JointKernel<SampleKernelParams, kSampleThreads, 1> {
  GPU static void run(const SampleKernelParams& p, const JointGrid&) { collect_candidates(p); }
};

// ---- the draw -----------------------------------------------------------------------------------

struct Candidate {
  uint64_t key, weight;
};

struct DrawShared {
  uint64_t sums[2][256];
  uint64_t bin, rest;
  uint32_t n;
};

// Calls visit(candidate) for every one of a list, all lanes of a warp together: a lane that has
// none gets one of weight 0, which no candidate has.
template <typename Visit>
GPU void for_each_candidate(const CandidateList& list, Visit visit) {
  constexpr int kAhead = 4;  // in flight: one block has nothing else to wait with
  for (uint32_t first = 0; first < list.n; first += kAhead * kSampleThreads) {
    Candidate ahead[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const uint32_t i = first + static_cast<uint32_t>(a) * kSampleThreads + threadIdx.x;
      ahead[a] = i < list.n ? Candidate{list.keys[i], list.weights[i]} : Candidate{0, 0};
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) visit(ahead[a]);
  }
}

// sums[digit] += weight, for the lanes of a warp (weight 0: nothing). Additions to one address come
// one after the other, and those of 64 bits in shared memory are loops: the digits that most lanes
// share, as they do the first ones, are added once a warp. kCount: weights are 0 or 1.
template <bool kCount>
GPU void add_to_digit(uint64_t* sums, uint32_t digit, uint64_t weight) {
  using namespace gpu;
  constexpr int kShared = 3;
  bool left = weight != 0;
#pragma unroll
  for (int i = 0; i < kShared; ++i) {
    const uint32_t busy = ballot(left);
    if (busy == 0) return;
    const int leader = popcount((busy & (0u - busy)) - 1);
    const uint32_t common = shuffle(digit, leader);
    const bool with = left && digit == common;
    const uint64_t sum =
        kCount ? static_cast<uint64_t>(popcount(ballot(with))) : warp_sum(with ? weight : 0);
    if (static_cast<int>(threadIdx.x) % 32 == leader) atomic_add(&sums[common], sum);
    left = left && !with;
  }
  if (left) atomic_add(&sums[digit], weight);
}

// shared.bin: the digit at which the sums, highest digit first, reach target; shared.rest: what of
// target is left to the candidates of this digit.
GPU void find_digit(DrawShared& shared, uint64_t target) {
  using namespace gpu;
  const int tid = threadIdx.x;
  int now = 0;
  for (int delta = 1; delta < 256; delta *= 2, now ^= 1) {  // sums over a digit and all above it
    if (tid < 256) {
      const uint64_t above = tid + delta < 256 ? shared.sums[now][tid + delta] : 0;
      shared.sums[now ^ 1][tid] = shared.sums[now][tid] + above;
    }
    sync_threads();
  }
  if (tid < 256) {
    const uint64_t above = tid < 255 ? shared.sums[now][tid + 1] : 0;
    if (above < target && target <= shared.sums[now][tid]) {
      shared.bin = static_cast<uint64_t>(tid);
      shared.rest = target - above;
    }
  }
  sync_threads();
}

// Those of source that are kept, in target.
template <typename Keep>
GPU CandidateList narrow(DrawShared& shared, const CandidateList& source, CandidateList target,
                         Keep keep) {
  using namespace gpu;
  const uint32_t tid = threadIdx.x;
  if (tid == 0) shared.n = 0;
  sync_threads();
  for_each_candidate(source, [&](const Candidate& c) {
    const bool kept = c.weight != 0 && keep(c);
    const uint32_t at = append(&shared.n, kept);
    if (!kept) return;
    target.keys[at] = c.key;
    target.weights[at] = c.weight;
  });
  sync_threads();
  target.n = shared.n;
  sync_threads();
  return target;
}

// The key at which the sum of weights, highest key first, reaches target (at least 1, at most the
// sum of all): eight bits at a time. Keys agree in their bits above 8 kDigits. After two digits few
// candidates are left; they move to the spare list. kCount: every weight counts as 1.
template <int kDigits, bool kCount>
GPU uint64_t reach(DrawShared& shared, CandidateList list, const CandidateList& spare,
                   uint64_t target) {
  using namespace gpu;
  constexpr uint64_t kMask = kDigits == 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * kDigits % 64)) - 1;
  const uint32_t tid = threadIdx.x;
  uint64_t prefix = 0;
  for (int digit = kDigits - 1; digit >= 0; --digit) {
    const int shift = 8 * digit;
    const auto agrees = [&](uint64_t key) { return (key & kMask) >> shift >> 8 == prefix; };
    if (digit == kDigits - 3) {
      list = narrow(shared, list, spare, [&](const Candidate& c) { return agrees(c.key); });
    }
    if (tid < 256) shared.sums[0][tid] = 0;
    sync_threads();
    for_each_candidate(list, [&](const Candidate& c) {
      const bool counts = c.weight != 0 && agrees(c.key);
      add_to_digit<kCount>(shared.sums[0], static_cast<uint32_t>(c.key >> shift) & 255,
                           counts ? (kCount ? 1 : c.weight) : 0);
    });
    sync_threads();
    find_digit(shared, target);
    prefix = prefix << 8 | shared.bin;
    target = shared.rest;
  }
  sync_threads();
  return prefix;
}

GPU uint64_t sum_weights(DrawShared& shared, const CandidateList& list) {
  using namespace gpu;
  const uint32_t tid = threadIdx.x;
  if (tid == 0) shared.rest = 0;
  sync_threads();
  uint64_t sum = 0;
  for_each_candidate(list, [&](const Candidate& c) { sum += c.weight; });
  sum = warp_sum(sum);
  if (tid % 32 == 0) atomic_add(&shared.rest, sum);
  sync_threads();
  sum = shared.rest;
  sync_threads();
  return sum;
}

GPU uint64_t next_random(uint64_t& state) {  // splitmix64
  uint64_t z = (state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}
// Uniform in [0, bound): the high half of a 64 x 64 bit product, in 32-bit pieces.
GPU uint64_t scale_to(uint64_t random, uint64_t bound) {
  const uint64_t a = random >> 32, b = random & 0xFFFFFFFFu;
  const uint64_t c = bound >> 32, d = bound & 0xFFFFFFFFu;
  const uint64_t middle = a * d + ((b * d) >> 32);
  const uint64_t low_middle = (middle & 0xFFFFFFFFu) + b * c;
  return a * c + (middle >> 32) + (low_middle >> 32);
}

// What the filters leave of the candidates: in one of the two lists, the other is free.
GPU CandidateList filter(const SampleKernelParams& p, DrawShared& shared, CandidateList& spare) {
  using namespace gpu;
  CandidateList list = p.lists[0];
  spare = p.lists[1];
  list.n = p.state->n_candidates;
  uint64_t total = p.state->total;
  const auto keep = [&](auto kept) {
    const CandidateList free = list;
    list = narrow(shared, list, spare, kept);
    spare = free;
    total = sum_weights(shared, list);
  };
  if (p.op.top_k > 0 && p.op.top_k < list.n) {
    const uint64_t least = reach<8, true>(shared, list, spare, static_cast<uint64_t>(p.op.top_k));
    keep([&](const Candidate& c) { return c.key >= least; });
  }
  if (p.op.top_p < 1) {
    const auto target = static_cast<uint64_t>(ceil(mul_rn(p.op.top_p, static_cast<double>(total))));
    const uint64_t least = reach<8, false>(shared, list, spare, target > 0 ? target : 1);
    keep([&](const Candidate& c) { return c.key >= least; });
  }
  if (p.op.min_p > 0) {
    const auto smallest =
        static_cast<uint64_t>(ceil(mul_rn(p.op.min_p, static_cast<double>(kWeightOne))));
    keep([&](const Candidate& c) { return c.weight >= smallest; });
  }
  return list;
}

// One block: the filters, and the draw among what they leave, by token number.
GPU void draw_token(const SampleKernelParams& p) {
  using namespace gpu;
  SHARED(smem);
  begin_dependent();
  auto& shared = *reinterpret_cast<DrawShared*>(smem);
  int32_t token = -1;
  if (p.state->n_candidates > 0) {
    CandidateList spare;
    const CandidateList list = filter(p, shared, spare);
    uint64_t generator = *p.op.generator;
    const uint64_t left = scale_to(next_random(generator), sum_weights(shared, list));
    // The low halves of the keys are ~token, of which the upper 9 bits are ones: the highest is the
    // lowest token.
    const uint64_t place = reach<3, false>(shared, list, spare, left + 1);
    token = static_cast<int32_t>(~static_cast<uint32_t>(place) & 0xffffff);
    if (threadIdx.x == 0) *p.op.generator = generator;
  }
  sync_threads();
  if (threadIdx.x != 0) return;
  *p.op.token = token;
  *p.state = {};
}
struct DrawToken : JointKernel<SampleKernelParams, kSampleThreads, 1> {
  GPU static void run(const SampleKernelParams& p, const JointGrid&) { draw_token(p); }
};

}  // namespace tiercel::cuda
