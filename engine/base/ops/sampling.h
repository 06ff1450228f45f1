// The next token, picked where the logits are.
#pragma once

#include <cstdint>

namespace tiercel {

// Device memory of argmax and of sample, zeroed before its first use; every call leaves it as it found
// it. sample's serves argmax too.
constexpr int64_t argmax_workspace_bytes() { return 256; }
// Tokens whose logits one call adjusts, at most.
inline constexpr int64_t kMaxLogitAdjustments = 1024;
// Two keys and weights per token, and logits as they were. For one vocabulary: its size decides what
// lies where.
constexpr int64_t sample_workspace_bytes(int64_t vocab) {
  const int64_t n_adjusted = vocab < kMaxLogitAdjustments ? vocab : kMaxLogitAdjustments;
  return (argmax_workspace_bytes() + vocab * 32 + n_adjusted * 4 + 255) / 256 * 256;
}

// What penalties and biases make of the logit of a token: one above 0 is divided by the factor, another
// one multiplied; then comes the addend. Each in fp32.
struct LogitAdjustment {
  int32_t token = 0;
  float factor = 1;
  float addend = 0;
};

// The token of engine/sampler.h, draw by draw: what is not allowed goes, then adjustments, temperature, top-k, top-p, min-p. A NaN
// among the logits, or nothing above minus infinity, makes it -1; then nothing has been drawn.
struct SampleParams {
  float* logits = nullptr;  // [vocab]; adjusted in place, and in the end as they were
  int64_t vocab = 0;        // below 2^23
  const LogitAdjustment* adjustments = nullptr;  // [n_adjustments], each of another token
  int64_t n_adjustments = 0;                     // at most kMaxLogitAdjustments
  const uint32_t* allowed = nullptr;  // [(vocab + 31) / 32] a bit for each token that may come; null: all may
  double temperature = 0;  // 0: argmax
  int64_t top_k = 0;       // 0: off
  double top_p = 1, min_p = 0;
  uint64_t* generator = nullptr;  // splitmix64's state; advanced by a draw
  // [1]; may be in host memory that the device maps, as may adjustments, allowed and generator.
  int32_t* token = nullptr;
  void* workspace = nullptr;      // sample_workspace_bytes(vocab)
};

}  // namespace tiercel
