// Low-rank keys: fit a basis to the keys of a prompt, project keys onto it, rebuild chunks of them.
//
// Keys arrive after RoPE and are turned back in fp32. The Gram matrix is made of bf16 products of
// *shifted* keys: a key bias is tens of sigmas, and squares of it would drown the small directions
// (subtracting the mean afterwards cannot bring them back).
//
// Precision: projecting and rebuilding at full rank adds to K - mean four errors of 2^-8 at most
// (its own rounding, that of the coefficients, that of the basis twice), and to the key one more.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// Allocates (a few w x w matrices); meant for the end of a layer's prefill.
void fit_basis(Queue& queue, const FitBasisParams& p);
// Allocates nothing.
void project_keys(Queue& queue, const ProjectParams& p);
void rebuild_keys(Queue& queue, const RebuildParams& p);

}  // namespace tiercel::cpu
