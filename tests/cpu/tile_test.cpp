// Emulated tiles against a scalar definition, and against the hardware where there is one.
#include "cpu/tile.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/isa.h"
#include "engine/base/dtype.h"
#include "tests/seed.h"

namespace tiercel::test {
namespace {

struct Operands {
  uint16_t a[16][32];
  uint16_t b[16][16][2];
  float c[16][16];
};

// Random bf16 words: ordinary numbers, with a share of zeros, denormals, huge numbers, inf and NaN.
Operands random_operands(std::mt19937_64& random, bool special) {
  Operands o;
  std::normal_distribution<float> normal(0, 1);
  const auto word = [&] {
    if (special && random() % 16 == 0) return static_cast<uint16_t>(random());
    if (special && random() % 16 == 0) return static_cast<uint16_t>(random() & 0x807f);  // denormal
    return bf16(normal(random)).bits;
  };
  for (auto& row : o.a) {
    for (uint16_t& x : row) x = word();
  }
  for (auto& row : o.b) {
    for (auto& pair : row) pair[0] = word(), pair[1] = word();
  }
  for (auto& row : o.c) {
    for (float& x : row) x = normal(random);
  }
  return o;
}

template <typename Tiles>
void multiply(Operands& o) {
  Tiles tiles;
  tiles.configure();
  tiles.template load<2>(o.c, 64);
  tiles.template load<0>(o.a, 64);
  tiles.template load_streaming<5>(o.b, 64);
  tiles.template multiply<2, 0, 5>();
  tiles.template store<2>(o.c, 64);
  tiles.release();
}

double flush(double x) { return std::abs(x) < 0x1p-126 ? std::copysign(0.0, x) : x; }
double widen(uint16_t bits) { return flush(static_cast<float>(bf16::from_bits(bits))); }

// One element by the definition. A product of two bf16 is exact in fp64, so fp64 sums of it rounded
// to fp32 stand for fused multiply-adds (double rounding apart, which fmaf excludes).
float element(const Operands& o, int row, int n) {
  float even = 0, odd = 0;
  for (int k = 0; k < 16; ++k) {
    even = static_cast<float>(flush(std::fmaf(static_cast<float>(widen(o.a[row][2 * k])),
                                              static_cast<float>(widen(o.b[k][n][0])), even)));
    odd = static_cast<float>(flush(std::fmaf(static_cast<float>(widen(o.a[row][2 * k + 1])),
                                             static_cast<float>(widen(o.b[k][n][1])), odd)));
  }
  const float sum = static_cast<float>(flush(even + odd));
  return static_cast<float>(flush(static_cast<float>(flush(o.c[row][n])) + sum));
}

TEST(EmulatedTiles, FollowTheDefinition) {
  std::mt19937_64 random(seed());
  for (int round = 0; round < 40; ++round) {
    const Operands before = random_operands(random, round % 2 == 1);
    Operands after = before;
    multiply<cpu::EmulatedTiles>(after);
    for (int row = 0; row < 16; ++row) {
      for (int n = 0; n < 16; ++n) {
        const float expected = element(before, row, n);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(after.c[row][n])) << row << " " << n;
        } else {
          ASSERT_EQ(after.c[row][n], expected) << row << " " << n;
        }
      }
    }
  }
}

// Order of the even and odd chains matters: a case where any other order gives another sum.
TEST(EmulatedTiles, ChainsStartFromZero) {
  Operands o{};
  o.c[0][0] = 0x1p24f;
  o.a[0][0] = o.a[0][1] = o.a[0][2] = bf16(1.0f).bits;
  o.b[0][0][0] = o.b[0][0][1] = o.b[1][0][0] = bf16(0.5f).bits;
  multiply<cpu::EmulatedTiles>(o);
  EXPECT_EQ(o.c[0][0], 0x1p24f + 2.0f);  // 2^24 + (1 + 0.5) rounds up; adding one by one would not
}

TEST(EmulatedTiles, LoadAndStoreWithStrides) {
  std::vector<uint8_t> memory(16 * 100 + 64), copy(16 * 80 + 64);
  std::mt19937_64 random(seed());
  for (uint8_t& x : memory) x = static_cast<uint8_t>(random());
  cpu::EmulatedTiles tiles;
  tiles.load<3>(memory.data(), 100);
  tiles.store<3>(copy.data(), 80);
  for (int row = 0; row < 16; ++row) {
    EXPECT_EQ(std::memcmp(copy.data() + row * 80, memory.data() + row * 100, 64), 0) << row;
  }
  tiles.zero<3>();
  tiles.store<3>(copy.data(), 80);
  EXPECT_EQ(copy[80], 0);
}

TEST(HardwareTiles, SameBitsAsEmulated) {
  if (cpu::detected_isa() < cpu::Isa::kAmx) {
    std::printf(
        "SKIPPED: no AMX on this machine; emulated tiles were not compared with hardware\n");
    GTEST_SKIP() << "no AMX on this machine";
  }
#if defined(__x86_64__)
  std::mt19937_64 random(seed());
  for (int round = 0; round < 2000; ++round) {
    Operands hardware = random_operands(random, round % 2 == 1);
    Operands emulated = hardware;
    multiply<cpu::HardwareTiles>(hardware);
    multiply<cpu::EmulatedTiles>(emulated);
    for (int i = 0; i < 256; ++i) {
      const float h = hardware.c[i / 16][i % 16], e = emulated.c[i / 16][i % 16];
      if (std::isnan(h) && std::isnan(e)) continue;
      ASSERT_EQ(std::memcmp(&h, &e, 4), 0) << "round " << round << " element " << i;
    }
  }
#endif
}

}  // namespace
}  // namespace tiercel::test
