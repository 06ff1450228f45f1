// Landmarks of chunks and their codes, minimum cosines, and the chunks of the lowest.
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"
#include "kernels/top_k.cuh"

namespace tiercel::cuda {

inline constexpr int kMeanThreads = 256;
inline constexpr int kCosineThreads = 128;

template <int kWords>
GPU void load_words(const bf16* row, uint32_t (&words)[kWords]) {
  static_assert(kWords == 4 || kWords == 1);
  if constexpr (kWords == 4) {
    const uint4 v = *reinterpret_cast<const uint4*>(row);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  } else {
    words[0] = *reinterpret_cast<const uint32_t*>(row);
  }
}

// A thread sums kWords 32-bit words of columns over the chunk's tokens, in their order.
template <int kWords>
KERNEL(kMeanThreads, 4)
mean_chunks(const GRID_CONST LandmarkParams p) {
  using namespace gpu;
  begin_dependent();
  const int32_t per_row = p.head_dim / (2 * kWords);
  const int64_t item = int64_t{blockIdx.x} * kMeanThreads + threadIdx.x;
  if (item >= p.n_chunks * per_row) return;
  const int64_t head = blockIdx.y, chunk = p.first_chunk + item / per_row;
  const int32_t column = static_cast<int32_t>(item % per_row) * 2 * kWords;
  const bf16* keys = p.keys + head * p.key_head_stride +
                     (chunk * p.chunk_tokens - p.first_row) * p.head_dim + column;
  float sum[2 * kWords] = {};
#pragma unroll 8
  for (int32_t t = 0; t < p.chunk_tokens; ++t) {
    uint32_t words[kWords];
    load_words(keys + int64_t{t} * p.head_dim, words);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      sum[2 * w] += low_float(words[w]);
      sum[2 * w + 1] += high_float(words[w]);
    }
  }
  const float n = static_cast<float>(p.chunk_tokens);
  uint32_t* mean = reinterpret_cast<uint32_t*>(p.landmarks + head * p.landmark_head_stride +
                                               (chunk - p.first_landmark) * p.head_dim + column);
#pragma unroll
  for (int w = 0; w < kWords; ++w) mean[w] = pack_bf16(sum[2 * w] / n, sum[2 * w + 1] / n);
}

// fp32 bits as integers in the order of their values, -0 below +0 and NaNs outside the infinities;
// its own inverse.
GPU int32_t in_order(uint32_t bits) {
  const auto x = static_cast<int32_t>(bits);
  return x ^ (x >> 31 & 0x7fffffff);
}
GPU uint32_t bits_of_order(int32_t order, bool is_nan) {
  return (is_nan ? 0x7fc00000u : in_order(static_cast<uint32_t>(order)) & 0xffff0000u) >> 16;
}

// The same of extremes.
template <int kWords>
KERNEL(kMeanThreads, 4)
extremes_of_chunks(const GRID_CONST LandmarkParams p) {
  using namespace gpu;
  begin_dependent();
  constexpr int32_t kInfinity = 0x7f800000;
  const int32_t per_row = p.head_dim / (2 * kWords);
  const int64_t item = int64_t{blockIdx.x} * kMeanThreads + threadIdx.x;
  if (item >= p.n_chunks * per_row) return;
  const int64_t head = blockIdx.y, chunk = p.first_chunk + item / per_row;
  const int32_t column = static_cast<int32_t>(item % per_row) * 2 * kWords;
  const bf16* keys = p.keys + head * p.key_head_stride +
                     (chunk * p.chunk_tokens - p.first_row) * p.head_dim + column;
  int32_t least[2 * kWords], greatest[2 * kWords];
#pragma unroll
  for (int i = 0; i < 2 * kWords; ++i) {
    least[i] = 0x7fffffff;
    greatest[i] = -0x7fffffff - 1;
  }
#pragma unroll 8
  for (int32_t t = 0; t < p.chunk_tokens; ++t) {
    uint32_t words[kWords];
    load_words(keys + int64_t{t} * p.head_dim, words);
#pragma unroll
    for (int i = 0; i < 2 * kWords; ++i) {
      const uint32_t word = words[i / 2];
      const int32_t x = in_order(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
      least[i] = x < least[i] ? x : least[i];
      greatest[i] = x > greatest[i] ? x : greatest[i];
    }
  }
  auto* target = reinterpret_cast<uint32_t*>(p.landmarks + head * p.landmark_head_stride +
                                             (chunk - p.first_landmark) * 2 * p.head_dim + column);
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    uint32_t low[2], high[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int i = 2 * w + e;
      const bool is_nan = greatest[i] > kInfinity || least[i] < ~kInfinity;
      low[e] = bits_of_order(least[i], is_nan);
      high[e] = bits_of_order(greatest[i], is_nan);
    }
    target[w] = low[0] | low[1] << 16;
    target[p.head_dim / 2 + w] = high[0] | high[1] << 16;
  }
}

// ---- codes --------------------------------------------------------------------------------------

GPU int8_t landmark_code(float x, float scale, int direction) {
  const float ratio = x / scale;
  const float code = direction == 0 ? rintf(ratio) : direction < 0 ? floorf(ratio) : ceilf(ratio);
  return static_cast<int8_t>(fminf(fmaxf(code, -127.0f), 127.0f));
}

// A warp per landmark; a lane has 2 * kWords neighbouring elements of every 64 * kWords.
template <int kWords>
KERNEL(kMeanThreads, 4)
encode_chunks(const GRID_CONST EncodeLandmarksParams p) {
  using namespace gpu;
  begin_dependent();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t at = (int64_t{blockIdx.x} * kMeanThreads + threadIdx.x) / 32;
  if (at >= p.n_chunks) return;
  const int64_t head = blockIdx.y, chunk = p.first_chunk + at;
  const bf16* row =
      p.landmarks + head * p.landmark_head_stride + (chunk - p.first_landmark) * p.width;
  constexpr int kOfLane = 2 * kWords;

  float largest = 0;
  bool is_finite = true;
  for (int i = lane * kOfLane; i < p.width; i += 32 * kOfLane) {
    uint32_t words[kWords];
    load_words(row + i, words);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const float low = fabsf(low_float(words[w])), high = fabsf(high_float(words[w]));
      largest = fmaxf(largest, fmaxf(low, high));
      is_finite = is_finite && low < kInf && high < kInf;
    }
  }
  for (int mask = 1; mask < 32; mask *= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
  is_finite = ballot(!is_finite) == 0;
  const float scale = mul_rn(largest, 1.0f + 0x1p-20f) / 127.0f;
  const bool has_codes = is_finite && scale > 0;

  int8_t* codes = p.codes + (head * p.capacity + chunk) * p.width;
  for (int i = lane * kOfLane; i < p.width; i += 32 * kOfLane) {
    uint32_t words[kWords];
    load_words(row + i, words);
    const int direction = p.kind == IndexKind::kMean ? 0 : i < p.width / 2 ? -1 : 1;
    uint32_t packed[(kWords + 1) / 2] = {};
#pragma unroll
    for (int e = 0; e < kOfLane; ++e) {
      const float x = e % 2 == 0 ? low_float(words[e / 2]) : high_float(words[e / 2]);
      const int8_t code = has_codes ? landmark_code(x, scale, direction) : int8_t{0};
      packed[e / 4] |= uint32_t{static_cast<uint8_t>(code)} << (e % 4 * 8);
    }
    if constexpr (kWords == 4) {
      *reinterpret_cast<uint2*>(codes + i) = uint2{packed[0], packed[1]};
    } else {
      *reinterpret_cast<uint16_t*>(codes + i) = static_cast<uint16_t>(packed[0]);
    }
  }
  if (lane == 0) {
    p.scales[head * p.capacity + chunk] = is_finite ? scale : bits_to_float(0x7fc00000);
  }
}

// ---- outliers -----------------------------------------------------------------------------------

struct Products {
  float dot, square;  // a . b, b . b
};

// By eight lanes; lane i takes elements 2i and 2i + 1 of every 16, as lane i of
// cpu/landmark_kernel.h.
GPU Products products(const bf16* a, const bf16* b, int32_t n, bool is_valid) {
  using namespace gpu;
  float dot = 0, square = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x) % 8 * 2; i < n; i += 16) {
    if (!is_valid) break;
    const uint32_t x = *reinterpret_cast<const uint32_t*>(a + i);
    const uint32_t y = *reinterpret_cast<const uint32_t*>(b + i);
    dot = fmaf(high_float(x), high_float(y), fmaf(low_float(x), low_float(y), dot));
    square = fmaf(high_float(y), high_float(y), fmaf(low_float(y), low_float(y), square));
  }
  for (int mask = 4; mask > 0; mask /= 2) {
    dot += shuffle_xor(dot, mask);
    square += shuffle_xor(square, mask);
  }
  return {dot, square};
}

// The lowest of a chunk's keys with its mean, by one warp, four tokens at a time.
GPU float min_cosine(const bf16* mean, const bf16* keys, int32_t chunk_tokens, int32_t head_dim) {
  using namespace gpu;
  const int team = static_cast<int>(threadIdx.x) % 32 / 8;
  const float mean_square = products(mean, mean, head_dim, true).square;
  float lowest = kInf;
  for (int32_t t = 0; t < chunk_tokens; t += 4) {
    const bool is_valid = t + team < chunk_tokens;
    const Products v = products(mean, keys + int64_t{t + team} * head_dim, head_dim, is_valid);
    // Two roots, because the product of the squares may overflow.
    const float norm = sqrtf(mean_square) * sqrtf(v.square);
    const float cosine = norm == 0.0f ? 0.0f : v.dot / norm;
    if (is_valid) lowest = fminf(lowest, cosine == cosine ? cosine : -kInf);
  }
  for (int mask = 8; mask < 32; mask *= 2) lowest = fminf(lowest, shuffle_xor(lowest, mask));
  return lowest;
}

// One warp per chunk. workspace[kv_head][chunk - first_chunk] = -cosine.
KERNEL(kCosineThreads, 8) min_cosines(const GRID_CONST OutlierParams p) {
  constexpr float kMost = 3.402823466e+38f;  // -inf is no candidate
  const int64_t n = p.end_chunk - p.first_chunk;
  const int64_t i = (int64_t{blockIdx.x} * kCosineThreads + threadIdx.x) / 32;
  if (i >= n) return;
  const int64_t head = blockIdx.y, chunk = p.first_chunk + i;
  const float lowest =
      min_cosine(p.landmarks + head * p.landmark_head_stride + chunk * p.head_dim,
                 p.keys + head * p.key_head_stride + chunk * p.chunk_tokens * int64_t{p.head_dim},
                 p.chunk_tokens, p.head_dim);
  if (threadIdx.x % 32 == 0) p.workspace[head * n + i] = fmaxf(-lowest, -kMost);
}

// One block per KV head.
KERNEL(kRankThreads, 1) rank_outliers(const GRID_CONST OutlierParams p) {
  SHARED(smem);
  RankShared& s = *reinterpret_cast<RankShared*>(smem);
  const int64_t head = blockIdx.x, n = p.end_chunk - p.first_chunk;
  const RankRow row{p.workspace + head * n, static_cast<int32_t>(n),
                    static_cast<int32_t>(p.n_outliers), Binning::kCosine};
  clear_bins(s);
  fill_bins(row, s);
  const Threshold threshold = find_threshold(row, s);
  int32_t* ids = p.ids + head * p.n_outliers;
  // Little-endian: bit c of the map is bit c % 32 of its 32-bit word c / 32.
  uint32_t* excluded = reinterpret_cast<uint32_t*>(p.excluded + head * p.excluded_stride);
  emit_chosen(row, s, threshold, [&](uint32_t i, int32_t index) {
    const int32_t chunk = static_cast<int32_t>(p.first_chunk) + index;
    ids[i] = chunk;
    gpu::atomic_or(excluded + chunk / 32, 1u << chunk % 32);
  });
}

// Where the kept chunk with the greatest cosine is, the first of equals. By one warp.
GPU int place_of_greatest(const float* cosines, int n) {
  using namespace gpu;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float greatest = -kInf;
  int place = n;
  for (int i = lane; i < n; i += 32) {
    if (place == n || cosines[i] > greatest) {
      greatest = cosines[i];
      place = i;
    }
  }
  for (int mask = 1; mask < 32; mask *= 2) {
    const float other = shuffle_xor(greatest, mask);
    const int at = static_cast<int>(shuffle_xor(static_cast<uint32_t>(place), mask));
    const bool takes = at < n && (place == n || other > greatest || (other == greatest && at < place));
    greatest = takes ? other : greatest;
    place = takes ? at : place;
  }
  return place;
}

// One block per KV head: its first warp decides, all of them copy.
KERNEL(kCosineThreads, 8) keep_late(const GRID_CONST LateOutlierParams p) {
  using namespace gpu;
  SHARED(smem);
  int& place = *reinterpret_cast<int*>(smem);
  begin_dependent();
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t head = blockIdx.x, size = int64_t{p.chunk_tokens} * p.head_dim;
  int32_t* ids = p.ids + head * p.n_most;
  float* cosines = p.cosines + head * p.n_most;
  // Little-endian: bit c of the map is bit c % 32 of its 32-bit word c / 32.
  uint32_t* excluded = reinterpret_cast<uint32_t*>(p.excluded + head * p.excluded_stride);
  for (int64_t i = 0; i < p.n_chunks; ++i) {
    const auto chunk = static_cast<int32_t>(p.first_chunk + i);
    const int64_t from = head * p.head_stride + chunk * size - p.first_row * p.head_dim;
    if (p.choose && thread < 32) {
      const float cosine = min_cosine(p.landmarks + head * p.landmark_head_stride +
                                          (chunk - p.first_landmark) * p.head_dim,
                                      p.keys + from, p.chunk_tokens, p.head_dim);
      const bool has_room = p.n_kept + i < p.n_most;
      int at = has_room ? static_cast<int>(p.n_kept + i)
                        : place_of_greatest(cosines, static_cast<int>(p.n_most));
      const bool takes = has_room || cosine < cosines[at];
      sync_warp();  // all lanes have read what lane 0 writes
      if (thread == 0) {
        if (takes) {
          if (!has_room) excluded[ids[at] / 32] &= ~(1u << ids[at] % 32);
          ids[at] = chunk;
          cosines[at] = cosine;
          excluded[chunk / 32] |= 1u << chunk % 32;
        }
        place = takes ? at : -1;
      }
      sync_warp();
    } else if (!p.choose && thread == 0) {
      place = -1;  // the first of a name: behind the places in use some may be left from before a rewind
      for (int at = 0; at < p.n_most && place < 0; ++at) place = ids[at] == chunk ? at : -1;
    }
    sync_threads();
    const int64_t to = (head * p.n_most + place) * size;
    for (int64_t e = thread; place >= 0 && e < size; e += kCosineThreads) {
      p.kept_keys[to + e] = p.keys[from + e];
      p.kept_values[to + e] = p.values[from + e];
    }
    sync_threads();
  }
}

}  // namespace tiercel::cuda
