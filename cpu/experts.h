// Mixtures of experts: rows are gathered by expert, multiplied a group at a time (linear_grouped), and added
// up token by token.
//
// Promises: nothing is allocated; a token's bits depend neither on the number of threads nor on the
// other tokens, once it is given whether there are more than 16 of them.
#pragma once

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

void route_experts(Queue& queue, const RouteParams& p);
void mix_experts(Queue& queue, const MixExpertsParams& p);

}  // namespace tiercel::cpu
