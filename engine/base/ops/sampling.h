// The next token, picked where the logits are.
#pragma once

#include <cstdint>

namespace tiercel {

// Device memory of argmax and of sample, zeroed before its first use; every call leaves it as it found
// it. sample's serves argmax too.
constexpr int64_t argmax_workspace_bytes() { return 256; }
// Two keys and weights per token, and a bit. For one vocabulary: its size decides what lies where.
constexpr int64_t sample_workspace_bytes(int64_t vocab) {
  return (argmax_workspace_bytes() + vocab * 32 + (vocab + 31) / 32 * 4 + 255) / 256 * 256;
}

// The token of engine/sampler.h, draw by draw: repeat penalty, temperature, top-k, top-p, min-p. A NaN
// among the logits, or nothing above minus infinity, makes it -1; then nothing has been drawn.
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
  int32_t* token = nullptr;       // [1]; may be in host memory that the device maps, as recent and generator
  void* workspace = nullptr;      // sample_workspace_bytes(vocab)
};

}  // namespace tiercel
