// The vocabulary of the seam: one plain parameter struct per op, shared by both halves (engine/base/ops/).
//
// An op is a free function op(Queue&, const Params&) in cpu/ (for cpu::Queue) and in kernels/ (for
// cuda::Stream); engine/backend.h lists them as one concept. A params struct holds pointers, counts
// and strides only; the shape of every tensor stands beside its pointer, innermost dimension last.
// Strides are in elements. Positions, tokens and element counts are 64-bit everywhere.
//
// Conventions
//   G          query heads per KV head: n_heads / n_kv_heads; query head h reads KV head h / G
//   plane      [n_kv_heads][capacity][head_dim] bf16, one KV head after the other (head_stride
//              apart)
//   chunk c    tokens c*chunk_tokens .. (c+1)*chunk_tokens - 1 of a sequence
//   scores     in units of log2: s = (q . k) * scale * log2(e), so that weights are exp2(s - max)
#pragma once

#include "engine/base/ops/attention.h"
#include "engine/base/ops/cache.h"
#include "engine/base/ops/codes.h"
#include "engine/base/ops/experts.h"
#include "engine/base/ops/layers.h"
#include "engine/base/ops/low_rank.h"
#include "engine/base/ops/movement.h"
#include "engine/base/ops/position.h"
#include "engine/base/ops/sampling.h"
#include "engine/base/ops/selection.h"
#include "engine/base/ops/synthetic.h"
