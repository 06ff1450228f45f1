#include "cpu/attention_decode.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numbers>

#include "cpu/levels.h"
#include "cpu/query.h"
#include "engine/base/check.h"
#include "engine/base/partial.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kMinRangeTokens = 512;
// Below this many bytes of keys and values waking a second thread costs more than it saves.
constexpr int64_t kMinParallelBytes = 256 * 1024;
struct Range {
  int32_t source = 0, kv_head = 0;
  int64_t index = 0;           // among the ranges of this (source, KV head)
  int64_t slot = 0;            // among the partials of this KV head
  int64_t begin = 0, end = 0;  // tokens of the source
};

// Tokens that KV head j sees in a source, and how they are cut. Functions of shapes and counts
// only.
int64_t tokens_of(const KvSource& source, int32_t kv_head) {
  return source.ids != nullptr ? int64_t{source.counts[kv_head]} * source.chunk_tokens
                               : source.n_tokens + (source.later != nullptr ? *source.later : 0);
}
int64_t range_tokens(int64_t n_tokens) {
  const int64_t share = (n_tokens + kMaxDecodeRanges - 1) / kMaxDecodeRanges;
  const int64_t whole = (share + kDecodeBlock - 1) / kDecodeBlock * kDecodeBlock;
  return std::max(whole, kMinRangeTokens);
}
int64_t range_count(int64_t n_tokens) {
  const int64_t size = range_tokens(n_tokens);
  return (n_tokens + size - 1) / size;
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

// Offsets, in elements from the KV head's first row, of the tokens of a source.
class Rows {
 public:
  Rows(const KvSource& source, int32_t kv_head)
      : source_(source),
        ids_(source.ids == nullptr ? nullptr : source.ids + kv_head * source.ids_stride) {
    if (source.key_bias == nullptr) return;
    bias_ = source.key_bias + kv_head * source.key_bias_head_stride;
    if (source.bias_chunks == nullptr) return;
    bias_chunks_ = source.bias_chunks + kv_head * source.bias_chunks_stride;
  }

  // Tokens begin .. end - 1 into offsets[0 ..]; the last one again until n are filled.
  void fill(int64_t begin, int64_t end, int64_t n, int64_t* offsets) const {
    const int64_t n_live = std::min(end - begin, n);
    int64_t i = 0;
    if (ids_ == nullptr && source_.chunk_stride == source_.chunk_tokens * source_.token_stride) {
      for (; i < n_live; ++i) offsets[i] = (begin + i) * source_.token_stride;
    }
    int64_t chunk = begin / source_.chunk_tokens;
    int64_t within = begin % source_.chunk_tokens;
    for (; i < n_live; ++chunk, within = 0) {
      const int64_t id = ids_ == nullptr ? chunk : ids_[chunk];
      int64_t offset = id * source_.chunk_stride + within * source_.token_stride;
      for (; within < source_.chunk_tokens && i < n_live; ++within) {
        offsets[i++] = offset;
        offset += source_.token_stride;
      }
    }
    const int64_t last = i > 0 ? offsets[i - 1] : 0;
    while (i < n) offsets[i++] = last;
  }

  // What is added to the scores of tokens begin .. end - 1, in bias[0 ..].
  void fill_bias(int64_t begin, int64_t end, float* bias) const {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t chunk = token / source_.chunk_tokens;
      int64_t id = ids_ == nullptr ? chunk : ids_[chunk];
      if (bias_chunks_ != nullptr) id = bias_chunks_[id];
      bias[token - begin] = bias_[id * source_.chunk_tokens + token % source_.chunk_tokens];
    }
  }
  bool has_bias() const { return source_.key_bias != nullptr; }

 private:
  const KvSource& source_;
  const int32_t* ids_;
  const float* bias_ = nullptr;
  const int32_t* bias_chunks_ = nullptr;
};

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

  block.score.query_bytes = pack_queries(kernel, p.q + int64_t{range.kv_head} * group * p.head_dim,
                                         group, p.head_dim, queries);
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

  const Rows rows(source, range.kv_head);
  block.bias = rows.has_bias() ? bias : nullptr;
  rows.fill(range.begin, range.end, step, offsets + step);
  for (int64_t token = range.begin; token < range.end; token += step) {
    // This block and the next one: what was next is this now.
    std::copy(offsets + step, offsets + 2 * step, offsets);
    if (token + step < range.end) rows.fill(token + step, range.end, step, offsets + step);
    block.score.n_rows = static_cast<int32_t>(std::min(step, range.end - token));
    if (rows.has_bias()) rows.fill_bias(token, token + block.score.n_rows, bias);
    kernel.attend_block(block);
  }

  for (int32_t h = 0; h < group; ++h) {
    float* partial = partial_at(p, int64_t{range.kv_head} * group + h, range.slot);
    // A bias on every score is one on their maximum: sum and out are relative to it.
    partial[0] = block.max[h] + source.bias;
    partial[1] = block.sum[h];
    unpack_row(kernel, block.out + h * width, p.head_dim, partial + 2);
  }
}

void merge_head(const DecodeAttendParams& p, int32_t head, int64_t n_slots) {
  float max = kEmptyMax;
  float sum = 0;
  float* out = p.out.out + int64_t{head} * p.head_dim;
  std::fill(out, out + p.head_dim, 0.0f);
  for (int64_t slot = 0; slot < n_slots; ++slot) {
    const float* partial = partial_at(p, head, slot);
    merge_into(max, sum, out, partial[0], partial[1], partial + 2, p.head_dim);
  }
  p.out.max[head] = max;
  p.out.sum[head] = sum;
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
    for (int64_t h = 0; h < group; ++h) {
      merge_head(p, static_cast<int32_t>(kv_head * group + h), n_slots);
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
