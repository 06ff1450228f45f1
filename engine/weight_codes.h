// Rows of coded weights (engine/base/weight_matrix.h): packed from codes that a checkpoint has, or made from
// bf16 (--weight-codec).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/weight_matrix.h"

namespace tiercel {

// What --weight-codec makes of a matrix: in eight bits symmetric, in four with a zero in each group.
inline constexpr WeightCodec kInt8Weights{WeightCode::kInt8, 128}, kInt4Weights{WeightCode::kInt4, 32};

// codes: of each column. params: [columns / group]. out: row_bytes(columns), 4-byte aligned; all of it is written.
void pack_row(std::span<const uint8_t> codes, std::span<const uint32_t> params, WeightCodec codec, std::byte* out);

// Integers, rounded to the nearest. Of four bits a group's range is narrowed where that makes the squared error smaller: its
// outermost weights are off by more then, and all others by less.
void quantise_row(std::span<const bf16> row, WeightCodec codec, std::byte* out);

}  // namespace tiercel
