// What the prefill kernels share: how queries are cut into tiles, which keys a tile meets, and the
// softmax of one warp's fragments, whose layout mma.sync and wgmma have in common.
//
// A block attends one tile of consecutive queries of one head. Its key list, as in cpu/:
//
//   index u   0 ............ n_chunk_keys ................................ n_keys
//             [ chosen chunks | positions local_begin .. that of the last query ]
//
// Row r of the tile sees indices u < n_keys with first_end + r - window <= u < first_end + r. Of a part
// that all queries come behind, that is the whole list: first_end is n_keys there.
// Dense attention is a list without chunks that begins at 0, or with a window at the multiple of a
// key tile at or before the first row's window.
#pragma once

#include <cstdint>

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"

namespace tiercel::cuda::prefill {

// One call of the op. Tiles never straddle blocks of queries.
struct Job {
  PrefillAttendParams op;
  int64_t block_tokens = 0;  // op's, or the tile of a dense call
  uint32_t tiles_per_block = 1;
  uint32_t n_tiles = 0;
  uint32_t window = 0;   // in keys; 2^31 - 1 when unlimited
  float unit = 0;        // from q . k to octaves
  bool aligned = false;  // every row begins at a multiple of 16 bytes
};

struct KeyList {
  const int32_t* ids = nullptr;
  int n_chunk_keys = 0;
  int chunk_tokens = 1;
  int64_t local_begin = 0;
  int64_t local_end = 0;  // 0: causality ends it

  GPU int64_t local_row(int u) const { return local_begin + (u - n_chunk_keys); }
  GPU int64_t row(int u) const {
    if (u >= n_chunk_keys) return local_row(u);
    return int64_t{ids[u / chunk_tokens]} * chunk_tokens + u % chunk_tokens;
  }
  // The end of what the query at this position sees.
  GPU int end(int64_t position) const {
    const int64_t n_local = (local_end > 0 ? local_end : position + 1) - local_begin;
    return n_chunk_keys + static_cast<int>(n_local > 0 ? n_local : 0);
  }
  // Of the list's chunks, which are these, in ascending order, so many begin before this position.
  GPU int chunks_before(const int32_t* chunks, int64_t position) const {
    int first = 0, end = n_chunk_keys / chunk_tokens;
    while (first < end) {
      const int middle = (first + end) / 2;
      if (int64_t{chunks[middle]} * chunk_tokens < position) {
        first = middle + 1;
      } else {
        end = middle;
      }
    }
    return first;
  }
  // Leaves what is in the part. at: of the list among all.
  GPU void clip(const PrefillPart& part, int64_t at) {
    if (n_chunk_keys > 0) {
      const bool brought = part.chunks != nullptr;
      const int32_t* chunks = brought ? part.chunks + at : ids;
      const int first = chunks_before(chunks, brought ? part.first_chunk * chunk_tokens : part.begin);
      int end = n_chunk_keys / chunk_tokens;
      if (brought || part.end > 0) end = chunks_before(chunks, brought ? part.end_chunk * chunk_tokens : part.end);
      ids += first;
      n_chunk_keys = (end - first) * chunk_tokens;
    }
    if (local_begin < part.begin) local_begin = part.begin;
    local_end = part.end;
  }
};

// The list of the queries from `token` on; their windows begin in its first key_tile keys.
GPU KeyList key_list(const PrefillAttendParams& op, int64_t token, int kv_head, int key_tile) {
  KeyList list;
  int64_t at = 0;
  if (op.block_tokens > 0) {
    const int64_t block = token / op.block_tokens;
    const int64_t number = block * op.n_kv_heads + kv_head;
    at = number * op.max_chunks;
    list.ids = op.chunk_ids + at;
    list.chunk_tokens = op.chunk_tokens;
    list.n_chunk_keys = op.chunk_counts[number] * op.chunk_tokens;
    list.local_begin = op.local_begin[block];
  } else if (op.window > 0) {
    const int64_t first = op.first_position + token - op.window + 1;
    list.local_begin = first > 0 ? first / key_tile * key_tile : 0;
  }
  if (op.part.state != nullptr) list.clip(op.part, at);
  return list;
}

struct Tile {
  int head = 0, kv_head = 0;
  int64_t first_token = 0;
  int n_rows = 0;  // queries; at most 0 where a short last block has none left
  int first_end = 0;
  int n_keys = 0;
  KeyList list;
};

// The last queries, which see most, come first; the heads of a group, which read the same keys, run
// side by side.
template <int kQueries, int kKeys>
GPU Tile make_tile(const Job& job) {
  const PrefillAttendParams& op = job.op;
  const auto n_heads = static_cast<uint32_t>(op.n_heads);
  const uint32_t cut = job.n_tiles - 1 - blockIdx.x / n_heads;
  const uint32_t block = cut / job.tiles_per_block;
  const int64_t offset = int64_t{cut % job.tiles_per_block} * kQueries;
  Tile tile;
  tile.head = static_cast<int>(blockIdx.x % n_heads);
  tile.kv_head = tile.head / (op.n_heads / op.n_kv_heads);
  tile.first_token = block * job.block_tokens + offset;
  int64_t rows = job.block_tokens - offset;
  if (rows > op.n_tokens - tile.first_token) rows = op.n_tokens - tile.first_token;
  tile.n_rows = static_cast<int>(rows < kQueries ? rows : kQueries);
  if (tile.n_rows <= 0) return tile;
  tile.list = key_list(op, tile.first_token, tile.kv_head, kKeys);
  tile.first_end = tile.list.end(op.first_position + tile.first_token);
  tile.n_keys = tile.first_end + (op.part.end > 0 ? 0 : tile.n_rows - 1);
  return tile;
}

// ---- fragments ----------------------------------------------------------------------------------
// A warp holds 16 rows: lane 4g + t has rows g and g + 8, register i row g + 8 * (i >> 1 & 1) and
// column 8 * (i / 4) + 2 * t + (i & 1).

// Two rows of an unfinished attention: out = sum exp2(s - base) v, sum = sum exp2(s - base).
struct RowState {
  float base[2] = {-gpu::kInf, -gpu::kInf};
  float sum[2] = {0.0f, 0.0f};  // of this lane's columns
};

GPU int lane_row() { return static_cast<int>(threadIdx.x % 32 / 4); }
GPU int lane_column() { return static_cast<int>(threadIdx.x % 4 * 2); }

// s holds the scores of keys first ..; end is that of the lane's first row, n_keys the list's.
template <int kN>
GPU void mask_scores(float (&s)[kN], int first, int end, int n_keys, uint32_t window) {
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    const int key = first + i / 4 * 8 + lane_column() + (i & 1);
    const int last = end - 1 + (i & 2 ? 8 : 0);
    // One comparison: a key after the last wraps to 2^31 or more.
    if (static_cast<uint32_t>(last - key) >= window || key >= n_keys) s[i] = -gpu::kInf;
  }
}

// The biases of keys first .., in units of the scores.
template <int kN>
GPU void add_key_bias(float (&s)[kN], const Job& job, const Tile& tile, int first) {
  const float* bias = job.op.bias + tile.kv_head * job.op.bias_head_stride;
  const float per_octave = 1.0f / job.unit;
#pragma unroll
  for (int i = 0; i < kN / 4; ++i) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int key = first + i * 8 + lane_column() + e;
      if (key >= tile.n_keys) continue;  // nobody sees it
      const float x = bias[tile.list.row(key)] * per_octave;
      s[i * 4 + e] += x;
      s[i * 4 + 2 + e] += x;
    }
  }
}

// Scores to weights; alpha is what everything summed before shrinks by. A NaN is no maximum, but
// makes its weight and with it the sum NaN.
template <int kN>
GPU void online_softmax(float (&s)[kN], float unit, RowState& rows, float (&alpha)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float highest = -gpu::kInf;
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) highest = fmaxf(highest, s[i / 2 * 4 + 2 * r + (i & 1)]);
    highest = fmaxf(highest, gpu::shuffle_xor(highest, 1));
    highest = fmaxf(highest, gpu::shuffle_xor(highest, 2));
    const float base = fmaxf(rows.base[r], highest * unit);
    const float minus = base == -gpu::kInf ? 0.0f : -base;  // nothing seen yet: exp2(-inf) = 0
    alpha[r] = gpu::exp2_fast(rows.base[r] + minus);
    rows.base[r] = base;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      float& x = s[i / 2 * 4 + 2 * r + (i & 1)];
      x = gpu::exp2_fast(fmaf(x, unit, minus));
      sum += x;
    }
    rows.sum[r] = fmaf(rows.sum[r], alpha[r], sum);
  }
}

template <int kN>
GPU void rescale(float (&out)[kN], const float (&alpha)[2]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) out[i] *= alpha[i / 2 & 1];
}

// Weights of 16 keys as the A operand of the next product: no shuffle needed.
template <int kN>
GPU void pack_weights(uint32_t (&a)[4], const float (&s)[kN], int step) {
#pragma unroll
  for (int r = 0; r < 4; ++r) a[r] = gpu::pack_bf16(s[step * 8 + 2 * r], s[step * 8 + 2 * r + 1]);
}

// In the first element of a row: not finite, to be computed again by attend_failed_rows.
inline constexpr uint32_t kFailed = 0x7fc0;
GPU bool is_failed(bf16 x) { return (x.bits & 0x7fff) > 0x7f80; }

// The lane's two rows of PrefillPart::state, bases, sums and out, and what they make together with what
// the part in hand has found. sums become those of whole rows, in all their lanes.
template <int kDim>
GPU void merge_state(const PrefillAttendParams& op, const Tile& tile, int row,
                     float (&out)[kDim / 2], RowState& rows) {
  const int64_t n = op.n_tokens * op.n_heads;
  const int64_t stride = (op.head_dim + 63) / 64 * 64;  // as prefill_state_floats has it
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    rows.sum[r] += gpu::shuffle_xor(rows.sum[r], 1);
    rows.sum[r] += gpu::shuffle_xor(rows.sum[r], 2);
    const int i = row + 8 * r;
    if (i >= tile.n_rows) continue;
    const int64_t place = (tile.first_token + i) * op.n_heads + tile.head;
    float *base = op.part.state + place, *sum = base + n;
    float* columns = op.part.state + 2 * n + place * stride;
    float before = 0.0f, now = 1.0f;  // weights
    if (!op.part.is_first) {
      const float top = fmaxf(rows.base[r], *base), minus = top == -gpu::kInf ? 0.0f : -top;
      before = gpu::exp2_fast(*base + minus);
      now = gpu::exp2_fast(rows.base[r] + minus);
      rows.base[r] = top;
      rows.sum[r] = fmaf(*sum, before, rows.sum[r] * now);
    }
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const int column = 8 * j + lane_column();
      if (column >= op.head_dim) continue;
      float2& kept = *reinterpret_cast<float2*>(columns + column);
      float &low = out[4 * j + 2 * r], &high = out[4 * j + 2 * r + 1];
      if (!op.part.is_first) {
        low = fmaf(kept.x, before, low * now);
        high = fmaf(kept.y, before, high * now);
      }
      if (!op.part.is_last) kept = float2{low, high};
    }
  }
  gpu::sync_warp();  // all lanes of a row have read its base and sum
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = row + 8 * r;
    if (i >= tile.n_rows || op.part.is_last || lane_column() != 0) continue;
    const int64_t place = (tile.first_token + i) * op.n_heads + tile.head;
    op.part.state[place] = rows.base[r];
    op.part.state[n + place] = rows.sum[r];
  }
  if (lane_column() != 0) rows.sum[0] = rows.sum[1] = 0.0f;  // store_rows adds them up
}

// row: the lane's first row in the tile. The instance may be wider than the head dim.
template <int kDim>
GPU void store_rows(const PrefillAttendParams& op, const Tile& tile, int row,
                    float (&out)[kDim / 2], RowState& rows) {
  if (op.part.state != nullptr) {
    merge_state<kDim>(op, tile, row, out, rows);
    if (!op.part.is_last) return;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = rows.sum[r], zero = 0.0f;
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) {  // 0 * x is NaN where x is not finite
      zero = fmaf(out[i / 2 * 4 + 2 * r + (i & 1)], 0.0f, zero);
    }
#pragma unroll
    for (int mask = 1; mask <= 2; mask *= 2) {
      sum += gpu::shuffle_xor(sum, mask);
      zero += gpu::shuffle_xor(zero, mask);
    }
    const bool failed = !(zero == 0.0f && sum > 0.0f && sum < gpu::kInf);
    const float factor = 1.0f / sum;
    const int i = row + 8 * r;
    if (i >= tile.n_rows) continue;
    bf16* target = op.out + ((tile.first_token + i) * op.n_heads + tile.head) * op.head_dim;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const int column = 8 * j + lane_column();
      uint32_t pair = gpu::pack_bf16(out[4 * j + 2 * r] * factor, out[4 * j + 2 * r + 1] * factor);
      if (failed && column == 0) pair = kFailed;
      if (column < op.head_dim) *reinterpret_cast<uint32_t*>(target + column) = pair;
    }
  }
}

// ---- rows that are not finite -------------------------------------------------------------------

GPU double shuffle_double(double x, int source) {
  uint32_t words[2];
  __builtin_memcpy(words, &x, 8);
  words[0] = gpu::shuffle(words[0], source);
  words[1] = gpu::shuffle(words[1], source);
  __builtin_memcpy(&x, words, 8);
  return x;
}

GPU double dot(const bf16* a, const bf16* b, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) {
    sum += static_cast<double>(gpu::to_float(a[i])) * static_cast<double>(gpu::to_float(b[i]));
  }
  return sum;
}

inline constexpr int kMaxHeadDim = 256;

// One row by one warp, 32 keys at a time: for broken input, so fast only in giving up (a score of
// NaN or +inf makes the whole row NaN). Lane i owns channels 2i, 2i + 1, 64 + 2i, ...
GPU void attend_row_exactly(const Job& job, int64_t token, int head) {
  const PrefillAttendParams& op = job.op;
  const int lane = static_cast<int>(threadIdx.x % 32), d = op.head_dim;
  const int kv_head = head / (op.n_heads / op.n_kv_heads);
  const KeyList list = key_list(op, token, kv_head, 1);
  const int64_t at = (token * op.n_heads + head) * d;
  const bf16* keys = op.keys + kv_head * op.head_stride;
  const bf16* values = op.values + kv_head * op.head_stride;
  const int end = list.end(op.first_position + token);
  double out[kMaxHeadDim / 32] = {};
  double max = -gpu::kInf, sum = 0;
  for (int first = 0; first < end; first += 32) {
    const int u = first + lane;
    double score = -gpu::kInf;
    if (u < end) {
      score = dot(op.q + at, keys + list.row(u) * d, d) * static_cast<double>(job.unit);
      if (op.bias != nullptr) {
        score += static_cast<double>(op.bias[kv_head * op.bias_head_stride + list.row(u)]);
      }
    }
    if (gpu::ballot(!(score < gpu::kInf)) != 0) {
      sum = __builtin_nan("");
      break;
    }
    double highest = score > max ? score : max;
    for (int mask = 16; mask > 0; mask /= 2) {
      const double other = shuffle_double(highest, lane ^ mask);
      highest = other > highest ? other : highest;
    }
    const double base = highest == -gpu::kInf ? 0.0 : highest;
    const double factor = gpu::exp2_fast(static_cast<float>(max - base));
    const double weight = gpu::exp2_fast(static_cast<float>(score - base));
    max = highest;
    sum = sum * factor + weight;
    for (double& x : out) x *= factor;
    for (int i = 0; i < 32 && first + i < end; ++i) {
      const double w = shuffle_double(weight, i);
      const bf16* v = values + list.row(first + i) * d;
      for (int c = 0; c < kMaxHeadDim / 32; ++c) {
        const int channel = c / 2 * 64 + lane * 2 + c % 2;
        if (channel < d) out[c] += w * static_cast<double>(gpu::to_float(v[channel]));
      }
    }
  }
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_double(sum, lane ^ mask);
  for (int c = 0; c < kMaxHeadDim / 32; ++c) {
    const int channel = c / 2 * 64 + lane * 2 + c % 2;
    // sum 0: all scores are -inf, a quotient 0 / 0.
    if (channel < d) op.out[at + channel] = gpu::to_bf16(static_cast<float>(out[c] / sum));
  }
}

inline constexpr int kFailedWarps = 4;

KERNEL(kFailedWarps * 32, 1) attend_failed_rows(const GRID_CONST Job job) {
  const PrefillAttendParams& op = job.op;
  const int64_t n_rows = op.n_tokens * op.n_heads;
  const int64_t warp = int64_t{blockIdx.x} * kFailedWarps + threadIdx.x / 32;
  const int64_t row = warp * 32 + threadIdx.x % 32;
  uint32_t failed = gpu::ballot(row < n_rows && is_failed(op.out[row * op.head_dim]));
  for (; failed != 0; failed &= failed - 1) {
    const int64_t next = warp * 32 + gpu::popcount((failed & (0u - failed)) - 1);
    attend_row_exactly(job, next / op.n_heads, static_cast<int>(next % op.n_heads));
  }
}

}  // namespace tiercel::cuda::prefill
