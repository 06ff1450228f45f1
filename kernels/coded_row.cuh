// Rows in few bits (RowCodec of engine/base/ops/codes.h): where their parts lie, and how eight elements
// of one are decoded.
//
// A row begins at a multiple of four bytes and is no longer aligned than that; eight elements never
// cross a group. The word of a group holds its step in the low half and its least in the high half.
#pragma once

#include "engine/base/ops.h"
#include "kernels/gpu.cuh"

namespace tiercel::cuda {

struct RowFormat {
  int32_t width = 0;  // elements
  int32_t bits = 0;   // 8 or 4
  int32_t group = 0;  // elements that share a step: 64 or 32
  int32_t bytes = 0;
  int32_t code_bytes = 0;  // before the words of the groups

  GPU int group_of(int column) const { return column >> (group == 64 ? 6 : 5); }
};
inline RowFormat row_format(RowCodec codec, int64_t width) {
  return {static_cast<int32_t>(width), static_cast<int32_t>(code_bits(codec)),
          static_cast<int32_t>(code_group(width)), static_cast<int32_t>(row_bytes(codec, width)),
          static_cast<int32_t>(width * code_bits(codec) / 8)};
}

// Eight neighbouring elements as they are stored; of four bits: in words[0].
struct CodedEight {
  uint32_t words[2];
  uint32_t scale;  // step, least
};
// column: a multiple of eight.
GPU CodedEight load_coded(const RowFormat& format, const uint8_t* row, int column) {
  CodedEight e;
  if (format.bits == 8) {
    const auto* codes = reinterpret_cast<const uint32_t*>(row + column);
    e.words[0] = codes[0];
    e.words[1] = codes[1];
  } else {
    e.words[0] = *reinterpret_cast<const uint32_t*>(row + column / 2);
    e.words[1] = 0;
  }
  e.scale = reinterpret_cast<const uint32_t*>(row + format.code_bytes)[format.group_of(column)];
  return e;
}

// A code as a float. In the low bits of 2^23 it costs no conversion, of which a processor makes
// fewer than additions.
GPU float float_of_code(uint32_t code) { return gpu::bits_to_float(0x4b000000u | code) - 0x1p23f; }
GPU void decode_eight(const RowFormat& format, const CodedEight& e, float (&x)[8]) {
  const float step = gpu::low_float(e.scale), least = gpu::high_float(e.scale);
  if (format.bits == 8) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = float_of_code(e.words[i / 4] >> (i % 4 * 8) & 255u);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = float_of_code(e.words[0] >> (i * 4) & 15u);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = fmaf(step, x[i], least);
}

}  // namespace tiercel::cuda
