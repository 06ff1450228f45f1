// Decode attention where every row begins at a multiple of 16 bytes and head_dim is 64, 96, 128 or
// 256: tiles come through a ring of asynchronous copies per warp and are multiplied by mma.sync.
// The kernel is bound by memory, so it is Hopper's as well. See attention_decode.cuh.
#pragma once

#include "kernels/attention_decode.cuh"

namespace tiercel::cuda::decode {

template <int kHeadDim>
struct Layout {
  static constexpr int kStages = kHeadDim == 64 ? 4 : kHeadDim <= 128 ? 3 : 2;  // 163 KiB hold no more
  static constexpr int kBlocksPerProcessor = kHeadDim <= 96 ? 3 : kHeadDim == 128 ? 2 : 1;
  static constexpr int kTileBytes = kTile * kHeadDim * 2;  // of keys, and again of values
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kWarpBytes = kStages * kStageBytes;
  static constexpr int kRings = kWarps * kWarpBytes;
  static constexpr int kRecord = kHeadDim + 8;  // floats; 8: rows of a fragment in other banks
  static constexpr int kQueries = kRings + kNotesBytes;  // where they begin, if not in registers
  static constexpr int kSharedBytes = kQueries + (kHeadDim <= 128 ? 0 : kMaxRows * kHeadDim * 2);
  static_assert(kWarps * kMaxRows * kRecord * 4 <= kRings);
};

// Byte offset of 16 bytes of a row: XORed, so that eight consecutive rows meet all banks. Rows of
// 96 values are 12 units long: odd and even rows begin in different halves of the banks already,
// and two bits of row / 2 do the rest.
template <int kHeadDim>
GPU int swizzled(int row, int unit) {
  const int mask = kHeadDim % 64 == 0 ? row & 7 : row >> 1 & 3;
  return row * kHeadDim * 2 + (unit ^ mask) * 16;
}

// The group's heads, padded with zeros to the rows of a matrix product. In registers where they
// fit; at head_dim 256 they lie in shared memory and are loaded again for every tile.
template <int kHeadDim>
struct Queries {
  static constexpr bool kHeld = kHeadDim <= 128;
  uint32_t held[kHeld ? kHeadDim / 16 : 1][4];
  uint8_t* shared = nullptr;

  // All threads of the block. A block barrier must follow when not kHeld.
  GPU void load(const bf16* first, int n_rows, uint8_t* memory) {
    const int tid = static_cast<int>(threadIdx.x), lane = tid % 32;
    if constexpr (kHeld) {
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int row = lane / 4 + 8 * (r & 1), column = k * 16 + 2 * (lane % 4) + 8 * (r >> 1);
          const bf16* pair = first + row * kHeadDim + column;
          held[k][r] = row < n_rows ? *reinterpret_cast<const uint32_t*>(pair) : 0u;
        }
      }
    } else {
      shared = memory;
      for (int i = tid; i < kMaxRows * kHeadDim / 8; i += kThreads) {
        const int row = i / (kHeadDim / 8), unit = i % (kHeadDim / 8);
        const bf16* eight = first + row * kHeadDim + unit * 8;
        uint4 v{0, 0, 0, 0};
        if (row < n_rows) v = *reinterpret_cast<const uint4*>(eight);
        *reinterpret_cast<uint4*>(shared + swizzled<kHeadDim>(row, unit)) = v;
      }
    }
  }
  GPU void fragment(uint32_t (&q)[4], int k, int lane) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int r = 0; r < 4; ++r) q[r] = held[k][r];
    } else {
      gpu::load_matrix(q, shared + swizzled<kHeadDim>(lane % 16, k * 2 + lane / 16));
    }
  }
};

// What a warp knows of a tile in one word: live << 3 | source. No key is live: 7 or less.
static_assert(kMaxDecodeSources <= 8);
GPU uint32_t pack_tile(const Row& row) {
  return static_cast<uint32_t>(row.live) << 3 | static_cast<uint32_t>(row.source);
}
GPU int live_of(int tile) { return tile >> 3; }
GPU float bias_of(const Params& p, int tile) { return p.sources[tile & 7].bias; }

// One tile to a stage, and what pack_tile says of it: none of its keys are copied if none is live.
// Lane first_lane + r holds row r's offset; rows past the last are zeros.
template <int kHeadDim>
GPU int copy_tile(const Params& p, int kv_head, const Row& mine, int first_lane, uint8_t* stage,
                  int lane) {
  using namespace gpu;
  const int tile = static_cast<int>(shuffle(pack_tile(mine), first_lane));
  const Source& source = p.sources[tile & 7];
  const int live = live_of(tile);
  if (live <= 0) return tile;
  const bf16* keys = source.keys + kv_head * source.head_stride;
  const bf16* values = source.values + kv_head * source.head_stride;
  constexpr int kUnits = kHeadDim / 8;
#pragma unroll
  for (int i = 0; i < kUnits / 2; ++i) {
    const int row = (i * 32 + lane) / kUnits, unit = (i * 32 + lane) % kUnits;
    const int64_t at = shuffle_offset(mine.offset, first_lane + row) + unit * 8;
    uint8_t* target = stage + swizzled<kHeadDim>(row, unit);
    copy_async16(target, keys + at, row < live);
    copy_async16(target + Layout<kHeadDim>::kTileBytes, values + at, row < live);
  }
  return tile;
}

// s = Q K^T: s[j] are keys 8j .. 8j+7.
template <int kHeadDim>
GPU void score_tile(float (&s)[2][4], const Queries<kHeadDim>& queries, const uint8_t* keys,
                    int lane) {
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    uint32_t q[4], fragment[4];
    const int row = (lane & 7) + (lane & 16 ? 8 : 0), unit = k * 2 + (lane & 8 ? 1 : 0);
    queries.fragment(q, k, lane);
    gpu::load_matrix(fragment, keys + swizzled<kHeadDim>(row, unit));
    gpu::mma_16x8x16(s[0], q, fragment[0], fragment[1]);
    gpu::mma_16x8x16(s[1], q, fragment[2], fragment[3]);
  }
}

// The same where queries have several views: each key is met by that which `mine` names, of key
// lane % 16. queries hold one of them, and keep the last one met.
template <int kHeadDim>
GPU void score_tile_by_view(float (&s)[2][4], const Params& p, const Work& work,
                            Queries<kHeadDim>& queries, int& held, int mine, const uint8_t* keys,
                            int lane) {
  for (int view = 0; view < p.n_views; ++view) {
    if (gpu::ballot(mine == view) == 0) continue;
    if (view != held) {
      queries.load(p.q + view * p.view_stride + int64_t{work.first_head} * kHeadDim, work.n_rows,
                   nullptr);
      held = view;
    }
    float of_view[2][4] = {};
    score_tile<kHeadDim>(of_view, queries, keys, lane);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const auto its = static_cast<int>(
            gpu::shuffle(static_cast<uint32_t>(mine), j * 8 + 2 * (lane % 4) + e));
        if (its != view) continue;
        s[j][e] = of_view[j][e];
        s[j][2 + e] = of_view[j][2 + e];
      }
    }
  }
}

// s += the biases of the tile's keys, of which lane r has that of key r, in units of the scores.
GPU void add_key_bias(float (&s)[2][4], float mine, int lane) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float bias =
          gpu::bits_to_float(gpu::shuffle(gpu::float_to_bits(mine), j * 8 + 2 * (lane % 4) + e));
      s[j][e] += bias;
      s[j][2 + e] += bias;
    }
  }
}

// p = exp2(s - max) as bf16, for the lane's rows lane/4 and lane/4 + 8; alpha rescales what was
// summed under the old maximum. sum stays per lane until the end.
GPU void weigh_tile(uint32_t (&p)[4], float (&alpha)[2], float (&s)[2][4], float (&max)[2],
                    float (&sum)[2], int live, float scale, float bias, int lane) {
  using namespace gpu;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = max[r];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[j][2 * r + e];
        x = j * 8 + 2 * (lane % 4) + e < live ? fmaf(x, scale, bias) : -kInf;
        top = fmaxf(top, x);
      }
    }
    top = fmaxf(top, shuffle_xor(top, 1));
    top = fmaxf(top, shuffle_xor(top, 2));
    const float base = weight_base(top);
    alpha[r] = exp2_fast(max[r] - base);
    max[r] = top;
    float tile_sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float low = exp2_fast(s[j][2 * r] - base), high = exp2_fast(s[j][2 * r + 1] - base);
      tile_sum += low + high;
      p[r + 2 * j] = pack_bf16(low, high);
    }
    sum[r] = fmaf(sum[r], alpha[r], tile_sum);
  }
}

// o = o alpha + P V: o[j] are values 8j .. 8j+7.
template <int kHeadDim>
GPU void add_values(float (&o)[kHeadDim / 8][4], const float (&alpha)[2], const uint32_t (&p)[4],
                    const uint8_t* values, int lane) {
#pragma unroll
  for (int j = 0; j < kHeadDim / 8; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) o[j][r] *= alpha[r >> 1];
  }
#pragma unroll
  for (int j = 0; j < kHeadDim / 16; ++j) {
    uint32_t fragment[4];
    const int row = (lane & 7) + (lane & 8 ? 8 : 0), unit = j * 2 + (lane & 16 ? 1 : 0);
    gpu::load_matrix_transposed(fragment, values + swizzled<kHeadDim>(row, unit));
    gpu::mma_16x8x16(o[2 * j], p, fragment[0], fragment[1]);
    gpu::mma_16x8x16(o[2 * j + 1], p, fragment[2], fragment[3]);
  }
}

// The warp's partial as records for finish_block. The lane's shares of sum become one.
template <int kHeadDim>
GPU void store_partial(float* records, const float (&o)[kHeadDim / 8][4], const float (&max)[2],
                       float (&sum)[2], int n_rows, int lane) {
  using namespace gpu;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += shuffle_xor(sum[r], 1);
    sum[r] += shuffle_xor(sum[r], 2);
    const int row = lane / 4 + 8 * r;
    float* record = records + row * Layout<kHeadDim>::kRecord;
    if (row >= n_rows) continue;
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) {
      *reinterpret_cast<float2*>(record + j * 8 + 2 * (lane % 4)) = {o[j][2 * r], o[j][2 * r + 1]};
    }
    if (lane % 4 == 0) *reinterpret_cast<float2*>(record + kHeadDim) = {max[r], sum[r]};
  }
}

// The query heads that a block of a grid of (splits, KV heads, blocks of 16 heads) has.
GPU Work work_of_block(const Params& p, const JointGrid& grid) {
  const int group = p.n_heads / p.n_kv_heads, row_block = static_cast<int>(grid.z);
  Work work;
  work.kv_head = static_cast<int>(blockIdx.y);
  work.first_head = work.kv_head * group + row_block * kMaxRows;
  work.n_rows = group - row_block * kMaxRows < kMaxRows ? group - row_block * kMaxRows : kMaxRows;
  work.split = static_cast<int>(blockIdx.x);
  work.counter = work.kv_head * static_cast<int>(grid.n_z) + row_block;
  return work;
}

// Grid: splits, KV heads, blocks of 16 heads of the group. kLooksUp: keys have biases, or queries several
// views (head_dim up to 128); tiles are looked up a second time.
template <int kHeadDim, bool kLooksUp>
GPU void attend_tiles(const Params& p, const JointGrid& grid) {
  using namespace gpu;
  using L = Layout<kHeadDim>;
  constexpr int kStages = L::kStages;
  SHARED(shared);
  Notes& notes = *reinterpret_cast<Notes*>(shared + L::kRings);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;

  // What is ours.
  begin_dependent();
  Work work = work_of_block(p, grid);
  const int n_tiles = count_tiles(p, work.kv_head, notes);
  work.n_splits = splits_with_work(n_tiles, p.n_splits);
  if (work.split >= work.n_splits) return;
  const Share share = share_of(n_tiles, work.split * kWarps + warp, work.n_splits * kWarps);

  // The ring. Lanes 0..15 hold the rows of an even tile, the others those of the odd one after it,
  // so that one load of ids serves two tiles and is on its way long before they are copied.
  uint8_t* ring = shared + warp * L::kWarpBytes;
  Row row = find_row(p, notes, work.kv_head, share.first + lane / 16, lane % 16);
  auto issue = [&](int i) {
    if (i < share.count) {
      const int tile = copy_tile<kHeadDim>(p, work.kv_head, row, (i & 1) * 16,
                                           ring + i % kStages * L::kStageBytes, lane);
      if (lane == 0) notes.tiles[warp][i % kStages] = tile;
      if (i & 1) {
        row = find_row(p, notes, work.kv_head, share.first + i + 1 + lane / 16, lane % 16);
      }
    }
    copy_commit();  // also when there is nothing: copy_wait counts groups
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) issue(i);

  Queries<kHeadDim> queries;
  queries.load(p.q + int64_t{work.first_head} * kHeadDim, work.n_rows, shared + L::kQueries);
  if constexpr (!Queries<kHeadDim>::kHeld) sync_threads();
  [[maybe_unused]] int held = 0;  // the view
  float o[kHeadDim / 8][4] = {}, max[2] = {-kInf, -kInf}, sum[2] = {};
  for (int i = 0; i < share.count; ++i) {
    copy_wait<kStages - 2>();
    sync_warp();  // all lanes' copies have landed, and all lanes have left the stage refilled next
    issue(i + kStages - 1);
    const uint8_t* keys = ring + i % kStages * L::kStageBytes;
    const int tile = notes.tiles[warp][i % kStages];
    const float bias = bias_of(p, tile);
    float s[2][4] = {}, alpha[2];
    uint32_t weights[4];
    if (kLooksUp && Queries<kHeadDim>::kHeld && p.n_views > 1) {
      const int mine = find_view(p, notes, work.kv_head, share.first + i, lane % 16);
      score_tile_by_view<kHeadDim>(s, p, work, queries, held, mine, keys, lane);
    } else {
      score_tile<kHeadDim>(s, queries, keys, lane);
    }
    if constexpr (kLooksUp) {
      const float mine = find_key_bias(p, notes, work.kv_head, share.first + i, lane % 16);
      add_key_bias(s, mine / p.scale, lane);
    }
    weigh_tile(weights, alpha, s, max, sum, live_of(tile), p.scale, bias, lane);
    add_values<kHeadDim>(o, alpha, weights, keys + L::kTileBytes, lane);
  }
  copy_wait<0>();

  // The warp's partial, over the rings.
  sync_threads();
  constexpr int kWarpRecords = kMaxRows * L::kRecord;
  store_partial<kHeadDim>(reinterpret_cast<float*>(shared) + warp * kWarpRecords, o, max, sum,
                          work.n_rows, lane);
  sync_threads();
  finish_block<kHeadDim, 4, L::kRecord, kWarps>(p, work, shared, kWarpRecords, notes);
}
template <int kHeadDim, bool kLooksUp>
struct AttendTiles : JointKernel<Params, kThreads, Layout<kHeadDim>::kBlocksPerProcessor> {
  GPU static void run(const Params& p, const JointGrid& grid) {
    attend_tiles<kHeadDim, kLooksUp>(p, grid);
  }
};

}  // namespace tiercel::cuda::decode
