#include "kernels/elementwise.cuh"
#include "kernels/elementwise.h"
#include "kernels/joint_launch.cuh"
#include "kernels/linear.h"
#include "kernels/rotary.cuh"

namespace tiercel::cuda {
namespace {

constexpr int kThreads = 256;

}  // namespace

void embed(Stream& stream, const EmbedParams& p) {
  if (p.n_tokens == 0 || p.width == 0) return;
  const WeightCodec& codec = p.table.codec;
  const bool pieces = p.width % kPiece == 0 && aligned(p.table.values, p.out);
  const int64_t items = pieces ? p.width / kPiece : p.width;
  int threads = 8;
  while (threads < kThreads && threads < items) threads *= 2;
  const EmbedKernelParams params{p, threads, code_layout(codec, p.width)};
  const unsigned blocks = blocks_for(p.n_tokens, kThreads / threads);
  CHECK(pieces || !codec.is_coded(), "coded rows, or what they go to, at other addresses than multiples of 16");
  if (!pieces) {
    return launch_dependent<embed_kernel<false, WeightCode::kBf16>>(stream, blocks, kThreads, 0, params);
  }
  with_code(codec.code, [&]<WeightCode kCode>() {
    launch_dependent<embed_kernel<true, kCode>>(stream, blocks, kThreads, 0, params);
  });
}

void rms_norm(Stream& stream, const NormParams& p) {
  if (p.n_rows == 0 || p.width == 0) return;
  constexpr int kWarpPiece = 32 * kPiece, kBlockPiece = kThreads * kPiece;
  constexpr size_t kSums = kThreads / 32 * sizeof(float);
  const bool pieces = p.width % kPiece == 0 && aligned(p.x, p.weight, p.out, p.added);
  const auto start = [&]<auto kKernel>(int64_t rows_per_block) {
    launch_dependent<kKernel>(stream, blocks_for(p.n_rows, rows_per_block), kThreads, kSums, p);
  };
  if (!pieces || p.width > 4 * kBlockPiece) {
    start.template operator()<norm_any_kernel>(1);
  } else if (p.width <= kWarpPiece) {
    start.template operator()<norm_held_kernel<1, 1>>(8);
  } else if (p.width <= 4 * kWarpPiece) {
    start.template operator()<norm_held_kernel<1, 4>>(8);
  } else if (p.width <= kBlockPiece) {
    start.template operator()<norm_held_kernel<8, 1>>(1);
  } else if (p.width <= 2 * kBlockPiece) {
    start.template operator()<norm_held_kernel<8, 2>>(1);
  } else {
    start.template operator()<norm_held_kernel<8, 4>>(1);
  }
}

void swiglu(Stream& stream, const SwigluParams& p) {
  if (p.n == 0) return;
  if (aligned(p.gate, p.up, p.out)) {
    const unsigned blocks = blocks_for(p.n / kPiece + p.n % kPiece, kThreads);
    launch_dependent<swiglu_kernel<true>>(stream, blocks, kThreads, 0, p);
  } else {
    launch_dependent<swiglu_kernel<false>>(stream, blocks_for(p.n, kThreads), kThreads, 0, p);
  }
}

namespace {

// All of p, or its views only.
void turn_rows(Stream& stream, const RopeAppendParams& p) {
  const int64_t heads = p.n_heads + 2 * p.n_kv_heads;
  const int64_t n_rows = p.n_tokens * std::max(p.n_views, 1);
  if (n_rows * heads == 0) return;
  const bool pieces = p.rope.half % kPiece == 0 && p.head_stride % kPiece == 0 &&
                      p.view_stride % kPiece == 0 &&
                      aligned(p.q, p.k, p.v, p.keys, p.values, p.q_norm, p.k_norm, p.views);
  int lanes = 32;
  while (pieces && lanes / 2 * kPiece >= p.rope.half) lanes /= 2;
  // Several tokens share a block when there are enough of them to fill the device; a few tokens are
  // spread over as many blocks as they can use.
  const int rows = n_rows >= 16 * stream.n_processors() ? 4 : 1;
  const unsigned parts =
      n_rows >= stream.n_processors() ? 1 : blocks_for(heads * lanes, kRopeThreads);
  const RopeKernelParams params{p, n_rows, rows, lanes};
  const auto shared = static_cast<size_t>(2 * rows * p.rope.half) * sizeof(float);
  const dim3 blocks(blocks_for(n_rows, rows), parts);
  if (pieces) {
    launch_joint<RopeAppend<true>>(stream, blocks, shared, params);
  } else {
    launch_joint<RopeAppend<false>>(stream, blocks, shared, params);
  }
}

}  // namespace

void rope_append(Stream& stream, const RopeAppendParams& p) {
  constexpr int32_t kMaxHalf = 256;  // head_dim <= 512
  CHECK(p.head_dim == 2 * p.rope.half && p.rope.half <= kMaxHalf, "head dimension {}, table for {}",
        p.head_dim, 2 * p.rope.half);
  CHECK(p.first_position >= 0 && p.first_position + p.n_tokens <= kRopeFine * p.rope.n_coarse,
        "positions {} to {}, table for {}", p.first_position, p.first_position + p.n_tokens,
        kRopeFine * p.rope.n_coarse);
  RopeAppendParams in_place = p;
  in_place.n_views = 0;
  if (p.q == nullptr || p.n_views > 0) in_place.n_heads = 0;
  if (p.k == nullptr) in_place.n_kv_heads = 0;
  turn_rows(stream, in_place);
  if (p.q == nullptr || p.n_views == 0) return;
  RopeAppendParams views = p;
  views.n_kv_heads = 0;
  turn_rows(stream, views);
}

void token_logprobs(Stream& stream, const LogprobParams& p) {
  if (p.n_rows == 0) return;
  launch<logprob_kernel>(stream, blocks_for(p.n_rows, 1), kLogprobThreads,
                         kLogprobThreads * sizeof(ExpSum), p);
}

}  // namespace tiercel::cuda
