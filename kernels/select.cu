#include <algorithm>
#include <limits>

#include "kernels/joint_launch.cuh"
#include "kernels/score_launch.cuh"
#include "kernels/select.cuh"
#include "kernels/select.h"
#include "kernels/select_refined.h"
#include "kernels/slots.h"

namespace tiercel::cuda {
namespace {

// Scores of all that compete, and the sums over parts of them.
SelectWork score(Stream& stream, const SelectParams& p) {
  const int64_t origin = p.first_chunk / 8 * 8;
  SelectWork w = lay_out(p, origin, p.end_chunk - origin, p.end_chunk - p.first_chunk, p.head_dim);
  for (const ScorePart& part : score_parts(p, origin, w.n, p.head_dim)) {
    ScoreParams s = params_of_part(score_params(p, w), part, w.n_splits);
    s.queries += part.view * p.views.stride;
    launch_scores<ScoreMode::kKeep, 1>(stream, s);
  }
  return w;
}

template <bool kMap>
void select(Stream& stream, const SelectParams& p, const MapSlotsParams& map) {
  check_selection(p);
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
                              map,
                              nullptr};
    launch_joint<SelectAll<kMap>>(stream, heads, sizeof(MapShared), all);
    return;
  }
  SelectWork w = score(stream, p);
  w.map = map;
  // A multiple of 16: the compiler reads the sums of up to four heads at once.
  const size_t log_sum_bytes = static_cast<size_t>((w.group + 3) / 4) * 16;
  // One block on each of 132 processors.
  const unsigned most = std::max(132u / static_cast<unsigned>(p.n_kv_heads), 1u);
  const dim3 grid(std::min(blocks_for(w.n, kGroupPositions), most),
                  static_cast<unsigned>(p.n_kv_heads));
  const size_t bytes = sizeof(GroupShared) + log_sum_bytes;
  if (p.group != GroupScore::kMax) {  // the sum ranks as the mean does
    launch_joint<SelectGroup<kMap, GroupScore::kMean>>(stream, grid, bytes, w);
  } else {
    launch_joint<SelectGroup<kMap, GroupScore::kMax>>(stream, grid, bytes, w);
  }
}

}  // namespace

void select_chunks(Stream& stream, const SelectParams& p) {
  if (is_refined(p)) return select_refined(stream, p);
  select<false>(stream, p, {});
}

void score_chunks(Stream& stream, const SelectParams& p) {
  check_selection(p);
  CHECK(!is_refined(p) && p.first_chunk < p.end_chunk, "scores by themselves: of a plain index that is not empty");
  score(stream, p);
}

void select_and_map(Stream& stream, const SelectParams& p, const MapSlotsParams& map) {
  CHECK(map.ids == p.ids && map.counts == p.counts && map.stride == p.k &&
            map.n_kv_heads == p.n_kv_heads,
        "the slot map of another selection");
  CHECK(map.state.n_slots >= std::min(p.k, p.end_chunk - p.first_chunk), "{} chunks for {} slots",
        p.k, map.state.n_slots);
  if (is_refined(p)) {
    select_refined(stream, p);
    map_slots(stream, map);
    return;
  }
  select<true>(stream, p, map);
}

}  // namespace tiercel::cuda
