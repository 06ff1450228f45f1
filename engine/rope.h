// The frequencies of rotary position embedding and of its context extensions.
//
// Promises: the same numbers as transformers' modeling_rope_utils, in fp64. Does not know where a
// RopeSpec comes from (config.cpp reads it) nor how queries and keys are rotated.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace tiercel {

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kYarn };
std::string_view name_of(RopeType type);

// Rotary position embedding over all of head_dim, half-split pairs (i, i + head_dim / 2).
struct RopeSpec {
  double theta = 10000.0;
  RopeType type = RopeType::kDefault;
  double factor = 1.0;  // linear, llama3, yarn: how much longer the context became
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  int64_t original_max_position = 0;                     // llama3, yarn
  double beta_fast = 32.0, beta_slow = 1.0;   // yarn, in rotations over the original context
  std::optional<double> attention_factor;     // yarn; absent: from factor and mscale
  double mscale = 0.0, mscale_all_dim = 0.0;  // yarn; 0: not given
  bool truncate = true;                       // yarn: round the ramp's ends to channels
};

struct RopeFrequencies {
  std::vector<double> inv_freq;  // [head_dim / 2], radians per position
  double attention_scaling = 1;  // multiplies both cos and sin, hence scores by its square
};

// The frequencies of transformers' modeling_rope_utils, in fp64. transformers computes them in
// fp32: its values differ by a few ulp (times ln theta), which at position 10^6 is up to ~0.1 rad
// in the fastest channels. Sources: linear: kaiokendev; llama3: the Llama 3.1 release; yarn: arXiv
// 2309.00071, section 3. head_dim even and positive.
RopeFrequencies rope_frequencies(const RopeSpec& spec, int head_dim);

}  // namespace tiercel
