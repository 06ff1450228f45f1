// What an eviction head says of tokens and chunks (KeyBiasParams, PoolBiasParams).
#pragma once

#include "engine/base/ops.h"

namespace tiercel::cuda {

class Stream;

void make_key_bias(Stream& stream, const KeyBiasParams& params);
void pool_key_bias(Stream& stream, const PoolBiasParams& params);

}  // namespace tiercel::cuda
