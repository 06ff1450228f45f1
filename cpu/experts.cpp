#include "cpu/experts.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <cmath>
#include <cstring>

#include "cpu/elementwise.h"
#include "cpu/gemm.h"
#include "cpu/linear.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kTokensOfItem = 64;
constexpr int64_t kPairsOfItem = 64;

// Comparisons with NaN choose by index; its weights are NaN, and so is what they mix.
void route_token(const float* logits, const RouteParams& p, int32_t* chosen, float* weights) {
  std::bitset<kMaxExperts> taken;
  for (int32_t i = 0; i < p.n_chosen; ++i) {
    int32_t best = -1;
    for (int32_t e = 0; e < p.n_experts; ++e) {
      if (!taken[static_cast<size_t>(e)] && (best < 0 || logits[e] > logits[best])) best = e;
    }
    taken.set(static_cast<size_t>(best));
    chosen[i] = best;
  }
  float sum = 0;
  for (int32_t e = 0; e < p.n_experts; ++e) sum += std::exp(logits[e] - logits[chosen[0]]);
  float chosen_sum = 0;
  for (int32_t i = 0; i < p.n_chosen; ++i) {
    weights[i] = std::exp(logits[chosen[i]] - logits[chosen[0]]) / sum;
    chosen_sum += weights[i];
  }
  if (!p.normalise) return;
  for (int32_t i = 0; i < p.n_chosen; ++i) weights[i] /= chosen_sum;
}

// Counts, then sorts by counting.
void group_by_expert(const RouteParams& p) {
  const ExpertRoutes& r = p.routes;
  const int64_t n_pairs = p.n_tokens * p.n_chosen;
  std::fill_n(r.starts, p.n_experts + 1, 0);
  for (int64_t pair = 0; pair < n_pairs; ++pair) ++r.starts[r.chosen[pair] + 1];
  for (int32_t e = 0; e < p.n_experts; ++e) r.starts[e + 1] += r.starts[e];
  std::array<int32_t, kMaxExperts> next;
  std::copy_n(r.starts, p.n_experts, next.begin());
  for (int64_t pair = 0; pair < n_pairs; ++pair) {
    r.place[pair] = next[static_cast<size_t>(r.chosen[pair])]++;
    r.order[r.place[pair]] = static_cast<int32_t>(pair);
  }
}

int64_t items_of(int64_t n, int64_t each) { return (n + each - 1) / each; }

void gather_rows(Queue& queue, const MixExpertsParams& p, bf16* rows) {
  const int64_t n_pairs = p.n_tokens * p.n_chosen;
  queue.for_each(items_of(n_pairs, kPairsOfItem), [&](int64_t item, const Worker&) {
    const int64_t end = std::min(n_pairs, (item + 1) * kPairsOfItem);
    for (int64_t i = item * kPairsOfItem; i < end; ++i) {
      const bf16* row = p.x + int64_t{p.routes.order[i] / p.n_chosen} * p.width;
      std::memcpy(rows + i * p.width, row, static_cast<size_t>(p.width) * sizeof(bf16));
    }
  });
}

void add_mixed(Queue& queue, const MixExpertsParams& p) {
  queue.for_each(items_of(p.n_tokens, kTokensOfItem), [&](int64_t item, const Worker& worker) {
    auto* sum = reinterpret_cast<float*>(worker.scratch);
    const int64_t end = std::min(p.n_tokens, (item + 1) * kTokensOfItem);
    for (int64_t token = item * kTokensOfItem; token < end; ++token) {
      bf16* out = p.out + token * p.width;
      std::fill_n(sum, p.width, 0.0f);
      for (int64_t pair = token * p.n_chosen; pair < (token + 1) * p.n_chosen; ++pair) {
        const bf16* mixed = p.mixed + p.routes.place[pair] * p.width;
        const float weight = p.routes.weights[pair];
        for (int64_t i = 0; i < p.width; ++i) sum[i] += weight * static_cast<float>(mixed[i]);
      }
      for (int64_t i = 0; i < p.width; ++i) out[i] = bf16(static_cast<float>(out[i]) + sum[i]);
    }
  });
}

}  // namespace

void route_experts(Queue& queue, const RouteParams& p) {
  CHECK(p.n_experts > 0 && p.n_experts <= kMaxExperts && p.n_chosen > 0 && p.n_chosen <= p.n_experts &&
            p.n_chosen <= kMaxChosenExperts,
        "{} of {} experts", p.n_chosen, p.n_experts);
  queue.for_each(items_of(p.n_tokens, kTokensOfItem), [&](int64_t item, const Worker&) {
    const int64_t end = std::min(p.n_tokens, (item + 1) * kTokensOfItem);
    for (int64_t token = item * kTokensOfItem; token < end; ++token) {
      const int64_t pair = token * p.n_chosen;
      route_token(p.logits + token * p.n_experts, p, p.routes.chosen + pair, p.routes.weights + pair);
    }
  });
  group_by_expert(p);
}

void mix_experts(Queue& queue, const MixExpertsParams& p) {
  if (p.n_tokens == 0) return;
  const ExpertRoutes& r = p.routes;
  std::array<int32_t, kMaxExperts> active;  // those with pairs
  int64_t n_active = 0;
  for (int32_t e = 0; e < p.n_experts; ++e) {
    if (r.starts[e + 1] > r.starts[e]) active[static_cast<size_t>(n_active++)] = e;
  }
  gather_rows(queue, p, p.mixed);
  GroupedLinearParams product{.x = p.mixed,
                              .weights = p.gate.of,
                              .codec = p.gate.codec,
                              .starts = r.starts,
                              .groups = active.data(),
                              .out = p.gated,
                              .n_groups = n_active,
                              .k = p.width,
                              .n = p.inner,
                              .few = p.alone || p.n_tokens <= kMaxSkinnyRows};
  linear_grouped(queue, product);
  product.weights = p.up.of;
  product.codec = p.up.codec;
  product.out = p.up_result;
  linear_grouped(queue, product);
  swiglu(queue, {p.gated, p.up_result, p.gated, p.n_tokens * p.n_chosen * p.inner});
  product.x = p.gated;
  product.weights = p.down.of;
  product.codec = p.down.codec;
  product.out = p.mixed;
  product.k = p.inner;
  product.n = p.width;
  linear_grouped(queue, product);
  add_mixed(queue, p);
}

}  // namespace tiercel::cpu
