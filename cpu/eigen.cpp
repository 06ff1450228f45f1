#include "cpu/eigen.h"

#include <Eigen/Eigenvalues>
#include <cmath>

#include "engine/base/check.h"

namespace tiercel::cpu {

Eigenvectors leading_eigenvectors(const std::vector<double>& matrix, int64_t n, int64_t rank) {
  CHECK(static_cast<int64_t>(matrix.size()) == n * n && rank >= 0 && rank <= n, "{} values, {}, {}",
        matrix.size(), n, rank);
  for (double value : matrix) {
    if (!std::isfinite(value)) fail("eigenvectors: the matrix has an element that is not finite");
  }
  const Eigen::Map<const Eigen::MatrixXd> symmetric(matrix.data(), n, n);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(symmetric);
  if (solver.info() != Eigen::Success) fail("eigenvectors: no convergence for n = {}", n);

  Eigenvectors result;
  for (int64_t i = n - 1; i >= 0; --i) result.values.push_back(solver.eigenvalues()[i]);
  result.vectors.reserve(static_cast<size_t>(rank * n));
  for (int64_t r = 0; r < rank; ++r) {
    const auto vector = solver.eigenvectors().col(n - 1 - r);
    Eigen::Index largest = 0;
    vector.cwiseAbs().maxCoeff(&largest);
    const double sign = vector[largest] < 0 ? -1.0 : 1.0;
    for (int64_t i = 0; i < n; ++i) result.vectors.push_back(sign * vector[i]);
  }
  return result;
}

}  // namespace tiercel::cpu
