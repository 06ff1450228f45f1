// Scores of several sequences behind one prefix, against the landmarks that they share: each landmark is
// read once, for the rows of all of them. A row has the bits that it has alone.
//
// One sequence fills a quarter of a tile's rows where four query heads share a KV head, so that more of
// them cost scores and sums, and no reading.
#pragma once

#include "kernels/score.cuh"

namespace tiercel::cuda {

inline constexpr int kSharedTiles = 2;
inline constexpr int kSharedRows = 16 * kSharedTiles;

struct SharedScoreParams {
  ScoreParams of[kMostTogether];  // of which the first says what is read
  int32_t n;
};

inline bool read_the_same(const ScoreParams& a, const ScoreParams& b) {
  return a.landmarks == b.landmarks && a.codes == b.codes && a.scales == b.scales &&
         a.landmark_head_stride == b.landmark_head_stride && a.scale_stride == b.scale_stride &&
         a.origin == b.origin && a.lead == b.lead && a.n == b.n && a.n_rows == b.n_rows &&
         a.n_splits == b.n_splits && a.head_dim == b.head_dim && a.query_dim == b.query_dim &&
         a.is_min_max == b.is_min_max && a.scale == b.scale && a.excluded == b.excluded &&
         a.excluded_stride == b.excluded_stride && a.keep == nullptr && b.keep == nullptr &&
         a.map.blocks == nullptr && b.map.blocks == nullptr;
}

// Queries of this block's KV head, sequence by sequence.
struct SharedQueryRows {
  const SharedScoreParams& all;

  GPU const bf16* at(int32_t row) const {
    const int32_t group = all.of[0].n_rows, sequence = row / group;
    if (sequence >= all.n) return nullptr;
    return QueryRows(all.of[sequence], 0).at(row % group);
  }
};

struct SharedScores {
  float* scores[kSharedRows];  // where those of a row begin
  ScoreSum of_warps[kScoreWarps * kSharedRows];
};

// Grid: (n_splits, n_kv_heads), as of one sequence.
template <int kLoads, LandmarkForm kForm>
GPU void score_shared_landmarks(const SharedScoreParams& all) {
  using namespace gpu;
  constexpr bool kIsPlain = kForm == LandmarkForm::kMeans;
  using Tile = LandmarkTile<kLoads, true, true, kForm>;
  SHARED(smem);
  auto& shared = *reinterpret_cast<SharedScores*>(smem);
  auto* fragments = reinterpret_cast<uint4*>(smem + sizeof(SharedScores));
  const ScoreParams& p = all.of[0];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int32_t n_rows = all.n * p.n_rows;
  const int n_tiles = (n_rows + 15) / 16;
  const int32_t split = static_cast<int32_t>(blockIdx.x);
  const int32_t first = (split * kScoreWarps + warp) * Tile::kOctets;
  const int32_t stride = p.n_splits * kScoreWarps * Tile::kOctets;

  // ---- before the queries are known
  if constexpr (kIsPlain) prefetch_landmarks<kLoads>(p, split);
  if constexpr (!kIsPlain) prefetch_any_landmarks<kLoads, kForm>(p, split);
  begin_dependent();

  // ---- queries, while the first landmarks are on their way
  auto* ring = reinterpret_cast<LandmarkRing<kLoads>*>(fragments + kSharedTiles * Tile::kSteps * 32);
  using Reader = std::conditional_t<kIsPlain, RingReader<kLoads>, AnyRingReader<kLoads, kForm>>;
  Reader reader{p, *ring, first, stride, {}};
  reader.start();
  const SharedQueryRows rows{all};
  if constexpr (kIsPlain) pack_queries(p, rows, n_tiles, Tile::kSteps, fragments);
  if constexpr (!kIsPlain) pack_any_queries<kForm>(p, rows, n_tiles, Tile::kSteps, fragments);
  const int32_t mine = static_cast<int32_t>(threadIdx.x);
  if (mine < n_rows) {
    const ScoreParams& its = all.of[mine / p.n_rows];
    shared.scores[mine] =
        its.scores + (int64_t{blockIdx.y} * p.n_rows + mine % p.n_rows) * its.score_stride;
  }
  if (blockIdx.x == 0 && mine < all.n) {
    all.of[mine].arrivals[blockIdx.y * all.of[mine].arrival_stride] = 0;
  }
  sync_threads();

  // ---- landmarks
  ScoreSum sums[kSharedTiles][2];
#pragma unroll
  for (int tile = 0; tile < kSharedTiles; ++tile) sums[tile][0] = sums[tile][1] = {-kInf, 0.0f};
  const int32_t n_octets = (p.n + 7) / 8;
  int32_t turn = 0;
  for (int32_t octet = first; octet < n_octets; octet += stride, ++turn) {
    Tile landmarks;
    reader.read(turn, landmarks);
#pragma unroll
    for (int tile = 0; tile < kSharedTiles; ++tile) {
      if (tile >= n_tiles) break;
      float z[Tile::kOctets][4];
      score_tile(p, landmarks, fragments + tile * Tile::kSteps * 32, z);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int32_t row = tile * 16 + lane / 4 + 8 * half;
        if (tile * 16 + 8 * half < n_rows) add_scores(z, half, sums[tile][half]);
        if (row < n_rows) keep_row(p, shared.scores[row], octet, half, z);
      }
    }
  }

  // ---- sums
  merge_row_sums<kSharedTiles>(n_rows, sums, shared.of_warps, [&](int row, const ScoreSum& sum) {
    const ScoreParams& its = all.of[row / p.n_rows];
    const int64_t record = int64_t{blockIdx.y} * p.n_rows + row % p.n_rows;
    its.sums[record * its.sum_stride + split] = sum;
  });
}

template <int kLoads, LandmarkForm kForm>
KERNEL(kScoreThreads, kScoreResidency)
score_shared(const GRID_CONST SharedScoreParams all) {
  score_shared_landmarks<kLoads, kForm>(all);
}

// Of n launches, at most kMostTogether, that read the same landmarks, as many at a time as their rows have
// room for.
template <int kLoads, LandmarkForm kForm>
void launch_shared_scores(Stream& stream, const ScoreParams* const* params, int n) {
  const int most = kSharedRows / params[0]->n_rows;
  using Tile = LandmarkTile<kLoads, true, true, kForm>;
  constexpr size_t kBytes = sizeof(SharedScores) +
                            size_t{kSharedTiles} * Tile::kSteps * 32 * sizeof(uint4) +
                            sizeof(LandmarkRing<kLoads>);
  for (int first = 0; first < n; first += most) {
    SharedScoreParams all{};
    all.n = std::min(most, n - first);
    for (int i = 0; i < all.n; ++i) all.of[i] = *params[first + i];
    const dim3 grid(static_cast<unsigned>(all.of[0].n_splits),
                    static_cast<unsigned>(all.of[0].n_kv_heads));
    launch_dependent<score_shared<kLoads, kForm>>(stream, grid, kScoreThreads, kBytes, all);
  }
}

}  // namespace tiercel::cuda
