#include <algorithm>
#include <numeric>

#include "engine/base/check.h"
#include "engine/base/ops.h"
#include "kernels/attention_prefill.h"
#include "kernels/attention_prefill_probe.cuh"
#include "kernels/attention_prefill_sm80.cuh"
#include "kernels/attention_prefill_sm90.cuh"
#include "kernels/launch.cuh"
#include "kernels/tensor_map.cuh"

namespace tiercel::cuda {
namespace prefill {
namespace {

bool multiple_of_16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

void check_params(const PrefillAttendParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads > 0 && p.n_heads % p.n_kv_heads == 0,
        "{} heads over {} KV heads", p.n_heads, p.n_kv_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= kMaxHeadDim && p.head_dim % 2 == 0, "head dim {}",
        p.head_dim);
  CHECK(p.first_position >= 0 && p.window >= 0, "position {}, window {}", p.first_position,
        p.window);
  // Indices of a key list, and rows of tensor maps, are 32-bit.
  CHECK(p.first_position + p.n_tokens < (int64_t{1} << 31) - 4096, "position {}",
        p.first_position + p.n_tokens);
  CHECK(p.scale > 0, "scale {}", p.scale);
  CHECK(p.block_tokens == 0 || p.window == 0, "blocks with a window of {}", p.window);
  CHECK(p.part.state == nullptr || (p.window == 0 && p.part.end <= p.first_position),
        "a part up to {}, queries from {} on, window {}", p.part.end, p.first_position, p.window);
  CHECK(p.block_tokens == 0 || (p.local_begin != nullptr && p.chunk_counts != nullptr &&
                                p.chunk_ids != nullptr && p.chunk_tokens > 0),
        "blocks of {} without chunks of {}", p.block_tokens, p.chunk_tokens);
}

Job make_job(const PrefillAttendParams& p, int64_t tile_tokens) {
  constexpr int64_t kUnlimited = 0x7fffffff;
  Job job;
  job.op = p;
  job.block_tokens = p.block_tokens > 0 ? p.block_tokens : tile_tokens;
  job.tiles_per_block = blocks_for(job.block_tokens, tile_tokens);
  job.n_tiles = blocks_for(blocks_for(p.n_tokens, job.block_tokens), 1) * job.tiles_per_block;
  job.window = static_cast<uint32_t>(p.window > 0 ? std::min(p.window, kUnlimited) : kUnlimited);
  job.unit = p.scale * gpu::kLog2e;
  job.aligned = p.head_dim % 8 == 0 && p.head_stride % 8 == 0 && multiple_of_16(p.q) &&
                multiple_of_16(p.keys) && multiple_of_16(p.values);
  return job;
}

unsigned grid_of(const Job& job) { return blocks_for(int64_t{job.n_tiles} * job.op.n_heads, 1); }

// ---- sm_80 --------------------------------------------------------------------------------------

template <class Shape>
void launch_mma(Stream& stream, const PrefillAttendParams& p) {
  const Job job = make_job(p, Shape::kQueries);
  if (p.bias != nullptr) {
    launch<attend_prefill_mma<Shape, true>>(stream, grid_of(job), Shape::kThreads, Shape::kBytes, job);
  } else {
    launch<attend_prefill_mma<Shape, false>>(stream, grid_of(job), Shape::kThreads, Shape::kBytes, job);
  }
}

template <int kDim, int kKeys>
void launch_mma_dim(Stream& stream, const PrefillAttendParams& p) {
  if (p.head_dim == kDim && make_job(p, 1).aligned) {
    launch_mma<MmaShape<kDim, kKeys, true>>(stream, p);
  } else {
    launch_mma<MmaShape<kDim, kKeys, false>>(stream, p);
  }
}

void attend_mma(Stream& stream, const PrefillAttendParams& p) {
  if (p.head_dim <= 64) return launch_mma_dim<64, 128>(stream, p);
  if (p.head_dim <= 96) return launch_mma_dim<96, 64>(stream, p);
  if (p.head_dim <= 128) return launch_mma_dim<128, 64>(stream, p);
  launch_mma_dim<256, 32>(stream, p);  // 99 KiB hold no more
}

// ---- Hopper -------------------------------------------------------------------------------------

// Rows of one box where a tile of keys is put together from chunks: the most that divides both.
int32_t box_rows_of(const PrefillAttendParams& p, int32_t key_tile) {
  return p.block_tokens > 0 ? std::gcd(key_tile, p.chunk_tokens) : 0;
}

bool hopper_can(const Stream& stream, const PrefillAttendParams& p) {
  const int32_t key_tile = p.head_dim <= 128 ? 128 : 80;
  return stream.architecture() == 90 && make_job(p, 1).aligned && p.bias == nullptr &&
         (p.block_tokens == 0 || box_rows_of(p, key_tile) % 8 == 0);
}

template <class Shape, PrefillVariant kVariant>
void launch_hopper(Stream& stream, const PrefillAttendParams& p) {
  HopperJob hopper{};
  hopper.job = make_job(p, Shape::kQueries);
  hopper.box_rows = box_rows_of(p, Shape::kKeys);
  const int64_t d = p.head_dim;
  hopper.queries = encode_tensor_map({.base = p.q,
                                      .extent = {d, p.n_heads, p.n_tokens},
                                      .stride = {d, p.n_heads * d},
                                      .box = {Shape::kColumns, 1, Shape::kQueries},
                                      .swizzle = Shape::kSpan});
  // The exact number of rows: what lies behind them in the planes must not be read, since 0 * NaN
  // is NaN.
  const int64_t n_rows = p.part.end > 0 ? p.part.end : p.first_position + p.n_tokens;
  const auto plane_map = [&](const bf16* plane, int32_t rows) {
    return encode_tensor_map({.base = plane,
                              .extent = {d, n_rows, p.n_kv_heads},
                              .stride = {d, p.head_stride},
                              .box = {Shape::kColumns, rows, 1},
                              .swizzle = Shape::kSpan});
  };
  hopper.keys = plane_map(p.keys, Shape::kKeys);
  hopper.values = plane_map(p.values, Shape::kKeys);
  if (hopper.box_rows > 0) {
    hopper.key_rows = plane_map(p.keys, hopper.box_rows);
    hopper.value_rows = plane_map(p.values, hopper.box_rows);
  }
  launch<attend_prefill_hopper<Shape, kVariant>>(stream, grid_of(hopper.job), Shape::kThreads,
                                                 Shape::kBytes, hopper);
}

template <class Shape>
void launch_hopper_variant(Stream& stream, const PrefillAttendParams& p, PrefillVariant variant) {
  switch (variant) {
    case PrefillVariant::kPlain: return launch_hopper<Shape, PrefillVariant::kPlain>(stream, p);
    case PrefillVariant::kPingPong:
      return launch_hopper<Shape, PrefillVariant::kPingPong>(stream, p);
    default: return launch_hopper<Shape, PrefillVariant::kOverlap>(stream, p);
  }
}

void attend_hopper(Stream& stream, const PrefillAttendParams& p, PrefillVariant variant) {
  CHECK(hopper_can(stream, p), "no Hopper kernel: architecture {}, head dim {}, chunks of {}",
        stream.architecture(), p.head_dim, p.chunk_tokens);
  if (p.head_dim <= 64) {
    // Three consumers where blocks of queries do not waste the third, and nobody takes turns.
    if (p.block_tokens == 0 && variant != PrefillVariant::kPlain &&
        variant != PrefillVariant::kPingPong) {
      return launch_hopper<HopperShape<64, 192, 128, 3>, PrefillVariant::kOverlap>(stream, p);
    }
    return launch_hopper_variant<HopperShape<64, 128, 128, 3>>(stream, p, variant);
  }
  if (p.head_dim <= 96) {
    return launch_hopper_variant<HopperShape<96, 128, 128, 3>>(stream, p, variant);
  }
  if (p.head_dim <= 128) {
    // Wide key tiles: 9 % faster on selected blocks, level on dense (journal, "Prefill attention").
    if (variant != PrefillVariant::kPlain && variant != PrefillVariant::kPingPong) {
      return launch_hopper<HopperShape<128, 128, 176, 2>, PrefillVariant::kOverlap>(stream, p);
    }
    return launch_hopper_variant<HopperShape<128, 128, 128, 2>>(stream, p, variant);
  }
  launch_hopper_variant<HopperShape<256, 128, 80, 2>>(stream, p, variant);
}

template <int kSpan>
void launch_probe(Stream& stream, const PrefillProbe& probe) {
  const auto map = [](const bf16* base, int32_t rows) {
    return encode_tensor_map({.base = base,
                              .extent = {kSpan, kProbeRows, 1},
                              .stride = {kSpan, kProbeRows * kSpan},
                              .box = {kSpan / 2, rows, 1},
                              .swizzle = kSpan});
  };
  const ProbeJob job{map(probe.queries, kProbeRows), map(probe.keys, 8),
                     map(probe.values, kProbeRows), probe.scores, probe.out};
  launch<probe_hopper<kSpan>>(stream, 1, 128, 6 * kProbeRows * kSpan + 8, job);
}

}  // namespace
}  // namespace prefill

void attend_prefill_with(Stream& stream, const PrefillAttendParams& p, PrefillVariant variant,
                         bool finish) {
  if (p.n_tokens == 0) return;
  prefill::check_params(p);
  const bool older = variant == PrefillVariant::kMmaSync ||
                     (variant == PrefillVariant::kDefault && !prefill::hopper_can(stream, p));
  if (older) {
    prefill::attend_mma(stream, p);
  } else {
    prefill::attend_hopper(stream, p, variant);
  }
  if (!finish || p.part.state != nullptr) return;
  const prefill::Job job = prefill::make_job(p, 1);
  launch<prefill::attend_failed_rows>(
      stream, blocks_for(p.n_tokens * p.n_heads, prefill::kFailedWarps * 32),
      prefill::kFailedWarps * 32, 0, job);
}

void attend_prefill(Stream& stream, const PrefillAttendParams& params) {
  attend_prefill_with(stream, params, PrefillVariant::kDefault);
}

void probe_prefill(Stream& stream, const PrefillProbe& probe) {
  CHECK(stream.architecture() == 90, "architecture {}", stream.architecture());
  CHECK(probe.swizzle == 128 || probe.swizzle == 64, "swizzle {}", probe.swizzle);
  if (probe.swizzle == 128) return prefill::launch_probe<128>(stream, probe);
  prefill::launch_probe<64>(stream, probe);
}

}  // namespace tiercel::cuda
