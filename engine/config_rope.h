// Rotary position embedding, as config.json describes it.
#pragma once

#include "engine/config_family.h"
#include "engine/json.h"

namespace tiercel {

// transformers 5 writes rope_parameters {rope_theta, rope_type, ...}, earlier versions rope_theta
// and rope_scaling {type or rope_type, ...}. Precedence as in RotaryEmbeddingConfigMixin: a
// non-empty rope_scaling, then rope_parameters; a rope_theta inside, then the one outside, then
// the family's.
// Reads max_position_embeddings and head_dim of `config`.
RopeSpec read_rope(const JsonNode& root, const Family& family, const ModelConfig& config);

}  // namespace tiercel
