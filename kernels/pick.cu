#include <limits>

#include "kernels/launch.cuh"
#include "kernels/pick.cuh"
#include "kernels/pick.h"

namespace tiercel::cuda {

void pick_chunks(Stream& stream, const PickParams& p) {
  CHECK(p.first_chunk >= 0 && p.n >= 0 && (p.n == 0 || p.n <= p.end_chunk - p.first_chunk),
        "{} of chunks {} to {}", p.n, p.first_chunk, p.end_chunk);
  CHECK(p.end_chunk <= std::numeric_limits<int32_t>::max(), "{} chunks", p.end_chunk);
  if (p.n == 0 || p.n_kv_heads == 0) return;
  launch_dependent<pick::pick_kernel>(stream, dim3(static_cast<unsigned>(p.n_kv_heads)),
                                      pick::kThreads, sizeof(pick::Shared), p);
}

}  // namespace tiercel::cuda
