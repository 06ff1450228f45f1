// Exact top-k of a row of scores by one block: higher score first, then lower index.
//
// A histogram finds the bin that holds the k-th score; the scores of that bin are ranked exactly,
// by comparing all pairs if they are few and digit by digit otherwise; then the chosen are emitted
// in ascending order.
//
//   bins (best first)   0 .. bin - 1 | bin                              | bin + 1 .. 2047
//   chosen              all          | above key, and n_equal equal ones | none
//
// A score of -inf is no candidate; scores are not NaN. Nothing depends on the order of threads:
// atomics count integers or collect a set.
#pragma once

#include "kernels/block_scan.cuh"
#include "kernels/gpu.cuh"

namespace tiercel::cuda {

inline constexpr int kRankThreads = kScanThreads;
inline constexpr int kRankWarps = kRankThreads / 32;
inline constexpr int kBins = 2 * kRankThreads;
inline constexpr int kSegment = 256;  // scores that a warp takes at a time
inline constexpr int kMaxTied = kRankThreads;

// How scores fall into bins. kLog2: steps of 1/64 down from 0. kWeight: the same for 2^score, in
// [0, 1]. kCosine: steps of 1/1024 down from 1.
enum class Binning : uint8_t { kLog2, kWeight, kCosine };

struct RankRow {
  const float* scores;  // [n]
  int32_t n, k;
  Binning binning;
};

struct alignas(16) RankShared {  // what follows it in shared memory holds float4
  uint32_t bins[kBins];
  uint32_t tied[kMaxTied];
  uint32_t sums[2 * kRankWarps];
  uint32_t bin, above, n_tied, key, n_equal;
};

// Chosen are the scores above key and the first n_equal of those equal to it; n in all.
struct Threshold {
  uint32_t key, n_equal, n;
};

// Integers in the order of scores; -0 equals 0.
GPU uint32_t ordered(float score) {
  const uint32_t u = gpu::float_to_bits(score + 0.0f);
  return (u >> 31) != 0 ? ~u : u | 0x80000000u;
}

// Does not rise with the score.
GPU int bin_of(float score, Binning binning) {
  if (binning == Binning::kWeight) {  // fp32 bits are a logarithm that is linear between powers
    const int below = 0x3f800000 - static_cast<int>(gpu::float_to_bits(score));
    return below < 0 ? 0 : below >> 17 < kBins - 1 ? below >> 17 : kBins - 1;
  }
  const float steps = binning == Binning::kLog2 ? score * -64.0f : (1.0f - score) * 1024.0f;
  // The low bits of a float from 2^23 on are its integer.
  const float nearest = fminf(fmaxf(steps, 0.0f), static_cast<float>(kBins - 1)) + 0x1p23f;
  return static_cast<int>(gpu::float_to_bits(nearest) & (kBins - 1));
}

// visit(first, scores): scores of first, first + 32, .. of the row, -inf behind its end. A warp
// visits consecutive segments in order.
inline constexpr int kVisited = kSegment / 32;
template <typename Visit>
GPU void visit_segments(const RankRow& row, Visit visit) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int n_segments = (row.n + kSegment - 1) / kSegment;
  const int per_warp = (n_segments + kRankWarps - 1) / kRankWarps;
  const int begin = warp * per_warp;
  const int end = begin + per_warp < n_segments ? begin + per_warp : n_segments;
  for (int segment = begin; segment < end; ++segment) {
    const int first = segment * kSegment + lane;
    float scores[kVisited];
#pragma unroll
    for (int i = 0; i < kVisited; ++i) {
      scores[i] = first + 32 * i < row.n ? row.scores[first + 32 * i] : -gpu::kInf;
    }
    visit(first, scores);
  }
}

GPU void clear_bins(RankShared& s) {
  s.bins[threadIdx.x] = 0;
  s.bins[threadIdx.x + kRankThreads] = 0;
  gpu::sync_threads();
}

// Fills bins (cleared before).
GPU void fill_bins(const RankRow& row, RankShared& s) {
  visit_segments(row, [&](int, const float(&scores)[kVisited]) {
#pragma unroll
    for (int i = 0; i < kVisited; ++i) {
      if (scores[i] > -gpu::kInf) gpu::atomic_add(s.bins + bin_of(scores[i], row.binning), 1u);
    }
  });
  gpu::sync_threads();
}

// The bin in which the k-th entry lies, and how many are above it. Returns how many there are.
GPU uint32_t find_bin(RankShared& s, uint32_t k) {
  const uint32_t first = s.bins[2 * threadIdx.x], second = s.bins[2 * threadIdx.x + 1];
  uint32_t total;
  const uint32_t before = block_scan(first + second, s.sums, total);
  if (before < k && k <= before + first + second) {
    const bool is_first = k <= before + first;
    s.bin = 2 * threadIdx.x + (is_first ? 0 : 1);
    s.above = is_first ? before : before + first;
  }
  if (threadIdx.x == 0) s.n_tied = 0;
  gpu::sync_threads();
  return total;
}

// The n-th score of one bin that holds no more than kMaxTied.
GPU void rank_tied(const RankRow& row, RankShared& s, int bin, uint32_t n) {
  visit_segments(row, [&](int, const float(&scores)[kVisited]) {
#pragma unroll
    for (int i = 0; i < kVisited; ++i) {
      if (scores[i] == -gpu::kInf || bin_of(scores[i], row.binning) != bin) continue;
      s.tied[gpu::atomic_add(&s.n_tied, 1u)] = ordered(scores[i]);
    }
  });
  gpu::sync_threads();
  const uint32_t n_tied = s.n_tied;
  if (threadIdx.x < n_tied) {
    const uint32_t mine = s.tied[threadIdx.x];
    uint32_t above = 0, equal = 0;
    for (uint32_t i = 0; i < n_tied; ++i) {
      above += s.tied[i] > mine;
      equal += s.tied[i] == mine;
    }
    if (above < n && n <= above + equal) {  // all threads with this score write the same
      s.key = mine;
      s.n_equal = n - above;
    }
  }
  gpu::sync_threads();
}

// The same for any number of them: three digits, from the highest.
GPU void rank_digits(const RankRow& row, RankShared& s, int bin, uint32_t n) {
  uint32_t key = 0;
  for (int digit = 0; digit < 3; ++digit) {
    const int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
    const uint32_t last = digit == 2 ? 1023u : 2047u;
    const uint32_t known = digit == 0 ? 0u : ~0u << (digit == 1 ? 21 : 10);
    clear_bins(s);
    visit_segments(row, [&](int, const float(&scores)[kVisited]) {
#pragma unroll
      for (int i = 0; i < kVisited; ++i) {
        if (scores[i] == -gpu::kInf || bin_of(scores[i], row.binning) != bin) continue;
        const uint32_t other = ordered(scores[i]);
        if (((other ^ key) & known) == 0) {
          gpu::atomic_add(s.bins + (last - (other >> shift & last)), 1u);
        }
      }
    });
    gpu::sync_threads();
    find_bin(s, n);
    key |= (last - s.bin) << shift;
    n -= s.above;
    gpu::sync_threads();  // everyone has read them
  }
  if (threadIdx.x == 0) {
    s.key = key;
    s.n_equal = n;
  }
  gpu::sync_threads();
}

// From the filled bins.
GPU Threshold find_threshold(const RankRow& row, RankShared& s) {
  const uint32_t k = static_cast<uint32_t>(row.k);
  const uint32_t n_candidates = find_bin(s, k);
  if (k >= n_candidates) return {ordered(-gpu::kInf), 0, n_candidates};
  const int bin = static_cast<int>(s.bin);
  const uint32_t n = k - s.above, n_tied = s.bins[bin];
  gpu::sync_threads();  // everyone has read them
  if (n_tied <= kMaxTied) {
    rank_tied(row, s, bin, n);
  } else {
    rank_digits(row, s, bin, n);
  }
  return {s.key, s.n_equal, k};
}

// emit(i, index) for the i-th chosen of the row, in the order of indices.
template <typename Emit>
GPU void emit_chosen(const RankRow& row, RankShared& s, const Threshold& t, Emit emit) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  // How many of each kind every warp finds.
  uint32_t above = 0, equal = 0;
  visit_segments(row, [&](int, const float(&scores)[kVisited]) {
#pragma unroll
    for (int i = 0; i < kVisited; ++i) {
      above += ordered(scores[i]) > t.key;
      equal += ordered(scores[i]) == t.key;
    }
  });
  for (int mask = 1; mask < 32; mask *= 2) {
    above += gpu::shuffle_xor(above, mask);
    equal += gpu::shuffle_xor(equal, mask);
  }
  if (lane == 0) {
    s.sums[warp] = above;
    s.sums[kRankWarps + warp] = equal;
  }
  gpu::sync_threads();
  const uint32_t above_until = warp_scan(s.sums[lane]);
  const uint32_t equal_until = warp_scan(s.sums[kRankWarps + lane]);
  const uint32_t above_before = gpu::shuffle(above_until, warp == 0 ? 0 : warp - 1);
  const uint32_t equal_before = gpu::shuffle(equal_until, warp == 0 ? 0 : warp - 1);
  uint32_t n_equal = warp == 0 ? 0 : equal_before;
  uint32_t at = (warp == 0 ? 0 : above_before) + (n_equal < t.n_equal ? n_equal : t.n_equal);

  const uint32_t lanes_before = (1u << lane) - 1;
  visit_segments(row, [&](int first, const float(&scores)[kVisited]) {
#pragma unroll
    for (int i = 0; i < kVisited; ++i) {
      const uint32_t key = ordered(scores[i]);
      const uint32_t equals = gpu::ballot(key == t.key);
      const bool is_chosen =
          key > t.key ||
          (key == t.key && n_equal + gpu::popcount(equals & lanes_before) < t.n_equal);
      const uint32_t chosen = gpu::ballot(is_chosen);
      if (is_chosen) emit(at + gpu::popcount(chosen & lanes_before), first + 32 * i);
      n_equal += gpu::popcount(equals);
      at += gpu::popcount(chosen);
    }
  });
}

}  // namespace tiercel::cuda
