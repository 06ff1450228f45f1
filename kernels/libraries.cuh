// NVIDIA's libraries as one stream uses them: handles are made on first use.
#pragma once

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cusolverDn.h>

#include "kernels/stream.h"

namespace tiercel::cuda {

struct LinearPlans;  // kernels/matmul.cu

struct Stream::Libraries {
  cublasLtHandle_t blas_lt = nullptr;
  cublasHandle_t blas = nullptr;
  cusolverDnHandle_t solver = nullptr;
  // What the solver wants beyond the scratch memory that was planned for it; see kernels/eigen.cu.
  void* solver_memory = nullptr;
  size_t solver_memory_bytes = 0;
  LinearPlans* plans = nullptr;
  void (*destroy_plans)(LinearPlans*) = nullptr;

  ~Libraries() {
    if (plans != nullptr) destroy_plans(plans);
    if (solver_memory != nullptr) cudaFree(solver_memory);
    if (solver != nullptr) cusolverDnDestroy(solver);
    if (blas != nullptr) cublasDestroy(blas);
    if (blas_lt != nullptr) cublasLtDestroy(blas_lt);
  }
};

}  // namespace tiercel::cuda
