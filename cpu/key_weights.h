// The half of decode attention that needs the keys (KeyWeightsParams): for values that are
// elsewhere.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// Scores and weights are those of attend_decode, each rounded to bf16. A NaN score weighs NaN and
// never is a maximum; one of +inf weighs NaN too.
void key_weights(Queue& queue, const KeyWeightsParams& params);

}  // namespace tiercel::cpu
