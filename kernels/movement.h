// Bytes from one place to another: copies between the tiers, and missed chunks into their slots.
//
// fetch reads pinned host memory from inside a kernel, because the list of what is missing is on
// the device: no host round trip, and one launch whatever the number of misses. A few blocks fill
// the bus; the rest of the device is left to the kernels that run beside it.
#pragma once

#include <span>

#include "engine/base/ops.h"
#include "kernels/stream.h"

namespace tiercel::cuda {

// Source and target do not overlap.
void copy(Stream& stream, const CopyParams& p);

void call_host(Stream& stream, const HostCallParams& p);

// How missed chunks cross the bus.
//   kDirect  every lane of a warp loads 16 bytes, `depth` times before its first store (4, 8 or 16)
//   kBulk    Hopper only: each warp has a ring of `depth` stages (2 or more) of `stage_bytes` in
//            shared memory that the bulk copy engine fills; chunks longer than a stage are cut
struct FetchPlan {
  enum class Kind : uint8_t { kDirect, kBulk };
  Kind kind = Kind::kDirect;
  int32_t blocks = 16;  // of four warps
  int32_t depth = 8;
  int32_t stage_bytes = 2048;
};
FetchPlan default_fetch_plan(const Stream& stream);

// Host planes are pinned memory. Chunks that are not a multiple of 16 bytes, or not aligned to it,
// are copied element by element, whatever the plan. Coded values are decoded by a kernel of their
// own, which takes only the number of blocks from the plan; keys then come in a second launch.
// Fetches that are alike but for their memory are one launch, up to 16 of them.
void fetch(Stream& stream, std::span<const FetchParams> fetches);
inline void fetch(Stream& stream, const FetchParams& p) { fetch(stream, std::span(&p, 1)); }
void fetch_with(Stream& stream, std::span<const FetchParams> fetches, const FetchPlan& plan);

}  // namespace tiercel::cuda
