#include <algorithm>

#include "kernels/launch.cuh"
#include "kernels/mass.cuh"
#include "kernels/mass.h"

namespace tiercel::cuda {

void accumulate_mass(Stream& stream, const MassParams& p) {
  using namespace mass;
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= 256, "head_dim {}", p.head_dim);
  CHECK(p.n_tokens >= 0 && p.n_tokens <= kMaxMassTokens, "{} queries", p.n_tokens);
  CHECK(reinterpret_cast<uintptr_t>(p.workspace) % sizeof(float2) == 0, "workspace");
  const int64_t n = p.end_chunk - p.first_chunk;
  if (n <= 0) return;
  const int64_t n_tiles = (n + kTile - 1) / kTile;
  Params k;
  k.op = p;
  k.n_rows = static_cast<int32_t>(p.n_tokens * (p.n_heads / p.n_kv_heads));
  k.n_shares = static_cast<int32_t>(std::min<int64_t>(n_tiles, kMaxShares));
  k.depth = (p.head_dim + 15) / 16 * 16;
  k.query_units = p.head_dim % 8 == 0 && reinterpret_cast<uintptr_t>(p.q) % 16 == 0;
  k.landmark_units = p.head_dim % 8 == 0 && p.landmark_head_stride % 8 == 0 &&
                     reinterpret_cast<uintptr_t>(p.landmarks) % 16 == 0;
  k.scale = p.scale * gpu::kLog2e;
  k.sums = reinterpret_cast<float2*>(p.workspace);
  k.merged = k.sums + int64_t{k.n_rows} * p.n_kv_heads * k.n_shares;
  static_assert(2 * kMaxMassTokens * (kMaxShares + 1) <= mass_workspace_floats(1, 0));

  const auto heads = static_cast<unsigned>(p.n_kv_heads);
  const auto bytes = static_cast<size_t>(2 * tile_bytes(k.depth));
  if (k.n_rows > 0) {
    launch_dependent<mass_sums_kernel>(
        stream, dim3(static_cast<unsigned>(k.n_shares), heads, blocks_for(k.n_rows, kTile)),
        kThreads, bytes, k);
    launch_dependent<mass_merge_kernel>(
        stream, dim3(blocks_for(int64_t{k.n_rows} * p.n_kv_heads, kWarps)), kThreads, 0, k);
  }
  launch_dependent<mass_kernel>(stream, dim3(blocks_for(n_tiles, 1), heads), kThreads,
                                bytes + kTile * sizeof(float2), k);
}

}  // namespace tiercel::cuda
