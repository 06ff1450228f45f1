#include "kernels/key_weights.cuh"
#include "kernels/key_weights.h"
#include "kernels/launch.cuh"

namespace tiercel::cuda {
namespace {

using namespace weights;

// Tokens are counted in 32 bits.
constexpr int64_t kMaxTokens = int64_t{1} << 30;

bool is_aligned(const void* p, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

template <int kHeads>
void launch_heads(Stream& stream, const Params& p, unsigned n_ranges, int32_t group) {
  const auto query_floats = static_cast<size_t>(kHeads * p.n_pieces * kPiece);
  launch_dependent<key_weights_kernel<kHeads>>(
      stream, dim3(n_ranges, static_cast<unsigned>(p.op.n_kv_heads), blocks_for(group, kHeads)),
      kThreads, sizeof(Shared) + query_floats * sizeof(float), p);
}

}  // namespace

void key_weights(Stream& stream, const KeyWeightsParams& p) {
  const KvSource& keys = p.keys;
  CHECK(p.n_kv_heads > 0 && p.n_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads",
        p.n_heads, p.n_kv_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= 256, "head_dim {}", p.head_dim);
  CHECK(keys.ids != nullptr && keys.counts != nullptr && keys.chunk_tokens > 0,
        "a list of chunks of {}", keys.chunk_tokens);
  CHECK(keys.ids_stride <= kMaxTokens / keys.chunk_tokens, "{} chunks of {}", keys.ids_stride,
        keys.chunk_tokens);
  const int64_t strides = keys.head_stride | keys.chunk_stride | keys.token_stride;
  Params params;
  params.op = p;
  params.scale = p.scale * gpu::kLog2e;
  params.n_pieces = (p.head_dim + kPiece - 1) / kPiece;
  params.whole = p.head_dim % kPiece == 0 && strides % kPiece == 0 && is_aligned(keys.keys, 16);
  params.pairs = p.weight_stride % 2 == 0 && is_aligned(p.weights, 4);
  const unsigned n_ranges = blocks_for(keys.ids_stride * keys.chunk_tokens, kWeightRange);
  if (n_ranges == 0) return;
  const int32_t group = p.n_heads / p.n_kv_heads;
  if (group == 1) return launch_heads<1>(stream, params, n_ranges, group);
  if (group == 2) return launch_heads<2>(stream, params, n_ranges, group);
  if (group <= 4) return launch_heads<4>(stream, params, n_ranges, group);
  launch_heads<8>(stream, params, n_ranges, group);
}

}  // namespace tiercel::cuda
