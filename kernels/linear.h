// Linear layers: out = x weight^T (+ bias) (+ out), bf16 in, fp32 sums, one rounding at the end.
//
// Up to kMaxSkinnyRows rows the weights are streamed straight into matrix instructions: the op is
// as fast as memory, and the bits of a row depend neither on the other rows nor on how many there
// are. More rows that are to have the same bits (`alone`) take a kernel that reads the weights once for
// 64 of them (linear_rows.cuh); others go to the matrix library (matmul.h), to which coded weights are given
// decoded. Rows whose addresses or
// widths are not multiples of 16 bytes take a slow kernel where the fast ones cannot.
#pragma once

#include "engine/base/ops.h"
#include "kernels/code_layout.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

inline constexpr int64_t kMaxSkinnyRows = 8;

void linear(Stream& stream, const LinearParams& p);

// The same of up to kMaxSkinnyRows rows that can be streamed, with 16 columns a block and 32 or 64 KiB of
// weights of it in flight: for measurements, and nothing else calls it. linear takes kShort where n is
// about 4096 on a large device, which leaves 64 KiB a multiprocessor in flight beside 96 elsewhere; kLong
// doubles that, and leaves no registers for blocks of the next kernel.
enum class ReadAhead : uint8_t { kShort, kLong };
void linear_reading_ahead(Stream& stream, const LinearParams& p, ReadAhead ahead);

// Scratch memory of the stream that linear takes, at most: of the matrix library; and, before it, of coded
// weights that many rows are multiplied by, some columns of the result at a time.
constexpr int64_t matmul_scratch_bytes() { return int64_t{32} << 20; }
constexpr int64_t decoded_scratch_bytes() { return int64_t{64} << 20; }
constexpr int64_t linear_scratch_bytes(bool coded) {
  return matmul_scratch_bytes() + (coded ? decoded_scratch_bytes() : 0);
}

// What is told of a matrix of k columns, coded or not.
CodeLayout code_layout(const WeightCodec& codec, int64_t k);

// One launch each where can_fuse says so (few rows, no gate or up bias), else in steps.
void norm_linear(Stream& stream, const NormLinearParams& p);
bool can_fuse(const NormLinearParams& p);
void gated_linear(Stream& stream, const GatedLinearParams& p);
bool can_fuse(const GatedLinearParams& p);

}  // namespace tiercel::cuda
