#include "tests/oracle/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tiercel::test {
namespace {

// Positions that query t of KV head j sees, in the order of the definition.
std::vector<int64_t> visible_positions(const PrefillAttendParams& p, int64_t t, int64_t j) {
  std::vector<int64_t> positions;
  const int64_t position = p.first_position + t;
  int64_t begin = p.window > 0 ? std::max<int64_t>(0, position - p.window + 1) : 0;
  if (p.block_tokens > 0) {
    const int64_t block = t / p.block_tokens;
    const int64_t list = block * p.n_kv_heads + j;
    for (int64_t c = 0; c < p.chunk_counts[list]; ++c) {
      const int64_t first = int64_t{p.chunk_ids[list * p.max_chunks + c]} * p.chunk_tokens;
      for (int64_t i = 0; i < p.chunk_tokens; ++i) positions.push_back(first + i);
    }
    begin = p.local_begin[block];
  }
  for (int64_t i = begin; i <= position; ++i) positions.push_back(i);
  return positions;
}

}  // namespace

AttendRow attend_row(const PrefillAttendParams& p, int64_t t, int64_t h,
                     const AttendRounding& rounding) {
  const int64_t j = h / (p.n_heads / p.n_kv_heads), d = p.head_dim;
  const bf16* q = p.q + (t * p.n_heads + h) * d;
  const bf16* keys = p.keys + j * p.head_stride;
  const bf16* values = p.values + j * p.head_stride;
  const std::vector<int64_t> positions = visible_positions(p, t, j);
  const double unit = static_cast<double>(p.scale) * 1.4426950408889634;
  std::vector<double> weights(positions.size()), score_rms(positions.size());
  double max = -std::numeric_limits<double>::infinity(), sum = 0;
  for (size_t i = 0; i < positions.size(); ++i) {
    double score = 0, square = 0;
    for (int64_t c = 0; c < d; ++c) {
      const double product = value(q[c]) * value(keys[positions[i] * d + c]) * unit;
      score += product;
      square += product * product;
    }
    if (p.bias != nullptr) {
      score += static_cast<double>(p.bias[j * p.bias_head_stride + positions[i]]);
    }
    weights[i] = score;
    score_rms[i] = std::sqrt(square) * rounding.query;
    max = std::max(max, score);
  }
  for (double& w : weights) sum += w = std::exp2(w - max);
  AttendRow row{std::vector<double>(static_cast<size_t>(d)), 0};
  double* out = row.out.data();
  for (size_t i = 0; i < positions.size(); ++i) {
    const bf16* its = values + positions[i] * d;
    for (int64_t c = 0; c < d; ++c) out[c] += weights[i] * value(its[c]);
  }
  for (int64_t c = 0; c < d; ++c) out[c] /= sum;
  std::vector<double> variances(static_cast<size_t>(d));
  for (size_t i = 0; i < positions.size(); ++i) {
    const double weight = weights[i] / sum;
    if (weight == 0) continue;  // also where the score is -inf and its error therefore NaN
    const double score_error = 0.6931471805599453 * score_rms[i];
    const double error = rounding.weight * rounding.weight + score_error * score_error;
    const bf16* its = values + positions[i] * d;
    for (int64_t c = 0; c < d; ++c) {
      const double share = weight * (value(its[c]) - out[c]);
      variances[static_cast<size_t>(c)] += share * share * error;
    }
  }
  double variance = 0;
  for (int64_t c = 0; c < d; ++c) {
    variance += variances[static_cast<size_t>(c)] + out[c] * out[c] * kBf16Rms * kBf16Rms;
  }
  row.error_rms = std::sqrt(variance / static_cast<double>(d));
  return row;
}

}  // namespace tiercel::test
