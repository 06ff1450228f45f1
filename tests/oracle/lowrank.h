// Low-rank keys in fp64: keys turned back, covariance, what a basis loses.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/oracle/elementwise.h"

namespace tiercel::test {

using Matrix = std::vector<std::vector<double>>;  // rows

// Keys of all heads of token `row`, before RoPE: [n_kv_heads * d].
inline std::vector<double> unrotate_oracle(const bf16* keys, int64_t head_stride,
                                           int64_t n_kv_heads, int64_t d, int64_t row,
                                           int64_t position, const std::vector<double>& inv_freq) {
  std::vector<double> out(static_cast<size_t>(n_kv_heads * d));
  const int64_t half = d / 2;
  for (int64_t i = 0; i < half; ++i) {
    const auto [c, s] = turn_oracle(position, inv_freq[static_cast<size_t>(i)]);
    for (int64_t j = 0; j < n_kv_heads; ++j) {
      const bf16* head = keys + j * head_stride + row * d;
      const double low = value_of(head[i]), high = value_of(head[half + i]);
      out[static_cast<size_t>(j * d + i)] = static_cast<double>(low * c + high * s);
      out[static_cast<size_t>(j * d + half + i)] = static_cast<double>(high * c - low * s);
    }
  }
  return out;
}

inline std::vector<double> mean_oracle(const Matrix& rows) {
  std::vector<double> mean(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < mean.size(); ++i) mean[i] += row[i] / static_cast<double>(rows.size());
  }
  return mean;
}

// Row-major w x w.
inline std::vector<double> covariance_oracle(const Matrix& rows, const std::vector<double>& mean) {
  const size_t w = mean.size();
  std::vector<double> result(w * w), x(w);
  for (const auto& row : rows) {
    for (size_t i = 0; i < w; ++i) x[i] = row[i] - mean[i];
    for (size_t i = 0; i < w; ++i) {
      for (size_t j = 0; j < w; ++j) result[i * w + j] += x[i] * x[j];
    }
  }
  for (double& value : result) value /= static_cast<double>(rows.size());
  return result;
}

// Share of the energy of C that x -> x B B^T loses: tr((I - P) C (I - P)^T) / tr(C) with P = B B^T,
// B [w][rank] taken as it is, orthonormal or not.
inline double lost_energy(const std::vector<double>& c, const std::vector<double>& basis, size_t w,
                          size_t rank) {
  std::vector<double> rest(w * w);  // I - B B^T
  for (size_t i = 0; i < w; ++i) {
    for (size_t j = 0; j < w; ++j) {
      double sum = i == j ? 1 : 0;
      for (size_t r = 0; r < rank; ++r) sum -= basis[i * rank + r] * basis[j * rank + r];
      rest[i * w + j] = sum;
    }
  }
  double lost = 0, trace = 0;
  for (size_t i = 0; i < w; ++i) {
    trace += c[i * w + i];
    for (size_t j = 0; j < w; ++j) {
      double sum = 0;  // (C rest^T)[j][i]
      for (size_t k = 0; k < w; ++k) sum += c[j * w + k] * rest[i * w + k];
      lost += rest[i * w + j] * sum;
    }
  }
  return lost / trace;
}

}  // namespace tiercel::test
