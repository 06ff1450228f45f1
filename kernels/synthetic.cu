#include "kernels/synthetic.cuh"

#include "kernels/joint_launch.cuh"
#include "kernels/synthetic.h"

namespace tiercel::cuda {

void fill_random(Stream& stream, const RandomParams& p) {
  if (p.n == 0) return;
  launch<fill_random_kernel>(stream, blocks_for(p.n, kSyntheticThreads * kRandomPerThread),
                             kSyntheticThreads, 0, p);
}

void impose_selection(Stream& stream, const ImposeParams& p) {
  CHECK(p.k >= 0 && p.k <= p.end_chunk - p.first_chunk, "{} of {} chunks", p.k,
        p.end_chunk - p.first_chunk);
  launch_joint<ImposeSelection>(stream, static_cast<unsigned>(p.n_kv_heads), 0, p);
}

}  // namespace tiercel::cuda
