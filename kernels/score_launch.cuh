// Launches of scoring: which instance, how many blocks; several sequences behind one prefix as one.
#pragma once

#include "kernels/joint_launch.cuh"
#include "kernels/score.cuh"
#include "kernels/score_shared.cuh"

namespace tiercel::cuda {

template <ScoreMode kMode, int kTiles, int kLoads, bool kWhole, LandmarkForm kForm>
struct ScoreLandmarks : JointKernel<ScoreParams, kScoreThreads, kScoreResidency> {
  GPU static void run(const ScoreParams& p, const JointGrid&) {
    score_landmarks<kMode, kTiles, kLoads, kWhole, kForm>(p);
  }
};

// The widths and forms that models have at decode: rows of 64 and 128, bf16 and int8.
template <int kLoads, LandmarkForm kForm>
struct ScoreLandmarks<ScoreMode::kKeep, 1, kLoads, true, kForm>
    : JointKernel<ScoreParams, kScoreThreads, kScoreResidency> {
  static constexpr int kColumns = columns_of(kForm) * kLoads;
  static constexpr bool kMerges =
      kForm != LandmarkForm::kAny && (kColumns == 64 || kColumns == 128);

  GPU static void run(const ScoreParams& p, const JointGrid&) {
    score_landmarks<ScoreMode::kKeep, 1, kLoads, true, kForm>(p);
  }
  static bool can_merge(const ScoreParams& a, const ScoreParams& b) {
    return kMerges && 2 * a.n_rows <= kSharedRows && read_the_same(a, b);
  }
  static void launch_merged(Stream& stream, const ScoreParams* const* params, int n) {
    if constexpr (kMerges) launch_shared_scores<kLoads, kForm>(stream, params, n);
  }
};

// How many blocks share the landmarks of a KV head: a function of shapes only, as sums are merged
// in their order. All blocks of 132 processors at once.
inline int32_t score_splits(int64_t n_positions, int32_t head_dim, int64_t n_kv_heads,
                            int64_t n_rows, int n_tiles, int32_t most) {
  const int64_t octets_per_block = kScoreWarps * (head_dim <= 128 ? 4 : 2) / (n_tiles == 1 ? 2 : 1);
  const int64_t useful = ((n_positions + 7) / 8 + octets_per_block - 1) / octets_per_block;
  const int64_t n_groups = (n_rows + 16 * n_tiles - 1) / (16 * n_tiles);
  int64_t n = 132 * kScoreResidency / (n_kv_heads * n_groups);
  if (n > useful) n = useful;
  if (n > most) n = most;
  return n < 1 ? 1 : static_cast<int32_t>(n);
}

template <ScoreMode kMode, int kTiles, int kLoads, bool kWhole,
          LandmarkForm kForm = LandmarkForm::kMeans>
void launch_score_instance(Stream& stream, const ScoreParams& p) {
  constexpr bool kRing = kMode == ScoreMode::kKeep && kWhole;
  const size_t bytes = sizeof(ScoreShared<kTiles>) +
                       size_t{kTiles} * steps_of(kForm) * kLoads * 32 * sizeof(uint4) +
                       (kRing ? sizeof(LandmarkRing<kLoads>) : 0);
  const dim3 grid(static_cast<unsigned>(p.n_groups * p.n_splits),
                  static_cast<unsigned>(p.n_kv_heads));
  using Kernel = ScoreLandmarks<kMode, kTiles, kLoads, kWhole, kForm>;
  if constexpr (kMode == ScoreMode::kKeep) {
    launch_joint<Kernel>(stream, grid, bytes, p);
  } else {  // of a prompt, which is prefilled by itself
    launch_dependent<run_alone<Kernel>>(stream, grid, kScoreThreads, bytes, p);
  }
}

// Fills in what follows from the landmarks' layout, and chooses the instance.
template <ScoreMode kMode, int kTiles>
void launch_scores(Stream& stream, ScoreParams p) {
  CHECK(
      p.head_dim > 0 && p.head_dim <= 256 && p.head_dim % 2 == 0 && p.landmark_head_stride % 2 == 0,
      "head_dim {}, stride {}", p.head_dim, p.landmark_head_stride);
  p.n_groups = (p.n_rows + 16 * kTiles - 1) / (16 * kTiles);
  p.query_dim = p.head_dim;
  p.is_wide = p.head_dim % 8 == 0 && p.landmark_head_stride % 8 == 0 &&
              reinterpret_cast<uintptr_t>(p.landmarks) % 16 == 0;
  if (p.is_wide && p.head_dim == 64)
    return launch_score_instance<kMode, kTiles, 2, true>(stream, p);
  if (p.is_wide && p.head_dim == 96)
    return launch_score_instance<kMode, kTiles, 3, true>(stream, p);
  if (p.is_wide && p.head_dim == 128) {
    return launch_score_instance<kMode, kTiles, 4, true>(stream, p);
  }
  if (p.is_wide && p.head_dim == 256) {
    return launch_score_instance<kMode, kTiles, 8, true>(stream, p);
  }
  if (p.head_dim <= 32) return launch_score_instance<kMode, kTiles, 1, false>(stream, p);
  if (p.head_dim <= 128) return launch_score_instance<kMode, kTiles, 4, false>(stream, p);
  return launch_score_instance<kMode, kTiles, 8, false>(stream, p);
}

}  // namespace tiercel::cuda
