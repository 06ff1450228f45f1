// Coded weights (engine/base/weight_matrix.h) to bf16 in registers: sixteen bytes of a lane are the codes of
// eight neighbouring elements, t * 8 .., of each of two or four steps of 32 elements.
#pragma once

#include "engine/base/weight_matrix.h"
#include "kernels/code_layout.h"
#include "kernels/gpu.cuh"
#include "kernels/piece.cuh"

namespace tiercel::cuda {

// Steps of 32 elements in a lane's sixteen bytes.
template <int kBits>
inline constexpr int kPieceSteps = 16 / kBits;

GPU const uint32_t* params_of(const CodeLayout& layout, const bf16* rows, int64_t row) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(rows) + row * layout.row_bytes + layout.code_bytes;
  return reinterpret_cast<const uint32_t*>(bytes);
}

// What decodes the codes of a group.
template <WeightCode kCode>
struct GroupParam {
  uint32_t own;
  uint32_t factors;  // with minima: of the two groups that share them, the scales' and the minima's

  // params: of a row. Zeros decode codes to zeros.
  GPU static GroupParam load(const uint32_t* params, int64_t group) {
    if constexpr (!kHasMinima<kCode>) return {params[group], 0};
    const uint32_t even = params[group & ~int64_t{1}], odd = params[group | 1];
    return {group % 2 == 0 ? even : odd, (even >> 16) | (odd & 0xffff0000u)};
  }
};

// Step `step` of piece `t` of 32 elements. What is rounded of integers is exact: codes and zeros have nine bits, scales
// fifteen; with minima four or eight, and nineteen.
template <WeightCode kCode>
GPU uint4 decode_step(uint4 codes, int step, int t, GroupParam<kCode> param) {
  using namespace gpu;
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
  // 2^23 + zero, and with it 2^23 + code, are integers in the lowest bits of a float.
  constexpr uint32_t kMagic = 0x4b000000u;
  const auto small = [](uint32_t integer) { return bits_to_float(kMagic | integer) - 8388608.0f; };
  float scale, shift = 0;
  [[maybe_unused]] float zero = 0;
  if constexpr (kCode == WeightCode::kE4M3) {
    // A half but for a smaller exponent: read as one, a code is 2^-8 of what it is.
    scale = mul_rn(bits_to_float(param.own), 256.0f);
  } else if constexpr (kHasMinima<kCode>) {
    scale = mul_rn(low_half(param.factors), small(param.own & 0xffu));
    shift = mul_rn(high_half(param.factors), small(param.own >> 8 & 0xffu));
  } else if constexpr (kCode == WeightCode::kInt8x16) {
    const auto of_sixteen = static_cast<int8_t>(t < 2 ? param.own : param.own >> 8);
    scale = mul_rn(high_half(param.own), static_cast<float>(of_sixteen));
    zero = 8388736.0f;  // 2^23 + 128
  } else {
    scale = bits_to_float(param.own & ~kZeroMask);
    zero = bits_to_float(kMagic | (param.own & kZeroMask));
    if constexpr (kCode == WeightCode::kInt4) shift = mul_rn(zero - 8388480.0f, scale);  // (128 + zero) * scale
  }
  uint32_t out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kCode == WeightCode::kE4M3) {
      const uint32_t upper = words[i] << (8 - 8 * step);
      const uint32_t pair = (upper & 0x80008000u) | (upper >> 1 & 0x3f803f80u);
      out[i] = pack_bf16(mul_rn(low_half(pair), scale), mul_rn(high_half(pair), scale));
    } else if constexpr (kBitsOf<kCode> == 4) {
      // 128 + code as two bf16 at once.
      const uint32_t pair = (words[i] >> (4 * step) & 0x000f000fu) | 0x43004300u;
      constexpr float kAdded = kHasMinima<kCode> ? 128 : 0;
      out[i] = pack_bf16(fmaf(low_float(pair) - kAdded, scale, -shift), fmaf(high_float(pair) - kAdded, scale, -shift));
    } else {
      const uint32_t pair = words[i] >> (8 * step) & 0x00ff00ffu;
      const uint32_t low = pair & 0xffffu, high = pair >> 16;
      if constexpr (kHasMinima<kCode>) {
        out[i] = pack_bf16(fmaf(small(low), scale, -shift), fmaf(small(high), scale, -shift));
      } else {
        out[i] = pack_bf16(mul_rn(bits_to_float(kMagic | low) - zero, scale),
                           mul_rn(bits_to_float(kMagic | high) - zero, scale));
      }
    }
  }
  return {out[0], out[1], out[2], out[3]};
}

struct DecodeWeightsParams {
  const bf16* rows = nullptr;
  CodeLayout layout;
  bf16* out = nullptr;  // [n_rows][k]
  int64_t n_rows = 0, k = 0;
};

// A thread decodes one piece.
template <WeightCode kCode>
KERNEL(256, 4) decode_weights_kernel(const GRID_CONST DecodeWeightsParams p) {
  using namespace gpu;
  begin_dependent();  // what is written may be read by the kernel before
  constexpr int kSteps = kPieceSteps<kBitsOf<kCode>>, kUnit = 32 * kSteps;
  const int64_t pieces = p.k / kUnit * 4;  // of a row
  const int64_t piece = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (piece >= p.n_rows * pieces) return;
  const int64_t row = piece / pieces, unit = piece % pieces / 4;
  const auto t = static_cast<int>(piece % 4);
  const auto* codes = reinterpret_cast<const uint8_t*>(p.rows) + row * p.layout.row_bytes + unit * kUnitBytes + t * 16;
  const uint4 words = load_stream(codes);
  const uint32_t* params = params_of(p.layout, p.rows, row);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int64_t first = unit * kUnit + step * 32;
    const uint4 decoded = decode_step(words, step, t, GroupParam<kCode>::load(params, first >> p.layout.shift));
    store_piece(p.out + row * p.k + first + t * kPiece, decoded);
  }
}

}  // namespace tiercel::cuda
