// Every instruction and intrinsic that a kernel may use, by name. The only file with inline PTX.
//
// Kernels are ordinary C++: the same source is compiled by nvcc for a GPU (kernels/gpu_device.cuh)
// and by a host compiler for the SIMT emulator of the tests (tests/simt/gpu_simt.h), where
// each name has a plain definition, asynchronous ones delayed adversarially. So a kernel uses these
// names only: no __syncthreads, no __shfl_sync, no static __shared__, no printf, no float contraction
// that is implied (write fmaf where both sides must agree to the bit).
//
//   KERNEL(threads, min_blocks) name(const GRID_CONST Params p) { SHARED(smem); ... }
//
// A kernel takes one plain struct; launch<kernel>(...) of kernels/launch.cuh starts it.
#pragma once

#include <cstdint>

#include "engine/base/dtype.h"

#ifdef __CUDACC__
#include "kernels/gpu_device.cuh"
#else
#include "tests/simt/gpu_simt.h"
#endif

namespace tiercel::gpu {

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kInf = __builtin_huge_valf();

GPU float to_float(bf16 x) { return bits_to_float(uint32_t{x.bits} << 16); }
// The two bf16 of one 32-bit word.
GPU float low_float(uint32_t pair) { return bits_to_float(pair << 16); }
GPU float high_float(uint32_t pair) { return bits_to_float(pair & 0xffff0000u); }
// The same of two halves.
GPU float low_half(uint32_t pair) { return half_to_float(static_cast<uint16_t>(pair & 0xffffu)); }
GPU float high_half(uint32_t pair) { return half_to_float(static_cast<uint16_t>(pair >> 16)); }
// Round to nearest, ties to even.
GPU bf16 to_bf16(float x) {
  bf16 value;
  value.bits = static_cast<uint16_t>(pack_bf16(x, 0.0f) & 0xffffu);
  return value;
}

// What most kernels of launch_dependent begin with: they end soon after all blocks have begun.
GPU void begin_dependent() {
  wait_for_predecessors();
  launch_dependents();
}

// A wgmma operand in shared memory (PTX ISA, "matrix descriptor"): offsets in bytes.
template <int kSwizzle>
GPU uint64_t wgmma_descriptor(uint32_t shared_address, uint32_t leading, uint32_t stride) {
  constexpr uint64_t kMode = kSwizzle == 128 ? 1 : kSwizzle == 64 ? 2 : kSwizzle == 32 ? 3 : 0;
  return (uint64_t{shared_address >> 4} & 0x3fff) | uint64_t{leading >> 4} << 16 |
         uint64_t{stride >> 4} << 32 | kMode << 62;
}

}  // namespace tiercel::gpu
