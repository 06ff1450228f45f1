// Starts kernels: on a device, or in the SIMT emulator.
#pragma once

#include <cstddef>

#include "engine/base/check.h"
#include "kernels/gpu.cuh"
#include "kernels/stream.h"

namespace tiercel::cuda {

#ifdef __CUDACC__

// Throws Error naming the call: a failed CUDA call is the world's fault (no memory, a lost device)
// until proven otherwise, and the session that met it is over.
void throw_cuda_error(int code, const char* call, const char* file, int line);
#define CUDA_CHECK(call)                                                                      \
  do {                                                                                        \
    const int code_ = static_cast<int>(call);                                                 \
    if (code_ != 0) ::tiercel::cuda::throw_cuda_error(code_, #call, __FILE__, __LINE__);      \
  } while (false)

template <auto kKernel, typename Params>
void launch(Stream& stream, dim3 grid, int threads, size_t shared_bytes, const Params& params) {
  if (shared_bytes > (48u << 10)) {
    static size_t allowed = 0;  // one kernel, one attribute; a race would set it twice
    if (allowed < shared_bytes) {
      CUDA_CHECK(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared_bytes)));
      allowed = shared_bytes;
    }
  }
  kKernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream.raw())>>>(params);
  CUDA_CHECK(cudaGetLastError());
}

#else

template <auto kKernel, typename Params>
void launch(Stream&, dim3 grid, int threads, size_t shared_bytes, const Params& params) {
  const Params copy = params;
  simt::choose_timing();
  simt::launch(grid, dim3(static_cast<unsigned>(threads)), shared_bytes, [&] { kKernel(copy); });
}

#endif

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  const int64_t n = (items + per_block - 1) / per_block;
  CHECK(n >= 0 && n <= 0x7fffffff, "{} blocks", n);
  return static_cast<unsigned>(n);
}

}  // namespace tiercel::cuda
