// matmul by cuBLASLt. Row-major x [m][k] and weight [n][k] are column-major [k][m] and [k][n]: the
// library computes out^T [n][m] = weight^T x, in the memory order that we want.
#include <cstdint>
#include <unordered_map>

#include "engine/base/check.h"
#include "kernels/launch.cuh"
#include "kernels/libraries.cuh"
#include "kernels/linear.h"
#include "kernels/matmul.h"

namespace tiercel::cuda {

namespace {

// The largest power of two up to 256 that divides the address.
int alignment_of(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p) | 256;
  return static_cast<int>(address & (~address + 1));
}

void check_blas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorKind::kRuntime, "cuBLASLt: {}: {}", call, cublasLtGetStatusString(status));
}
#define BLAS_CHECK(call) check_blas(call, #call)

}  // namespace

// What decides on an algorithm.
struct LinearKey {
  int64_t m = 0, n = 0, k = 0, out_stride = 0;
  int x_alignment = 0, weight_alignment = 0, out_alignment = 0;
  int bias_alignment = 0;  // 0: no bias
  bool f32 = false, accumulate = false;
  friend bool operator==(const LinearKey&, const LinearKey&) = default;
};

struct HashOfLinearKey {
  size_t operator()(const LinearKey& key) const {
    uint64_t hash = 0;
    for (const int64_t part : {key.m, key.n, key.k, key.out_stride,
                               int64_t{key.x_alignment} << 30 | key.weight_alignment << 20 | key.out_alignment << 10 |
                                   key.bias_alignment,
                               int64_t{key.f32} << 1 | int64_t{key.accumulate}}) {
      hash = (hash ^ static_cast<uint64_t>(part)) * 0x9e3779b97f4a7c15ull;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

struct LinearPlan {
  LinearKey key;
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, x = nullptr, out = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool found = false;
};

// The last run of a prompt may have any number of rows, so a server meets new keys for a long time.
constexpr size_t kMostPlans = 4096;

struct LinearPlans {
  std::unordered_map<LinearKey, LinearPlan, HashOfLinearKey> plans;

  ~LinearPlans() { clear(); }
  // What has been enqueued does not need them.
  void clear() {
    for (const auto& [key, plan] : plans) {
      cublasLtMatrixLayoutDestroy(plan.out);
      cublasLtMatrixLayoutDestroy(plan.x);
      cublasLtMatrixLayoutDestroy(plan.weight);
      cublasLtMatmulDescDestroy(plan.product);
    }
    plans.clear();
  }
};

namespace {

template <typename Value>
void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, Value value) {
  BLAS_CHECK(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof value));
}
template <typename Value>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         Value value) {
  BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
}

LinearKey key_of(const LinearParams& p, int64_t out_stride) {
  return {.m = p.m,
          .n = p.n,
          .k = p.k,
          .out_stride = out_stride,
          .x_alignment = alignment_of(p.x),
          .weight_alignment = alignment_of(p.weight.values),
          .out_alignment = alignment_of(p.out),
          .bias_alignment = p.bias != nullptr ? alignment_of(p.bias) : 0,
          .f32 = p.out_type == DType::kF32,
          .accumulate = p.accumulate};
}

// The heuristic's first algorithm that runs with our workspace and without atomics.
void choose_algorithm(cublasLtHandle_t handle, LinearPlan& plan) {
  cublasLtMatmulPreference_t preference = nullptr;
  BLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
      static_cast<uint64_t>(matmul_scratch_bytes()));
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  const auto out_alignment = static_cast<uint32_t>(plan.key.out_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
      static_cast<uint32_t>(plan.key.weight_alignment));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
      static_cast<uint32_t>(plan.key.x_alignment));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out_alignment);
  constexpr int kResults = 8;
  cublasLtMatmulHeuristicResult_t results[kResults] = {};
  int n_results = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle, plan.product, plan.weight, plan.x, plan.out, plan.out,
                                     preference, kResults, results, &n_results);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return;
  check_blas(status, "cublasLtMatmulAlgoGetHeuristic");
  for (int i = 0; i < n_results && !plan.found; ++i) {
    if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
    plan.algorithm = results[i].algo;
    plan.found = true;
  }
}

LinearPlan make_plan(cublasLtHandle_t handle, const LinearKey& key, const bf16* bias) {
  LinearPlan plan;
  plan.key = key;
  const auto m = static_cast<uint64_t>(key.m), n = static_cast<uint64_t>(key.n);
  const auto k = static_cast<uint64_t>(key.k);
  BLAS_CHECK(cublasLtMatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  set(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (bias != nullptr) {
    set(plan.product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(plan.product, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
    set(plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  BLAS_CHECK(cublasLtMatrixLayoutCreate(&plan.weight, CUDA_R_16BF, k, n, key.k));
  BLAS_CHECK(cublasLtMatrixLayoutCreate(&plan.x, CUDA_R_16BF, k, m, key.k));
  BLAS_CHECK(
      cublasLtMatrixLayoutCreate(&plan.out, key.f32 ? CUDA_R_32F : CUDA_R_16BF, n, m, key.out_stride));
  choose_algorithm(handle, plan);
  return plan;
}

const LinearPlan& plan_of(Stream::Libraries& libraries, const LinearParams& p, int64_t out_stride) {
  const LinearKey key = key_of(p, out_stride);
  if (libraries.blas_lt == nullptr) BLAS_CHECK(cublasLtCreate(&libraries.blas_lt));
  if (libraries.plans == nullptr) {
    libraries.plans = new LinearPlans;
    libraries.destroy_plans = [](LinearPlans* plans) { delete plans; };
  }
  auto& plans = libraries.plans->plans;
  if (const auto found = plans.find(key); found != plans.end()) return found->second;
  if (plans.size() == kMostPlans) libraries.plans->clear();
  return plans.emplace(key, make_plan(libraries.blas_lt, key, p.bias)).first->second;
}

}  // namespace

bool matmul(Stream& stream, const LinearParams& p, int64_t out_stride) {
  if (p.m == 0 || p.n == 0) return true;
  Stream::Libraries& libraries = stream.libraries();
  const LinearPlan& plan = plan_of(libraries, p, out_stride);
  if (!plan.found) return false;
  if (p.bias != nullptr) set(plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  const float alpha = 1, beta = p.accumulate ? 1 : 0;
  BLAS_CHECK(cublasLtMatmul(
      libraries.blas_lt, plan.product, &alpha, p.weight.values, plan.weight, p.x, plan.x, &beta, p.out,
      plan.out, p.out, plan.out, &plan.algorithm, stream.scratch(matmul_scratch_bytes()),
      static_cast<size_t>(matmul_scratch_bytes()), static_cast<cudaStream_t>(stream.raw())));
  return true;
}

}  // namespace tiercel::cuda
