// Rows of weights in blocks, as GGUF files have them: codes of few bits, and for each group of neighbours what
// makes values of them,
//
//   value = factors[0] * scale * (code - zero) - factors[1] * minimum
//
// where the factors are numbers of 16 bits, one or two for a block, and a group's scale and minimum small integers (the
// "K" formats: groups in superblocks of 256) or 1. fp32 holds the products, so a value is rounded once, and once more
// to bf16.
//
// Source: the formats as ggml defines them (ggml-common.h, and the rows' decoders of gguf-py, which the tests compare
// with bit by bit). Those that need tables of vectors (IQ1 to IQ3) or ternary digits are known by name and size only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

#include "engine/base/dtype.h"
#include "engine/base/weight_matrix.h"

namespace tiercel {

// What a block says, in the order of its elements.
struct BlockGroups {
  static constexpr int64_t kMostElements = 256, kMostGroups = 16;
  uint8_t codes[kMostElements];
  float factors[2] = {};
  uint16_t halves[2] = {};  // the same, where they are f16
  int16_t scales[kMostGroups] = {1}, minima[kMostGroups] = {1};

  // From where a block has it.
  void set_factor(int which, const uint8_t* bytes) {
    std::memcpy(&halves[which], bytes, sizeof(uint16_t));
    factors[which] = f16_to_float(halves[which]);
  }
};

struct BlockFormat {
  uint32_t id;       // as a GGUF file has it
  const char* name;  // "Q4_K"
  int32_t elements;  // of a block
  int32_t bytes;
  std::optional<DType> plain = {};  // not in blocks: numbers by themselves
  // Of what can be decoded.
  int32_t bits = 0;   // of a code
  int32_t group = 0;  // elements
  int32_t zero = 0;
  bool has_minima = false;
  void (*unpack)(const uint8_t* block, BlockGroups& groups) = nullptr;
  int16_t numbers[2] = {-1, -1};  // where in a block its f16 numbers are

  // Whether rows of k elements can be in it.
  bool is_for(int64_t k) const { return k % elements == 0; }
  int64_t row_bytes(int64_t k) const { return k / elements * bytes; }
  // How codes are kept as they are: bf16 where they cannot be. A matrix of k columns is.
  WeightCode code() const;
  WeightCodec codec(int64_t k) const {
    return code() == WeightCode::kBf16 ? WeightCodec{} : codec_in_groups(code(), kKeptGroup, k);
  }
  static constexpr int64_t kKeptGroup = 32;  // columns, of every format
};

// The format of a tensor's type; null: no such type.
const BlockFormat* find_block_format(uint32_t id);
// Every one that can be decoded: "Q4_0, Q4_1, ...".
const char* decodable_block_formats();

// A row of k elements that can be decoded, to bf16. Returns how many values are too large for that.
int64_t decode_row(const BlockFormat& format, const std::byte* row, int64_t k, bf16* out);
// The same, as `codec` keeps it, which format.codec(k) gave.
int64_t pack_row(const BlockFormat& format, const std::byte* row, int64_t k, WeightCodec codec, std::byte* out);
// Index of the first block, of so many, that has an infinity or no number in it.
std::optional<int64_t> find_non_finite_block(const BlockFormat& format, const std::byte* blocks, int64_t n_blocks);

}  // namespace tiercel
