#include "engine/gguf/block_format.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/weight_codes.h"

namespace tiercel {
namespace {

constexpr int64_t kSuper = 256;  // elements of a superblock

// ---- blocks of 32 ----

// Element j of sixteen bytes' nibbles: the low ones, then the high ones.
uint8_t nibble(const uint8_t* codes, int j) { return j < 16 ? codes[j] & 15 : codes[j - 16] >> 4; }

// scale (f16), [offset (f16)], [fifth bits: 4 bytes], 16 bytes of nibbles
template <bool kOffset, bool kFifthBit>
void unpack_nibbles(const uint8_t* block, BlockGroups& out) {
  out.set_factor(0, block);
  block += 2;
  if constexpr (kOffset) {
    out.set_factor(1, block);
    out.factors[1] = -out.factors[1];
    block += 2;
  }
  uint32_t high = 0;
  if constexpr (kFifthBit) {
    std::memcpy(&high, block, sizeof high);
    block += 4;
  }
  for (int j = 0; j < 32; ++j) out.codes[j] = static_cast<uint8_t>(nibble(block, j) | (high >> j & 1) << 4);
}

// scale (f16), 32 signed bytes
void unpack_q8_0(const uint8_t* block, BlockGroups& out) {
  out.set_factor(0, block);
  for (int j = 0; j < 32; ++j) out.codes[j] = static_cast<uint8_t>(block[2 + j] ^ 0x80);
}

// Nibbles that stand for one of these, here with 128 added to it.
constexpr uint8_t kNonLinear[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
// E2M1, doubled.
constexpr uint8_t kE2M1[16] = {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116};

void unpack_iq4_nl(const uint8_t* block, BlockGroups& out) {
  out.set_factor(0, block);
  for (int j = 0; j < 32; ++j) out.codes[j] = kNonLinear[nibble(block + 2, j)];
}

// scale (a power of two: its exponent, 127 for one), 16 bytes of nibbles
void unpack_mxfp4(const uint8_t* block, BlockGroups& out) {
  out.factors[0] = std::ldexp(1.0f, int{block[0]} - 128);  // half of it
  for (int j = 0; j < 32; ++j) out.codes[j] = kE2M1[nibble(block + 1, j)];
}

// ---- superblocks ----

// Two bits of sixteen groups: of each 128 elements, 32 bytes hold four of each, 32 apart.
int crumb(const uint8_t* codes, int i) { return codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3; }

// 16 bytes of a scale (low) and a minimum (high) each, 64 bytes of codes, scale and minimum of all (f16)
void unpack_q2_k(const uint8_t* block, BlockGroups& out) {
  const uint8_t *params = block, *codes = block + 16;
  out.set_factor(0, block + 80);
  out.set_factor(1, block + 82);
  for (int g = 0; g < 16; ++g) {
    out.scales[g] = static_cast<int16_t>(params[g] & 15);
    out.minima[g] = static_cast<int16_t>(params[g] >> 4);
  }
  for (int i = 0; i < kSuper; ++i) out.codes[i] = static_cast<uint8_t>(crumb(codes, i));
}

// 32 bytes of third bits, 64 of codes, 12 of sixteen scales of six bits, scale of all (f16)
void unpack_q3_k(const uint8_t* block, BlockGroups& out) {
  const uint8_t *high = block, *codes = block + 32, *scales = block + 96;
  out.set_factor(0, block + 108);
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4;
    const int top = scales[8 + g % 4] >> (g / 4 * 2) & 3;
    out.scales[g] = static_cast<int16_t>((low | top << 4) - 32);
  }
  for (int i = 0; i < kSuper; ++i) {
    out.codes[i] = static_cast<uint8_t>(crumb(codes, i) | (high[i % 32] >> (i / 32) & 1) << 2);
  }
}

// Eight scales and eight minima of six bits in 12 bytes: of the first four the bytes 0-3 and 4-7, whose upper two bits
// belong to the last four; their lower four are nibbles of 8-11.
void unpack_scales(const uint8_t* block, BlockGroups& out) {
  out.set_factor(0, block);
  out.set_factor(1, block + 2);
  const uint8_t* p = block + 4;
  for (int g = 0; g < 8; ++g) {
    const int s = g < 4 ? p[g] & 63 : (p[g + 4] & 15) | p[g - 4] >> 6 << 4;
    const int m = g < 4 ? p[g + 4] & 63 : p[g + 4] >> 4 | p[g] >> 6 << 4;
    out.scales[g] = static_cast<int16_t>(s);
    out.minima[g] = static_cast<int16_t>(m);
  }
}

// Four bits of eight groups: 32 bytes hold two groups, the first one in their low nibbles.
int nibble_of_super(const uint8_t* codes, int i) { return codes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15; }

// scale and minimum of all (f16), 12 bytes of the groups', 128 of codes
void unpack_q4_k(const uint8_t* block, BlockGroups& out) {
  unpack_scales(block, out);
  for (int i = 0; i < kSuper; ++i) out.codes[i] = static_cast<uint8_t>(nibble_of_super(block + 16, i));
}

// The same with 32 bytes of fifth bits before the codes
void unpack_q5_k(const uint8_t* block, BlockGroups& out) {
  unpack_scales(block, out);
  const uint8_t *high = block + 16, *codes = block + 48;
  for (int i = 0; i < kSuper; ++i) {
    out.codes[i] = static_cast<uint8_t>(nibble_of_super(codes, i) | (high[i % 32] >> (i / 32) & 1) << 4);
  }
}

// 128 bytes of low nibbles, 64 of the upper two bits, sixteen scales (int8), scale of all (f16)
void unpack_q6_k(const uint8_t* block, BlockGroups& out) {
  const uint8_t *low = block, *high = block + 128, *scales = block + 192;
  out.set_factor(0, block + 208);
  for (int g = 0; g < 16; ++g) out.scales[g] = static_cast<int8_t>(scales[g]);
  for (int i = 0; i < kSuper; ++i) {
    const int in_half = i % 128;
    const int nibbles = low[i / 128 * 64 + in_half % 64] >> (in_half / 64 * 4) & 15;
    out.codes[i] = static_cast<uint8_t>(nibbles | crumb(high, i) << 4);
  }
}

// scale of all (f16), upper two bits of eight scales (u16), their nibbles (4 bytes), 128 bytes of nibbles
void unpack_iq4_xs(const uint8_t* block, BlockGroups& out) {
  out.set_factor(0, block);
  uint16_t top;
  std::memcpy(&top, block + 2, sizeof top);
  for (int g = 0; g < 8; ++g) {
    const int low = block[4 + g / 2] >> (g % 2 * 4) & 15;
    out.scales[g] = static_cast<int16_t>((low | (top >> (2 * g) & 3) << 4) - 32);
  }
  for (int i = 0; i < kSuper; ++i) out.codes[i] = kNonLinear[nibble(block + 8 + i / 32 * 16, i % 32)];
}

constexpr BlockFormat kFormats[] = {
    {.id = 0, .name = "F32", .elements = 1, .bytes = 4, .plain = DType::kF32},
    {.id = 1, .name = "F16", .elements = 1, .bytes = 2, .plain = DType::kF16},
    {.id = 30, .name = "BF16", .elements = 1, .bytes = 2, .plain = DType::kBf16},
    {.id = 2, .name = "Q4_0", .elements = 32, .bytes = 18, .bits = 4, .group = 32, .zero = 8,
     .unpack = unpack_nibbles<false, false>, .numbers = {0, -1}},
    {.id = 3, .name = "Q4_1", .elements = 32, .bytes = 20, .bits = 4, .group = 32, .has_minima = true,
     .unpack = unpack_nibbles<true, false>, .numbers = {0, 2}},
    {.id = 6, .name = "Q5_0", .elements = 32, .bytes = 22, .bits = 5, .group = 32, .zero = 16,
     .unpack = unpack_nibbles<false, true>, .numbers = {0, -1}},
    {.id = 7, .name = "Q5_1", .elements = 32, .bytes = 24, .bits = 5, .group = 32, .has_minima = true,
     .unpack = unpack_nibbles<true, true>, .numbers = {0, 2}},
    {.id = 8, .name = "Q8_0", .elements = 32, .bytes = 34, .bits = 8, .group = 32, .zero = 128,
     .unpack = unpack_q8_0, .numbers = {0, -1}},
    {.id = 10, .name = "Q2_K", .elements = 256, .bytes = 84, .bits = 2, .group = 16, .has_minima = true,
     .unpack = unpack_q2_k, .numbers = {80, 82}},
    {.id = 11, .name = "Q3_K", .elements = 256, .bytes = 110, .bits = 3, .group = 16, .zero = 4,
     .unpack = unpack_q3_k, .numbers = {108, -1}},
    {.id = 12, .name = "Q4_K", .elements = 256, .bytes = 144, .bits = 4, .group = 32, .has_minima = true,
     .unpack = unpack_q4_k, .numbers = {0, 2}},
    {.id = 13, .name = "Q5_K", .elements = 256, .bytes = 176, .bits = 5, .group = 32, .has_minima = true,
     .unpack = unpack_q5_k, .numbers = {0, 2}},
    {.id = 14, .name = "Q6_K", .elements = 256, .bytes = 210, .bits = 6, .group = 16, .zero = 32,
     .unpack = unpack_q6_k, .numbers = {208, -1}},
    {.id = 20, .name = "IQ4_NL", .elements = 32, .bytes = 18, .bits = 8, .group = 32, .zero = 128,
     .unpack = unpack_iq4_nl, .numbers = {0, -1}},
    {.id = 23, .name = "IQ4_XS", .elements = 256, .bytes = 136, .bits = 8, .group = 32, .zero = 128,
     .unpack = unpack_iq4_xs, .numbers = {0, -1}},
    {.id = 39, .name = "MXFP4", .elements = 32, .bytes = 17, .bits = 8, .group = 32, .zero = 128,
     .unpack = unpack_mxfp4},
    // Known, that a file with one of them can be read as far as it goes.
    {.id = 9, .name = "Q8_1", .elements = 32, .bytes = 36},
    {.id = 15, .name = "Q8_K", .elements = 256, .bytes = 292},
    {.id = 16, .name = "IQ2_XXS", .elements = 256, .bytes = 66},
    {.id = 17, .name = "IQ2_XS", .elements = 256, .bytes = 74},
    {.id = 18, .name = "IQ3_XXS", .elements = 256, .bytes = 98},
    {.id = 19, .name = "IQ1_S", .elements = 256, .bytes = 50},
    {.id = 21, .name = "IQ3_S", .elements = 256, .bytes = 110},
    {.id = 22, .name = "IQ2_S", .elements = 256, .bytes = 82},
    {.id = 24, .name = "I8", .elements = 1, .bytes = 1},
    {.id = 25, .name = "I16", .elements = 1, .bytes = 2},
    {.id = 26, .name = "I32", .elements = 1, .bytes = 4},
    {.id = 27, .name = "I64", .elements = 1, .bytes = 8},
    {.id = 28, .name = "F64", .elements = 1, .bytes = 8},
    {.id = 29, .name = "IQ1_M", .elements = 256, .bytes = 56},
    {.id = 34, .name = "TQ1_0", .elements = 256, .bytes = 54},
    {.id = 35, .name = "TQ2_0", .elements = 256, .bytes = 66},
    {.id = 40, .name = "NVFP4", .elements = 64, .bytes = 36},
};

}  // namespace

const BlockFormat* find_block_format(uint32_t id) {
  const auto* found = std::ranges::find(kFormats, id, &BlockFormat::id);
  return found == std::end(kFormats) ? nullptr : found;
}

const char* decodable_block_formats() {
  static const std::string kNames = [] {
    std::string names;
    for (const BlockFormat& format : kFormats) {
      if (format.unpack != nullptr) names += (names.empty() ? "" : ", ") + std::string(format.name);
    }
    return names;
  }();
  return kNames.c_str();
}

WeightCode BlockFormat::code() const {
  if (unpack == nullptr) return WeightCode::kBf16;
  const bool super = elements > group;
  // A plain code's scale must be one f16 number, or a power of two: products have more bits than a param's.
  if (!super && !has_minima) return bits <= 4 ? WeightCode::kInt4 : WeightCode::kInt8;
  if (super && !has_minima) return WeightCode::kInt8x16;
  if (super && group == 32) return bits <= 4 ? WeightCode::kInt4Min : WeightCode::kInt8Min;
  return WeightCode::kBf16;
}

int64_t decode_row(const BlockFormat& format, const std::byte* row, int64_t k, bf16* out) {
  CHECK(format.unpack != nullptr && format.is_for(k), "{} of {}", k, format.name);
  BlockGroups groups;
  int64_t overflowed = 0;
  const auto* block = reinterpret_cast<const uint8_t*>(row);
  for (int64_t first = 0; first < k; first += format.elements, block += format.bytes) {
    format.unpack(block, groups);
    for (int64_t g = 0; g < format.elements / format.group; ++g) {
      const float scale = groups.factors[0] * static_cast<float>(groups.scales[g]);
      const uint8_t* codes = groups.codes + g * format.group;
      bf16* target = out + first + g * format.group;
      if (format.has_minima) {
        const float minimum = groups.factors[1] * static_cast<float>(groups.minima[g]);
        for (int64_t i = 0; i < format.group; ++i) target[i] = bf16(scale * static_cast<float>(codes[i]) - minimum);
        continue;
      }
      for (int64_t i = 0; i < format.group; ++i) {
        target[i] = bf16(static_cast<float>(codes[i] - format.zero) * scale);
      }
    }
    // Only scales of MXFP4 reach so far.
    if (format.numbers[0] < 0) {
      overflowed += std::count_if(out + first, out + first + format.elements,
                                  [](bf16 value) { return (value.bits & 0x7f80) == 0x7f80; });
    }
  }
  return overflowed;
}

int64_t pack_row(const BlockFormat& format, const std::byte* row, int64_t k, WeightCodec codec, std::byte* out) {
  CHECK(codec.is_coded() && codec == format.codec(k), "{}", format.name);
  BlockGroups groups;
  std::vector<uint8_t> codes(static_cast<size_t>(k));
  std::vector<uint32_t> params;
  const auto* block = reinterpret_cast<const uint8_t*>(row);
  int64_t overflowed = 0;
  // Of a group of `codec`, a number of each of the format's groups in it.
  const auto of_group = [&](const int16_t (&numbers)[BlockGroups::kMostGroups], int64_t element) {
    return static_cast<uint8_t>(numbers[element / format.group]);
  };
  for (int64_t first = 0; first < k; first += format.elements, block += format.bytes) {
    format.unpack(block, groups);
    const int32_t added = codec.code == WeightCode::kInt8x16 ? 128 - format.zero : 0;
    for (int64_t i = 0; i < format.elements; ++i) {
      codes[static_cast<size_t>(first + i)] = static_cast<uint8_t>(groups.codes[i] + added);
    }
    for (int64_t i = 0; i < format.elements; i += codec.group) {
      if (codec.code == WeightCode::kInt8x16) {
        params.push_back(factor_param(of_group(groups.scales, i), of_group(groups.scales, i + 16), groups.halves[0]));
      } else if (tiercel::has_minima(codec.code)) {
        const uint16_t shared = groups.halves[i / codec.group % 2];
        params.push_back(factor_param(of_group(groups.scales, i), of_group(groups.minima, i), shared));
      } else {
        params.push_back(weight_param(groups.factors[0], format.zero));
        overflowed += !(std::abs(groups.factors[0]) < 0x1p+124f);  // of MXFP4, whose largest code is 12
      }
    }
  }
  pack_row(codes, params, codec, out);
  return overflowed;
}

std::optional<int64_t> find_non_finite_block(const BlockFormat& format, const std::byte* blocks, int64_t n_blocks) {
  const auto* block = reinterpret_cast<const uint8_t*>(blocks);
  for (int64_t i = 0; i < n_blocks; ++i, block += format.bytes) {
    for (const int16_t at : format.numbers) {
      if (at >= 0 && (block[at + 1] & 0x7c) == 0x7c) return i;
    }
  }
  return std::nullopt;
}

}  // namespace tiercel
