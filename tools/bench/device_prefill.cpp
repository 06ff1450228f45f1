// Prefill attention: a chunk of 4096 queries at the end of contexts of several lengths, with other
// head shapes, with a window, and over selected chunks.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/attention_prefill.h"
#include "tools/bench/device_harness.h"

namespace tiercel::bench {
namespace {

struct Shape {
  int32_t n_heads = 32, n_kv_heads = 8, head_dim = 128;
};

// Queries, planes and output of the last n_tokens of a context of end tokens.
class Chunk {
 public:
  Chunk(Device& device, const Shape& shape, int64_t end)
      : n_tokens_(device.size(4096, 64)),
        q_(device, n_tokens_ * shape.n_heads * shape.head_dim),
        out_(device, q_.size()),
        keys_(device, end * shape.n_kv_heads * shape.head_dim),
        values_(device, keys_.size()) {
    params.q = q_.data();
    params.keys = keys_.data();
    params.values = values_.data();
    params.out = out_.data();
    params.head_stride = end * shape.head_dim;
    params.n_tokens = n_tokens_;
    params.first_position = end - n_tokens_;
    params.n_heads = shape.n_heads;
    params.n_kv_heads = shape.n_kv_heads;
    params.head_dim = shape.head_dim;
    params.scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
  }
  const Array<bf16>& out() const { return out_; }

  PrefillAttendParams params;

 private:
  int64_t n_tokens_;
  Noise q_, out_, keys_, values_;
};

// Keys that the chunk's queries see, summed over the queries.
double visible_keys(const PrefillAttendParams& p) {
  double keys = 0;
  for (int64_t t = 0; t < p.n_tokens; ++t) {
    const int64_t all = p.first_position + t + 1;
    keys += static_cast<double>(p.window > 0 ? std::min(p.window, all) : all);
  }
  return keys;
}

using cuda::PrefillVariant;

const char* name_of(PrefillVariant variant) {
  switch (variant) {
    case PrefillVariant::kDefault: return "prefill";
    case PrefillVariant::kMmaSync: return "prefill mma.sync";
    case PrefillVariant::kPlain: return "prefill plain";
    case PrefillVariant::kOverlap: return "prefill overlap";
    case PrefillVariant::kPingPong: return "prefill ping-pong";
  }
  return "?";
}

void measure(Device& device, const Chunk& chunk, PrefillVariant variant, double keys,
             const std::string& what) {
  const PrefillAttendParams& p = chunk.params;
  const Result result = {
      .name = name_of(variant),
      .shape = fmt::format("d {} {}/{} {}", p.head_dim, p.n_heads, p.n_kv_heads, what),
      .us =
          device.time_us([&](int64_t) { cuda::attend_prefill_with(device.stream(), p, variant); }),
      .flops = 4.0 * p.head_dim * p.n_heads * keys};
  device.report(result);
  // Without the repair of rows that are not finite, which would hide a wrong kernel.
  cuda::attend_prefill_with(device.stream(), p, variant, false);
  device.expect_finite(result.name, chunk.out().data(), chunk.out().size());
}

void dense(Device& device, const Shape& shape, int64_t end,
           const std::vector<PrefillVariant>& variants) {
  const Chunk chunk(device, shape, end);
  const std::string what = fmt::format("{} at {}", chunk.params.n_tokens, end);
  for (const PrefillVariant variant : variants) {
    measure(device, chunk, variant, visible_keys(chunk.params), what);
  }
}

// One list per block of queries and KV head: two sink chunks and n_chosen others.
struct Blocks {
  static constexpr int32_t kChunkTokens = 8;
  static constexpr int64_t kSinks = 2;

  Blocks(Device& device, PrefillAttendParams& p, int64_t block_tokens, int64_t n_chosen)
      : Blocks(device, p, block_tokens, n_chosen, p.n_tokens / block_tokens) {}

  double keys = 0;

 private:
  Blocks(Device& device, PrefillAttendParams& p, int64_t block_tokens, int64_t n_chosen,
         int64_t n_blocks)
      : ids_(device, n_blocks * p.n_kv_heads * (kSinks + n_chosen)),
        counts_(device, std::vector<int32_t>(n_blocks * p.n_kv_heads,
                                             static_cast<int32_t>(kSinks + n_chosen))),
        begins_(device, n_blocks) {
    std::vector<int32_t> ids;
    std::vector<int64_t> begins;
    for (int64_t b = 0; b < n_blocks; ++b) {
      const int64_t first = p.first_position + b * block_tokens;
      begins.push_back((first - block_tokens) / kChunkTokens * kChunkTokens);
      for (int32_t j = 0; j < p.n_kv_heads; ++j) {
        for (int32_t c = 0; c < kSinks; ++c) ids.push_back(c);
        const auto chosen =
            ascending_ids(device.rng(), n_chosen, kSinks, begins.back() / kChunkTokens);
        ids.insert(ids.end(), chosen.begin(), chosen.end());
      }
      for (int64_t t = 0; t < block_tokens; ++t) {
        keys +=
            static_cast<double>((kSinks + n_chosen) * kChunkTokens + first + t + 1 - begins.back());
      }
    }
    device.stream().copy_bytes(ids_.data(), 0, ids.data(), 0, ids_.bytes(), 1);
    device.stream().copy_bytes(begins_.data(), 0, begins.data(), 0, begins_.bytes(), 1);
    device.stream().finish();
    p.block_tokens = block_tokens;
    p.chunk_ids = ids_.data();
    p.chunk_counts = counts_.data();
    p.local_begin = begins_.data();
    p.max_chunks = kSinks + n_chosen;
    p.chunk_tokens = kChunkTokens;
  }

  Array<int32_t> ids_, counts_;
  Array<int64_t> begins_;
};

std::vector<PrefillVariant> variants(Device& device) {
  using enum PrefillVariant;
  if (device.stream().architecture() != 90) return {kDefault, kMmaSync};
  return {kDefault, kMmaSync, kPlain, kOverlap, kPingPong};
}

void all_variants(Device& device, Shape shape, int64_t end) {
  if (device.smoke()) shape = {shape.n_heads / shape.n_kv_heads, 1, shape.head_dim};
  dense(device, shape, device.size(end, 192), variants(device));
}

}  // namespace

void run_prefill_dense(Device& device) {
  const Shape shape = device.smoke() ? Shape{4, 1, 128} : Shape{};
  for (const int64_t end : {8192, 32768, 131072, 524288}) {
    dense(device, shape, device.size(end, 192), {PrefillVariant::kDefault});
    if (device.smoke()) break;
  }
}

void run_prefill_variants(Device& device) {
  all_variants(device, Shape{}, 32768);
  if (!device.smoke()) all_variants(device, Shape{}, 131072);
}

void run_prefill_64(Device& device) { all_variants(device, {32, 8, 64}, 32768); }
void run_prefill_96(Device& device) { all_variants(device, {32, 32, 96}, 32768); }
void run_prefill_256(Device& device) { all_variants(device, {16, 8, 256}, 32768); }

void run_prefill_sparse(Device& device) {
  const Shape shape = device.smoke() ? Shape{4, 1, 128} : Shape{};
  Chunk chunk(device, shape, device.size(131072, 512));
  chunk.params.window = device.size(4096, 100);
  for (const PrefillVariant variant : variants(device)) {
    measure(device, chunk, variant, visible_keys(chunk.params),
            fmt::format("window {}", chunk.params.window));
  }
  chunk.params.window = 0;
  const int64_t n_chosen = device.size(256, 8);
  const Blocks blocks(device, chunk.params, device.size(256, 32), n_chosen);
  for (const PrefillVariant variant : variants(device)) {
    measure(device, chunk, variant, blocks.keys, fmt::format("blocks of {} chunks", n_chosen));
  }
}

}  // namespace tiercel::bench
