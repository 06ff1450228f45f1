// The kernels behind attention_decode.cu.
//
// The tokens of a KV head are tiles of 16 keys, source after source:
//
//   source 0: [tile][tile][til]   source 1: [tile][t]   ..      a tile never spans two sources
//   warps:    |  0   |  1    |  2  ..   equal shares of all tiles, consecutive within a warp
//
// A warp owns its tiles, its ring of copies in flight and its (max, sum, out): there is no block
// barrier in the loop. The four warps of a block (a split) merge in shared memory; the splits of a
// KV head are merged in their order by whichever block ends last, or by a second kernel where they
// are many.
//
// Numbers: scores and sums are fp32 in units of log2. Where a maximum is -inf, 0 takes its place as
// the base of the weights, so that exp2(-inf - 0) = 0 and never NaN; a real NaN, and the NaN of
// exp2(inf - inf), stay in sum and out.
#pragma once

#include "engine/base/ops.h"
#include "kernels/clock.cuh"
#include "kernels/gpu.cuh"
#include "kernels/joint_launch.cuh"

namespace tiercel::cuda::decode {

inline constexpr int kTile = 16;  // keys: the depth of one matrix product
inline constexpr int kWarps = 4;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kMaxRows = 16;  // query heads of one block: the rows of one matrix product
// A block that would get fewer tiles costs more in merging than it saves in waiting.
inline constexpr int kTilesPerSplit = 12;
inline constexpr int kCounters = 512;  // words at the head of the workspace

// A KvSource as the kernels want it: chunk = (token * reciprocal) >> shift.
struct Source {
  const bf16* keys = nullptr;
  const bf16* values = nullptr;
  int64_t head_stride = 0, chunk_stride = 0, token_stride = 0;
  const int32_t* ids = nullptr;
  const int32_t* counts = nullptr;
  int64_t ids_stride = 0;
  const int64_t* later = nullptr;  // added to n_tokens
  int32_t n_tokens = 0;            // without ids
  int32_t max_tokens = 0;          // what the host knows: whatever counts and later are
  int32_t chunk_tokens = 1;
  uint32_t reciprocal = 0;
  int32_t shift = 0;
  float bias = 0;  // of every score, log2 units
  const float* key_bias = nullptr;  // of every key, as in KvSource
  int64_t key_bias_head_stride = 0;
  const int32_t* bias_chunks = nullptr;
  int64_t bias_chunks_stride = 0;
  const int32_t* position_chunks = nullptr;  // of every row's position, likewise
  int64_t position_chunks_stride = 0;
  int32_t first_position = 0, position_step = 1;
};

struct Params {
  const bf16* q = nullptr;  // [n_heads][head_dim], for every view
  int64_t view_stride = 0;
  int32_t n_views = 1, span_tokens = 0;
  Source sources[kMaxDecodeSources];
  PartialView out;
  uint32_t* counters = nullptr;  // [n_kv_heads][row blocks], zero between calls
  float* rows = nullptr;         // [n_heads][n_splits][head_dim]: out of every split
  float* stats = nullptr;        // [n_heads][n_splits][2]: max, sum
  float scale = 0;               // from q . k to log2
  int32_t n_sources = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
  int32_t n_splits = 0;
  bool merge_at_once = false;         // the last block merges; otherwise merge_splits does
  PartialView others[kMaxMergeWith];  // merged with out into final_out, if that is given
  int32_t n_others = 0;
  bf16* final_out = nullptr;
  // attend_few: tiles by the bounds of the sources, how many of them a block takes, and the bytes
  // of shared memory that a warp has for its tiles and, later, for its partial.
  int32_t first_tile[kMaxDecodeSources] = {};
  int32_t tiles_per_split = 0, warp_bytes = 0;
};

// Shared memory beside the rings.
struct Notes {
  int32_t n_tokens[kMaxDecodeSources];  // of this KV head
  int32_t tiles[kWarps][4];             // of the tile in each stage: live << 3 | source
  uint32_t is_last;
};
inline constexpr int kNotesBytes = 128;
static_assert(sizeof(Notes) <= kNotesBytes);

// The query heads first_head .. + n_rows - 1 and the share of their keys that a block attends.
struct Work {
  int kv_head, first_head, n_rows;
  int split, n_splits;  // splits that have work; n_splits <= Params::n_splits
  int counter;
};

GPU int tiles_of(int n_tokens) { return (n_tokens + kTile - 1) / kTile; }
GPU float weight_base(float max) { return max == -gpu::kInf ? 0.0f : max; }
// Only the empty merge has sum 0 (a key with the largest score weighs 1); NaN stays NaN.
GPU float inverse_of(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }
GPU int64_t shuffle_offset(int64_t offset, int lane) {
  const auto bits = static_cast<uint64_t>(offset);
  const uint32_t low = gpu::shuffle(static_cast<uint32_t>(bits), lane);
  const uint32_t high = gpu::shuffle(static_cast<uint32_t>(bits >> 32), lane);
  return static_cast<int64_t>(uint64_t{high} << 32 | low);
}

// ---- dealing out --------------------------------------------------------------------------------

// What the device adds to what the host knows of a source, and the tokens that a KV head sees then.
GPU int load_variable(const Source& source, int kv_head) {
  if (source.ids != nullptr) return source.counts[kv_head];
  return static_cast<int>(steps_later(source.later));
}
GPU int tokens_of(const Source& source, int variable) {
  return source.ids != nullptr ? variable * source.chunk_tokens : source.n_tokens + variable;
}

// The tiles of a KV head; every block of the head finds the same. Contains a barrier.
GPU int count_tiles(const Params& p, int kv_head, Notes& notes) {
  const int tid = static_cast<int>(threadIdx.x);
  if (tid < kMaxDecodeSources) {
    const Source& source = p.sources[tid];  // past n_sources: of no tokens
    notes.n_tokens[tid] = tokens_of(source, load_variable(source, kv_head));
  }
  gpu::sync_threads();
  int n = 0;
  for (int s = 0; s < p.n_sources; ++s) n += tiles_of(notes.n_tokens[s]);
  return n;
}

GPU int splits_with_work(int n_tiles, int n_splits) {
  const int wanted = (n_tiles + kTilesPerSplit - 1) / kTilesPerSplit;
  return wanted < 1 ? 1 : wanted < n_splits ? wanted : n_splits;
}

struct Share {
  int first, count;
};
GPU Share share_of(int n_tiles, int worker, int n_workers) {
  const int first = static_cast<int>(int64_t{n_tiles} * worker / n_workers);
  return {first, static_cast<int>(int64_t{n_tiles} * (worker + 1) / n_workers) - first};
}

// Where token is in its source.
struct Within {
  int id, row;  // of its chunk
};
GPU Within find_token(const Source& source, int kv_head, int token) {
  const int chunk = static_cast<int>(uint64_t{static_cast<uint32_t>(token)} * source.reciprocal >>
                                     source.shift);
  const int id = source.ids != nullptr ? source.ids[kv_head * source.ids_stride + chunk] : chunk;
  return {id, token - chunk * source.chunk_tokens};
}

// The source that a tile lies in; tile becomes its number there.
GPU int find_source(const Params& p, const Notes& notes, int& tile) {
  int s = 0;
  for (; s + 1 < p.n_sources; ++s) {
    const int n = tiles_of(notes.n_tokens[s]);
    if (tile < n) break;
    tile -= n;
  }
  return s;
}

// One row of a tile. live: the keys of the tile, at most kTile; 0 or less past the last tile.
struct Row {
  int64_t offset;  // in elements from the KV head's first row
  int source, live;
};
GPU Row find_row(const Params& p, const Notes& notes, int kv_head, int tile, int row) {
  const int s = find_source(p, notes, tile);
  const Source& source = p.sources[s];
  const int n_tokens = notes.n_tokens[s];
  const int token = tile * kTile + row;
  const int left = n_tokens - tile * kTile;
  Row found{0, s, left < kTile ? left : kTile};
  if (token < n_tokens) {
    const Within at = find_token(source, kv_head, token);
    found.offset = at.id * source.chunk_stride + at.row * source.token_stride;
  }
  return found;
}

// What is added to the score of one row of a tile, beside the source's bias.
GPU float find_key_bias(const Params& p, const Notes& notes, int kv_head, int tile, int row) {
  const int s = find_source(p, notes, tile);
  const Source& source = p.sources[s];
  const int token = tile * kTile + row;
  if (source.key_bias == nullptr || token >= notes.n_tokens[s]) return 0.0f;
  Within at = find_token(source, kv_head, token);
  if (source.bias_chunks != nullptr) {
    at.id = source.bias_chunks[kv_head * source.bias_chunks_stride + at.id];
  }
  return source.key_bias[kv_head * source.key_bias_head_stride +
                         int64_t{at.id} * source.chunk_tokens + at.row];
}

// The view that queries have for one row of a tile; of a row past the last, the tile's last one's.
GPU int find_view(const Params& p, const Notes& notes, int kv_head, int tile, int row) {
  if (p.n_views == 1) return 0;
  const int s = find_source(p, notes, tile);
  const Source& source = p.sources[s];
  const int last = notes.n_tokens[s] - 1, token = tile * kTile + row;
  if (last < 0) return 0;
  Within at = find_token(source, kv_head, token < last ? token : last);
  if (source.position_chunks != nullptr) {
    at.id = source.position_chunks[kv_head * source.position_chunks_stride + at.id];
  }
  const int view = (source.first_position + at.id * source.position_step + at.row) / p.span_tokens;
  return view < p.n_views ? view : p.n_views - 1;
}

// ---- merging ------------------------------------------------------------------------------------

// kWidth consecutive floats.
template <int kWidth>
GPU void load_row(float (&x)[kWidth], const float* p) {
  static_assert(kWidth == 4 || kWidth == 1);
  if constexpr (kWidth == 4) {
    const float4 v = gpu::load_uncached(reinterpret_cast<const float4*>(p));
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else {
    x[0] = gpu::load_uncached(p);
  }
}

template <int kWidth>
GPU void store_row(float* p, const float (&x)[kWidth]) {
  if constexpr (kWidth == 4) {
    *reinterpret_cast<float4*>(p) = {x[0], x[1], x[2], x[3]};
  } else {
    *p = x[0];
  }
}

// Some columns of a head of Params::others, loaded early: write() then need not wait for them.
template <int kWidth>
struct Others {
  float max[kMaxMergeWith], sum[kMaxMergeWith], x[kMaxMergeWith][kWidth];

  GPU void load(const Params& p, int64_t head, int column) {
    const int d = p.head_dim;
#pragma unroll
    for (int i = 0; i < kMaxMergeWith; ++i) {
      if (i >= p.n_others) break;
      max[i] = p.others[i].max[head];
      sum[i] = p.others[i].sum[head];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) x[i][k] = p.others[i].out[head * d + column + k];
    }
  }
  // final_out of these columns: merge_normalised of the others and ours, to the bit.
  GPU void write(const Params& p, int64_t head, int column, float our_max, float our_sum,
                 const float (&ours)[kWidth]) const {
    using namespace gpu;
    float top = our_max, total = 0.0f, acc[kWidth] = {};
#pragma unroll
    for (int i = 0; i < kMaxMergeWith; ++i) {
      if (i < p.n_others) top = fmaxf(top, max[i]);
    }
    auto add = [&](float its_max, float its_sum, const float(&its)[kWidth]) {
      const float weight = exp2_fast(its_max - weight_base(top));
      total = fmaf(weight, its_sum, total);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) acc[k] = fmaf(weight, its[k], acc[k]);
    };
#pragma unroll
    for (int i = 0; i < kMaxMergeWith; ++i) {
      if (i < p.n_others) add(max[i], sum[i], x[i]);
    }
    add(our_max, our_sum, ours);
    const float inverse = inverse_of(total);
    bf16* target = p.final_out + head * p.head_dim + column;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) target[k] = to_bf16(mul_rn(acc[k], inverse));
  }
};

// out, max and sum of n_rows heads (and their final_out) from the partials of all splits, in the
// order of the splits; shared holds n_rows * (n_splits + 1) pairs.
template <int kHeadDim, int kWidth, int kBlockWarps>
GPU void merge_rows(const Params& p, const Work& work, float2* shared) {
  using namespace gpu;
  constexpr int kStep = 32 * kBlockWarps * kWidth;
  constexpr int kBatch = 16;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int d = kHeadDim > 0 ? kHeadDim : p.head_dim;
  const int n = work.n_rows * d;
  float2* totals = shared + work.n_rows * work.n_splits;  // max and sum of every row

  // As many values in flight as registers allow; the first of them while the weights are made.
  float x[kBatch][kWidth];
  Others<kWidth> others;
  auto load = [&](int i, int s0) {
    const int row = i / d, column = i % d;
    const float* source = p.rows + (int64_t{work.first_head + row} * p.n_splits + s0) * d + column;
#pragma unroll
    for (int b = 0; b < kBatch; ++b, source += d) {
      if (s0 + b < work.n_splits) load_row(x[b], source);
    }
    if (s0 == 0 && p.final_out != nullptr) others.load(p, work.first_head + row, column);
  };
  int i = tid * kWidth;
  if (i < n) load(i, 0);

#pragma unroll 1
  for (int row = warp; row < work.n_rows; row += kBlockWarps) {  // weights: a lane per split
    const int head = work.first_head + row;
    const float* stats = p.stats + int64_t{head} * p.n_splits * 2;
    float2* pairs = shared + row * work.n_splits;
    float max = -kInf, sum = 0.0f;
#pragma unroll 1
    for (int s = lane; s < work.n_splits; s += 32) {
      pairs[s] = load_uncached(reinterpret_cast<const float2*>(stats) + s);
      max = fmaxf(max, pairs[s].x);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) max = fmaxf(max, shuffle_xor(max, mask));
#pragma unroll 1
    for (int s = lane; s < work.n_splits; s += 32) {
      pairs[s].x = exp2_fast(pairs[s].x - weight_base(max));
      sum = fmaf(pairs[s].x, pairs[s].y, sum);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane == 0) {
      totals[row] = {max, sum};
      p.out.max[head] = max;
      p.out.sum[head] = sum;
    }
  }
  sync_threads();

  // Values: sums in the order of the splits.
  float acc[kWidth] = {};
#pragma unroll 1
  for (int s0 = 0; i < n;) {
    const int row = i / d, column = i % d;
    const float2* pairs = shared + row * work.n_splits;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (s0 + b >= work.n_splits) break;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) acc[k] = fmaf(pairs[s0 + b].x, x[b][k], acc[k]);
    }
    s0 += kBatch;
    if (s0 >= work.n_splits) {
      const int64_t head = work.first_head + row;
      float* target = p.out.out + head * d + column;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) target[k] = acc[k];
      if (p.final_out != nullptr) {
        others.write(p, head, column, totals[row].x, totals[row].y, acc);
      }
#pragma unroll
      for (int k = 0; k < kWidth; ++k) acc[k] = 0.0f;
      s0 = 0;
      i += kStep;
    }
    if (i < n) load(i, s0);
  }
}

// Whether all other blocks of this counter have written their partials; the counter is zero again
// when it says so.
GPU bool is_last_block(uint32_t* counter, int n_blocks, Notes& notes) {
  using namespace gpu;
  sync_threads();  // every thread has written; the release below covers what the barrier ordered
  if (threadIdx.x == 0) {
    notes.is_last = atomic_add_ordered(counter, 1u) == static_cast<uint32_t>(n_blocks) - 1;
    if (notes.is_last) *counter = 0;
  }
  sync_threads();
  return notes.is_last != 0;
}

// Merges the warps' partials, records of kStride floats (values, max, sum) in shared memory, row
// after row and warp_stride floats from warp to warp, and passes the block's partial on. Begins
// after a barrier.
template <int kHeadDim, int kWidth, int kStride, int kBlockWarps>
GPU void finish_block(const Params& p, const Work& work, uint8_t* shared, int warp_stride,
                      Notes& notes) {
  using namespace gpu;
  const int tid = static_cast<int>(threadIdx.x);
  const int d = kHeadDim > 0 ? kHeadDim : p.head_dim;
  const int stats_at = kStride - 8;
  const auto* records = reinterpret_cast<const float*>(shared);
  const bool alone = work.n_splits == 1;

#pragma unroll 1
  for (int i = tid * kWidth; i < work.n_rows * d; i += 32 * kBlockWarps * kWidth) {
    const int row = i / d, column = i % d;
    Others<kWidth> others;
    if (alone && p.final_out != nullptr) others.load(p, work.first_head + row, column);
    const float* record[kBlockWarps];
    float max = -kInf, sum = 0.0f, acc[kWidth] = {};
#pragma unroll
    for (int w = 0; w < kBlockWarps; ++w) {
      record[w] = records + w * warp_stride + row * kStride;
      max = fmaxf(max, record[w][stats_at]);
    }
#pragma unroll
    for (int w = 0; w < kBlockWarps; ++w) {
      const float weight = exp2_fast(record[w][stats_at] - weight_base(max));
      sum = fmaf(weight, record[w][stats_at + 1], sum);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) acc[k] = fmaf(weight, record[w][column + k], acc[k]);
    }
    const int64_t head = work.first_head + row;
    if (!alone) {
      const int64_t at = head * p.n_splits + work.split;
      store_row(p.rows + at * d + column, acc);
      if (column == 0) reinterpret_cast<float2*>(p.stats)[at] = {max, sum};
      continue;
    }
#pragma unroll
    for (int k = 0; k < kWidth; ++k) p.out.out[head * d + column + k] = acc[k];
    if (column == 0) {
      p.out.max[head] = max;
      p.out.sum[head] = sum;
    }
    if (p.final_out != nullptr) others.write(p, head, column, max, sum, acc);
  }
  if (alone || !p.merge_at_once) return;
  if (!is_last_block(p.counters + work.counter, work.n_splits, notes)) return;
  merge_rows<kHeadDim, kWidth, kBlockWarps>(p, work, reinterpret_cast<float2*>(shared));
}

// Where the splits are too many for one block to merge: one block per query head.
template <int kWidth>
GPU void merge_splits(const Params& p) {
  SHARED(shared);
  gpu::begin_dependent();
  Notes& notes = *reinterpret_cast<Notes*>(shared);
  Work work;
  work.first_head = static_cast<int>(blockIdx.x);
  work.kv_head = work.first_head / (p.n_heads / p.n_kv_heads);
  work.n_rows = 1;
  work.n_splits = splits_with_work(count_tiles(p, work.kv_head, notes), p.n_splits);
  if (work.n_splits == 1) return;  // its only block has written the result
  merge_rows<0, kWidth, kWarps>(p, work, reinterpret_cast<float2*>(shared + kNotesBytes));
}
template <int kWidth>
struct MergeSplits : JointKernel<Params, kThreads, 2> {
  GPU static void run(const Params& p, const JointGrid&) { merge_splits<kWidth>(p); }
};

// ---- any shape ----------------------------------------------------------------------------------

inline constexpr int kMaxHeadDim = 256;
inline constexpr int kPlainRecord = kMaxHeadDim + 8;
inline constexpr int kPlainShared = kWarps * kPlainRecord * 4 + kNotesBytes;

// Grid: splits, query heads. A tile's scores: two lanes per key. Its values: a lane per 32 columns.
GPU void attend_plain(const Params& p) {
  using namespace gpu;
  SHARED(shared);
  begin_dependent();
  Notes& notes = *reinterpret_cast<Notes*>(shared + kPlainShared - kNotesBytes);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int d = p.head_dim;
  Work work;
  work.first_head = work.counter = static_cast<int>(blockIdx.y);
  work.kv_head = work.first_head / (p.n_heads / p.n_kv_heads);
  work.n_rows = 1;
  work.split = static_cast<int>(blockIdx.x);
  const int n_tiles = count_tiles(p, work.kv_head, notes);
  work.n_splits = splits_with_work(n_tiles, p.n_splits);
  if (work.split >= work.n_splits) return;
  const Share share = share_of(n_tiles, work.split * kWarps + warp, work.n_splits * kWarps);

  const bf16* first_q = p.q + int64_t{work.first_head} * d;
  float max = -kInf, sum = 0.0f, o[kMaxHeadDim / 32] = {};
  for (int i = 0; i < share.count; ++i) {
    // Scores: lanes r and r + 16 take the even and the odd elements of key r.
    const Row row = find_row(p, notes, work.kv_head, share.first + i, lane % 16);
    const Source& source = p.sources[row.source];
    const int64_t head_offset = work.kv_head * source.head_stride;
    const int live = row.live;
    float s = 0.0f;
    if (lane % 16 < live) {
      const bf16* key = source.keys + head_offset + row.offset;
      const int view = find_view(p, notes, work.kv_head, share.first + i, lane % 16);
      const bf16* q = first_q + view * p.view_stride;
      for (int e = lane / 16; e < d; e += 2) s = fmaf(to_float(q[e]), to_float(key[e]), s);
    }
    s += shuffle_xor(s, 16);
    const float bias =
        source.bias + find_key_bias(p, notes, work.kv_head, share.first + i, lane % 16);
    s = lane % 16 < live ? fmaf(s, p.scale, bias) : -kInf;

    // Weights.
    float top = fmaxf(max, s);
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) top = fmaxf(top, shuffle_xor(top, mask));
    const float alpha = exp2_fast(max - weight_base(top));
    const float weight = exp2_fast(s - weight_base(top));
    float tile_sum = weight;
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) tile_sum += shuffle_xor(tile_sum, mask);
    sum = fmaf(sum, alpha, tile_sum);
    max = top;

    // Values.
#pragma unroll
    for (int j = 0; j < kMaxHeadDim / 32; ++j) o[j] *= alpha;
    for (int r = 0; r < live; ++r) {
      const float w = bits_to_float(shuffle(float_to_bits(weight), r));
      const bf16* value = source.values + head_offset + shuffle_offset(row.offset, r);
#pragma unroll
      for (int j = 0; j < kMaxHeadDim / 32; ++j) {
        const int column = lane + 32 * j;
        if (column < d) o[j] = fmaf(w, to_float(value[column]), o[j]);
      }
    }
  }

  auto* record = reinterpret_cast<float*>(shared) + warp * kPlainRecord;
#pragma unroll
  for (int j = 0; j < kMaxHeadDim / 32; ++j) {
    if (lane + 32 * j < d) record[lane + 32 * j] = o[j];
  }
  if (lane == 0) {
    record[kMaxHeadDim] = max;
    record[kMaxHeadDim + 1] = sum;
  }
  sync_threads();
  finish_block<0, 1, kPlainRecord, kWarps>(p, work, shared, kPlainRecord, notes);
}
struct AttendPlain : JointKernel<Params, kThreads, 4> {
  GPU static void run(const Params& p, const JointGrid&) { attend_plain(p); }
};

// ---- merge_partials -----------------------------------------------------------------------------

template <int kMaxPartials>
struct MergeAll {
  PartialView partials[kMaxPartials];
  int32_t n_partials = 0, head_dim = 0;
  bf16* out = nullptr;  // [n_heads][head_dim]
};

// Grid: heads.
template <int kMaxPartials>
KERNEL(kThreads, 8)
merge_normalised(const GRID_CONST MergeAll<kMaxPartials> p) {
  using namespace gpu;
  begin_dependent();
  const int64_t head = blockIdx.x;
  float max = -kInf;
  for (int i = 0; i < p.n_partials; ++i) max = fmaxf(max, p.partials[i].max[head]);
  for (int column = static_cast<int>(threadIdx.x); column < p.head_dim; column += kThreads) {
    float sum = 0.0f, acc = 0.0f;
    for (int i = 0; i < p.n_partials; ++i) {
      const PartialView& partial = p.partials[i];
      const float weight = exp2_fast(partial.max[head] - weight_base(max));
      sum = fmaf(weight, partial.sum[head], sum);
      acc = fmaf(weight, partial.out[head * p.head_dim + column], acc);
    }
    const float inverse = inverse_of(sum);
    p.out[head * p.head_dim + column] = to_bf16(mul_rn(acc, inverse));
  }
}

}  // namespace tiercel::cuda::decode
