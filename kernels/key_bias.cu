#include "kernels/key_bias.h"

#include "kernels/key_bias.cuh"
#include "kernels/launch.cuh"

namespace tiercel::cuda {

void make_key_bias(Stream& stream, const KeyBiasParams& p) {
  CHECK(p.n_kv_heads > 0 && p.head_dim > 0, "{} KV heads of {}", p.n_kv_heads, p.head_dim);
  if (p.n_tokens <= 0) return;
  launch_dependent<make_key_bias_kernel>(
      stream, dim3(blocks_for(p.n_tokens * p.n_kv_heads, kBiasWarps)), kBiasThreads, 0, p);
}

void pool_key_bias(Stream& stream, const PoolBiasParams& p) {
  CHECK(p.chunk_tokens > 0, "chunks of {}", p.chunk_tokens);
  if (p.n_chunks <= 0) return;
  launch_dependent<pool_key_bias_kernel>(
      stream, dim3(blocks_for(p.n_chunks, kBiasThreads), static_cast<unsigned>(p.n_kv_heads)),
      kBiasThreads, 0, p);
}

}  // namespace tiercel::cuda
