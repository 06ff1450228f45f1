#include <algorithm>
#include <bit>

#include "engine/base/check.h"
#include "kernels/attention_decode.cuh"
#include "kernels/attention_decode.h"
#include "kernels/attention_decode_few.cuh"
#include "kernels/attention_decode_tiles.cuh"
#include "kernels/joint_launch.cuh"

namespace tiercel::cuda {
namespace {

using namespace decode;

// Tiles are counted in 32 bits.
constexpr int64_t kMaxTokens = int64_t{1} << 30;
// More rows than this to merge (splits x heads of a block) take one block longer than a launch.
constexpr int64_t kMaxRowsMergedAtOnce = 384;

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

void check_params(const DecodeAttendParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads",
        p.n_heads, p.n_kv_heads);
  CHECK(p.n_heads <= kCounters, "{} heads", p.n_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= kMaxHeadDim && p.head_dim % 2 == 0, "head_dim {}",
        p.head_dim);
  CHECK(p.n_sources >= 0 && p.n_sources <= kMaxDecodeSources, "{} sources", p.n_sources);
  CHECK(is_aligned(p.workspace), "workspace");
  CHECK(p.n_merge >= 0 && p.n_merge <= (p.final_out != nullptr ? kMaxMergeWith : 0),
        "{} partials to merge with", p.n_merge);
  for (int32_t s = 0; s < p.n_sources; ++s) {
    const KvSource& source = p.sources[s];
    CHECK(source.chunk_tokens > 0 && source.n_tokens >= 0 &&
              std::max(source.n_tokens, source.most_tokens) <= kMaxTokens,
          "source {}: {} tokens in chunks of {}", s, source.n_tokens, source.chunk_tokens);
    CHECK(source.ids == nullptr || source.counts != nullptr, "source {}", s);
    CHECK(p.views.n == 1 || source.first_position + kMaxTokens < (int64_t{1} << 31),
          "source {}: position {}", s, source.first_position);
    CHECK(source.ids == nullptr || source.ids_stride <= kMaxTokens / source.chunk_tokens,
          "source {}: {} chunks of {}", s, source.ids_stride, source.chunk_tokens);
  }
}

// Calls f(Layout<head_dim>{}), where the fast path knows it.
template <typename F>
auto with_layout(int32_t head_dim, F f) {
  switch (head_dim) {
    case 64: return f(Layout<64>{});
    case 96: return f(Layout<96>{});
    case 128: return f(Layout<128>{});
    default: return f(Layout<256>{});
  }
}

// Whether the fast path's 16-byte copies can read every row, and its blocks have room for them.
bool takes_tiles(const Stream& stream, const DecodeAttendParams& p) {
  if (p.head_dim != 64 && p.head_dim != 96 && p.head_dim != 128 && p.head_dim != 256) return false;
  const int64_t bytes = with_layout(p.head_dim, [](auto layout) { return layout.kSharedBytes; });
  if (bytes > stream.shared_memory()) return false;
  if (!is_aligned(p.q) || p.views.stride % 8 != 0) return false;
  // Queries in shared memory are the block's, whose warps meet different views at a time.
  if (p.views.n > 1 && p.head_dim > 128) return false;
  for (int32_t s = 0; s < p.n_sources; ++s) {
    const KvSource& source = p.sources[s];
    const int64_t strides = source.head_stride | source.chunk_stride | source.token_stride;
    if (!is_aligned(source.keys) || !is_aligned(source.values) || strides % 8 != 0) return false;
  }
  return true;
}

// Whether it matters which of the sequence's keys a row is: it has a bias, or its view of the queries.
bool looks_up_keys(const DecodeAttendParams& p) {
  return p.views.n > 1 ||
         std::any_of(p.sources, p.sources + p.n_sources,
                     [](const KvSource& source) { return source.key_bias != nullptr; });
}

// Shared memory does not hold two tiles per warp at head_dim 256. Biases and views are rare enough for
// one kernel to know them.
bool takes_few(const Stream& stream, const DecodeAttendParams& p) {
  return takes_tiles(stream, p) && p.head_dim <= 128 && !looks_up_keys(p);
}

// Tiles of a split there: two a warp, or one on devices whose blocks have less.
int64_t few_tiles_per_split(const Stream& stream, int32_t head_dim) {
  const int64_t stage = with_layout(head_dim, [](auto layout) { return layout.kStageBytes; });
  const bool two = kFewTilesPerSplit * stage + kNotesBytes <= stream.shared_memory();
  return two ? kFewTilesPerSplit : kFewWarps;
}

int64_t max_tokens(const KvSource& source) {
  return source.ids != nullptr ? source.ids_stride * source.chunk_tokens
                               : std::max(source.n_tokens, source.most_tokens);
}

int64_t row_blocks(const DecodeAttendParams& p) {
  return (p.n_heads / p.n_kv_heads + kMaxRows - 1) / kMaxRows;
}

int64_t max_tiles(const DecodeAttendParams& p) {
  int64_t n = 0;
  for (int32_t s = 0; s < p.n_sources; ++s) n += (max_tokens(p.sources[s]) + kTile - 1) / kTile;
  return n;
}

int32_t blocks_per_processor(int32_t head_dim) {
  return with_layout(head_dim, [](auto layout) { return layout.kBlocksPerProcessor; });
}

// Splits that the workspace holds.
int64_t max_splits(const DecodeAttendParams& p) {
  const int64_t split_floats = int64_t{p.n_heads} * (p.head_dim + 2);
  return (decode_workspace_floats(p.n_heads, p.head_dim) - kCounters) / split_floats;
}

// Query heads of one block.
int64_t block_rows(const DecodeAttendParams& p, bool tiles) {
  return std::min(p.n_heads / p.n_kv_heads, tiles ? kMaxRows : 1);
}

Source make_source(const KvSource& from) {
  Source to;
  to.keys = from.keys;
  to.values = from.values;
  to.head_stride = from.head_stride;
  to.chunk_stride = from.chunk_stride;
  to.token_stride = from.token_stride;
  to.ids = from.ids;
  to.counts = from.counts;
  to.ids_stride = from.ids_stride;
  to.later = from.later;
  to.n_tokens = static_cast<int32_t>(from.n_tokens);
  to.max_tokens = static_cast<int32_t>(max_tokens(from));
  to.chunk_tokens = from.chunk_tokens;
  // With l = ceil(log2 c) and m = ceil(2^(31+l) / c): m c < 2^(31+l) + 2^l, so that the error of
  // t m / 2^(31+l) is below t / (2^31 c) < 1/c for every t < 2^31, and the quotient exact.
  const auto c = static_cast<uint64_t>(from.chunk_tokens);
  to.shift = 31 + std::bit_width(c - 1);
  to.reciprocal = static_cast<uint32_t>(((uint64_t{1} << to.shift) + c - 1) / c);
  to.bias = from.bias;
  to.key_bias = from.key_bias;
  to.key_bias_head_stride = from.key_bias_head_stride;
  to.bias_chunks = from.bias_chunks;
  to.bias_chunks_stride = from.bias_chunks_stride;
  to.position_chunks = from.position_chunks;
  to.position_chunks_stride = from.position_chunks_stride;
  to.first_position = static_cast<int32_t>(from.first_position);
  to.position_step = static_cast<int32_t>(from.position_step);
  return to;
}

Params make_params(const DecodeAttendParams& p, int64_t n_splits) {
  CHECK(p.views.n >= 1 && p.views.n <= kMaxSpans && (p.views.n == 1 || p.views.span_tokens > 0),
        "{} views of spans of {}", p.views.n, p.views.span_tokens);
  Params to;
  to.q = p.q;
  to.view_stride = p.views.stride;
  to.n_views = p.views.n;
  to.span_tokens = static_cast<int32_t>(p.views.span_tokens);
  // Dead tiles of sources that grow belong at the end, where whole blocks have nothing to do.
  for (const bool grows : {false, true}) {
    for (int32_t s = 0; s < p.n_sources; ++s) {
      const KvSource& source = p.sources[s];
      if ((source.most_tokens > 0) != grows || max_tokens(source) == 0) continue;
      to.sources[to.n_sources++] = make_source(source);
    }
  }
  to.out = p.out;
  to.counters = reinterpret_cast<uint32_t*>(p.workspace);
  to.rows = p.workspace + kCounters;
  to.stats = to.rows + int64_t{p.n_heads} * n_splits * p.head_dim;
  to.scale = p.scale * gpu::kLog2e;
  to.n_heads = p.n_heads;
  to.n_kv_heads = p.n_kv_heads;
  to.head_dim = p.head_dim;
  to.n_splits = static_cast<int32_t>(n_splits);
  std::copy(p.merge_with, p.merge_with + p.n_merge, to.others);
  to.n_others = p.n_merge;
  to.final_out = p.final_out;
  return to;
}

template <int kHeadDim>
void launch_few(Stream& stream, Params params, const DecodeAttendParams& p) {
  int32_t n_tiles = 0;
  for (int32_t s = 0; s < params.n_sources; ++s) {
    params.first_tile[s] = n_tiles;
    n_tiles += (params.sources[s].max_tokens + kTile - 1) / kTile;
  }
  params.tiles_per_split = std::max(1, (n_tiles + params.n_splits - 1) / params.n_splits);
  CHECK(params.n_splits <= kFewSplits && params.tiles_per_split <= kFewTilesPerSplit,
        "{} tiles in {} splits", n_tiles, params.n_splits);
  using L = Layout<kHeadDim>;
  const int stages = (params.tiles_per_split + kFewWarps - 1) / kFewWarps;
  const auto record_bytes = static_cast<int>(block_rows(p, true)) * L::kRecord * 4;
  params.warp_bytes = (std::max(stages * L::kStageBytes, record_bytes) + 127) / 128 * 128;
  const dim3 grid(static_cast<unsigned>(params.n_splits), static_cast<unsigned>(params.n_kv_heads),
                  static_cast<unsigned>(row_blocks(p)));
  const auto shared_bytes = static_cast<size_t>(kFewWarps * params.warp_bytes + kNotesBytes);
  launch_joint<AttendFew<kHeadDim>>(stream, grid, shared_bytes, params);
}

template <int kHeadDim>
void launch_tiles(Stream& stream, const Params& params, unsigned n_row_blocks, bool looks_up) {
  const dim3 grid(static_cast<unsigned>(params.n_splits), static_cast<unsigned>(params.n_kv_heads),
                  n_row_blocks);
  constexpr size_t kBytes = Layout<kHeadDim>::kSharedBytes;
  if (looks_up) {
    launch_joint<AttendTiles<kHeadDim, true>>(stream, grid, kBytes, params);
  } else {
    launch_joint<AttendTiles<kHeadDim, false>>(stream, grid, kBytes, params);
  }
}

template <int kMaxPartials>
void launch_merge(Stream& stream, const MergeParams& p) {
  MergeAll<kMaxPartials> all;
  std::copy(p.partials, p.partials + p.n_partials, all.partials);
  all.n_partials = p.n_partials;
  all.head_dim = p.head_dim;
  all.out = p.out;
  launch_dependent<merge_normalised<kMaxPartials>>(stream, dim3(static_cast<unsigned>(p.n_heads)),
                                                   kThreads, 0, all);
}

}  // namespace

// Few tokens: a tile per warp, or two, on processors that have one block each. Otherwise enough
// blocks to fill the device once, but none with less than kTilesPerSplit tiles.
DecodePlan plan_decode(const Stream& stream, const DecodeAttendParams& p) {
  check_params(p);
  const bool tiles = takes_tiles(stream, p);
  const int64_t n_tiles = max_tiles(p);
  const int64_t resident =
      int64_t{stream.n_processors()} * (tiles ? blocks_per_processor(p.head_dim) : 8);
  const int64_t shares = tiles ? p.n_kv_heads * row_blocks(p) : p.n_heads;
  if (takes_few(stream, p)) {
    const int64_t most = std::max<int64_t>(
        1, std::min({int64_t{kFewSplits}, stream.n_processors() / shares, max_splits(p)}));
    if (n_tiles <= most * few_tiles_per_split(stream, p.head_dim)) {
      const int64_t wanted = std::max<int64_t>(1, (n_tiles + kFewWarps - 1) / kFewWarps);
      return {static_cast<int32_t>(std::min(wanted, most)), true, true};
    }
  }
  const int64_t useful = (n_tiles + kTilesPerSplit - 1) / kTilesPerSplit;
  const int64_t n_splits =
      std::max<int64_t>(1, std::min({resident / shares, useful, max_splits(p)}));
  return {static_cast<int32_t>(n_splits), n_splits * block_rows(p, tiles) <= kMaxRowsMergedAtOnce};
}

void attend_decode(Stream& stream, const DecodeAttendParams& p) {
  attend_decode(stream, p, plan_decode(stream, p));
}

void attend_decode(Stream& stream, const DecodeAttendParams& p, const DecodePlan& plan) {
  check_params(p);
  CHECK(plan.n_splits >= 1 && plan.n_splits <= max_splits(p), "{} splits", plan.n_splits);
  const bool tiles = takes_tiles(stream, p);
  Params params = make_params(p, plan.n_splits);
  params.merge_at_once = plan.merge_at_once || plan.few;
  const auto n_row_blocks = static_cast<unsigned>(row_blocks(p));
  if (plan.few) {
    CHECK(takes_few(stream, p), "head_dim {}", p.head_dim);
    switch (p.head_dim) {
      case 64: return launch_few<64>(stream, params, p);
      case 96: return launch_few<96>(stream, params, p);
      default: return launch_few<128>(stream, params, p);
    }
  }
  if (!tiles) {
    const dim3 grid(static_cast<unsigned>(params.n_splits), static_cast<unsigned>(p.n_heads));
    launch_joint<AttendPlain>(stream, grid, kPlainShared, params);
  } else {
    const bool looks_up = looks_up_keys(p);
    switch (p.head_dim) {
      case 64: launch_tiles<64>(stream, params, n_row_blocks, looks_up); break;
      case 96: launch_tiles<96>(stream, params, n_row_blocks, looks_up); break;
      case 128: launch_tiles<128>(stream, params, n_row_blocks, looks_up); break;
      default: launch_tiles<256>(stream, params, n_row_blocks, looks_up); break;
    }
  }
  if (params.merge_at_once) return;
  const size_t shared_bytes =
      kNotesBytes + static_cast<size_t>(params.n_splits + 1) * sizeof(float2);
  const dim3 heads(static_cast<unsigned>(p.n_heads));
  if (tiles) {
    launch_joint<MergeSplits<4>>(stream, heads, shared_bytes, params);
  } else {
    launch_joint<MergeSplits<1>>(stream, heads, shared_bytes, params);
  }
}

void merge_partials(Stream& stream, const MergeParams& p) {
  CHECK(p.n_heads > 0 && p.head_dim > 0 && p.n_partials >= 0 && p.n_partials <= kMaxMergePartials,
        "{} heads of {}, {} partials", p.n_heads, p.head_dim, p.n_partials);
  constexpr int32_t kFew = 4;  // parameters are copied at every launch
  if (p.n_partials <= kFew) {
    launch_merge<kFew>(stream, p);
  } else {
    launch_merge<kMaxMergePartials>(stream, p);
  }
}

}  // namespace tiercel::cuda
