// Leading eigenvectors by cuBLAS and cuSOLVER, all in fp64.
//
// Subspace iteration: with m columns, a fifth more than are wanted, and A = C + delta I
//
//   Y random;  six times: Y = orthonormal(A Y);  T = Y^T A Y = V D V^T;  vectors = Y V
//
// orthonormal(Z) is CholeskyQR twice: Z = Z L^-T with L L^T = Z^T Z + s I. The shifts keep every
// factorisation possible, whatever the rank of C is: delta (1e-6 of the mean eigenvalue;
// eigenvectors do not see it) bounds the condition of Z by 1e6 n, s = 1e-12 trace bounds that of
// the first factor by 1e6, which leaves singular values above 1e-3 for the second pass: it makes
// them 1 to 1e-10. (fp32 fails here: the square of the condition exceeds it.)
//
// The legacy syevd is used rather than Xsyevd: it wants device memory only, and so never blocks the
// host on a host workspace.
#include <algorithm>

#include "kernels/eigen.h"
#include "kernels/launch.cuh"
#include "kernels/libraries.cuh"

namespace tiercel::cuda {
namespace eigen {

struct DiagonalParams {
  double* matrix = nullptr;  // [n][n]
  int64_t n = 0;
  double relative = 0;      // of the trace is added to every element of the diagonal,
  double least = 0;         // or this if it is more
  double* added = nullptr;  // if not null: what was added
};
// One block.
KERNEL(256, 1) raise_diagonal_kernel(const GRID_CONST DiagonalParams p) {
  SHARED(smem);
  auto* parts = reinterpret_cast<double*>(smem);  // [256]
  double sum = 0;
  for (int64_t i = threadIdx.x; i < p.n; i += 256) sum += p.matrix[i * p.n + i];
  parts[threadIdx.x] = sum;
  gpu::sync_threads();
  sum = 0;
  for (int i = 0; i < 256; ++i) sum += parts[i];
  const double amount = fmax(p.relative * sum, p.least);
  for (int64_t i = threadIdx.x; i < p.n; i += 256) p.matrix[i * p.n + i] += amount;
  if (threadIdx.x == 0 && p.added != nullptr) *p.added = amount;
}

struct StartParams {
  double* out = nullptr;
  int64_t n = 0;
};
// Numbers in [-1, 1), the same in every run (SplitMix64 of the index).
KERNEL(256, 4) random_start_kernel(const GRID_CONST StartParams p) {
  const int64_t at = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (at >= p.n) return;
  uint64_t x = static_cast<uint64_t>(at + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  p.out[at] = static_cast<double>(x >> 11) * 0x1p-52 - 1;
}

struct LowerValuesParams {
  const double* in = nullptr;
  const double* by = nullptr;  // one number
  double* out = nullptr;
  int64_t n = 0;
};
KERNEL(256, 1) lower_values_kernel(const GRID_CONST LowerValuesParams p) {
  for (int64_t i = threadIdx.x; i < p.n; i += 256) p.out[i] = p.in[i] - *p.by;
}

}  // namespace eigen

namespace {

using namespace eigen;

constexpr int kIterations = 6;
constexpr int64_t kBlasBytes = 8 << 20;
constexpr double kMatrixShift = 1e-6;  // of the mean eigenvalue
constexpr double kLeastShift = 1e-30;  // where all keys are equal
constexpr double kFirstShift = 1e-12;  // of the trace of Z^T Z
constexpr double kSecondShift = 1e-15;

void check_blas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorKind::kRuntime, "cuBLAS: {}: {}", call, cublasGetStatusString(status));
}
void check_solver(cusolverStatus_t status, const char* call) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  fail(ErrorKind::kRuntime, "cuSOLVER: {}: status {}", call, static_cast<int>(status));
}
#define BLAS_CHECK(call) check_blas(call, #call)
#define SOLVER_CHECK(call) check_solver(call, #call)

int64_t columns_of(int64_t rank) { return (rank * 6 / 5 + 7) / 8 * 8; }

bool by_subspace(int64_t n, int64_t rank, EigenMethod method) {
  if (method == EigenMethod::kAuto) return n >= 256 && 2 * columns_of(rank) < n;
  return method == EigenMethod::kSubspace;
}

// Planned for cuSOLVER. Its wishes are known only at run time (LAPACK's syevd takes 2 n^2 + 6 n + 1
// numbers); what goes beyond the plan is allocated once, on first use.
int64_t solver_bytes(int64_t n) { return 8 * (3 * n * n + 64 * n) + (int64_t{1} << 20); }

// One call: handles, pieces of the workspace, and the next word of status.
class Solver {
 public:
  Solver(Stream& stream, const EigenParams& p);
  void solve_dense();
  void solve_subspace();

 private:
  // A product of column-major matrices: out [rows x columns] = op(a) b, rows of b = depth.
  struct Product {
    cublasOperation_t turn = CUBLAS_OP_N;  // of a
    int64_t rows, columns, depth;
  };
  template <typename T>
  T* take(int64_t n) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += (n * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return piece;
  }
  double* solver_memory(int64_t n_doubles);
  int32_t* next_status();
  void multiply(const Product& product, const double* a, const double* b, double* out);
  // z <- z L^-T with L L^T = z^T z + shift * trace * I; z is n x m.
  void orthonormalise(double* z, double* square, double shift);
  // A symmetric matrix becomes its eigenvectors, columns in ascending order of values.
  void decompose(double* matrix, int64_t n, double* values);

  Stream& stream_;
  const EigenParams& p_;
  Stream::Libraries& libraries_;
  cudaStream_t queue_;
  std::byte* next_;
  double* solver_memory_ = nullptr;
  int64_t solver_bytes_ = 0;
  int64_t n_, m_;  // m: columns of the subspace
  int n_status_ = 0;
};

Solver::Solver(Stream& stream, const EigenParams& p)
    : stream_(stream),
      p_(p),
      libraries_(stream.libraries()),
      queue_(static_cast<cudaStream_t>(stream.raw())),
      next_(static_cast<std::byte*>(p.workspace)),
      n_(p.n),
      m_(columns_of(p.rank)) {
  if (libraries_.blas == nullptr) {
    BLAS_CHECK(cublasCreate(&libraries_.blas));
    BLAS_CHECK(cublasSetStream(libraries_.blas, queue_));
  }
  if (libraries_.solver == nullptr) {
    SOLVER_CHECK(cusolverDnCreate(&libraries_.solver));
    SOLVER_CHECK(cusolverDnSetStream(libraries_.solver, queue_));
  }
  BLAS_CHECK(cublasSetWorkspace(libraries_.blas, take<std::byte>(kBlasBytes), kBlasBytes));
  solver_bytes_ = solver_bytes(by_subspace(n_, p.rank, EigenMethod::kAuto) ? m_ : n_);
  solver_memory_ = take<double>(solver_bytes_ / 8);
}

double* Solver::solver_memory(int64_t n_doubles) {
  const auto bytes = static_cast<size_t>(n_doubles) * sizeof(double);
  if (bytes <= static_cast<size_t>(solver_bytes_)) return solver_memory_;
  if (bytes > libraries_.solver_memory_bytes) {
    stream_.finish();
    CUDA_CHECK(cudaFree(libraries_.solver_memory));
    CUDA_CHECK(cudaMalloc(&libraries_.solver_memory, bytes));
    libraries_.solver_memory_bytes = bytes;
  }
  return static_cast<double*>(libraries_.solver_memory);
}

int32_t* Solver::next_status() {
  CHECK(n_status_ < kEigenStatus, "{} words of status", n_status_);
  return p_.status + n_status_++;
}

void Solver::multiply(const Product& s, const double* a, const double* b, double* out) {
  const double one = 1, zero = 0;
  const int rows = static_cast<int>(s.rows), columns = static_cast<int>(s.columns);
  const int depth = static_cast<int>(s.depth);
  BLAS_CHECK(cublasDgemm(libraries_.blas, s.turn, CUBLAS_OP_N, rows, columns, depth, &one, a,
                         s.turn == CUBLAS_OP_N ? rows : depth, b, depth, &zero, out, rows));
}

void Solver::orthonormalise(double* z, double* square, double shift) {
  const int n = static_cast<int>(n_), m = static_cast<int>(m_);
  multiply({.turn = CUBLAS_OP_T, .rows = m_, .columns = m_, .depth = n_}, z, z, square);
  launch<raise_diagonal_kernel>(stream_, 1, 256, 256 * sizeof(double),
                                DiagonalParams{square, m_, shift, 0, nullptr});
  int wanted = 0;
  SOLVER_CHECK(cusolverDnDpotrf_bufferSize(libraries_.solver, CUBLAS_FILL_MODE_LOWER, m, square, m,
                                           &wanted));
  SOLVER_CHECK(cusolverDnDpotrf(libraries_.solver, CUBLAS_FILL_MODE_LOWER, m, square, m,
                                solver_memory(wanted), wanted, next_status()));
  const double one = 1;
  BLAS_CHECK(cublasDtrsm(libraries_.blas, CUBLAS_SIDE_RIGHT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_T,
                         CUBLAS_DIAG_NON_UNIT, n, m, &one, square, m, z, n));
}

void Solver::decompose(double* matrix, int64_t order, double* values) {
  const int n = static_cast<int>(order);
  int wanted = 0;
  SOLVER_CHECK(cusolverDnDsyevd_bufferSize(libraries_.solver, CUSOLVER_EIG_MODE_VECTOR,
                                           CUBLAS_FILL_MODE_LOWER, n, matrix, n, values, &wanted));
  SOLVER_CHECK(cusolverDnDsyevd(libraries_.solver, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER,
                                n, matrix, n, values, solver_memory(wanted), wanted,
                                next_status()));
}

void Solver::solve_dense() {
  auto* values = take<double>(n_);
  decompose(p_.matrix, n_, values);
  const int64_t first = n_ - p_.rank;
  CUDA_CHECK(cudaMemcpyAsync(p_.vectors, p_.matrix + first * n_,
                             static_cast<size_t>(p_.rank * n_) * sizeof(double),
                             cudaMemcpyDeviceToDevice, queue_));
  CUDA_CHECK(cudaMemcpyAsync(p_.values, values + first,
                             static_cast<size_t>(p_.rank) * sizeof(double),
                             cudaMemcpyDeviceToDevice, queue_));
}

void Solver::solve_subspace() {
  CHECK(2 * m_ <= n_, "{} columns for {} vectors of {}", m_, p_.rank, n_);
  auto* y = take<double>(n_ * m_);
  auto* z = take<double>(n_ * m_);
  auto* square = take<double>(m_ * m_);
  auto* values = take<double>(m_);
  auto* delta = take<double>(1);
  launch<raise_diagonal_kernel>(
      stream_, 1, 256, 256 * sizeof(double),
      DiagonalParams{p_.matrix, n_, kMatrixShift / static_cast<double>(n_), kLeastShift, delta});
  launch<random_start_kernel>(stream_, blocks_for(n_ * m_, 256), 256, 0, StartParams{y, n_ * m_});

  const Product by_matrix{.rows = n_, .columns = m_, .depth = n_};
  for (int i = 0; i < kIterations; ++i) {
    multiply(by_matrix, p_.matrix, y, z);
    orthonormalise(z, square, kFirstShift);
    orthonormalise(z, square, kSecondShift);
    std::swap(y, z);
  }
  // Rayleigh-Ritz.
  multiply(by_matrix, p_.matrix, y, z);
  multiply({.turn = CUBLAS_OP_T, .rows = m_, .columns = m_, .depth = n_}, y, z, square);
  decompose(square, m_, values);
  const int64_t first = m_ - p_.rank;
  multiply({.rows = n_, .columns = p_.rank, .depth = m_}, y, square + first * m_, p_.vectors);
  launch<lower_values_kernel>(stream_, 1, 256, 0,
                              LowerValuesParams{values + first, delta, p_.values, p_.rank});
}

}  // namespace

// Enough for either method, but for the solver's own part, which is that of kAuto.
int64_t eigen_workspace_bytes(int64_t n, int64_t rank) {
  const int64_t m = columns_of(rank), order = by_subspace(n, rank, EigenMethod::kAuto) ? m : n;
  const int64_t roundings = 8 * 256;
  return kBlasBytes + solver_bytes(order) + 8 * (n + 2 * n * m + m * m + m) + roundings;
}

void leading_eigenvectors(Stream& stream, const EigenParams& p) {
  CHECK(p.rank > 0 && p.rank <= p.n && p.n < int64_t{1} << 15, "{} vectors of {}", p.rank, p.n);
  Solver solver(stream, p);
  if (by_subspace(p.n, p.rank, p.method)) {
    solver.solve_subspace();
  } else {
    solver.solve_dense();
  }
}

}  // namespace tiercel::cuda
