#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/joint_launch.cuh"
#include "kernels/score_launch.cuh"
#include "kernels/select.cuh"
#include "kernels/select.h"
#include "kernels/select_refined.cuh"
#include "kernels/select_refined.h"
#include "kernels/trim_selection.cuh"

namespace tiercel::cuda {
namespace {

// Positions that compete: a function of shapes only.
struct Positions {
  ChunkMap map;
  int64_t origin, n;
  int64_t n_candidates;  // at most: without a lead
};

Positions positions_of(const SelectParams& p) {
  Positions all{};
  all.n_candidates = std::max<int64_t>(p.end_chunk - p.first_chunk, 0);
  if (p.blocks == nullptr) {
    all.origin = p.first_chunk / 8 * 8;
    all.n = p.end_chunk - all.origin;
    all.map.origin = static_cast<int32_t>(all.origin);
    return all;
  }
  CHECK(p.block_counts != nullptr && p.block_chunks > 0 && p.block_stride >= 0,
        "blocks of {} chunks in lists of {}", p.block_chunks, p.block_stride);
  const int64_t end = std::max(p.end_chunk, p.first_chunk);
  const int64_t loose = std::clamp(p.first_loose_chunk, p.first_chunk, end);
  const int64_t in_blocks = std::min(p.block_stride * p.block_chunks, loose - p.first_chunk);
  all.n = all.n_candidates = in_blocks + end - loose;
  ChunkMap& map = all.map;
  map.blocks = p.blocks;
  map.counts = p.block_counts;
  map.stride = p.scope == SelectScope::kLayer ? 0 : p.block_stride;
  map.block_chunks = p.block_chunks;
  map.block_positions = static_cast<int32_t>(in_blocks);
  map.first = static_cast<int32_t>(p.first_chunk);
  map.first_loose = static_cast<int32_t>(loose);
  map.end = static_cast<int32_t>(end);
  return all;
}

template <LandmarkForm kForm, int kLoads, bool kWhole>
void launch_any(Stream& stream, const ScoreParams& s) {
  launch_score_instance<ScoreMode::kKeep, 1, kLoads, kWhole, kForm>(stream, s);
}

// Whole rows where a row is so many loads of a warp, or else any width in the next larger ones.
void launch_any_scores(Stream& stream, const ScoreParams& s) {
  const bool is_coded = s.codes != nullptr;
  const int32_t columns =
      is_coded ? columns_of(LandmarkForm::kCodes) : columns_of(LandmarkForm::kAny);
  const int32_t loads = s.is_wide && s.head_dim % columns == 0 ? s.head_dim / columns : 0;
  if (is_coded) {
    constexpr LandmarkForm kForm = LandmarkForm::kCodes;
    if (loads == 1) return launch_any<kForm, 1, true>(stream, s);
    if (loads == 2) return launch_any<kForm, 2, true>(stream, s);
    if (loads == 3) return launch_any<kForm, 3, true>(stream, s);
    if (loads == 4) return launch_any<kForm, 4, true>(stream, s);
    if (loads == 8) return launch_any<kForm, 8, true>(stream, s);
    if (s.head_dim <= 128) return launch_any<kForm, 2, false>(stream, s);
    if (s.head_dim <= 256) return launch_any<kForm, 4, false>(stream, s);
    return launch_any<kForm, 8, false>(stream, s);
  }
  constexpr LandmarkForm kForm = LandmarkForm::kAny;
  if (loads == 2) return launch_any<kForm, 2, true>(stream, s);
  if (loads == 3) return launch_any<kForm, 3, true>(stream, s);
  if (loads == 4) return launch_any<kForm, 4, true>(stream, s);
  if (loads == 6) return launch_any<kForm, 6, true>(stream, s);
  if (loads == 8) return launch_any<kForm, 8, true>(stream, s);
  if (loads == 16) return launch_any<kForm, 16, true>(stream, s);
  if (s.head_dim <= 128) return launch_any<kForm, 4, false>(stream, s);
  if (s.head_dim <= 256) return launch_any<kForm, 8, false>(stream, s);
  return launch_any<kForm, 16, false>(stream, s);
}

// Of what is read of a landmark, in bf16.
int32_t read_width(const SelectParams& p) {
  const int32_t width = landmark_width(p.index, p.head_dim);
  return p.codes != nullptr ? width / 2 : width;
}

void score(Stream& stream, const SelectParams& p, const SelectWork& w, const ChunkMap& map) {
  CHECK(p.views.n == 1 || p.blocks == nullptr, "blocks of chunks and {} views", p.views.n);
  CHECK(
      p.head_dim > 0 && p.head_dim <= 256 && p.head_dim % 2 == 0 && p.landmark_head_stride % 2 == 0,
      "head_dim {}, stride {}", p.head_dim, p.landmark_head_stride);
  CHECK((p.codes != nullptr) == (p.scales != nullptr), "codes and scales go together");
  ScoreParams s = score_params(p, w);
  s.head_dim = landmark_width(p.index, p.head_dim);
  s.query_dim = p.head_dim;
  s.is_min_max = p.index == IndexKind::kMinMax;
  s.codes = p.codes;
  s.scales = p.scales;
  s.scale_stride = p.landmark_head_stride / s.head_dim;
  s.keep = p.keep;
  s.map = map;
  if (map.blocks != nullptr) s.lead = 0;
  s.n_groups = (s.n_rows + 15) / 16;
  const int32_t of_piece = p.codes != nullptr ? 16 : 8;  // elements in 16 bytes
  const auto address = p.codes != nullptr ? reinterpret_cast<uintptr_t>(p.codes)
                                          : reinterpret_cast<uintptr_t>(p.landmarks);
  s.is_wide =
      s.head_dim % of_piece == 0 && s.landmark_head_stride % of_piece == 0 && address % 16 == 0;
  if (map.blocks != nullptr) return launch_any_scores(stream, s);
  for (const ScorePart& part : score_parts(p, w.origin, w.n, read_width(p))) {
    ScoreParams of_part = params_of_part(s, part, w.n_splits);
    of_part.queries += part.view * p.views.stride;
    launch_any_scores(stream, of_part);
  }
}

template <GroupScore kScore, SelectScope kScope>
void launch_group(Stream& stream, const SelectParams& p, const RefinedWork& r) {
  constexpr bool kLayer = kScope == SelectScope::kLayer;
  const int32_t n_lists = kLayer ? 1 : p.n_kv_heads, n_heads = p.n_heads / n_lists;
  const size_t log_sum_bytes = static_cast<size_t>((n_heads + 3) / 4) * 16;
  const unsigned most = std::max(132u / static_cast<unsigned>(n_lists), 1u);
  const dim3 grid(std::min(blocks_for(r.select.n, kGroupPositions), most),
                  static_cast<unsigned>(n_lists));
  launch_joint<SelectRefinedGroup<kScore, kScope>>(stream, grid,
                                                   sizeof(RefinedShared) + log_sum_bytes, r);
}

void trim(Stream& stream, const SelectParams& p, const SelectWork& w, const ChunkMap& map) {
  CHECK(p.max_misses < 0 ||
            (p.slot_of_chunk != nullptr && p.dropped_ids != nullptr && p.dropped_counts != nullptr),
        "a limit of misses needs slots and a list of what is dropped");
  const bool is_layer = p.scope == SelectScope::kLayer;
  TrimParams t{};
  t.scores = w.scores;
  t.score_stride = is_layer ? 0 : w.group * w.stride;
  t.map = map;
  t.keep = p.keep;
  t.binning = is_layer || p.group != GroupScore::kMax ? Binning::kWeight : Binning::kLog2;
  if (p.top_p > 0) {
    CHECK(p.group != GroupScore::kMax, "the largest weights have no known sum");
    // Sums are kept as means are: a share of all weight is the same of either.
    const double all = is_layer ? p.n_kv_heads : 1;
    const double least = std::ceil(double{p.top_p} * all * double{kWeightUnits});
    t.least_weight = static_cast<uint64_t>(std::clamp(least, 1.0, 0x1p62));
  }
  t.max_misses = p.max_misses;
  t.slot_of_chunk = p.slot_of_chunk;
  t.slot_stride = is_layer ? 0 : p.chunk_capacity;  // KV head 0 speaks for all: they are alike
  t.ids = p.ids;
  t.counts = p.counts;
  t.id_stride = p.k;
  t.dropped_ids = p.dropped_ids;
  t.dropped_counts = p.dropped_counts;
  launch_joint<TrimSelection>(stream, dim3(static_cast<unsigned>(p.n_kv_heads)),
                              sizeof(TrimShared), t);
}

}  // namespace

void select_refined(Stream& stream, const SelectParams& p) {
  check_selection(p);
  const bool is_layer = p.scope == SelectScope::kLayer;
  CHECK(!is_layer || p.excluded == nullptr, "a list for a layer with chunks excluded per KV head");
  const Positions all = positions_of(p);
  const bool is_trimmed = p.top_p > 0 || p.max_misses >= 0;
  const dim3 heads(static_cast<unsigned>(p.n_kv_heads));
  if (all.n_candidates == 0 || p.k == 0) {
    const EmptyListsParams empty{p.counts, p.max_misses >= 0 ? p.dropped_counts : nullptr, p.keep,
                                 p.n_kv_heads};
    launch_joint<EmptyLists>(stream, 1, 0, empty);
    return;
  }
  if (p.k >= all.n_candidates && p.blocks == nullptr && !is_trimmed) {
    const SelectAllParams everything{p.excluded,
                                     p.excluded_stride,
                                     static_cast<int32_t>(p.first_chunk),
                                     static_cast<int32_t>(p.end_chunk),
                                     p.ids,
                                     p.counts,
                                     p.k,
                                     {},
                                     p.keep};
    launch_joint<SelectAll<false>>(stream, heads, sizeof(MapShared), everything);
    return;
  }
  RefinedWork r{};
  r.select = lay_out(p, all.origin, all.n, all.n_candidates, read_width(p));
  r.map = all.map;
  r.keep = p.keep;
  r.n_kv_heads = p.n_kv_heads;
  r.keeps_positions = is_trimmed;
  score(stream, p, r.select, all.map);
  // The sum ranks as the mean does.
  if (p.group == GroupScore::kMax) {
    is_layer ? launch_group<GroupScore::kMax, SelectScope::kLayer>(stream, p, r)
             : launch_group<GroupScore::kMax, SelectScope::kKvHead>(stream, p, r);
  } else {
    is_layer ? launch_group<GroupScore::kMean, SelectScope::kLayer>(stream, p, r)
             : launch_group<GroupScore::kMean, SelectScope::kKvHead>(stream, p, r);
  }
  if (is_trimmed) trim(stream, p, r.select, all.map);
}

}  // namespace tiercel::cuda
