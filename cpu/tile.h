// The eight tile registers of AMX, twice with the same interface: in hardware, and in plain memory.
//
// Kernels are templates on one of the two, so that they run, bit for bit the same, on machines
// without AMX and under sanitizers, which do not look into tile instructions.
//
//   multiply<C, A, B>:   C [rows][16] fp32 += A [rows][16 pairs] bf16  x  B [16 pairs][16][2] bf16
//
// The arithmetic of tdpbf16ps, as found by comparing bits: per element of C one chain of fused
// multiply-adds over the even k and one over the odd k, both starting from zero and rounded to
// nearest, then C + (even + odd). Denormals count as zero, going in and coming out.
//
// Instructions are our own assembly: g++ 12's _tile_loadconfig drops stores to the config, and its
// _tile_loadd has no memory clobber, so that stores may sink below it. Everything here has internal
// linkage (see cpu/isa.h).
#pragma once

#include <cstdint>

namespace tiercel::cpu {
namespace {

// Operand of ldtilecfg. All tiles are 16 rows of 64 bytes here.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

#if defined(__x86_64__)
class HardwareTiles {
 public:
  // Before the first tile instruction, and after the last: oneDNN configures tiles on the same
  // thread, and nothing may be left behind for it.
  static void configure() {
    static constexpr TileConfig config;
    asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  static void release() { asm volatile("tilerelease" : : : "memory"); }

  template <int kTile>
  void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  // For operands that come from L2 and are not needed in L1 again: 20 % faster there.
  template <int kTile>
  void load_streaming(const void* from, int64_t stride) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2"
                 :
                 : "r"(from), "r"(stride), "i"(kTile)
                 : "memory");
  }
  template <int kTile>
  void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kC, int kA, int kB>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
};
#endif

class EmulatedTiles {
 public:
  static void configure() {}
  static void release() {}

  template <int kTile>
  void zero() {
    __builtin_memset(tiles_[kTile], 0, kTileBytes);
  }
  // Out of line, as kernels unroll their products: inlined they take minutes to compile.
  template <int kTile>
  __attribute__((noinline)) void load(const void* from, int64_t stride) {
    const char* row = static_cast<const char*>(from);
    for (int i = 0; i < 16; ++i) __builtin_memcpy(tiles_[kTile][i], row + i * stride, 64);
  }
  template <int kTile>
  void load_streaming(const void* from, int64_t stride) {
    load<kTile>(from, stride);
  }
  template <int kTile>
  __attribute__((noinline)) void store(void* to, int64_t stride) {
    char* row = static_cast<char*>(to);
    for (int i = 0; i < 16; ++i) __builtin_memcpy(row + i * stride, tiles_[kTile][i], 64);
  }
  template <int kC, int kA, int kB>
  __attribute__((noinline)) void multiply() {
    for (int row = 0; row < 16; ++row) {
      float even[16] = {}, odd[16] = {};
      for (int pair = 0; pair < 16; ++pair) {
        const uint32_t a = tiles_[kA][row][pair];
        const float a_even = value(a << 16), a_odd = value(a & 0xffff0000u);
        for (int n = 0; n < 16; ++n) {
          const uint32_t b = tiles_[kB][pair][n];
          even[n] = flushed(__builtin_fmaf(a_even, value(b << 16), even[n]));
          odd[n] = flushed(__builtin_fmaf(a_odd, value(b & 0xffff0000u), odd[n]));
        }
      }
      for (int n = 0; n < 16; ++n) {
        const float sum = flushed(even[n] + odd[n]);
        const float c = flushed(value(tiles_[kC][row][n]) + sum);
        __builtin_memcpy(&tiles_[kC][row][n], &c, 4);
      }
    }
  }

 private:
  static constexpr int kTileBytes = 1024;

  static float flushed(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
    __builtin_memcpy(&x, &bits, 4);
    return x;
  }
  static float value(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return flushed(x);
  }

  alignas(64) uint32_t tiles_[8][16][16] = {};
};

}  // namespace
}  // namespace tiercel::cpu
