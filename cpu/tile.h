// The eight tile registers of AMX, twice with the same interface: in hardware, and in plain memory.
//
// Kernels are templates on one of the two, so that they run, bit for bit the same, on machines
// without AMX and under sanitizers, which do not look into tile instructions.
//
//   multiply<C, A, B>:         C [rows][16] fp32 += A [rows][16 pairs] bf16  x  B [16 pairs][16][2] bf16
//   multiply_bytes<C, A, B>:   C [rows][16] int32 += A [rows][16 fours] int8  x  B [16 fours][16][4] int8
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
  // Rows of 64 bytes, `stride` bytes apart, kOffset bytes on from `from`: part of the instruction,
  // so that many tiles need one register.
  template <int kTile, int kOffset = 0>
  void load(const void* from, int64_t stride) {
    asm volatile("tileloadd %c3(%0,%1,1), %%tmm%c2"
                 :
                 : "r"(from), "r"(stride), "i"(kTile), "i"(kOffset)
                 : "memory");
  }
  // For operands that come from L2 and are not needed in L1 again: 20 % faster there.
  template <int kTile, int kOffset = 0>
  void load_streaming(const void* from, int64_t stride) {
    asm volatile("tileloaddt1 %c3(%0,%1,1), %%tmm%c2"
                 :
                 : "r"(from), "r"(stride), "i"(kTile), "i"(kOffset)
                 : "memory");
  }
  template <int kTile, int kOffset = 0>
  void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, %c3(%0,%1,1)"
                 :
                 : "r"(to), "r"(stride), "i"(kTile), "i"(kOffset)
                 : "memory");
  }
  template <int kC, int kA, int kB>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
  template <int kC, int kA, int kB>
  void multiply_bytes() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
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
  template <int kTile, int kOffset = 0>
  void load(const void* from, int64_t stride) {
    load_tile(tiles_[kTile], static_cast<const char*>(from) + kOffset, stride);
  }
  template <int kTile, int kOffset = 0>
  void load_streaming(const void* from, int64_t stride) {
    load<kTile, kOffset>(from, stride);
  }
  template <int kTile, int kOffset = 0>
  void store(void* to, int64_t stride) {
    store_tile(tiles_[kTile], static_cast<char*>(to) + kOffset, stride);
  }
  template <int kC, int kA, int kB>
  void multiply() {
    multiply_tiles(tiles_[kC], tiles_[kA], tiles_[kB]);
  }
  template <int kC, int kA, int kB>
  void multiply_bytes() {
    multiply_byte_tiles(tiles_[kC], tiles_[kA], tiles_[kB]);
  }

 private:
  static constexpr int kTileBytes = 1024;
  using Tile = uint32_t[16][16];

  // Out of line, and once for all tiles, as kernels unroll their products: inlined they take
  // minutes to compile. Products read nothing but tiles, whose bounds are known: no sanitizer slows them.
  __attribute__((noinline)) static void load_tile(Tile& tile, const char* from, int64_t stride) {
    for (int i = 0; i < 16; ++i) __builtin_memcpy(tile[i], from + i * stride, 64);
  }
  __attribute__((noinline)) static void store_tile(const Tile& tile, char* to, int64_t stride) {
    for (int i = 0; i < 16; ++i) __builtin_memcpy(to + i * stride, tile[i], 64);
  }
  __attribute__((noinline, no_sanitize("address"))) static void multiply_tiles(
      Tile& c_tile, const Tile& a_tile, const Tile& b_tile) {
    for (int row = 0; row < 16; ++row) {
      float even[16] = {}, odd[16] = {};
      for (int pair = 0; pair < 16; ++pair) {
        const uint32_t a = a_tile[row][pair];
        const float a_even = value(a << 16), a_odd = value(a & 0xffff0000u);
        for (int n = 0; n < 16; ++n) {
          const uint32_t b = b_tile[pair][n];
          even[n] = flushed(__builtin_fmaf(a_even, value(b << 16), even[n]));
          odd[n] = flushed(__builtin_fmaf(a_odd, value(b & 0xffff0000u), odd[n]));
        }
      }
      for (int n = 0; n < 16; ++n) {
        const float sum = flushed(even[n] + odd[n]);
        c_tile[row][n] = __builtin_bit_cast(uint32_t, flushed(value(c_tile[row][n]) + sum));
      }
    }
  }

  __attribute__((noinline, no_sanitize("address"))) static void multiply_byte_tiles(
      Tile& c_tile, const Tile& a_tile, const Tile& b_tile) {
    for (int row = 0; row < 16; ++row) {
      for (int n = 0; n < 16; ++n) {
        int32_t sum = 0;
        for (int four = 0; four < 16; ++four) {
          for (int shift = 0; shift < 32; shift += 8) {
            sum += static_cast<int8_t>(a_tile[row][four] >> shift) *
                   static_cast<int8_t>(b_tile[four][n] >> shift);
          }
        }
        c_tile[row][n] += static_cast<uint32_t>(sum);
      }
    }
  }

  // Denormals are zero.
  [[gnu::always_inline]] static float flushed(float x) { return value(__builtin_bit_cast(uint32_t, x)); }
  [[gnu::always_inline]] static float value(uint32_t bits) {
    return __builtin_bit_cast(float, bits & ((bits & 0x7f800000u) == 0 ? 0x80000000u : ~0u));
  }

  alignas(64) Tile tiles_[8] = {};
};

}  // namespace
}  // namespace tiercel::cpu
