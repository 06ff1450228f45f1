// Decode attention over few tokens: what a selecting step attends. All of it fits the shared memory
// of the device at once, and time is latency, so that nothing waits for what it does not need:
//
//   sources:  0 [tile][tile][til]  1 [tile][tile][dead]    by the bounds that the host knows: ids
//   splits:     |  0       |  1        |  2         |      are on their way while counts are read
//   warp w:     its split's tiles w and w + 8              all copies are asked for at once
//
// Rows past a source's count are dead. Splits without a live row end at once; the others merge as
// those of attend_tiles do, numbered among themselves. See attention_decode.cuh.
#pragma once

#include "kernels/attention_decode_tiles.cuh"

namespace tiercel::cuda::decode {

inline constexpr int kFewWarps = 8;
inline constexpr int kFewThreads = 32 * kFewWarps;
inline constexpr int kFewStages = 2;  // tiles of a warp
inline constexpr int kFewTilesPerSplit = kFewStages * kFewWarps;
inline constexpr int kFewSplits = 32;  // a lane each

// One row of a tile by bounds: all that can be known without counts.
struct Place {
  int source, first;   // token of the source that begins the tile
  int row, chunk, id;  // id: any where the row is not live
};
GPU Place find_place(const Params& p, int kv_head, int tile, int row) {
  int s = 0;
  while (s + 1 < p.n_sources && tile >= p.first_tile[s + 1]) ++s;
  const Source& source = p.sources[s];
  const int first = (tile - p.first_tile[s]) * kTile;
  const auto token = static_cast<uint32_t>(first + row);
  const int chunk = static_cast<int>(uint64_t{token} * source.reciprocal >> source.shift);
  Place place{s, first, row, chunk, chunk};
  if (source.ids != nullptr && first + row < source.max_tokens) {
    place.id = source.ids[kv_head * source.ids_stride + chunk];
  }
  return place;
}
// seen: the tokens that the KV head sees of the place's source.
GPU Row row_at(const Params& p, const Place& place, int seen) {
  const Source& source = p.sources[place.source];
  const int left = seen - place.first;
  Row found{0, place.source, left < kTile ? left : kTile};
  if (place.row < left) {
    const int within = place.first + place.row - place.chunk * source.chunk_tokens;
    found.offset = place.id * source.chunk_stride + within * source.token_stride;
  }
  return found;
}

// Bit i: split i has a live row. Lane s of seen: the tokens seen of source s. Nothing at all is
// split 0's to say.
GPU uint32_t live_splits(const Params& p, int seen, int lane) {
  const int begin = lane * p.tiles_per_split, end = begin + p.tiles_per_split;
  bool live = false;
#pragma unroll 1
  for (int s = 0; s < p.n_sources; ++s) {
    const int first = p.first_tile[s];
    const int n = tiles_of(static_cast<int>(gpu::shuffle(static_cast<uint32_t>(seen), s)));
    live |= first < end && first + n > begin && n > 0;
  }
  const uint32_t splits = gpu::ballot(live);
  return splits == 0 ? 1u : splits;
}

// Grid: splits, KV heads, blocks of 16 heads of the group.
template <int kHeadDim>
GPU void attend_few(const Params& p, const JointGrid& grid) {
  using namespace gpu;
  begin_dependent();
  using L = Layout<kHeadDim>;
  SHARED(shared);
  Notes& notes = *reinterpret_cast<Notes*>(shared + kFewWarps * p.warp_bytes);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  Work work = work_of_block(p, grid);

  // Counts, a lane per source, and ids. Lanes 0..15 hold the rows of the warp's first tile, the
  // others the second's. Nothing uses a count before the ids are on their way.
  const Source& mine = p.sources[lane % kMaxDecodeSources];
  const int variable = lane < p.n_sources ? load_variable(mine, work.kv_head) : 0;
  const int at = warp + lane / 16 * kFewWarps;
  const Place place = find_place(p, work.kv_head, work.split * p.tiles_per_split + at, lane % 16);
  const int seen = tokens_of(mine, variable);
  Row row = row_at(p, place, static_cast<int>(shuffle(static_cast<uint32_t>(seen), place.source)));
  if (at >= p.tiles_per_split) row.live = 0;  // the next split's

  // All keys and values.
  uint8_t* ring = shared + warp * p.warp_bytes;
  auto stage = [&](int i) { return ring + i * L::kStageBytes; };
#pragma unroll 1
  for (int i = 0; i < kFewStages; ++i) {
    copy_tile<kHeadDim>(p, work.kv_head, row, i * 16, stage(i), lane);
    copy_commit();
  }
  const uint32_t splits = live_splits(p, seen, lane);
  if ((splits >> work.split & 1) == 0) return;
  work.n_splits = popcount(splits);
  work.split = popcount(splits & ((1u << work.split) - 1));
  Queries<kHeadDim> queries;
  queries.load(p.q + int64_t{work.first_head} * kHeadDim, work.n_rows, nullptr);

  float o[kHeadDim / 8][4] = {}, max[2] = {-kInf, -kInf}, sum[2] = {};
#pragma unroll 1
  for (int i = 0; i < kFewStages; ++i) {
    const int tile = static_cast<int>(shuffle(pack_tile(row), i * 16)), live = live_of(tile);
    const float bias = bias_of(p, tile);
    if (i == 0) {
      copy_wait<kFewStages - 1>();
    } else {
      copy_wait<0>();
    }
    sync_warp();  // all lanes' copies have landed
    if (live <= 0) continue;
    float s[2][4] = {}, alpha[2];
    uint32_t weights[4];
    score_tile<kHeadDim>(s, queries, stage(i), lane);
    weigh_tile(weights, alpha, s, max, sum, live, p.scale, bias, lane);
    add_values<kHeadDim>(o, alpha, weights, stage(i) + L::kTileBytes, lane);
  }

  // The warp's partial, over its own tiles.
  sync_warp();
  store_partial<kHeadDim>(reinterpret_cast<float*>(ring), o, max, sum, work.n_rows, lane);
  sync_threads();
  finish_block<kHeadDim, 4, L::kRecord, kFewWarps>(p, work, shared, p.warp_bytes / 4, notes);
}
template <int kHeadDim>
struct AttendFew : JointKernel<Params, kFewThreads, 1> {
  GPU static void run(const Params& p, const JointGrid& grid) { attend_few<kHeadDim>(p, grid); }
};

}  // namespace tiercel::cuda::decode
