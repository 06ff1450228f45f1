// Bytes from one place to another.
#pragma once

#include <span>

#include "cpu/queue.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {

// Source and target do not overlap.
void copy(Queue& queue, const CopyParams& params);

// Fetches are alike but for their memory.
void fetch(Queue& queue, std::span<const FetchParams> fetches);
inline void fetch(Queue& queue, const FetchParams& p) { fetch(queue, std::span(&p, 1)); }

void call_host(Queue& queue, const HostCallParams& params);

}  // namespace tiercel::cpu
