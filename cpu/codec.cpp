#include "cpu/codec.h"

#include <algorithm>
#include <vector>

#include "cpu/levels.h"
#include "cpu/query.h"
#include "cpu/rotary.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kItemBytes = 256 << 10;  // bf16 rows of one work item
constexpr int64_t kMeanTokens = 4096;      // of one sum
constexpr int64_t kDecodeTokens = 512;     // of one work item
constexpr int64_t kDecodeRows = 16;        // decoded and turned at a time

const uint8_t* bytes(const std::byte* p) { return reinterpret_cast<const uint8_t*>(p); }
uint8_t* bytes(std::byte* p) { return reinterpret_cast<uint8_t*>(p); }

// Work items of whole rows: how many rows, of n_bytes each.
int64_t rows_per_item(int64_t n_bytes) { return std::max<int64_t>(kItemBytes / n_bytes, 1); }

void check_rope(const RopeView& rope, int64_t head_dim, int64_t end_position) {
  CHECK(head_dim == 2 * rope.half && rope.half <= kMaxRopeHalf, "head dimension {}, table {}",
        head_dim, 2 * rope.half);
  CHECK(end_position <= kRopeFine * rope.n_coarse, "positions up to {}, table for {}", end_position,
        kRopeFine * rope.n_coarse);
}

void check_codec(RowCodec codec, int64_t width, const std::byte* codes, int64_t head_stride) {
  CHECK(codec != RowCodec::kBf16 && can_code(width), "rows of {} cannot be coded", width);
  CHECK(reinterpret_cast<uintptr_t>(codes) % 16 == 0 && head_stride % 16 == 0,
        "codes at {}, heads {} bytes apart", static_cast<const void*>(codes), head_stride);
}

// Keys of tokens first .. end - 1, all heads: turned back, less the mean, coded.
void encode_keys(const EncodeParams& p, const ElementwiseLevel& level, const RowCodecKernel& codec,
                 int64_t first, int64_t end) {
  alignas(64) float cosines[kMaxRopeHalf];
  alignas(64) float sines[kMaxRopeHalf];
  alignas(64) float key[2 * kMaxRopeHalf];
  const CodedRows shape = coded_rows(p.codec, p.width, 1);
  const int64_t size = row_bytes(p.codec, p.width);
  for (int64_t t = first; t < end; ++t) {
    rope_angles(level, p.rope, t, cosines, sines);
    for (int64_t j = 0; j < p.n_kv_heads; ++j) {
      level.unrotate(bits(p.rows + j * p.head_stride + (t - p.first_row) * p.width), cosines, sines,
                     p.mean + j * p.width, p.rope.half, key);
      codec.encode_rows_f32(key, shape,
                            bytes(p.codes + j * p.code_head_stride + (t - p.first_code) * size));
    }
  }
}

// Sums of the keys of tokens first .. end - 1, all heads, turned back: [n_kv_heads][head_dim].
void sum_keys(const MeanKeysParams& p, const ElementwiseLevel& level, int64_t first, int64_t end,
              double* sums) {
  alignas(64) float cosines[kMaxRopeHalf];
  alignas(64) float sines[kMaxRopeHalf];
  alignas(64) float key[2 * kMaxRopeHalf];
  static constexpr float kNoShift[2 * kMaxRopeHalf] = {};
  const int64_t d = p.head_dim;
  std::fill_n(sums, p.n_kv_heads * d, 0.0);
  for (int64_t t = first; t < end; ++t) {
    rope_angles(level, p.rope, t, cosines, sines);
    for (int64_t j = 0; j < p.n_kv_heads; ++j) {
      level.unrotate(bits(p.keys + j * p.head_stride + t * d), cosines, sines, kNoShift,
                     p.rope.half, key);
      double* sum = sums + j * d;
      for (int64_t i = 0; i < d; ++i) sum[i] += static_cast<double>(key[i]);
    }
  }
}

// Missed chunks first .. end - 1 of the list of one KV head.
void decode_range(const DecodeKeysParams& p, const ElementwiseLevel& level,
                  const RowCodecKernel& codec, int64_t kv_head, int64_t first, int64_t end,
                  std::byte* scratch) {
  const int64_t d = p.head_dim, tokens = p.chunk_tokens;
  const int64_t size = row_bytes(p.codec, d);
  alignas(64) float cosines[kMaxRopeHalf];
  alignas(64) float sines[kMaxRopeHalf];
  float* rows = Carver(scratch).take<float>(kDecodeRows * d);
  const std::byte* codes = p.codes + kv_head * p.code_head_stride;
  const int32_t* chunks = p.miss_chunks + kv_head * p.stride;
  const int32_t* slots = p.miss_slots + kv_head * p.stride;
  for (int64_t i = first; i < end; ++i) {
    bf16* keys = p.slots + kv_head * p.slot_head_stride + slots[i] * 2 * tokens * d;
    if (i + 1 < end) {  // the next chunk, and its slot, are on their way meanwhile
      const std::byte* next = codes + chunks[i + 1] * tokens * size;
      const bf16* target = keys + (slots[i + 1] - int64_t{slots[i]}) * 2 * tokens * d;
      for (int64_t byte = 0; byte < tokens * size; byte += 64) __builtin_prefetch(next + byte);
      for (int64_t k = 0; k < tokens * d; k += 32) __builtin_prefetch(target + k, 1);
    }
    for (int64_t at = 0; at < tokens; at += kDecodeRows) {
      const int64_t n = std::min(kDecodeRows, tokens - at);
      const int64_t token = chunks[i] * tokens + at;
      codec.decode_rows_f32(bytes(codes + token * size), coded_rows(p.codec, d, n),
                            p.mean + kv_head * d, rows);
      for (int64_t t = 0; t < n; ++t) {
        rope_angles(level, p.rope, token + t, cosines, sines);
        level.rotate_f32(rows + t * d, cosines, sines, p.rope.half,
                         reinterpret_cast<uint16_t*>(keys + (at + t) * d));
      }
    }
  }
}

}  // namespace

void encode_rows(Queue& queue, const EncodeParams& p) {
  check_codec(p.codec, p.width, p.codes, p.code_head_stride);
  CHECK(p.first_token >= p.first_row && p.first_token >= p.first_code,
        "token {} before row {} or code {}", p.first_token, p.first_row, p.first_code);
  const RowCodecKernel& codec = row_codec_kernel(queue.isa());
  const int64_t end_token = p.first_token + p.n_tokens;
  if (p.mean != nullptr) {
    check_rope(p.rope, p.width, end_token);
    const ElementwiseLevel& level = elementwise_level(queue.isa());
    const int64_t step = rows_per_item(2 * p.width * p.n_kv_heads);
    queue.for_each((p.n_tokens + step - 1) / step, [&](int64_t item, const Worker&) {
      const int64_t first = p.first_token + item * step;
      encode_keys(p, level, codec, first, std::min(first + step, end_token));
    });
    return;
  }
  const int64_t step = rows_per_item(2 * p.width);
  const int64_t n_items = (p.n_tokens + step - 1) / step;
  const int64_t size = row_bytes(p.codec, p.width);
  queue.for_each(p.n_kv_heads * n_items, [&](int64_t item, const Worker&) {
    const int64_t j = item / n_items;
    const int64_t first = p.first_token + item % n_items * step;
    const int64_t n = std::min(step, end_token - first);
    codec.encode_rows(bits(p.rows + j * p.head_stride + (first - p.first_row) * p.width),
                      coded_rows(p.codec, p.width, n),
                      bytes(p.codes + j * p.code_head_stride + (first - p.first_code) * size));
  });
}

void mean_keys(Queue& queue, const MeanKeysParams& p) {
  CHECK(p.n_tokens > 0, "a mean of {} keys", p.n_tokens);
  check_rope(p.rope, p.head_dim, p.n_tokens);
  const ElementwiseLevel& level = elementwise_level(queue.isa());
  const int64_t w = int64_t{p.n_kv_heads} * p.head_dim;
  const int64_t n_items = (p.n_tokens + kMeanTokens - 1) / kMeanTokens;
  std::vector<double> sums(static_cast<size_t>(n_items * w));
  queue.for_each(n_items, [&](int64_t item, const Worker&) {
    const int64_t first = item * kMeanTokens;
    sum_keys(p, level, first, std::min(first + kMeanTokens, p.n_tokens), sums.data() + item * w);
  });
  for (int64_t i = 0; i < w; ++i) {
    double sum = 0;
    for (int64_t item = 0; item < n_items; ++item) sum += sums[static_cast<size_t>(item * w + i)];
    p.mean[i] = static_cast<float>(sum / static_cast<double>(p.n_tokens));
  }
}

void decode_keys(Queue& queue, const DecodeKeysParams& p) {
  check_codec(p.codec, p.head_dim, p.codes, p.code_head_stride);
  check_rope(p.rope, p.head_dim, 0);
  const ElementwiseLevel& level = elementwise_level(queue.isa());
  const RowCodecKernel& codec = row_codec_kernel(queue.isa());
  const int64_t step = std::max<int64_t>(1, kDecodeTokens / p.chunk_tokens);
  int64_t most = 0;
  for (int64_t j = 0; j < p.n_kv_heads; ++j) most = std::max<int64_t>(most, p.miss_counts[j]);
  const int64_t n_ranges = (most + step - 1) / step;
  queue.for_each(n_ranges * p.n_kv_heads, [&](int64_t item, const Worker& worker) {
    const int64_t j = item % p.n_kv_heads, first = item / p.n_kv_heads * step;
    const int64_t end = std::min<int64_t>(p.miss_counts[j], first + step);
    if (first < end) decode_range(p, level, codec, j, first, end, worker.scratch);
  });
}

}  // namespace tiercel::cpu
