// Rows in few bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/base/dtype.h"
#include "engine/base/ops/position.h"

namespace tiercel {

// A row of `width` elements in few bits. Groups of code_group(width) elements share a step and a
// least value; a row is one run of row_bytes(codec, width) bytes:
//
//   | codes: width * bits / 8 bytes | step, least of group 0 | step, least of group 1 | ..   (bf16)
//
//   x ~ least + step * code, code 0 .. 2^bits - 1; int4: element i in byte i / 2, even i in its low
//   half
//
// least is the largest bf16 that is not above the group's minimum, step the smallest that is not
// below (max - least) / (2^bits - 1), both in fp32; code = rint((x - least) / step), at most 2^bits
// - 1; a step of 0 has codes of 0. So |error| <= step / 2 but for fp32 rounding, and every backend
// makes the same bits from the same x. A group with a NaN, an infinity or a range that is not
// finite has NaN (0x7fc0) for both and codes of 0: all of it decodes to NaN; zeros in a header are
// +0. Decoding is fmaf(step, code, least) in fp32, then one rounding to bf16.
enum class RowCodec : uint8_t { kBf16, kInt8, kInt4 };
constexpr int64_t code_group(int64_t width) { return width % 64 == 0 ? 64 : 32; }
constexpr int64_t code_bits(RowCodec codec) {
  return codec == RowCodec::kBf16 ? 16 : codec == RowCodec::kInt8 ? 8 : 4;
}
constexpr bool can_code(int64_t width) { return width > 0 && width % 32 == 0; }
constexpr int64_t row_bytes(RowCodec codec, int64_t width) {
  if (codec == RowCodec::kBf16) return 2 * width;
  return width * code_bits(codec) / 8 + width / code_group(width) * 4;
}

// Codes of rows first_token .. first_token + n_tokens - 1. Plane row of token t: t - first_row.
// With a mean the rows are keys: they are turned back (fp32) and mean is subtracted before.
struct EncodeParams {
  const bf16* rows = nullptr;  // plane [n_kv_heads][capacity][width]
  int64_t head_stride = 0;
  int64_t first_row = 0;
  int64_t first_token = 0, n_tokens = 0;
  int32_t n_kv_heads = 0;
  int64_t width = 0;           // head_dim; or the rank of coefficients, with n_kv_heads = 1
  RowCodec codec = RowCodec::kInt8;
  const float* mean = nullptr;  // [n_kv_heads][width] or null
  RopeView rope;                // with a mean
  // [n_kv_heads][capacity][row_bytes(codec, width)]; token t at row t - first_code
  std::byte* codes = nullptr;
  int64_t first_code = 0;
  int64_t code_head_stride = 0;  // in bytes, a multiple of 16; codes is aligned to 16
};

// mean[j][i] = mean over n_tokens of key channel i of KV head j, turned back in fp32, summed in
// fp64. The same bits for any number of threads.
struct MeanKeysParams {
  const bf16* keys = nullptr;  // plane, after RoPE; row r at position r
  int64_t head_stride = 0;
  int64_t n_tokens = 0;
  int32_t n_kv_heads = 0, head_dim = 0;
  RopeView rope;
  float* mean = nullptr;  // [n_kv_heads][head_dim]
};

}  // namespace tiercel
