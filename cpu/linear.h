// Linear layers: out = x weight^T (+ bias) (+ out), bf16 in, fp32 sums, one rounding at the end.
//
// Up to 16 rows the weights are streamed as they lie (gemv_*.cpp): the op is as fast as memory. More
// rows run on packed panels (gemm.h): each item packs 64 weight rows for a block of rows of x, which
// costs about a hundredth of multiplying them (on AMX a tenth). On AMX up to 128 rows of x are the
// panels, and weights are multiplied as they lie.
//
// Coded weights are decoded beside it: of few rows in registers, some weight rows before they are multiplied, or, on
// AMX, into tiles in L1; of many rows each panel before it is packed. The bits are those that the decoded matrix gives.
//
// Promises: nothing is allocated; the bits of a row depend on the level and on whether there are
// more than 16 rows (on AMX not even on that), and neither on the number of threads nor on the other
// rows. With accumulate, and with bias, the sum is rounded once: round((x weight^T + bias) + out).
#pragma once

#include "cpu/gemm.h"
#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// k must be even.
void linear(Queue& queue, const LinearParams& p);

// In steps: the norm, the products, SwiGLU.
void norm_linear(Queue& queue, const NormLinearParams& p);
void gated_linear(Queue& queue, const GatedLinearParams& p);

// Rows in groups, each of which has a weight of its own: out = x weight[group]^T. As linear, but whether
// all rows are treated as few is for the caller to say.
struct GroupedLinearParams {
  const bf16* x = nullptr;               // [rows][k]
  const bf16* const* weights = nullptr;  // [k] x [n] of a group: weights[group]
  WeightCodec codec = {};                // of all weights
  const int32_t* starts = nullptr;       // group's rows are starts[group] .. starts[group + 1] - 1
  const int32_t* groups = nullptr;       // [n_groups]: those that have rows
  bf16* out = nullptr;                   // [rows][n]
  int64_t n_groups = 0, k = 0, n = 0;
  bool few = false;
};
void linear_grouped(Queue& queue, const GroupedLinearParams& p);

// The kernels of a level.
const GemmLevel& gemm_level(Isa isa);

// Columns first_column .. + n_columns - 1 of some rows of a coded matrix of k columns, both multiples of
// kCodedColumns, to out [n_rows][n_columns].
void decode_rows(const GemmLevel& level, const WeightMatrix& matrix, int64_t k, int64_t first_row, int64_t n_rows,
                 int64_t first_column, int64_t n_columns, uint16_t* out);

// The same op by oneDNN on any machine (single-threaded calls from our workers, fixed row blocks);
// for tests, and as the measure of our own kernels. Nothing of ours is allocated after a shape's
// first use.
void linear_onednn(Queue& queue, const LinearParams& p);

}  // namespace tiercel::cpu
