// Landmarks in parts, one for each view of the queries (QueryViews): a part is scored by launches of its
// own, and leaves scores and sums where one launch for all of them would.
#pragma once

#include <algorithm>
#include <array>

#include "engine/base/check.h"
#include "engine/base/ops.h"

namespace tiercel::cuda {

struct ScorePart {
  int32_t view = 0;
  int64_t begin = 0, end = 0;  // chunks; begins at a multiple of 8
  int32_t first_split = 0, n_splits = 0;
};

struct ScoreParts {
  std::array<ScorePart, kMaxSpans> all;
  int32_t n = 0, n_splits = 0;

  const ScorePart* begin() const { return all.data(); }
  const ScorePart* end() const { return all.data() + n; }
};

// Of n chunks from origin on; splits_of(chunks, most): blocks that share a part's landmarks.
template <typename Splits>
ScoreParts cut_by_view(const QueryViews& views, int32_t chunk_tokens, int64_t origin, int64_t n,
                       int32_t most_splits, Splits&& splits_of) {
  const int64_t span = views.n > 1 ? views.span_tokens / chunk_tokens : 0;
  CHECK(views.n >= 1 && views.n <= kMaxSpans && span % 8 == 0, "{} views of spans of {} chunks",
        views.n, span);
  ScoreParts parts;
  for (int32_t view = 0; view < views.n; ++view) {
    const bool is_last = view + 1 == views.n;
    const int64_t begin = std::max(origin, view * span);
    const int64_t end = is_last ? origin + n : std::min(origin + n, (view + 1) * span);
    if (end <= begin) continue;
    const int32_t n_splits = splits_of(end - begin, most_splits / views.n);
    parts.all[static_cast<size_t>(parts.n++)] = {view, begin, end, parts.n_splits, n_splits};
    parts.n_splits += n_splits;
  }
  return parts;
}

// What scoring a part needs, from what scoring all of it would. Queries are the caller's to set.
template <typename Params>
Params params_of_part(const Params& all, const ScorePart& part, int32_t n_sums) {
  const int64_t before = part.begin - all.origin;
  Params p = all;
  p.origin = part.begin;
  p.lead = static_cast<int32_t>(std::max<int64_t>(all.lead - before, 0));
  p.n = static_cast<int32_t>(part.end - part.begin);
  p.n_splits = part.n_splits;
  p.n_sums = n_sums;
  p.scores = all.scores + before;
  p.sums = all.sums + part.first_split;
  p.map.origin = static_cast<int32_t>(part.begin);
  return p;
}

}  // namespace tiercel::cuda
