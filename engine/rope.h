// The frequencies of rotary position embedding and of its context extensions.
//
// Promises: the same numbers as transformers' modeling_rope_utils, in fp64. Does not know where a
// RopeSpec comes from (config_rope.cpp reads it) nor how queries and keys are rotated.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace tiercel {

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kYarn, kLongRope };
std::string_view name_of(RopeType type);

// Rotary position embedding of the first rotary_dim channels of a head, in half-split pairs
// (i, i + rotary_dim / 2) or interleaved ones (2i, 2i + 1).
struct RopeSpec {
  double theta = 10000.0;
  RopeType type = RopeType::kDefault;
  int64_t rotary_dim = 0;    // even; 0: all of head_dim
  bool interleaved = false;  // as the checkpoint has it; engine/weights.h brings it into our order
  double factor = 1.0;  // all but default: how much longer the context became
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  int64_t original_max_position = 0;                     // llama3, yarn, longrope
  double beta_fast = 32.0, beta_slow = 1.0;   // yarn, in rotations over the original context
  std::optional<double> attention_factor;     // yarn, longrope; absent: from factor (and mscale)
  double mscale = 0.0, mscale_all_dim = 0.0;  // yarn; 0: not given
  bool truncate = true;                       // yarn: round the ramp's ends to channels
  // longrope, [rotary_dim / 2]: what wavelengths are multiplied by in a context of up to
  // original_max_position tokens, and in a longer one.
  std::vector<double> short_factor, long_factor;

  // Whether a context of so many tokens is one of the longer ones.
  bool is_long(int64_t context) const {
    return type == RopeType::kLongRope && context > original_max_position;
  }
};

// The pairs are those that the engine turns, (i, i + head_dim / 2): first the rotary_dim / 2 that
// turn, then the others, which stand still.
struct RopeFrequencies {
  std::vector<double> inv_freq;  // [head_dim / 2], radians per position; 0 of what stands still
  double attention_scaling = 1;  // multiplies both cos and sin, hence scores by its square

  // attention_scaling is applied to whole scores; this takes it off again, on the query's side, from
  // channels that do not turn.
  float still_scale() const {
    return static_cast<float>(1 / (attention_scaling * attention_scaling));
  }
};

// The frequencies of transformers' modeling_rope_utils, in fp64. transformers computes them in
// fp32: its values differ by a few ulp (times ln theta), which at position 10^6 is up to ~0.1 rad
// in the fastest channels. Sources: linear: kaiokendev; llama3: the Llama 3.1 release; yarn: arXiv
// 2309.00071, section 3; longrope: arXiv 2402.13753. head_dim even and positive. is_long: of a
// context that is_long().
RopeFrequencies rope_frequencies(const RopeSpec& spec, int head_dim, bool is_long);

// Which channel of a checkpoint's head becomes channel c of the engine's, [head_dim]; empty where
// all stay in their places.
std::vector<int64_t> rope_channel_order(const RopeSpec& spec, int64_t head_dim);

}  // namespace tiercel
