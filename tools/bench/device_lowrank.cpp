// Low-rank keys: rebuilding what a decode step misses, projecting a prompt's keys, fitting a basis.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/lowrank.h"
#include "tools/bench/device_harness.h"

namespace tiercel::bench {
namespace {

constexpr int32_t kHeadDim = 128, kChunkTokens = 8;

struct Sizes {
  explicit Sizes(const Device& device)
      : n_kv_heads(device.size(8, 1)),
        width(n_kv_heads * kHeadDim),
        rank(device.size(160, 32)),
        n_tokens(device.size(131072, 512)) {}
  int64_t n_kv_heads, width, rank, n_tokens;
};

// A basis and a mean of random numbers: what is rebuilt has the spread of sqrt(rank).
struct Basis {
  Basis(Device& device, const Sizes& s) : basis(device, s.width * s.rank), mean(device, s.width) {
    view = {.basis = basis.data(), .mean = mean.data(), .rank = s.rank};
  }
  Noise basis;
  Array<float> mean;
  LowRankView view;
};

// Misses of many steps: ascending chunks and the slots they go to.
struct Misses {
  Misses(Device& device, const Sizes& s, int64_t n_misses, int64_t n_slots)
      : n_lists(device.size(64, 1)),
        list(s.n_kv_heads * n_misses),
        chunks(device, ids(device, s, n_misses, s.n_tokens / kChunkTokens)),
        slots(device, ids(device, s, n_misses, n_slots)),
        counts(device, std::vector<int32_t>(s.n_kv_heads, static_cast<int32_t>(n_misses))) {}
  std::vector<int32_t> ids(Device& device, const Sizes& s, int64_t n_misses, int64_t end) const {
    std::vector<int32_t> all;
    for (int64_t i = 0; i < n_lists * s.n_kv_heads; ++i) {
      const auto some = ascending_ids(device.rng(), n_misses, 0, end);
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }
  int64_t n_lists, list;
  Array<int32_t> chunks, slots, counts;
};

void rebuild(Device& device, int64_t n_misses) {
  const Sizes s(device);
  const int64_t n_slots = device.size(512, 64);
  const Basis basis(device, s);
  const Noise coefficients(device, s.n_tokens * s.rank);
  const DeviceRope rope(device, kHeadDim, s.n_tokens);
  const Misses misses(device, s, n_misses, n_slots);
  const int64_t record = 2 * kChunkTokens * kHeadDim;
  const Array<bf16> slots(device, s.n_kv_heads * n_slots * record);
  const double us = device.time_us([&](int64_t turn) {
    const int64_t first = turn % misses.n_lists * misses.list;
    cuda::rebuild_keys(device.stream(), {.coefficients = coefficients.data(),
                                         .lowrank = basis.view,
                                         .rope = rope.view(),
                                         .miss_chunks = misses.chunks.data() + first,
                                         .miss_slots = misses.slots.data() + first,
                                         .miss_counts = misses.counts.data(),
                                         .stride = n_misses,
                                         .slots = slots.data(),
                                         .slot_head_stride = n_slots * record,
                                         .chunk_tokens = kChunkTokens,
                                         .n_kv_heads = static_cast<int32_t>(s.n_kv_heads),
                                         .head_dim = kHeadDim});
  });
  const auto tokens = static_cast<double>(misses.list * kChunkTokens);
  device.report({.name = "rebuild",
                 .shape = fmt::format("{} misses x {}, rank {}", n_misses, s.n_kv_heads, s.rank),
                 .us = us,
                 .bytes = tokens * static_cast<double>(2 * s.rank + 2 * kHeadDim),
                 .flops = tokens * static_cast<double>(2 * s.rank * kHeadDim)});
}

void fit(Device& device, const Sizes& s, const FitBasisParams& p, cuda::EigenMethod method) {
  const double us =
      device.time_us([&](int64_t) { cuda::fit_basis_with(device.stream(), p, method); },
                     {.ms = 100, .repeats = 3});
  const auto tokens = static_cast<double>(p.n_tokens);
  const bool is_dense = method == cuda::EigenMethod::kDense;
  device.report({.name = is_dense ? "fit basis, dense" : "fit basis",
                 .shape = fmt::format("{} tokens, {} to {}", p.n_tokens, s.width, s.rank),
                 .us = us,
                 .bytes = tokens * static_cast<double>(2 * s.width),
                 .flops = tokens * static_cast<double>(2 * s.width * s.width)});
}

}  // namespace

void run_rebuild(Device& device) {
  for (const int64_t n : {51, 256}) rebuild(device, device.size(n, n / 8));
}

void run_project(Device& device) {
  const Sizes s(device);
  const Basis basis(device, s);
  const DeviceRope rope(device, kHeadDim, s.n_tokens);
  const Noise keys(device, s.n_tokens * s.width);
  const Array<bf16> coefficients(device, s.n_tokens * s.rank);
  for (int64_t n = 4096; n <= 131072; n *= 2) {
    const int64_t n_tokens = device.size(n, 128), n_places = s.n_tokens / n_tokens;
    const double us = device.time_us([&](int64_t turn) {
      cuda::project_keys(device.stream(), {.keys = keys.data(),
                                           .head_stride = s.n_tokens * kHeadDim,
                                           .first_token = turn % n_places * n_tokens,
                                           .n_tokens = n_tokens,
                                           .n_kv_heads = static_cast<int32_t>(s.n_kv_heads),
                                           .head_dim = kHeadDim,
                                           .rope = rope.view(),
                                           .lowrank = basis.view,
                                           .coefficients = coefficients.data()});
    });
    const auto tokens = static_cast<double>(n_tokens);
    device.report({.name = "project",
                   .shape = fmt::format("{} tokens, {} to {}", n_tokens, s.width, s.rank),
                   .us = us,
                   .bytes = tokens * static_cast<double>(2 * (s.width + s.rank)),
                   .flops = tokens * static_cast<double>(2 * s.width * s.rank)});
    if (device.smoke()) break;
  }
  device.expect_finite("project", coefficients.data(), device.size(4096, 128) * s.rank);
}

// White noise has no directions to find, but the time does not depend on that.
void run_fit(Device& device) {
  const Sizes s(device);
  const Basis basis(device, s);
  const DeviceRope rope(device, kHeadDim, s.n_tokens);
  const Noise keys(device, s.n_tokens * s.width);
  const Array<double> residual(device, 1);
  for (const int64_t n : {32768, 131072}) {
    const FitBasisParams p = {.keys = keys.data(),
                              .head_stride = s.n_tokens * kHeadDim,
                              .n_tokens = device.size(n, 256),
                              .n_kv_heads = static_cast<int32_t>(s.n_kv_heads),
                              .head_dim = kHeadDim,
                              .rope = rope.view(),
                              .lowrank = basis.view,
                              .residual_energy = residual.data()};
    for (const cuda::EigenMethod method : {cuda::EigenMethod::kAuto, cuda::EigenMethod::kDense}) {
      fit(device, s, p, method);
      const double energy = residual.host()[0];
      device.line(fmt::format("residual energy {:.4f}", energy));
      if (!(energy > 0 && energy < 1)) device.wrong("fit basis: residual energy");
    }
    if (device.smoke()) break;
  }
}

}  // namespace tiercel::bench
