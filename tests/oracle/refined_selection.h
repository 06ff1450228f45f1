// Selection with everything that SelectParams offers, in fp64, with error bounds for scores.
//
// The bounds are those of selection.h, and for int8 landmarks: a query element is off by half a
// step, max |q| / 32639 / 2; the integer sum is exact; its conversion, the step, the scale and
// their products cost a few u more.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/base/ops.h"
#include "tests/oracle/selection.h"

namespace tiercel::test {

inline bool competes(const SelectParams& p, int64_t list, int64_t chunk) {
  if (p.excluded != nullptr &&
      (p.excluded[list * p.excluded_stride + chunk / 64] >> (chunk % 64) & 1) != 0) {
    return false;
  }
  if (p.blocks == nullptr || chunk >= p.first_loose_chunk) return true;
  const int32_t* blocks = p.blocks + list * p.block_stride;
  return std::find(blocks, blocks + p.block_counts[list], chunk / p.block_chunks) !=
         blocks + p.block_counts[list];
}

struct HeadScores {
  std::vector<double> log_weight, tolerance;  // log2; -inf: not a candidate
};

// One query head over the landmarks of its KV head.
inline HeadScores score_head(const SelectParams& p, int64_t head, int64_t list) {
  const double none = -std::numeric_limits<double>::infinity();
  const double factor = static_cast<double>(p.scale) * std::log2(std::exp(1.0));
  const int32_t d = p.head_dim, width = landmark_width(p.index, d);
  const int64_t kv_head = head / (p.n_heads / p.n_kv_heads);
  std::vector<double> q(width);
  double greatest = 0;
  int64_t expanded = -1;  // the view
  const auto expand = [&](int64_t view) {
    if (view == expanded) return;
    expanded = view;
    greatest = 0;
    for (int32_t i = 0; i < d; ++i) {
      const double x = static_cast<float>(p.q[view * p.views.stride + head * d + i]);
      q[i] = p.index == IndexKind::kMinMax && x > 0 ? 0 : x;
      if (p.index == IndexKind::kMinMax) q[d + i] = x < 0 ? 0 : x;
      greatest = std::max(greatest, std::abs(x));
    }
  };
  const size_t n = static_cast<size_t>(std::max<int64_t>(p.end_chunk - p.first_chunk, 0));
  std::vector<double> s(n, none), error(n, 0.0);
  double max = none, worst = 0;
  for (size_t i = 0; i < n; ++i) {
    const int64_t chunk = p.first_chunk + static_cast<int64_t>(i);
    if (!competes(p, list, chunk)) continue;
    const int64_t span = p.views.n > 1 ? chunk * p.chunk_tokens / p.views.span_tokens : 0;
    expand(std::min<int64_t>(span, p.views.n - 1));
    double dot = 0, magnitude = 0, landmark = 0;
    for (int32_t c = 0; c < width; ++c) {
      const int64_t at = kv_head * p.landmark_head_stride + chunk * width + c;
      const double x =
          p.codes != nullptr
              ? static_cast<double>(p.scales[kv_head * (p.landmark_head_stride / width) + chunk]) *
                    p.codes[at]
              : static_cast<double>(static_cast<float>(p.landmarks[at]));
      dot += q[c] * x;
      magnitude += std::abs(q[c] * x);
      landmark += std::abs(x);
    }
    s[i] = std::isnan(dot) ? -0x1p126 : std::clamp(dot * factor, -0x1p126, 0x1p126);
    if (!std::isnan(dot)) {
      const double half_step = greatest / 32639 / 2 * 1.001;
      error[i] = p.codes != nullptr ? factor * (half_step * landmark + 8 * kUnit * magnitude)
                                    : factor * (width + 2) * kUnit * magnitude;
      error[i] += 6 * kUnit * std::abs(s[i]);
    }
    max = std::max(max, s[i]);
    worst = std::max(worst, error[i]);
  }
  HeadScores scores{std::vector<double>(n, none), std::vector<double>(n, 0.0)};
  if (std::isinf(max)) return scores;
  double sum = 0;
  for (const double x : s) sum += std::exp2(x - max);
  const double log_sum = max + std::log2(sum);
  const double sum_error =
      worst + (static_cast<double>(n) + 100 + 4 * std::abs(max)) * kUnit / std::log(2.0);
  for (size_t i = 0; i < n; ++i) {
    if (std::isinf(s[i])) continue;
    scores.log_weight[i] = s[i] - log_sum;
    scores.tolerance[i] = error[i] + sum_error + 4 * kUnit * (std::abs(s[i]) + std::abs(log_sum));
  }
  return scores;
}

// The scores by which the list of a KV head, or of the layer (list 0), is made.
inline Ranked rank_refined(const SelectParams& p, int64_t list) {
  const double none = -std::numeric_limits<double>::infinity();
  const int64_t group = p.n_heads / p.n_kv_heads;
  const bool layer = p.scope == SelectScope::kLayer;
  const bool adds = layer || p.group != GroupScore::kMax;
  const int64_t max_of = p.group == GroupScore::kMax ? group : 1;
  const double share = p.group == GroupScore::kMean ? 1.0 / static_cast<double>(group) : 1.0;
  const size_t n = static_cast<size_t>(std::max<int64_t>(p.end_chunk - p.first_chunk, 0));
  const int64_t first = layer ? 0 : list * group, end = layer ? p.n_heads : first + group;
  Ranked r{std::vector<double>(n, none), std::vector<double>(n, 0.0)};
  for (int64_t head = first; head < end; head += max_of) {
    std::vector<double> top(n, none), moved(n, 0.0);
    for (int64_t h = head; h < head + max_of; ++h) {
      const HeadScores s = score_head(p, h, list);
      for (size_t i = 0; i < n; ++i) {
        top[i] = std::max(top[i], s.log_weight[i]);
        moved[i] = std::max(moved[i], s.tolerance[i]);
      }
    }
    for (size_t i = 0; i < n; ++i) {
      if (std::isinf(top[i])) continue;
      if (!adds) {
        r.score[i] = top[i];
        r.tolerance[i] = moved[i];
        continue;
      }
      const double weight = std::exp2(top[i]) * share;
      r.score[i] = std::isinf(r.score[i]) ? weight : r.score[i] + weight;
      // Two ulp of exp2, the sum over heads; weights below 2^-126 are zeros.
      const double rounding = (10 + static_cast<double>(end - first)) * kUnit;
      r.tolerance[i] += weight * (std::exp2(moved[i]) - 1 + rounding) + 0x1p-125;
    }
  }
  return r;
}

// Whether what the op wrote for one list is a correct answer. Empty string: yes.
inline std::string wrong_refined(const SelectParams& p, int64_t list) {
  const Ranked r = rank_refined(p, list);
  const int32_t* ids = p.ids + list * p.k;
  const int32_t n_ids = p.counts[list];
  const int32_t* dropped = p.max_misses >= 0 ? p.dropped_ids + list * p.k : nullptr;
  const int32_t n_dropped = p.max_misses >= 0 ? p.dropped_counts[list] : 0;
  if (n_ids < 0 || n_dropped < 0 || n_ids + n_dropped > p.k) return "wrong counts";
  for (int32_t i = 1; i < n_ids; ++i) {
    if (ids[i] <= ids[i - 1]) return "ids not ascending";
  }
  for (int32_t i = 1; i < n_dropped; ++i) {
    if (dropped[i] <= dropped[i - 1]) return "dropped ids not ascending";
  }
  std::vector<int32_t> all(ids, ids + n_ids);
  if (n_dropped > 0) all.insert(all.end(), dropped, dropped + n_dropped);
  std::sort(all.begin(), all.end());
  const int64_t m = static_cast<int64_t>(all.size());
  const int64_t n_live =
      std::count_if(r.score.begin(), r.score.end(), [](double x) { return !std::isinf(x); });
  const int64_t most = std::min(p.k, n_live);
  if (p.top_p <= 0 ? m != most : (m > most || (most > 0 && m == 0))) return "wrong number";
  const std::string choice = wrong_choice(r, p.first_chunk, m, all.data(), m);
  if (!choice.empty()) return choice;

  const auto at = [&](int32_t id) { return static_cast<size_t>(id - p.first_chunk); };
  if (p.top_p > 0 && m > 0) {
    double total = p.group == GroupScore::kSum ? p.n_heads / p.n_kv_heads : 1;
    if (p.scope == SelectScope::kLayer) total *= p.n_kv_heads;
    double sum = 0, error = 1e-7 * total, lowest = std::numeric_limits<double>::infinity();
    for (const int32_t id : all) {
      sum += r.score[at(id)];
      error += r.tolerance[at(id)];
      lowest = std::min(lowest, r.score[at(id)]);
    }
    const double target = static_cast<double>(p.top_p) * total;
    if (m < most && sum + error < target) return "too little weight";
    if (m > 1 && sum - lowest - error >= target) return "more than the weight needs";
  }
  if (p.max_misses < 0) return "";
  const auto resident = [&](int32_t id) {
    return p.slot_of_chunk[list * p.chunk_capacity + id] >= 0;
  };
  int64_t n_misses = 0;
  double lowest = std::numeric_limits<double>::infinity();
  for (int32_t i = 0; i < n_ids; ++i) {
    if (resident(ids[i])) continue;
    ++n_misses;
    lowest = std::min(lowest, r.score[at(ids[i])] + r.tolerance[at(ids[i])]);
  }
  if (n_misses > p.max_misses) return "too many misses";
  if (n_dropped > 0 && n_misses < p.max_misses) return "dropped too many";
  for (int32_t i = 0; i < n_dropped; ++i) {
    if (resident(dropped[i])) return "dropped a resident chunk";
    if (r.score[at(dropped[i])] - r.tolerance[at(dropped[i])] > lowest) return "dropped a better";
  }
  return "";
}

}  // namespace tiercel::test
