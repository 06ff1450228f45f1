#include "cpu/weighted_values.h"

#include <algorithm>
#include <cmath>

#include "cpu/codec.h"
#include "cpu/levels.h"
#include "cpu/query.h"
#include "cpu/source_rows.h"
#include "engine/base/check.h"
#include "engine/base/partial.h"

namespace tiercel::cpu {
namespace {

static_assert(kWeightRange == kDecodeBlock);
constexpr int64_t kLineBytes = 64;
constexpr int64_t kMaxRun =
    8;  // rows decoded at a time: what is asked for ahead comes in that rhythm

int64_t tokens_of(const WeightedValuesParams& p, int64_t kv_head) {
  return int64_t{p.counts[kv_head]} * p.chunk_tokens;
}

// Where the partial of (head, range) is: [n_heads][ranges][max, sum, out].
float* partial_at(const WeightedValuesParams& p, int64_t head, int64_t range) {
  return p.workspace + (head * kMaxDecodeRanges + range) * (p.head_dim + 2);
}

// The values of a KV head as a source: strides in elements of bf16, or in bytes of codes.
KvSource value_source(const WeightedValuesParams& p) {
  KvSource source;
  source.token_stride = p.codec == RowCodec::kBf16 ? p.head_dim : row_bytes(p.codec, p.head_dim);
  source.chunk_stride = p.chunk_tokens * source.token_stride;
  source.chunk_tokens = p.chunk_tokens;
  source.ids = p.ids;
  source.counts = p.counts;
  source.ids_stride = p.ids_stride;
  return source;
}

// n coded rows of one block, one after the other, in runs of those that are neighbours. The rows
// `step` ahead of a run are on their way meanwhile.
void decode_block(const RowCodecKernel& kernel, const uint8_t* codes, CodedRows shape,
                  int64_t row_bytes, const int64_t* offsets, int64_t n, int64_t step,
                  uint16_t* decoded) {
  for (int64_t r = 0, run; r < n; r += run) {
    run = 1;
    while (r + run < n && run < kMaxRun && offsets[r + run] == offsets[r] + run * row_bytes) ++run;
    for (int64_t ahead = r + step; ahead < r + step + run; ++ahead) {
      for (int64_t at = 0; at < row_bytes; at += kLineBytes) {
        __builtin_prefetch(codes + offsets[ahead] + at);
      }
    }
    shape.n_rows = run;
    kernel.decode_rows(codes + offsets[r], shape, decoded + r * shape.width);
  }
}

struct Kernels {
  const DecodeKernel& decode;
  const RowCodecKernel& codec;
};

// One item: the partials of all heads of a group over one range of tokens.
void add_range(const WeightedValuesParams& p, const Kernels& kernels, int32_t kv_head,
               int64_t range, const Worker& worker) {
  const DecodeKernel& kernel = kernels.decode;
  const int32_t group = p.n_heads / p.n_kv_heads;
  const int32_t n_heads = padded_heads(group);
  const int64_t width = packed_width(kernel, p.head_dim);
  const int64_t n_tokens = tokens_of(p, kv_head), size = range_tokens(n_tokens);
  const int64_t begin = range * size, end = std::min(n_tokens, begin + size);

  Carver scratch(worker.scratch);
  DecodeBlock block{};
  block.out_stride = width;
  block.out = scratch.take<float>(n_heads * width);
  block.alpha = scratch.take<float>(n_heads);
  block.score.scores = scratch.take<float>(n_heads * int64_t{kDecodeBlock});
  int64_t* offsets = scratch.take<int64_t>(2 * kDecodeBlock);
  int64_t* dense = scratch.take<int64_t>(kDecodeBlock);
  uint16_t* decoded = scratch.take<uint16_t>(int64_t{kDecodeBlock} * p.head_dim);
  block.n_live_heads = group;
  block.score.head_dim = p.head_dim;
  block.score.n_heads = n_heads;
  std::fill(block.out, block.out + n_heads * width, 0.0f);
  std::fill(block.alpha, block.alpha + n_heads, 1.0f);
  std::fill(block.score.scores, block.score.scores + n_heads * int64_t{kDecodeBlock}, 0.0f);

  const int64_t first_head = int64_t{kv_head} * group;
  for (int32_t g = 0; g < group; ++g) {
    const float* maxima = p.maxima + (first_head + g) * p.maximum_stride;
    float* partial = partial_at(p, first_head + g, range);
    partial[0] = *std::max_element(maxima + begin / kWeightRange,
                                   maxima + (end + kWeightRange - 1) / kWeightRange);
    partial[1] = 0;
  }

  const bool coded = p.codec != RowCodec::kBf16;
  const uint8_t* codes = nullptr;
  const int64_t step = block_rows(p.head_dim);
  if (coded) {
    codes = reinterpret_cast<const uint8_t*>(p.codes) + kv_head * p.code_head_stride;
    block.value_base = decoded;
    block.score.offsets = dense;
    for (int64_t r = 0; r < kDecodeBlock; ++r) dense[r] = r * p.head_dim;
  } else {
    block.value_base = bits(p.values + kv_head * p.value_head_stride);
    block.score.offsets = offsets;
    block.score.prefetch_rows = static_cast<int32_t>(step);
    block.prefetch_in_rows = true;
  }

  const KvSource source = value_source(p);
  const SourceRows rows(source, kv_head);
  rows.fill(begin, end, step, offsets + step);
  for (int64_t token = begin; token < end; token += step) {
    // This block and the next one: what was next is this now.
    std::copy(offsets + step, offsets + 2 * step, offsets);
    if (token + step < end) rows.fill(token + step, end, step, offsets + step);
    const auto n = static_cast<int32_t>(std::min(step, end - token));
    block.score.n_rows = n;
    for (int32_t g = 0; g < group; ++g) {
      const int64_t head = first_head + g;
      float* partial = partial_at(p, head, range);
      const float base = partial[0] == kEmptyMax ? 0.0f : partial[0];
      const float max = p.maxima[head * p.maximum_stride + token / kWeightRange];
      partial[1] +=
          kernel.scale_weights(bits(p.weights + head * p.weight_stride + token), n,
                               std::exp2(max - base), block.score.scores + g * kDecodeBlock);
    }
    if (coded) {
      decode_block(kernels.codec, codes, coded_rows(p.codec, p.head_dim, 0), source.token_stride,
                   offsets, n, step, decoded);
    }
    kernel.add_values(block);
  }
  for (int32_t g = 0; g < group; ++g) {
    unpack_row(kernel, block.out + g * width, p.head_dim, partial_at(p, first_head + g, range) + 2);
  }
}

void check_params(const WeightedValuesParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads, {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= 256 && p.head_dim % 2 == 0, "head_dim {}", p.head_dim);
  CHECK(p.ids != nullptr && p.counts != nullptr && p.chunk_tokens > 0, "a list of chunks of {}",
        p.chunk_tokens);
  if (p.codec == RowCodec::kBf16) {
    CHECK(p.values != nullptr, "no values");
  } else {
    CHECK(p.codes != nullptr && can_code(p.head_dim), "codes of {}", p.head_dim);
  }
}

}  // namespace

void weighted_values(Queue& queue, const WeightedValuesParams& p) {
  check_params(p);
  const Kernels kernels{decode_kernel(queue.isa()), row_codec_kernel(queue.isa())};
  const int64_t group = p.n_heads / p.n_kv_heads;
  int64_t n_items = 0, n_tokens = 0;
  for (int32_t j = 0; j < p.n_kv_heads; ++j) {
    n_items += range_count(tokens_of(p, j));
    n_tokens += tokens_of(p, j);
  }
  // The item-th range, KV heads one after the other.
  const auto add_item = [&](int64_t item, const Worker& worker) {
    int32_t j = 0;
    for (int64_t n; item >= (n = range_count(tokens_of(p, j))); ++j) item -= n;
    add_range(p, kernels, j, item, worker);
  };
  const auto merge_group = [&](int64_t j) {
    const int64_t n_ranges = range_count(tokens_of(p, j));
    for (int64_t h = j * group; h < (j + 1) * group; ++h) {
      merge_ranges(partial_at(p, h, 0), n_ranges, h, p.head_dim, p.out);
    }
  };
  if (n_tokens * row_bytes(p.codec, p.head_dim) < kMinParallelBytes) {
    queue.for_each(1, [&](int64_t, const Worker& worker) {
      for (int64_t i = 0; i < n_items; ++i) add_item(i, worker);
      for (int64_t j = 0; j < p.n_kv_heads; ++j) merge_group(j);
    });
    return;
  }
  queue.for_each(n_items, add_item);
  queue.for_each(p.n_kv_heads, [&](int64_t j, const Worker&) { merge_group(j); });
}

}  // namespace tiercel::cpu
