#include "tests/simt/tensor_core.h"

#include <cstring>

#include "engine/base/check.h"
#include "engine/base/dtype.h"

namespace tiercel::gpu {
namespace {

// The lower or the upper of two packed values.
float unpack(uint32_t two, int upper) {
  return static_cast<float>(bf16::from_bits(static_cast<uint16_t>(two >> 16 * upper)));
}

float at_shared(uint32_t address) {
  return static_cast<float>(*reinterpret_cast<const bf16*>(simt::g.b->smem + address));
}

// Where wgmma's descriptor `d` has row (or column) mn of step k.
uint32_t described(uint64_t d, int mn, int k, bool mn_major) {
  const uint32_t start = (d & 0x3fff) << 4, leading = (d >> 16 & 0x3fff) << 4,
                 stride = (d >> 32 & 0x3fff) << 4;
  const int mode = static_cast<int>(d >> 62);  // swizzle: 0 none, 1 128 bytes, 2 64, 3 32
  if (mode == 0) {
    return mn_major ? start + (mn % 8) * 2 + (mn / 8) * stride + (k % 8) * 16 + (k / 8) * leading
                    : start + (mn % 8) * 16 + (mn / 8) * stride + (k / 8) * leading + (k % 8) * 2;
  }
  const int bytes = 256 >> mode, n = bytes / 2;
  return swizzle(
      mn_major ? start + (mn % n) * 2 + (mn / n) * leading + (k % 8) * bytes + (k / 8) * stride
               : start + (mn % 8) * bytes + (mn / 8) * stride + k * 2,
      bytes);
}

// d += a b, row by row, so that the compiler multiplies several columns at once. k is added in
// order. All bounds are known: nothing for a sanitizer, which would take most of an emulated launch.
template <int kRows, int kColumns>
__attribute__((no_sanitize("address,undefined"))) void multiply(float (&d)[kRows][kColumns], const float (&a)[kRows][16],
              const float (&b)[16][kColumns]) {
  for (int m = 0; m < kRows; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < kColumns; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
}

template <int kColumns>
void multiply_warpgroup(const std::array<WgArg, 128>& lanes, bool a_in_registers,
                        bool b_transposed) {
  static thread_local float a[64][16], b[16][kColumns], d[64][kColumns];
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < kColumns; ++n) {
      b[k][n] = at_shared(described(lanes[0].db, n, k, b_transposed));
    }
  }
  for (int t = 0; t < 128; ++t) {
    const int row = t / 32 * 16 + t % 32 / 4, column = 2 * (t & 3);
    for (int i = 0; i < 8; ++i) {  // two values of each of four registers
      const int m = row + 8 * (i >> 1 & 1), k = column + 8 * (i >> 2) + (i & 1);
      a[m][k] = a_in_registers ? unpack(lanes[t].a[i / 2], i & 1)
                               : at_shared(described(lanes[0].da, m, k, false));
    }
  }
  const auto each = [&](auto f) {
    for (int t = 0; t < 128; ++t) {
      const int row = t / 32 * 16 + t % 32 / 4, column = 2 * (t & 3);
      for (int i = 0; i < kColumns / 2; ++i) {
        f(lanes[t].d[i], d[row + 8 * (i >> 1 & 1)][column + i / 4 * 8 + (i & 1)]);
      }
    }
  };
  const bool accumulates = lanes[0].acc;
  each([&](float lane, float& sum) { sum = accumulates ? lane : 0.0f; });
  multiply(d, a, b);
  each([](float& lane, float sum) { lane = sum; });
}

}  // namespace

void multiply_16x8x16(void** lanes) {
  float a[16][16], b[16][8], d[16][8];
  for (int t = 0; t < 32; ++t) {
    const Mma& lane = *static_cast<const Mma*>(lanes[t]);
    const int row = t / 4, column = 2 * (t & 3);
    for (int h = 0; h < 2; ++h) {
      for (int r = 0; r < 4; ++r)
        a[row + 8 * (r & 1)][column + 8 * (r >> 1) + h] = unpack(lane.a[r], h);
      b[column + h][row] = unpack(lane.b0, h);
      b[column + 8 + h][row] = unpack(lane.b1, h);
    }
    for (int i = 0; i < 4; ++i) d[row + 8 * (i >> 1)][column + (i & 1)] = lane.d[i];
  }
  multiply(d, a, b);
  for (int t = 0; t < 32; ++t) {
    float* lane = static_cast<const Mma*>(lanes[t])->d;
    for (int i = 0; i < 4; ++i) lane[i] = d[t / 4 + 8 * (i >> 1)][2 * (t & 3) + (i & 1)];
  }
}

void load_matrices(void** lanes, bool transposed) {
  for (int m = 0; m < 4; ++m) {
    uint32_t groups = 0;
    int conflicts = 0;
    const uint8_t* rows[8];
    for (int i = 0; i < 8; ++i) {
      rows[i] = static_cast<const Ldm*>(lanes[8 * m + i])->p;
      const uint32_t address = shared_address(rows[i]);
      if (address & 15) simt::die("ldmatrix row not 16-byte aligned");
      const uint32_t bit = 1u << (address >> 4 & 7);
      conflicts += (groups & bit) != 0;
      groups |= bit;
    }
    simt::g.ldmatrix_conflicts += conflicts;
    ++simt::g.ldmatrix_count;
    for (int t = 0; t < 32; ++t) {
      uint16_t two[2];
      for (int h = 0; h < 2; ++h) {
        const int row = transposed ? 2 * (t & 3) + h : t / 4;
        const int column = transposed ? t / 4 : 2 * (t & 3) + h;
        std::memcpy(&two[h], rows[row] + 2 * column, 2);
      }
      static_cast<Ldm*>(lanes[t])->r[m] = two[0] | static_cast<uint32_t>(two[1]) << 16;
    }
  }
}

void multiply_warpgroup(int n, const std::array<WgArg, 128>& lanes, bool a_in_registers,
                        bool b_transposed) {
  switch (n) {
    case 64:
      return multiply_warpgroup<64>(lanes, a_in_registers, b_transposed);
    case 80:
      return multiply_warpgroup<80>(lanes, a_in_registers, b_transposed);
    case 96:
      return multiply_warpgroup<96>(lanes, a_in_registers, b_transposed);
    case 128:
      return multiply_warpgroup<128>(lanes, a_in_registers, b_transposed);
    case 176:
      return multiply_warpgroup<176>(lanes, a_in_registers, b_transposed);
    case 256:
      return multiply_warpgroup<256>(lanes, a_in_registers, b_transposed);
  }
  CHECK(false);
}

}  // namespace tiercel::gpu
