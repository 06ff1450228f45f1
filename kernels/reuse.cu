#include "kernels/joint_launch.cuh"
#include "kernels/reuse.cuh"
#include "kernels/reuse.h"

namespace tiercel::cuda {

void decide_reuse(Stream& stream, const ReuseParams& p) {
  CHECK(p.n > 0 && p.every >= 0, "{} elements, every {} steps", p.n, p.every);
  launch_joint<DecideReuse>(stream, 1, sizeof(ReuseShared), p);
}

}  // namespace tiercel::cuda
