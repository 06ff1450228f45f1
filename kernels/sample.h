// Picks the next token on the device: only its number travels to the host.
//
// sample gives the tokens of engine/sampler.h, to the draw: probabilities are integers there and
// here, and the sums of integers do not depend on who adds them. A logit that is NaN, or minus
// infinity in all, makes the token -1: the caller, who knows the checkpoint, says what is wrong.
#pragma once

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

// token = the largest of logits [n]; ties: the lowest. token may be in pinned host memory.
void argmax(Stream& stream, const float* logits, int64_t n, int32_t* token, void* workspace);

void sample(Stream& stream, const SampleParams& p);

}  // namespace tiercel::cuda
