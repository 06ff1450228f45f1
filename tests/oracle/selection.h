// Landmarks, outliers and selection in fp64, with error bounds for scores.
//
// A score s = (q . landmark) scale log2 e in fp32 is within scale log2e (d + 2) u sum|q l| + 3u|s|
// of the exact one (u = 2^-24); its log2 weight s - log2 sum exp2(s) moves by at most the largest
// error of any score more, plus the error of the sum.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/base/ops.h"
#include "tests/oracle/decode.h"

namespace tiercel::test {

struct Ranked {
  std::vector<double> score;      // log2 weight, or mean weight; -inf: not a candidate
  std::vector<double> tolerance;  // of score
};

// Softmax of heads over candidates first .. end - 1 that are not excluded, then max or mean.
// q: [n_heads][d], for every view; landmarks: row of chunk c at c * d.
inline Ranked rank_chunks(const bf16* q, int32_t n_heads, const bf16* landmarks, int32_t d,
                          float scale, int64_t first, int64_t end, const uint64_t* excluded,
                          bool mean, const QueryViews& views = {}, int32_t chunk_tokens = 1) {
  const double none = -std::numeric_limits<double>::infinity();
  const double factor = static_cast<double>(scale) * std::log2(std::exp(1.0));
  const size_t n = static_cast<size_t>(std::max<int64_t>(end - first, 0));
  Ranked r{std::vector<double>(n, mean ? 0.0 : none), std::vector<double>(n, 0.0)};
  for (int32_t h = 0; h < n_heads; ++h) {
    std::vector<double> s(n, none), error(n, 0.0);
    double max = none, worst = 0;
    for (size_t i = 0; i < n; ++i) {
      const int64_t chunk = first + static_cast<int64_t>(i);
      if (excluded != nullptr && (excluded[chunk >> 6] >> (chunk & 63) & 1) != 0) continue;
      const int64_t span = views.n > 1 ? chunk * chunk_tokens / views.span_tokens : 0;
      const bf16* row = q + std::min<int64_t>(span, views.n - 1) * views.stride + h * d;
      double dot = 0, magnitude = 0;
      for (int32_t c = 0; c < d; ++c) {
        const double x =
            double{static_cast<float>(row[c])} * static_cast<float>(landmarks[chunk * d + c]);
        dot += x;
        magnitude += std::abs(x);
      }
      s[i] = std::isnan(dot) ? -0x1p126 : std::clamp(dot * factor, -0x1p126, 0x1p126);
      if (!std::isnan(dot))
        error[i] = factor * (d + 2) * kUnit * magnitude + 3 * kUnit * std::abs(s[i]);
      max = std::max(max, s[i]);
      worst = std::max(worst, error[i]);
    }
    if (std::isinf(max)) continue;
    double sum = 0;
    for (const double x : s) sum += std::exp2(x - max);
    const double log_sum = max + std::log2(sum);
    // The sum: n terms, each with 8u of exp2 and 2u (|s| + |max|) of the subtraction.
    const double sum_error =
        worst + (static_cast<double>(n) + 100 + 4 * std::abs(max)) * kUnit / std::log(2.0);
    for (size_t i = 0; i < n; ++i) {
      if (std::isinf(s[i])) {
        r.score[i] = none;
        continue;
      }
      const double log_weight = s[i] - log_sum;
      const double moved = error[i] + sum_error + 4 * kUnit * (std::abs(s[i]) + std::abs(log_sum));
      if (mean) {
        r.score[i] += std::exp2(log_weight) / n_heads;
        r.tolerance[i] +=
            std::exp2(log_weight) * (std::log(2.0) * moved + 10 * kUnit) / n_heads + 0x1p-125;
      } else {
        r.score[i] = std::max(r.score[i], log_weight);
        r.tolerance[i] = std::max(r.tolerance[i], moved);
      }
    }
  }
  return r;
}

// The best k by (score descending, index ascending), ascending. Exact data only.
inline std::vector<int32_t> best_chunks(const Ranked& r, int64_t first, int64_t k) {
  std::vector<int32_t> order;
  for (size_t i = 0; i < r.score.size(); ++i) {
    if (!std::isinf(r.score[i])) order.push_back(static_cast<int32_t>(i));
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return r.score[a] > r.score[b]; });
  order.resize(std::min<size_t>(order.size(), static_cast<size_t>(k)));
  std::sort(order.begin(), order.end());
  for (int32_t& id : order) id += static_cast<int32_t>(first);
  return order;
}

// Whether ids is a correct choice of k: ascending candidates, as many as there are, and no chunk
// left out beats a chosen one by more than both tolerances. Empty string: yes.
inline std::string wrong_choice(const Ranked& r, int64_t first, int64_t k, const int32_t* ids,
                                int64_t n_ids) {
  std::vector<bool> chosen(r.score.size(), false);
  double lowest = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < n_ids; ++i) {
    const int64_t at = ids[i] - first;
    if (at < 0 || at >= static_cast<int64_t>(r.score.size())) return "out of range";
    if (i > 0 && ids[i] <= ids[i - 1]) return "not ascending";
    if (std::isinf(r.score[at])) return "an excluded chunk";
    chosen[at] = true;
    lowest = std::min(lowest, r.score[at] + r.tolerance[at]);
  }
  int64_t n_live = 0;
  double best_left = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < r.score.size(); ++i) {
    if (std::isinf(r.score[i])) continue;
    ++n_live;
    if (!chosen[i]) best_left = std::max(best_left, r.score[i] - r.tolerance[i]);
  }
  if (n_ids != std::min(n_live, k)) return "wrong number";
  return best_left > lowest ? "a better chunk was left out" : "";
}

}  // namespace tiercel::test
