// Decode attention in fp64, and how far a correct fp32 implementation may be from it.
//
// The bound. With u = 2^-24, an fp32 dot product of d terms in any order is within (d + 2) u sum|q
// k|; scaling and subtracting the maximum add a few u of |s| and |max|. That moves the weight of
// key i by a factor 1 + delta_i, delta_i = ln2 * (error of s_i) + 8u (the polynomial exp2). The
// output o = sum p v / sum p then moves by at most sum p_i (|v_i| + |o|) delta_i / sum p, and
// summing n terms, rescaled now and then, by another gamma sum p |v| / sum p, gamma = (2n + 100) u.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/base/ops.h"

namespace tiercel::test {

inline constexpr double kUnit = 0x1p-24;

// Offsets, in elements from a KV head's first row, of the tokens that it sees in a source.
inline std::vector<int64_t> rows_of(const KvSource& source, int32_t kv_head) {
  std::vector<int64_t> rows;
  const int64_t n = source.ids != nullptr ? int64_t{source.counts[kv_head]} * source.chunk_tokens
                                          : source.n_tokens;
  for (int64_t t = 0; t < n; ++t) {
    int64_t chunk = t / source.chunk_tokens;
    if (source.ids != nullptr) chunk = source.ids[kv_head * source.ids_stride + chunk];
    rows.push_back(chunk * source.chunk_stride + t % source.chunk_tokens * source.token_stride);
  }
  return rows;
}

// What each of them is given beside the bias of all.
inline std::vector<double> key_biases_of(const KvSource& source, int32_t kv_head) {
  const size_t n = rows_of(source, kv_head).size();
  std::vector<double> biases(n, 0.0);
  for (size_t t = 0; source.key_bias != nullptr && t < n; ++t) {
    int64_t chunk = static_cast<int64_t>(t) / source.chunk_tokens;
    if (source.ids != nullptr) chunk = source.ids[kv_head * source.ids_stride + chunk];
    if (source.bias_chunks != nullptr) {
      chunk = source.bias_chunks[kv_head * source.bias_chunks_stride + chunk];
    }
    biases[t] = static_cast<double>(
        source.key_bias[kv_head * source.key_bias_head_stride + chunk * source.chunk_tokens +
                        static_cast<int64_t>(t) % source.chunk_tokens]);
  }
  return biases;
}

// The view of the query that meets token t of a source.
inline int64_t view_of(const KvSource& source, int32_t kv_head, size_t t, const QueryViews& views) {
  if (views.n == 1) return 0;
  int64_t chunk = static_cast<int64_t>(t) / source.chunk_tokens;
  if (source.ids != nullptr) chunk = source.ids[kv_head * source.ids_stride + chunk];
  if (source.position_chunks != nullptr) {
    chunk = source.position_chunks[kv_head * source.position_chunks_stride + chunk];
  }
  const int64_t position = source.first_position + chunk * source.position_step +
                           static_cast<int64_t>(t) % source.chunk_tokens;
  return std::min<int64_t>(position / views.span_tokens, views.n - 1);
}

// Scores of a source in log2 units, and how far fp32 may be from each.
struct Score {
  double value = 0, error = 0;
};
inline std::vector<Score> expected_scores(const bf16* first_q, const KvSource& source, int32_t kv_head,
                                          int32_t d, float softmax_scale,
                                          const QueryViews& views = {}) {
  const double scale = static_cast<double>(softmax_scale) * std::log2(std::exp(1.0));
  const std::vector<int64_t> rows = rows_of(source, kv_head);
  const std::vector<double> biases = key_biases_of(source, kv_head);
  std::vector<Score> scores;
  for (size_t i = 0; i < rows.size(); ++i) {
    const bf16* key = source.keys + kv_head * source.head_stride + rows[i];
    const bf16* q = first_q + view_of(source, kv_head, i, views) * views.stride;
    double dot = 0, magnitude = 0;
    for (int32_t c = 0; c < d; ++c) {
      const double product = double{static_cast<float>(q[c])} * static_cast<float>(key[c]);
      dot += product;
      magnitude += std::abs(product);
    }
    const double bias = static_cast<double>(source.bias) + biases[i];
    scores.push_back(
        {dot * scale + bias, scale * (d + 2) * kUnit * magnitude +
                                 4 * kUnit * (std::abs(dot * scale) + std::abs(bias))});
  }
  return scores;
}

struct DecodeExpected {
  double log_sum = -std::numeric_limits<double>::infinity();  // log2 of sum exp2(s)
  double log_sum_tolerance = 0;
  std::vector<double> out;  // normalised; zeros where nothing was attended
  std::vector<double> tolerance;
  std::vector<double> size;  // sum p |v| / sum p: how far relative errors of weights move out
};

inline DecodeExpected expected_decode(const DecodeAttendParams& p, int32_t head) {
  const int32_t d = p.head_dim;
  const int32_t kv_head = head / (p.n_heads / p.n_kv_heads);
  std::vector<Score> scores;
  std::vector<const bf16*> values;
  for (int32_t s = 0; s < p.n_sources; ++s) {
    const KvSource& source = p.sources[s];
    for (const Score& score :
         expected_scores(p.q + int64_t{head} * d, source, kv_head, d, p.scale, p.views)) {
      scores.push_back(score);
    }
    for (const int64_t row : rows_of(source, kv_head)) {
      values.push_back(source.values + kv_head * source.head_stride + row);
    }
  }
  DecodeExpected e;
  e.out.assign(static_cast<size_t>(d), 0.0);
  e.tolerance.assign(static_cast<size_t>(d), 0.0);
  e.size.assign(static_cast<size_t>(d), 0.0);
  if (scores.empty()) return e;

  double max = -std::numeric_limits<double>::infinity();
  for (const Score& score : scores) max = std::max(max, score.value);
  const double gamma = (2.0 * static_cast<double>(scores.size()) + 100) * kUnit;
  double sum = 0, moved = 0;
  std::vector<double> weight, delta;
  for (size_t i = 0; i < scores.size(); ++i) {
    weight.push_back(std::exp2(scores[i].value - max));
    delta.push_back(std::log(2.0) * (scores[i].error +
                                     2 * kUnit * (std::abs(scores[i].value) + std::abs(max))) +
                    8 * kUnit);
    sum += weight[i];
    moved += weight[i] * delta[i];
    for (int32_t c = 0; c < d; ++c) e.out[c] += weight[i] * static_cast<float>(values[i][c]);
  }
  for (int32_t c = 0; c < d; ++c) {
    e.out[c] /= sum;
    double bound = moved * std::abs(e.out[c]);
    for (size_t i = 0; i < scores.size(); ++i) {
      const double v = std::abs(static_cast<float>(values[i][c]));
      e.size[c] += weight[i] * v / sum;
      bound +=
          weight[i] * v * (delta[i] + gamma) + 0x1p-125 * v;  // weights below 2^-126 are dropped
    }
    e.tolerance[c] = bound / sum;
  }
  e.log_sum = max + std::log2(sum);
  e.log_sum_tolerance = (moved / sum + gamma) / std::log(2.0) + 2 * kUnit * std::abs(e.log_sum);
  return e;
}

}  // namespace tiercel::test
