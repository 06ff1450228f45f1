// What a warp or a warpgroup does in one instruction, for the SIMT emulator.
//
// Compiled once and optimised, unlike the kernels that use it: most of an emulated launch is spent
// here. Layouts follow the PTX ISA.
#pragma once

#include <array>
#include <cstdint>

#include "tests/simt/simt.h"

namespace tiercel::gpu {

inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const uint8_t*>(p) - simt::g.b->smem);
}
// Byte offset from a 1024-aligned base of shared memory. `mode`: bytes of the swizzle, 0 for none.
inline uint32_t swizzle(uint32_t a,
                        int mode) {  // byte offset from a 1024-aligned shared memory base
  return mode == 128  ? a ^ ((a >> 7 & 7) << 4)
         : mode == 64 ? a ^ ((a >> 7 & 3) << 4)
         : mode == 32 ? a ^ ((a >> 7 & 1) << 4)
                      : a;
}

// A lane's part of mma.m16n8k16 on bf16: d += a b.
struct Mma {
  float* d;
  const uint32_t* a;
  uint32_t b0, b1;
};
// `lanes`: an Mma of each of 32.
void multiply_16x8x16(void** lanes);

// A lane's part of ldmatrix.x4: its row of eight 16-bit values, and what it gets.
struct Ldm {
  const uint8_t* p;
  uint32_t r[4];
};
// `lanes`: an Ldm of each of 32.
void load_matrices(void** lanes, bool transposed);

// A lane's part of wgmma: registers of the product, registers or descriptor of a, descriptor of b.
struct WgArg {
  float* d;
  const uint32_t* a;
  uint64_t da, db;
  int acc;
};
// 64 x n x 16. `a_in_registers`: else both operands come from shared memory.
void multiply_warpgroup(int n, const std::array<WgArg, 128>& lanes, bool a_in_registers,
                        bool b_transposed);

}  // namespace tiercel::gpu
