// Eigenvectors of a symmetric fp64 matrix in device memory: the step of a fit that needs a library.
//
// eigen.cu runs cuBLAS and cuSOLVER; tests/simt/eigen.cpp has a plain host algorithm for the
// emulator. Signs, and bases of degenerate subspaces, are arbitrary.
#pragma once

#include <cstdint>

#include "kernels/stream.h"

namespace tiercel::cuda {

enum class EigenMethod : uint8_t {
  kAuto,      // subspace iteration where it is faster: n >= 256 and few of the vectors wanted
  kDense,     // all eigenvectors: the oracle
  kSubspace,  // leaves at most about 1 % more energy outside than the best vectors do
};

inline constexpr int kEigenStatus = 32;  // words of status

struct EigenParams {
  double* matrix = nullptr;  // [n][n], finite; overwritten
  int64_t n = 0, rank = 0;
  double* vectors = nullptr;  // [rank][n], orthonormal; the largest eigenvalue last
  double* values = nullptr;   // [rank], ascending
  int32_t* status = nullptr;  // [kEigenStatus], all zero if the vectors are good
  void* workspace = nullptr;  // eigen_workspace_bytes(n, rank), 256-byte aligned
  EigenMethod method = EigenMethod::kAuto;
};

int64_t eigen_workspace_bytes(int64_t n, int64_t rank);
void leading_eigenvectors(Stream& stream, const EigenParams& p);

}  // namespace tiercel::cuda
