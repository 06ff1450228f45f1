#include "cpu/attention_decode.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numbers>

#include "cpu/levels.h"
#include "cpu/query.h"
#include "cpu/source_rows.h"
#include "engine/base/check.h"
#include "engine/base/partial.h"

namespace tiercel::cpu {
namespace {

struct Range {
  int32_t source = 0, kv_head = 0;
  int64_t index = 0;           // among the ranges of this (source, KV head)
  int64_t slot = 0;            // among the partials of this KV head
  int64_t begin = 0, end = 0;  // tokens of the source
};

// Tokens that KV head j sees in a source: a function of shapes and counts only.
int64_t tokens_of(const KvSource& source, int32_t kv_head) {
  return source.ids != nullptr ? int64_t{source.counts[kv_head]} * source.chunk_tokens
                               : source.n_tokens + (source.later != nullptr ? *source.later : 0);
}

// The item-th range, KV heads one after the other, each with its sources in order.
Range find_range(const DecodeAttendParams& p, int64_t item) {
  for (int32_t j = 0; j < p.n_kv_heads; ++j) {
    int64_t slot = 0;
    for (int32_t s = 0; s < p.n_sources; ++s) {
      const int64_t n_tokens = tokens_of(p.sources[s], j);
      const int64_t count = range_count(n_tokens);
      if (item < count) {
        const int64_t size = range_tokens(n_tokens);
        return {s, j, item, slot + item, item * size, std::min(n_tokens, (item + 1) * size)};
      }
      item -= count;
      slot += count;
    }
  }
  CHECK(false, "no range {}", item);
  return {};
}

// Where the partial of (head, slot) is: [n_heads][slots][max, sum, out].
float* partial_at(const DecodeAttendParams& p, int64_t head, int64_t slot) {
  return p.workspace + (head * kMaxDecodeRanges * kMaxDecodeSources + slot) * (p.head_dim + 2);
}

// A block, tokens begin .. end - 1, that are met by several views of the queries.
template <typename PackView>
void attend_by_view(const DecodeKernel& kernel, const DecodeBlock& whole, const SourceRows& rows,
                    const QueryViews& views, int64_t begin, int64_t end, PackView&& pack_view) {
  int64_t offsets[2 * kDecodeBlock];
  for (int64_t token = begin; token < end;) {
    const auto run = rows.view_run(token, end, views);
    pack_view(run.view);
    DecodeBlock block = whole;
    block.score.n_rows = static_cast<int32_t>(run.end - token);
    rows.fill(token, run.end, 2 * kDecodeBlock, offsets);
    block.score.offsets = offsets;
    block.score.prefetch_rows = 0;
    if (whole.bias != nullptr) block.bias = whole.bias + (token - begin);
    kernel.attend_block(block);
    token = run.end;
  }
}

// One item: the partials of all heads of a group over one range of tokens.
void attend_range(const DecodeAttendParams& p, const DecodeKernel& kernel, const Range& range,
                  const Worker& worker) {
  const KvSource& source = p.sources[range.source];
  const int32_t group = p.n_heads / p.n_kv_heads;
  const int32_t n_heads = padded_heads(group);
  const int64_t width = packed_width(kernel, p.head_dim);

  Carver scratch(worker.scratch);
  DecodeBlock block{};
  block.out_stride = width;
  block.out = scratch.take<float>(n_heads * width);
  block.max = scratch.take<float>(n_heads);
  block.sum = scratch.take<float>(n_heads);
  block.alpha = scratch.take<float>(n_heads);
  block.score.scores = scratch.take<float>(n_heads * int64_t{kDecodeBlock});
  char* queries = scratch.take<char>(n_heads * width * int64_t{sizeof(float)});
  int64_t* offsets = scratch.take<int64_t>(2 * kDecodeBlock);
  float* bias = scratch.take<float>(kDecodeBlock);

  const bf16* group_q = p.q + int64_t{range.kv_head} * group * p.head_dim;
  int64_t packed = -1;  // the view
  const auto pack_view = [&](int64_t view) {
    if (view == packed) return;
    block.score.query_bytes =
        pack_queries(kernel, group_q + view * p.views.stride, group, p.head_dim, queries);
    packed = view;
  };
  std::fill(block.out, block.out + n_heads * width, 0.0f);
  std::fill(block.max, block.max + n_heads, kEmptyMax);
  std::fill(block.sum, block.sum + n_heads, 0.0f);
  std::fill(block.alpha, block.alpha + n_heads, 0.0f);

  const int64_t head_offset = int64_t{range.kv_head} * source.head_stride;
  block.score.row_base = bits(source.keys + head_offset);
  block.value_base = bits(source.values + head_offset);
  block.n_live_heads = group;
  block.score.offsets = offsets;
  block.score.head_dim = p.head_dim;
  block.score.n_heads = n_heads;
  block.score.queries = queries;
  block.score.score_stride = kDecodeBlock;
  block.score.scale = p.scale * std::numbers::log2e_v<float>;
  const int64_t step = block_rows(p.head_dim);
  block.score.prefetch_rows = static_cast<int32_t>(step);

  const SourceRows rows(source, range.kv_head);
  block.bias = rows.has_bias() ? bias : nullptr;
  const bool as_plane = kernel.attend_plane != nullptr && has_plane_tiles(group, p.head_dim) &&
                        rows.is_plane() && !rows.has_bias() && p.views.n == 1;
  if (as_plane) {
    pack_view(0);
    block.score.row_base += range.begin * source.token_stride;
    block.value_base += range.begin * source.token_stride;
    block.score.n_rows = static_cast<int32_t>(range.end - range.begin);
    kernel.attend_plane(block, source.token_stride);
  } else {
    rows.fill(range.begin, range.end, step, offsets + step);
    for (int64_t token = range.begin; token < range.end; token += step) {
      // This block and the next one: what was next is this now.
      std::copy(offsets + step, offsets + 2 * step, offsets);
      if (token + step < range.end) rows.fill(token + step, range.end, step, offsets + step);
      const int64_t end = std::min(token + step, range.end);
      if (rows.has_bias()) rows.fill_bias(token, end, bias);
      const auto run = rows.view_run(token, end, p.views);
      pack_view(run.view);
      block.score.n_rows = static_cast<int32_t>(run.end - token);
      if (run.end == end) {
        kernel.attend_block(block);
      } else {
        attend_by_view(kernel, block, rows, p.views, token, end, pack_view);
      }
    }
  }

  for (int32_t h = 0; h < group; ++h) {
    float* partial = partial_at(p, int64_t{range.kv_head} * group + h, range.slot);
    // A bias on every score is one on their maximum: sum and out are relative to it.
    partial[0] = block.max[h] + source.bias;
    partial[1] = block.sum[h];
    unpack_row(kernel, block.out + h * width, p.head_dim, partial + 2);
  }
}

int64_t slots_of(const DecodeAttendParams& p, int32_t kv_head) {
  int64_t n = 0;
  for (int32_t s = 0; s < p.n_sources; ++s) n += range_count(tokens_of(p.sources[s], kv_head));
  return n;
}

void check_params(const DecodeAttendParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= 256 && p.head_dim % 2 == 0, "head_dim {}", p.head_dim);
  CHECK(p.n_sources >= 0 && p.n_sources <= kMaxDecodeSources, "{} sources", p.n_sources);
  const int64_t group = p.n_heads / p.n_kv_heads;
  CHECK((group + 8) * 2 * (p.head_dim + 64) * int64_t{sizeof(float)} <=
            static_cast<int64_t>(kScratchBytes / 2),
        "{} query heads per KV head do not fit a worker's scratch", group);
  for (int32_t s = 0; s < p.n_sources; ++s) {
    CHECK(p.sources[s].chunk_tokens > 0 && p.sources[s].n_tokens >= 0, "source {}", s);
    CHECK(p.sources[s].ids == nullptr || p.sources[s].counts != nullptr, "source {}", s);
  }
  CHECK(p.n_merge >= 0 && p.n_merge <= (p.final_out != nullptr ? kMaxMergeWith : 0),
        "{} partials to merge with", p.n_merge);
}

void write_partial(Queue& queue, const DecodeAttendParams& p) {
  const DecodeKernel& kernel = decode_kernel(queue.isa());
  int64_t n_ranges = 0;
  int64_t n_tokens = 0;
  for (int32_t j = 0; j < p.n_kv_heads; ++j) {
    n_ranges += slots_of(p, j);
    for (int32_t s = 0; s < p.n_sources; ++s) n_tokens += tokens_of(p.sources[s], j);
  }
  const int64_t group = p.n_heads / p.n_kv_heads;
  const auto merge_group = [&](int64_t kv_head) {
    const int64_t n_slots = slots_of(p, static_cast<int32_t>(kv_head));
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      merge_ranges(partial_at(p, h, 0), n_slots, h, p.head_dim, p.out);
    }
  };

  if (n_tokens * 4 * p.head_dim < kMinParallelBytes) {
    queue.for_each(1, [&](int64_t, const Worker& worker) {
      for (int64_t i = 0; i < n_ranges; ++i) attend_range(p, kernel, find_range(p, i), worker);
      for (int32_t j = 0; j < p.n_kv_heads; ++j) merge_group(j);
    });
    return;
  }
  queue.for_each(n_ranges, [&](int64_t item, const Worker& worker) {
    attend_range(p, kernel, find_range(p, item), worker);
  });
  queue.for_each(p.n_kv_heads, [&](int64_t j, const Worker&) { merge_group(j); });
}

}  // namespace

void attend_decode(Queue& queue, const DecodeAttendParams& p) {
  check_params(p);
  write_partial(queue, p);
  if (p.final_out == nullptr) return;
  std::array<PartialView, kMaxMergeWith + 1> partials;
  std::copy(p.merge_with, p.merge_with + p.n_merge, partials.begin());
  partials[p.n_merge] = p.out;
  MergeParams merge;
  merge.partials = partials.data();
  merge.n_partials = p.n_merge + 1;
  merge.n_heads = p.n_heads;
  merge.head_dim = p.head_dim;
  merge.out = p.final_out;
  merge_partials(queue, merge);
}

}  // namespace tiercel::cpu
