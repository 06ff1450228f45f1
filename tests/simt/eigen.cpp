// Eigenvectors for the emulator: cyclic Jacobi rotations, on the host, in a fixed order.
#include "kernels/eigen.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "engine/base/check.h"
#include "tests/simt/work_queue.h"

namespace tiercel::cuda {
namespace {

constexpr int kSweeps = 60;

// One rotation of rows and columns p and q that makes a[p][q] zero; v collects the vectors as rows.
void rotate(double* a, double* v, int64_t n, int64_t p, int64_t q) {
  const double off = a[p * n + q];
  const double theta = (a[q * n + q] - a[p * n + p]) / (2 * off);
  const double t = std::copysign(1.0, theta) / (std::abs(theta) + std::hypot(theta, 1.0));
  const double c = 1 / std::hypot(t, 1.0), s = t * c;
  const auto turn = [&](double& x, double& y) {
    const double before = x;
    x = c * before - s * y;
    y = s * before + c * y;
  };
  for (int64_t k = 0; k < n; ++k) turn(a[k * n + p], a[k * n + q]);
  for (int64_t k = 0; k < n; ++k) turn(a[p * n + k], a[q * n + k]);
  for (int64_t k = 0; k < n; ++k) turn(v[p * n + k], v[q * n + k]);
}

double off_diagonal(const double* a, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) sum += a[i * n + j] * a[i * n + j];
  }
  return sum;
}

void find_eigenvectors(const EigenParams& p) {
  const int64_t n = p.n;
  double* a = p.matrix;
  auto* v = static_cast<double*>(p.workspace);
  std::fill_n(v, n * n, 0.0);
  for (int64_t i = 0; i < n; ++i) v[i * n + i] = 1;
  double total = 0;
  for (int64_t i = 0; i < n * n; ++i) total += a[i] * a[i];
  int sweep = 0;
  for (; sweep < kSweeps && off_diagonal(a, n) > 1e-30 * total; ++sweep) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = i + 1; j < n; ++j) {
        if (std::abs(a[i * n + j]) > 1e-18 * std::sqrt(total)) rotate(a, v, n, i, j);
      }
    }
  }
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t x, int64_t y) { return a[x * n + x] < a[y * n + y]; });
  for (int64_t r = 0; r < p.rank; ++r) {
    const int64_t from = order[static_cast<size_t>(n - p.rank + r)];
    p.values[r] = a[from * n + from];
    std::copy_n(v + from * n, n, p.vectors + r * n);
  }
  p.status[0] = sweep == kSweeps ? 1 : 0;
}

}  // namespace

int64_t eigen_workspace_bytes(int64_t n, int64_t) {
  return n * n * static_cast<int64_t>(sizeof(double));
}

void leading_eigenvectors(Stream& stream, const EigenParams& p) {
  CHECK(p.rank > 0 && p.rank <= p.n, "{} vectors of {}", p.rank, p.n);
  simt::queue_of(stream.raw()).add([p] { find_eigenvectors(p); });
}

}  // namespace tiercel::cuda
