// Encoding of rows, the mean of keys before RoPE, and keys decoded into their slots.
#pragma once

#include "kernels/coded_row.cuh"
#include "kernels/lowrank.cuh"

namespace tiercel::cuda::codec {

// ---- encode -------------------------------------------------------------------------------------

inline constexpr int kEncodeThreads = 256;

struct EncodeKernelParams {
  EncodeParams op;
  RowFormat format;
  bool units = false;  // rows, tables and mean are made of aligned units of 16 bytes
};

// The largest bf16 that is not above x, as bits; -0 counts as 0.
GPU uint32_t round_down(float x) {
  const uint32_t u = gpu::float_to_bits(x + 0.0f);
  return (u >> 16) + ((u >> 31) != 0 && (u & 0xffffu) != 0 ? 1u : 0u);
}
// The smallest bf16 that is not below x >= 0; -0 counts as 0.
GPU uint32_t round_up(float x) { return (gpu::float_to_bits(x + 0.0f) + 0xffffu) >> 16; }

// Eight elements of a key, turned back, without the mean. Its pair half a head away is turned by
// another lane again: loads that hit, and no exchange.
GPU void load_key(const EncodeKernelParams& p, const bf16* row, int64_t token, int column,
                  const float* mean, float (&x)[8]) {
  using namespace lowrank;
  const int half = p.op.rope.half, pair = column < half ? column : column - half;
  float low[8], high[8], shift[8];
  turn_back(load_eight(row + pair, 8, p.units), load_eight(row + pair + half, 8, p.units),
            angles_at<8>(p.op.rope, token, pair, 8, p.units), low, high);
  load_floats(mean + column, 8, p.units, shift);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = (column < half ? low[i] : high[i]) - shift[i];
}

struct GroupScale {
  uint32_t step, least;  // bits of bf16
};
// By the four or eight neighbouring lanes that hold a group; all lanes of the warp take part.
GPU GroupScale scale_group(const float (&x)[8], const RowFormat& format) {
  using namespace gpu;
  float min = x[0], max = x[0];
  bool is_finite = true;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    min = fminf(min, x[i]);
    max = fmaxf(max, x[i]);
    is_finite = is_finite && fabsf(x[i]) < kInf;
  }
  const int n_lanes = format.group / 8, lane = static_cast<int>(threadIdx.x) % 32;
  for (int mask = 1; mask < n_lanes; mask *= 2) {
    min = fminf(min, shuffle_xor(min, mask));
    max = fmaxf(max, shuffle_xor(max, mask));
  }
  const uint32_t team = ((1u << n_lanes) - 1) << lane / n_lanes * n_lanes;
  const bool has_others = (ballot(!is_finite) & team) != 0;
  const uint32_t least = round_down(min);
  const float range = max - low_float(least);
  if (has_others || !(range < kInf)) return {0x7fc0, 0x7fc0};
  return {round_up(range / static_cast<float>((1 << format.bits) - 1)), least};
}

GPU void store_codes(const float (&x)[8], const GroupScale& scale, const RowFormat& format,
                     uint8_t* row, int column) {
  const float step = gpu::low_float(scale.step), least = gpu::low_float(scale.least);
  const float most = static_cast<float>((1 << format.bits) - 1);
  const bool has_codes = step > 0;  // neither 0 nor NaN
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float code = has_codes ? fminf(rintf((x[i] - least) / step), most) : 0.0f;
    const auto bits = static_cast<uint32_t>(code);
    if (format.bits == 8) {
      words[i / 4] |= bits << (i % 4 * 8);
    } else {
      words[0] |= bits << (i * 4);
    }
  }
  auto* codes = reinterpret_cast<uint32_t*>(row + column * format.bits / 8);
  codes[0] = words[0];
  if (format.bits == 8) codes[1] = words[1];
  if (column % format.group != 0) return;
  reinterpret_cast<uint32_t*>(row + format.code_bytes)[format.group_of(column)] =
      scale.step | scale.least << 16;
}

// Grid: (units of eight elements, KV heads). A group is in neighbouring lanes, as rows are whole
// groups.
KERNEL(kEncodeThreads, 4) encode_kernel(const GRID_CONST EncodeKernelParams p) {
  gpu::begin_dependent();
  const int64_t item = int64_t{blockIdx.x} * kEncodeThreads + threadIdx.x;
  const int n_units = p.format.width / 8;
  const int64_t at = item / n_units, token = p.op.first_token + at, head = blockIdx.y;
  const int column = static_cast<int>(item - at * n_units) * 8;
  const bool exists = at < p.op.n_tokens;
  float x[8] = {};
  if (exists) {
    const bf16* row =
        p.op.rows + head * p.op.head_stride + (token - p.op.first_row) * p.format.width;
    if (p.op.mean != nullptr) {
      load_key(p, row, token, column, p.op.mean + head * p.format.width, x);
    } else {
      lowrank::widen_eight(lowrank::load_eight(row + column, 8, p.units), x);
    }
  }
  const GroupScale scale = scale_group(x, p.format);
  if (!exists) return;
  auto* codes = reinterpret_cast<uint8_t*>(p.op.codes) + head * p.op.code_head_stride;
  store_codes(x, scale, p.format, codes + (token - p.op.first_code) * p.format.bytes, column);
}

// ---- mean ---------------------------------------------------------------------------------------

inline constexpr int kMeanThreads = 512;
inline constexpr int kMeanBytes = kMeanThreads * 16 * 8;

struct MeanKernelParams {
  MeanKeysParams op;
  bool units = false;
};

// Grid: (units of eight channel pairs, KV heads). Thread t sums tokens t, t + 512, ..; then a tree.
KERNEL(kMeanThreads, 1) mean_kernel(const GRID_CONST MeanKernelParams p) {
  using namespace lowrank;
  SHARED(smem);
  auto* sums = reinterpret_cast<double*>(smem);  // [16][threads]
  gpu::begin_dependent();
  const int half = p.op.rope.half, d = p.op.head_dim, tid = static_cast<int>(threadIdx.x);
  const int pair = static_cast<int>(blockIdx.x) * 8, n = half - pair < 8 ? half - pair : 8;
  const bf16* keys = p.op.keys + blockIdx.y * p.op.head_stride + pair;
  double low_sum[8] = {}, high_sum[8] = {};
#pragma unroll 2
  for (int64_t t = tid; t < p.op.n_tokens; t += kMeanThreads) {
    const bf16* key = keys + t * d;
    float low[8], high[8];
    turn_back(load_eight(key, n, p.units), load_eight(key + half, n, p.units),
              angles_at<8>(p.op.rope, t, pair, n, p.units), low, high);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      low_sum[i] += static_cast<double>(low[i]);
      high_sum[i] += static_cast<double>(high[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    sums[i * kMeanThreads + tid] = low_sum[i];
    sums[(8 + i) * kMeanThreads + tid] = high_sum[i];
  }
  for (int width = kMeanThreads / 2; width > 0; width /= 2) {
    gpu::sync_threads();
    for (int i = tid; i < 16 * width; i += kMeanThreads) {
      double* sum = sums + i / width * kMeanThreads + i % width;
      *sum += sum[width];
    }
  }
  gpu::sync_threads();
  if (tid >= 16 || tid % 8 >= n) return;
  p.op.mean[int64_t{blockIdx.y} * d + (tid < 8 ? 0 : half) + pair + tid % 8] =
      static_cast<float>(sums[tid * kMeanThreads] / static_cast<double>(p.op.n_tokens));
}

// ---- decode -------------------------------------------------------------------------------------

inline constexpr int kDecodeThreads = 256;

struct DecodeKernelParams {
  DecodeKeysParams op;
  RowFormat format;
  bool units = false;  // slots, tables and mean are made of aligned units of 16 bytes
};

// Grid: (units of eight channel pairs in parallel, KV heads).
GPU void decode_missed_keys(const DecodeKernelParams& p, const JointGrid& grid) {
  using namespace lowrank;
  gpu::begin_dependent();
  const int64_t head = blockIdx.y, tokens = p.op.chunk_tokens;
  const int half = p.op.rope.half, d = p.op.head_dim, n_units = half / 8;
  const int64_t n_items = p.op.miss_counts[head] * tokens * n_units;
  const auto* codes = reinterpret_cast<const uint8_t*>(p.op.codes) + head * p.op.code_head_stride;
  const float* mean = p.op.mean + head * d;
  const int64_t step = int64_t{grid.n_x} * kDecodeThreads;
  for (int64_t i = int64_t{blockIdx.x} * kDecodeThreads + threadIdx.x; i < n_items; i += step) {
    const int64_t row = i / n_units, at = row / tokens, in_chunk = row - at * tokens;
    const int pair = static_cast<int>(i - row * n_units) * 8;
    const int64_t chunk = p.op.miss_chunks[head * p.op.stride + at];
    const int64_t slot = p.op.miss_slots[head * p.op.stride + at];
    const int64_t token = chunk * tokens + in_chunk;
    const uint8_t* coded = codes + token * p.format.bytes;
    const CodedEight low_codes = load_coded(p.format, coded, pair);
    const CodedEight high_codes = load_coded(p.format, coded, pair + half);
    const Angles<8> a = angles_at<8>(p.op.rope, token, pair, 8, p.units);
    float low[8], high[8], low_mean[8], high_mean[8];
    load_floats(mean + pair, 8, p.units, low_mean);
    load_floats(mean + half + pair, 8, p.units, high_mean);
    decode_eight(p.format, low_codes, low);
    decode_eight(p.format, high_codes, high);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      low[e] += low_mean[e];
      high[e] += high_mean[e];
      turn(low[e], high[e], a.cos[e], a.sin[e]);
    }
    bf16* target = p.op.slots + head * p.op.slot_head_stride + (2 * slot * tokens + in_chunk) * d;
    store_eight(target + pair, round_eight(low), 8, p.units);
    store_eight(target + half + pair, round_eight(high), 8, p.units);
  }
}
struct DecodeMissedKeys : JointKernel<DecodeKernelParams, kDecodeThreads, 2> {
  GPU static void run(const DecodeKernelParams& p, const JointGrid& grid) {
    decode_missed_keys(p, grid);
  }
};

}  // namespace tiercel::cuda::codec
