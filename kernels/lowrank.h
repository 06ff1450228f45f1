// Low-rank keys on a GPU: fit a basis to the keys of a prompt, project keys onto it, rebuild
// chunks.
//
// The same mathematics as cpu/lowrank.h: keys are turned back in fp32, shifted (fit) or centred
// (project), rounded to bf16 and multiplied on tensor cores with fp32 sums. Everything is enqueued;
// the basis, its mean and the residual energy are written to device memory.
#pragma once

#include "engine/base/ops.h"
#include "kernels/eigen.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

// Scratch memory of the stream that a fit of w = n_kv_heads * head_dim channels takes, whatever the
// number of tokens.
int64_t fit_basis_scratch_bytes(int64_t w, int64_t rank);

// residual_energy is NaN when the keys hold a NaN or an infinity, or when the solver failed: the
// basis is then of no use.
void fit_basis(Stream& stream, const FitBasisParams& p);
void fit_basis_with(Stream& stream, const FitBasisParams& p, EigenMethod method);

void project_keys(Stream& stream, const ProjectParams& p);
void rebuild_keys(Stream& stream, const RebuildParams& p);

}  // namespace tiercel::cuda
