#include "kernels/experts.h"

#include "kernels/experts_few.cuh"
#include "kernels/experts_many.cuh"
#include "kernels/experts_route.cuh"
#include "kernels/experts_sum.cuh"
#include "kernels/launch.cuh"
#include "kernels/linear.h"

namespace tiercel::cuda {
namespace {

dim3 grid_of(const ExpertProduct& p, int64_t n_pairs, int64_t columns, int64_t tile_rows) {
  constexpr int64_t kMaxGridY = 65535;
  const int64_t tiles = most_tiles(n_pairs, p.n_experts, tile_rows);
  CHECK(tiles <= kMaxGridY, "{} pairs of tokens and experts", n_pairs);
  return {blocks_for(p.n, columns), static_cast<unsigned>(tiles)};
}

template <bool kGated, WeightCode kCode>
void multiply_few(Stream& stream, ExpertProduct p, int64_t n_pairs) {
  constexpr int kOctets = 2, kColumns = 8 * SkinnyWeights<kOctets, kGated, kCode>::kColumns;
  const int n_groups = kCode == WeightCode::kBf16 ? 0 : p.k >> p.codes.shift;
  p.panel = panel_beside_params(kFewRows, p.k, kOctets, n_groups, stream.shared_memory());
  launch_dependent<expert_rows_kernel<kOctets, kGated, kCode>>(
      stream, grid_of(p, n_pairs, kColumns, kFewRows), 32 * kSkinnyWarps,
      skinny_shared_bytes(kFewRows, p.panel, kOctets, n_groups), p);
}

template <bool kGated, WeightCode kCode>
void multiply_many(Stream& stream, const ExpertProduct& p, int64_t n_pairs) {
  constexpr int kColumns = kGated ? kHalf : 2 * kHalf;
  launch_dependent<expert_tiles_kernel<kGated, kCode>>(stream, grid_of(p, n_pairs, kColumns, kTileRows), kTileThreads,
                                                       kTilesSharedBytes + kCodesSharedBytes<kBitsOf<kCode>>, p);
}

template <bool kGated>
void multiply(Stream& stream, ExpertProduct p, const WeightCodec& codec, int64_t n_pairs, bool few) {
  p.codes = code_layout(codec, p.k);
  with_code(codec.code, [&]<WeightCode kCode>() {
    if (few) {
      multiply_few<kGated, kCode>(stream, p, n_pairs);
    } else {
      multiply_many<kGated, kCode>(stream, p, n_pairs);
    }
  });
}

}  // namespace

void route_experts(Stream& stream, const RouteParams& p) {
  CHECK(p.n_experts > 0 && p.n_experts <= kMaxExperts && p.n_chosen > 0 && p.n_chosen <= p.n_experts &&
            p.n_chosen <= kMaxChosenExperts,
        "{} of {} experts", p.n_chosen, p.n_experts);
  if (p.n_tokens == 0) return;
  launch_dependent<route_kernel>(stream, blocks_for(p.n_tokens, kRouteThreads / 32), kRouteThreads, 0, p);
  launch_dependent<group_kernel>(stream, static_cast<unsigned>(p.n_experts), kRouteThreads,
                                 2 * kRouteThreads / 32 * sizeof(uint32_t), p);
}

void mix_experts(Stream& stream, const MixExpertsParams& p) {
  if (p.n_tokens == 0) return;
  CHECK(p.gate.stride > 0 && p.up.stride > 0 && p.down.stride > 0, "experts lie at unequal distances");
  CHECK(p.width % kPiece == 0 && p.inner % kPiece == 0 && p.gate.stride % kPiece == 0 && p.up.stride % kPiece == 0 &&
            p.down.stride % kPiece == 0 && aligned(p.x, p.out, p.gate.first, p.up.first, p.down.first, p.gated, p.mixed),
        "width {} inner {}", p.width, p.inner);
  const int64_t n_pairs = p.n_tokens * p.n_chosen;
  ExpertProduct inner{.x = p.x,
                      .order = p.routes.order,
                      .weight = p.gate.first,
                      .up = p.up.first,
                      .weight_stride = p.gate.stride,
                      .up_stride = p.up.stride,
                      .starts = p.routes.starts,
                      .out = p.gated,
                      .n = p.inner,
                      .k = static_cast<int32_t>(p.width),
                      .n_chosen = p.n_chosen,
                      .n_experts = p.n_experts};
  ExpertProduct outer = inner;
  outer.x = p.gated;
  outer.order = nullptr;
  outer.weight = p.down.first;
  outer.weight_stride = p.down.stride;
  outer.up = nullptr;
  outer.out = p.mixed;
  outer.n = p.width;
  outer.k = static_cast<int32_t>(p.inner);
  CHECK(p.gate.codec == p.up.codec);
  const bool few = p.alone || p.n_tokens <= kMaxSkinnyRows;
  multiply<true>(stream, inner, p.gate.codec, n_pairs, few);
  multiply<false>(stream, outer, p.down.codec, n_pairs, few);
  const AddMixedParams add{.mixed = p.mixed,
                           .place = p.routes.place,
                           .weights = p.routes.weights,
                           .out = p.out,
                           .n_tokens = p.n_tokens,
                           .width = static_cast<int32_t>(p.width),
                           .n_chosen = p.n_chosen};
  launch_dependent<add_mixed_kernel>(stream, blocks_for(p.n_tokens * (p.width / kPiece), kMixThreads), kMixThreads, 0,
                                     add);
}

}  // namespace tiercel::cuda
