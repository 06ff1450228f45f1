// What an eviction head says of tokens and chunks (KeyBiasParams, PoolBiasParams).
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

void make_key_bias(Queue& queue, const KeyBiasParams& params);
void pool_key_bias(Queue& queue, const PoolBiasParams& params);

}  // namespace tiercel::cpu
