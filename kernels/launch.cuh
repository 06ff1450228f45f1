// Starts kernels: on a device, or in the SIMT emulator.
//
// launch: the kernel begins when everything before it in the stream has ended.
//
// launch_dependent: its blocks may begin while the last blocks of its predecessor run, so that the
// start of a kernel, and what it can fetch early, costs nothing. The kernel owes for it:
//
//   - Every thread executes wait_for_predecessors(), which returns when everything before it in the
//     stream has ended and its writes can be seen: before the first read of what another kernel may
//     write, and before the first write of its own. A kernel that skipped it would end before its
//     predecessor, and the next one, which waits for this one only, would come too early.
//   - Before that it reads nothing but its parameters, weights, and tables that were complete
//     before the stream's last kernel began. prefetch_l2 of other memory is fine: L2 sees later writes.
//   - launch_dependents() lets the next kernel's blocks begin once all blocks of this one have
//     called it or ended. Only after wait_for_predecessors(): so at most two kernels overlap.
//   - load_stream may bypass coherence: it is for those constants, load_once for the rest.
//
// The emulator lets blocks begin before their predecessor has done anything, and dies where a thread of such a
// kernel does not wait, or lets others begin before.
// A kernel overlaps only with one that was launched alike: after copies, waits and plain kernels
// nothing is relaxed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "engine/base/check.h"
#include "kernels/gpu.cuh"
#include "kernels/stream.h"

namespace tiercel::cuda {

// Kernels ask the stream first, and take less, or leave it to others.
inline void check_shared(const Stream& stream, size_t bytes) {
  CHECK(static_cast<int64_t>(bytes) <= stream.shared_memory(), "{} bytes of shared memory, a block has {}", bytes,
        stream.shared_memory());
}

#ifdef __CUDACC__

// Throws Error naming the call: a failed CUDA call is the world's fault (no memory, a lost device)
// until proven otherwise, and the session that met it is over.
void throw_cuda_error(int code, const char* call, const char* file, int line);
#define CUDA_CHECK(call)                                                                      \
  do {                                                                                        \
    const int code_ = static_cast<int>(call);                                                 \
    if (code_ != 0) ::tiercel::cuda::throw_cuda_error(code_, #call, __FILE__, __LINE__);      \
  } while (false)

// As much as the device has, once for each kernel and device: what a launch asks for decides how many
// blocks a multiprocessor holds. Always the same value, so that two threads do no harm.
template <auto kKernel>
void allow_shared(const Stream& stream, size_t bytes) {
  check_shared(stream, bytes);
  if (bytes <= (48u << 10)) return;
  constexpr int kKnownDevices = 64;
  static std::atomic<uint64_t> allowed{0};  // a bit each
  const int device = stream.device();
  const uint64_t bit = device < kKnownDevices ? uint64_t{1} << device : 0;
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return;
  int most = 0;  // also where a test's stream stands for a smaller device
  CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  CUDA_CHECK(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  allowed.fetch_or(bit, std::memory_order_relaxed);
}

template <auto kKernel, typename Params>
void launch(Stream& stream, dim3 grid, int threads, size_t shared_bytes, const Params& params) {
  allow_shared<kKernel>(stream, shared_bytes);
  stream.count_launch();
  kKernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream.raw())>>>(params);
  CUDA_CHECK(cudaGetLastError());
}

template <auto kKernel, typename Params>
void launch_dependent(Stream& stream, dim3 grid, int threads, size_t shared_bytes,
                      const Params& params) {
  if (!stream.programmatic()) {
    launch<kKernel>(stream, grid, threads, shared_bytes, params);
    return;
  }
  stream.launch_held();
  allow_shared<kKernel>(stream, shared_bytes);
  stream.count_launch();
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = stream.is_last_dependent() ? 1 : 0;
  config.stream = static_cast<cudaStream_t>(stream.raw());
  CUDA_CHECK(cudaLaunchKernelEx(&config, kKernel, params));
  stream.mark_last_dependent();
}

#else

template <auto kKernel, typename Params>
void launch_emulated(Stream& stream, dim3 grid, int threads, size_t shared_bytes, const Params& params,
                     bool is_dependent) {
  check_shared(stream, shared_bytes);
  CHECK(threads > 0 && threads <= 1024, "{} threads", threads);
  CHECK(grid.x > 0 && grid.x <= 0x7fffffff && grid.y > 0 && grid.y <= 65535 && grid.z > 0 && grid.z <= 65535,
        "a grid of {} x {} x {} blocks", grid.x, grid.y, grid.z);
  stream.launch_held();
  stream.count_launch();
  const bool may_overlap = is_dependent && stream.programmatic() && stream.is_last_dependent();
  const auto kernel = std::make_shared<simt::Launch>(grid, dim3(static_cast<unsigned>(threads)), shared_bytes,
                                                     is_dependent, [=] { kKernel(params); });
  std::function<void()> begin;
  if (may_overlap) begin = [kernel] { kernel->begin(); };
  simt::queue_of(stream.raw()).add([kernel] { kernel->run(); }, std::move(begin));
  if (is_dependent) stream.mark_last_dependent();
}

template <auto kKernel, typename Params>
void launch(Stream& stream, dim3 grid, int threads, size_t shared_bytes, const Params& params) {
  launch_emulated<kKernel>(stream, grid, threads, shared_bytes, params, false);
}

template <auto kKernel, typename Params>
void launch_dependent(Stream& stream, dim3 grid, int threads, size_t shared_bytes,
                      const Params& params) {
  launch_emulated<kKernel>(stream, grid, threads, shared_bytes, params, true);
}

#endif

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  const int64_t n = (items + per_block - 1) / per_block;
  CHECK(n >= 0 && n <= 0x7fffffff, "{} blocks", n);
  return static_cast<unsigned>(n);
}

}  // namespace tiercel::cuda
