#include "kernels/clock.cuh"

#include "kernels/clock.h"
#include "kernels/launch.cuh"

namespace tiercel::cuda {

KERNEL(32, 1) move_clock_kernel(const GRID_CONST ClockParams p) {
  gpu::wait_for_predecessors();
  if (threadIdx.x == 0) *p.clock = p.reset ? 0 : *p.clock + 1;
}

void move_clock(Stream& stream, const ClockParams& p) {
  CHECK(p.clock != nullptr);
  launch_dependent<move_clock_kernel>(stream, 1, 32, 0, p);
}

}  // namespace tiercel::cuda
