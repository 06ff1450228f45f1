// Picks the next token on the device: only its number travels to the host.
//
// sample gives the tokens of engine/sampler.h, to the draw: probabilities are integers there and
// here, and the sums of integers do not depend on who adds them. A logit that is NaN, or minus
// infinity in all, makes the token -1: the caller, who knows the checkpoint, says what is wrong.
#pragma once

#include <cstdint>

#include "kernels/stream.h"

namespace tiercel::cuda {

// Device memory, zeroed before its first use; every call leaves it as it found it.
constexpr int64_t argmax_workspace_bytes() { return 256; }
// Two keys and weights per token, and a bit. For one vocabulary: its size decides what lies where.
constexpr int64_t sample_workspace_bytes(int64_t vocab) {
  return argmax_workspace_bytes() + vocab * 32 + (vocab + 31) / 32 * 4;
}

// token = the largest of logits [n]; ties: the lowest. token may be in pinned host memory.
void argmax(Stream& stream, const float* logits, int64_t n, int32_t* token, void* workspace);

// In the order of engine/sampler.h: repeat penalty, temperature, top-k, top-p, min-p.
struct SampleParams {
  const float* logits = nullptr;    // [vocab]
  int64_t vocab = 0;                // below 2^23
  const int32_t* recent = nullptr;  // [n_recent] the tokens that the repeat penalty looks back on
  int64_t n_recent = 0;
  double repeat_penalty = 1;
  double temperature = 0;  // 0: argmax
  int64_t top_k = 0;       // 0: off
  double top_p = 1, min_p = 0;
  uint64_t* generator = nullptr;  // splitmix64's state; advanced by a draw
  int32_t* token = nullptr;
  void* workspace = nullptr;  // sample_workspace_bytes(vocab)
};
void sample(Stream& stream, const SampleParams& p);

}  // namespace tiercel::cuda
