#include <limits>

#include "kernels/joint_launch.cuh"
#include "kernels/slots.cuh"
#include "kernels/slots.h"

namespace tiercel::cuda {

GPU void map_heads(const MapSlotsParams& p) {
  SHARED(smem);
  gpu::begin_dependent();
  const int64_t j = blockIdx.x;
  map_head<kMapThreads>(p, j, p.ids + j * p.stride, p.counts[j],
                        *reinterpret_cast<MapShared*>(smem));
}
struct MapHeads : JointKernel<MapSlotsParams, kMapThreads, 1> {
  GPU static void run(const MapSlotsParams& p, const JointGrid&) { map_heads(p); }
};

void map_slots(Stream& stream, const MapSlotsParams& p) {
  CHECK(p.state.n_slots <= std::numeric_limits<int32_t>::max() - kMapStrip &&
            p.stride <= std::numeric_limits<int32_t>::max() - kMapStrip,
        "{} slots, lists of {}", p.state.n_slots, p.stride);
  if (p.n_kv_heads == 0) return;
  launch_joint<MapHeads>(stream, dim3(static_cast<unsigned>(p.n_kv_heads)), sizeof(MapShared), p);
}

}  // namespace tiercel::cuda
