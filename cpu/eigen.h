// Eigenvectors of a symmetric matrix (Eigen 3.4, double, one thread: the same bits everywhere).
#pragma once

#include <cstdint>
#include <vector>

namespace tiercel::cpu {

struct Eigenvectors {
  std::vector<double> values;   // [n], descending
  std::vector<double> vectors;  // [rank][n], one eigenvector after the other
};

// The rank eigenvectors with the largest eigenvalues, and all eigenvalues. The sign of a vector is
// chosen so that its component of largest magnitude (the first of them) is positive. A matrix with
// NaN or inf is an error of kind kRuntime.
Eigenvectors leading_eigenvectors(const std::vector<double>& matrix, int64_t n, int64_t rank);

}  // namespace tiercel::cpu
