#include <algorithm>
#include <limits>

#include "kernels/launch.cuh"
#include "kernels/select.cuh"
#include "kernels/select.h"
#include "kernels/slots.h"

namespace tiercel::cuda {
namespace {

constexpr int64_t kPartFloats = 4096;  // per query head, behind scores: sums, then arrivals
constexpr int32_t kMaxSplits = 512;
static_assert(2 * kMaxSplits + 1 <= kPartFloats);

// Where things are in the workspace. A row of scores has room for a lead of up to 7 positions and
// for the rest of the last octet; rows are multiples of 8 floats.
SelectWork work_of(const SelectParams& p) {
  const int64_t n = p.end_chunk - p.first_chunk;
  const int64_t room = n + 64;
  CHECK(reinterpret_cast<uintptr_t>(p.workspace) % 16 == 0);
  float* parts = p.workspace + (int64_t{p.n_heads} + p.n_kv_heads) * room / 4 * 4;
  SelectWork w{};
  w.stride = room / 8 * 8;
  w.scores = p.workspace;
  w.maxima = p.workspace + p.n_heads * w.stride;
  w.sums = reinterpret_cast<ScoreSum*>(parts);
  w.sum_stride = kPartFloats / 2;
  w.arrivals = reinterpret_cast<uint32_t*>(parts + 2 * kMaxSplits);
  w.origin = p.first_chunk / 8 * 8;
  w.n = static_cast<int32_t>(p.end_chunk - w.origin);
  w.group = p.n_heads / p.n_kv_heads;
  w.arrival_stride = w.group * kPartFloats;
  w.n_splits = score_splits(w.n, p.head_dim, p.n_kv_heads, w.group, 1, kMaxSplits);
  w.k = static_cast<int32_t>(std::min(p.k, n));
  w.ids = p.ids;
  w.counts = p.counts;
  w.id_stride = p.k;
  return w;
}

// Scores of all candidates and their sums; zeroes arrivals.
void score(Stream& stream, const SelectParams& p, const SelectWork& w) {
  ScoreParams s{};
  s.queries = p.q;
  s.landmarks = p.landmarks;
  s.landmark_head_stride = p.landmark_head_stride;
  s.origin = w.origin;
  s.lead = static_cast<int32_t>(p.first_chunk - w.origin);
  s.n = w.n;
  s.n_rows = w.group;
  s.n_splits = w.n_splits;
  s.head_dim = p.head_dim;
  s.scale = p.scale * gpu::kLog2e;
  s.sums = w.sums;
  s.sum_stride = w.sum_stride;
  s.scores = w.scores;
  s.score_stride = w.stride;
  s.excluded = reinterpret_cast<const uint8_t*>(p.excluded);
  s.excluded_stride = p.excluded_stride * 8;
  s.arrivals = w.arrivals;
  s.arrival_stride = w.arrival_stride;
  s.n_kv_heads = p.n_kv_heads;
  launch_scores<ScoreMode::kKeep, 1>(stream, s);
}

template <bool kMap>
void select(Stream& stream, const SelectParams& p, const MapSlotsParams& map) {
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.first_chunk >= 0 && p.k >= 0, "first chunk {}, k {}", p.first_chunk, p.k);
  CHECK(p.end_chunk <= std::numeric_limits<int32_t>::max() - kGroupPositions, "{} chunks",
        p.end_chunk);
  const int64_t n = p.end_chunk - p.first_chunk;
  const dim3 heads(static_cast<unsigned>(p.n_kv_heads));
  if (n <= 0 || p.k == 0) {
    stream.fill_bytes(p.counts, 0, int64_t{p.n_kv_heads} * 4);
    if (kMap) map_slots(stream, map);
    return;
  }
  if (p.k >= n) {
    const SelectAllParams all{p.excluded,
                              p.excluded_stride,
                              static_cast<int32_t>(p.first_chunk),
                              static_cast<int32_t>(p.end_chunk),
                              p.ids,
                              p.counts,
                              p.k,
                              map};
    launch_dependent<select_all<kMap>>(stream, heads, kRankThreads, sizeof(MapShared), all);
    return;
  }
  SelectWork w = work_of(p);
  w.map = map;
  score(stream, p, w);
  // A multiple of 16: the compiler reads the sums of up to four heads at once.
  const size_t log_sum_bytes = static_cast<size_t>((w.group + 3) / 4) * 16;
  // One block on each of 132 processors.
  const unsigned most = std::max(132u / static_cast<unsigned>(p.n_kv_heads), 1u);
  const dim3 grid(std::min(blocks_for(w.n, kGroupPositions), most),
                  static_cast<unsigned>(p.n_kv_heads));
  const size_t bytes = sizeof(GroupShared) + log_sum_bytes;
  if (p.group == GroupScore::kMean) {
    launch_dependent<select_group<kMap, GroupScore::kMean>>(stream, grid, kPieceThreads, bytes, w);
  } else {
    launch_dependent<select_group<kMap, GroupScore::kMax>>(stream, grid, kPieceThreads, bytes, w);
  }
}

}  // namespace

void select_chunks(Stream& stream, const SelectParams& p) { select<false>(stream, p, {}); }

void select_and_map(Stream& stream, const SelectParams& p, const MapSlotsParams& map) {
  CHECK(map.ids == p.ids && map.counts == p.counts && map.stride == p.k &&
            map.n_kv_heads == p.n_kv_heads,
        "the slot map of another selection");
  CHECK(map.state.n_slots >= std::min(p.k, p.end_chunk - p.first_chunk), "{} chunks for {} slots",
        p.k, map.state.n_slots);
  select<true>(stream, p, map);
}

}  // namespace tiercel::cuda
