// A mixture of experts: an MLP that is, token by token, a weighted sum of a few of many gated MLPs.
#pragma once

#include <cstdint>

#include "engine/base/dtype.h"
#include "engine/base/weight_matrix.h"

namespace tiercel {

inline constexpr int32_t kMaxExperts = 512;
inline constexpr int32_t kMaxChosenExperts = 32;

// Which experts are which tokens' MLP. A pair is a token and one expert of it: pair t * n_chosen + i
// belongs to token t.
struct ExpertRoutes {
  int32_t* chosen = nullptr;  // [pairs]: of a token by falling weight, then by rising index
  float* weights = nullptr;   // [pairs]
  int32_t* order = nullptr;   // [pairs]: pairs by their experts, each expert's rising
  int32_t* place = nullptr;   // [pairs]: where in order a pair is
  int32_t* starts = nullptr;  // [n_experts + 1]: where an expert's pairs begin in order
};

// The weights are softmax(logits) in fp32, with `normalise` divided by their sum over a token's experts. All of
// routes is written.
struct RouteParams {
  const float* logits = nullptr;  // [n_tokens][n_experts]
  int64_t n_tokens = 0;
  int32_t n_experts = 0, n_chosen = 0;
  bool normalise = false;
  ExpertRoutes routes;
};

// A matrix of every expert.
struct ExpertMatrices {
  const bf16* const* of = nullptr;  // [n_experts], where the host reads
  const bf16* first = nullptr;      // of[0]
  int64_t stride = 0;  // of[e] is first + e * stride for all e; 0: they lie anywhere, which a GPU refuses
  WeightCodec codec = {};  // of all
};

// out += sum of weight * down(silu(gate(x)) * up(x)) over a token's experts. What the products give is
// rounded to bf16, as linear and gated_linear round it; the sum is fp32, one rounding at the end.
struct MixExpertsParams {
  const bf16* x = nullptr;  // [n_tokens][width]
  bf16* out = nullptr;      // [n_tokens][width]
  ExpertRoutes routes;
  ExpertMatrices gate, up;  // [inner][width]
  ExpertMatrices down;      // [width][inner]
  int64_t n_tokens = 0;
  int64_t width = 0, inner = 0;  // multiples of 8
  int32_t n_experts = 0, n_chosen = 0;
  bool alone = false;         // as of LinearParams
  bf16* gated = nullptr;      // [pairs][inner], overwritten, as are the next two
  bf16* up_result = nullptr;  // [pairs][inner]
  bf16* mixed = nullptr;      // [pairs][width]
};

}  // namespace tiercel
