// Decode attention: one token over a whole context, and over what a selecting step attends.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/attention_decode.h"
#include "tools/bench/device_harness.h"

namespace tiercel::bench {
namespace {

constexpr int32_t kHeadDim = 128;
constexpr int64_t kGroup = 4;

int32_t kv_heads(const Device& device) { return static_cast<int32_t>(device.size(8, 1)); }

// Query, partial result and workspace of one step.
class Step {
 public:
  explicit Step(Device& device)
      : n_kv_heads_(kv_heads(device)),
        n_heads_(n_kv_heads_ * kGroup),
        q_(device, n_heads_ * kHeadDim),
        partial_(device, n_heads_ * (kHeadDim + 2)),
        second_(device, partial_.size()),
        workspace_(device, decode_workspace_floats(n_heads_, kHeadDim)),
        out_(device, n_heads_ * kHeadDim) {
    params.q = q_.data();
    params.n_heads = static_cast<int32_t>(n_heads_);
    params.n_kv_heads = static_cast<int32_t>(n_kv_heads_);
    params.head_dim = kHeadDim;
    params.scale = 1 / std::sqrt(static_cast<float>(kHeadDim));
    params.out = {.max = partial_.data(),
                  .sum = partial_.data() + n_heads_,
                  .out = partial_.data() + 2 * n_heads_};
    params.workspace = workspace_.data();
  }
  void attend(cuda::Stream& stream, std::span<const KvSource> sources) {
    cuda::attend_decode(stream, of(sources));
  }
  void attend(cuda::Stream& stream, std::span<const KvSource> sources,
              const cuda::DecodePlan& plan) {
    cuda::attend_decode(stream, of(sources), plan);
  }
  DecodeAttendParams of(std::span<const KvSource> sources) const {
    DecodeAttendParams p = params;
    p.sources = sources.data();
    p.n_sources = static_cast<int32_t>(sources.size());
    return p;
  }
  // With the partial that is there already, to the end.
  void attend_and_merge(cuda::Stream& stream, std::span<const KvSource> sources) {
    DecodeAttendParams p = of(sources);
    p.merge_with = &params.out;
    p.n_merge = 1;
    p.out = {.max = second_.data(),
             .sum = second_.data() + n_heads_,
             .out = second_.data() + 2 * n_heads_};
    p.final_out = out_.data();
    cuda::attend_decode(stream, p);
  }
  void merge(cuda::Stream& stream, int32_t n_partials) {
    const std::vector<PartialView> partials(static_cast<size_t>(n_partials), params.out);
    cuda::merge_partials(stream, {.partials = partials.data(),
                                  .n_partials = n_partials,
                                  .n_heads = params.n_heads,
                                  .head_dim = kHeadDim,
                                  .out = out_.data()});
  }
  void expect_finite(Device& device, const std::string& name) {
    merge(device.stream(), 1);
    device.expect_finite(name, out_.data(), out_.size());
  }
  int64_t n_kv_heads() const { return n_kv_heads_; }

  DecodeAttendParams params;

 private:
  int64_t n_kv_heads_, n_heads_;
  Noise q_;
  Array<float> partial_, second_, workspace_;
  Array<bf16> out_;
};

double attended_bytes(int64_t n_kv_heads, int64_t n_tokens) {
  return static_cast<double>(n_kv_heads * n_tokens * kHeadDim * 2 * 2);
}

KvSource plane(const bf16* keys, const bf16* values, int64_t head_stride, int64_t n_tokens) {
  return {.keys = keys,
          .values = values,
          .head_stride = head_stride,
          .chunk_stride = kHeadDim,
          .token_stride = kHeadDim,
          .n_tokens = n_tokens};
}

// What one layer attends besides its planes' recent end: all of it scattered by earlier steps.
struct SparseSizes {
  int64_t recent, sinks, outliers, chunks, slots;
  int64_t listed;  // of the chunks: how many the counts say
};
constexpr int32_t kChunkTokens = 8;

// The regions of as many layers as make the caches forget.
class SparseLayers {
 public:
  SparseLayers(Device& device, int64_t n_kv_heads, const SparseSizes& sizes)
      : sizes_(sizes),
        n_kv_heads_(n_kv_heads),
        n_layers_(device.size(16, 2)),
        rows_(sizes.recent + sizes.sinks + sizes.outliers),
        keys_(device, n_layers_ * n_kv_heads * rows_ * kHeadDim),
        values_(device, keys_.size()),
        slots_(device, n_layers_ * n_kv_heads * sizes.slots * kRecord),
        counts_(device, std::vector<int32_t>(n_kv_heads, static_cast<int32_t>(sizes.listed))),
        ids_(device, lists(device)) {}

  std::vector<KvSource> layer(int64_t turn) const {
    const int64_t l = turn % n_layers_;
    const int64_t first = l * n_kv_heads_ * rows_ * kHeadDim;
    std::vector<KvSource> sources;
    int64_t row = 0;
    for (const int64_t n : {sizes_.sinks, sizes_.outliers, sizes_.recent}) {
      sources.push_back(plane(keys_.data() + first + row * kHeadDim,
                              values_.data() + first + row * kHeadDim, rows_ * kHeadDim, n));
      row += n;
    }
    const bf16* slots = slots_.data() + l * n_kv_heads_ * sizes_.slots * kRecord;
    sources.push_back({.keys = slots,
                       .values = slots + kRecord / 2,
                       .head_stride = sizes_.slots * kRecord,
                       .chunk_stride = kRecord,
                       .token_stride = kHeadDim,
                       .chunk_tokens = kChunkTokens,
                       .ids = ids_.data() + l * n_kv_heads_ * sizes_.chunks,
                       .counts = counts_.data(),
                       .ids_stride = sizes_.chunks});
    return sources;
  }
  int64_t n_tokens() const { return rows_ + sizes_.listed * kChunkTokens; }

 private:
  static constexpr int64_t kRecord = 2 * kChunkTokens * kHeadDim;

  std::vector<int32_t> lists(Device& device) const {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < n_layers_ * n_kv_heads_; ++i) {
      auto list = ascending_ids(device.rng(), sizes_.chunks, 0, sizes_.slots);
      std::shuffle(list.begin(), list.end(), device.rng());
      ids.insert(ids.end(), list.begin(), list.end());
    }
    return ids;
  }

  SparseSizes sizes_;
  int64_t n_kv_heads_, n_layers_, rows_;
  Noise keys_, values_, slots_;
  Array<int32_t> counts_, ids_;
};

// The plan of the op beside fewer and more splits, and beside the other way to merge.
void plans(Device& device, Step& step, double bytes,
           const std::function<std::vector<KvSource>(int64_t)>& sources) {
  const cuda::DecodePlan own = cuda::plan_decode(device.stream(), step.of(sources(0)));
  std::vector<cuda::DecodePlan> all = {own,
                                       {own.n_splits, true},
                                       {own.n_splits, false},
                                       {own.n_splits / 2, true},
                                       {own.n_splits * 2, true}};
  for (const cuda::DecodePlan& plan : all) {
    if (plan.n_splits < 1) continue;
    device.report(
        {.name = "decode plan",
         .shape = fmt::format("{} splits, merge {}{}", plan.n_splits,
                              plan.merge_at_once ? "at once" : "apart", plan.few ? ", few" : ""),
         .us = device.time_us(
             [&](int64_t turn) { step.attend(device.stream(), sources(turn), plan); }),
         .bytes = bytes});
    step.expect_finite(device, "decode plan");
  }
}

// Sequences of a batch, one launch after the other and all in one.
void batch(Device& device, const SparseLayers& layers, int64_t n_kv_heads) {
  std::vector<std::unique_ptr<Step>> steps;
  for (int i = 0; i < cuda::kMostTogether; ++i) steps.push_back(std::make_unique<Step>(device));
  const auto n = static_cast<int64_t>(steps.size());
  const auto row = [&](const char* how, const Device::Call& call) {
    device.report({.name = "decode batch",
                   .shape = fmt::format("{} sequences, {}", n, how),
                   .us = device.time_us(call),
                   .bytes = static_cast<double>(n) * attended_bytes(n_kv_heads, layers.n_tokens())});
  };
  const auto attend = [&](int64_t turn, int64_t i) {
    steps[static_cast<size_t>(i)]->attend(device.stream(), layers.layer(n * turn + i));
  };
  row("one by one", [&](int64_t turn) {
    for (int64_t i = 0; i < n; ++i) attend(turn, i);
  });
  row("at once", [&](int64_t turn) {
    together(device.stream(), n, [&](int64_t i) { attend(turn, i); });
  });
}

}  // namespace

void run_decode_dense(Device& device) {
  Step step(device);
  const int64_t capacity = device.size(1 << 20, 1024);
  const int64_t head_stride = capacity * kHeadDim;
  Noise keys(device, step.n_kv_heads() * head_stride), values(device, keys.size());
  for (const int64_t n : {32768, 131072, 1 << 20}) {
    const int64_t n_tokens = device.size(n, 256);
    const int64_t n_places = capacity / n_tokens;
    const auto sources = [&](int64_t turn) {
      const int64_t first = turn % n_places * n_tokens * kHeadDim;
      return std::vector{plane(keys.data() + first, values.data() + first, head_stride, n_tokens)};
    };
    const double bytes = attended_bytes(step.n_kv_heads(), n_tokens);
    device.report(
        {.name = "decode",
         .shape =
             fmt::format("d 128 {}/{} of {}", step.params.n_heads, step.n_kv_heads(), n_tokens),
         .us = device.time_us([&](int64_t turn) { step.attend(device.stream(), sources(turn)); }),
         .bytes = bytes});
    step.expect_finite(device, "decode");
    if (n == 131072 || device.smoke()) plans(device, step, bytes, sources);
    if (device.smoke()) break;
  }
}

void run_decode_sparse(Device& device) {
  Step step(device);
  const SparseSizes sizes =
      device.smoke() ? SparseSizes{32, 16, 24, 8, 16, 8} : SparseSizes{256, 16, 384, 256, 512, 256};
  const SparseLayers layers(device, step.n_kv_heads(), sizes);
  device.report({.name = "decode sparse",
                 .shape = fmt::format("{} tokens, {} in slots", layers.n_tokens(),
                                      sizes.chunks * kChunkTokens),
                 .us = device.time_us(
                     [&](int64_t turn) { step.attend(device.stream(), layers.layer(turn)); }),
                 .bytes = attended_bytes(step.n_kv_heads(), layers.n_tokens())});
  step.expect_finite(device, "decode sparse");
  plans(device, step, attended_bytes(step.n_kv_heads(), layers.n_tokens()),
        [&](int64_t turn) { return layers.layer(turn); });
  // As a step does it: what is resident first, then what had to be fetched, then the merge.
  device.report({.name = "decode sparse",
                 .shape = "planes, slots and merge",
                 .us = device.time_us([&](int64_t turn) {
                   const std::vector<KvSource> all = layers.layer(turn);
                   step.attend(device.stream(), std::span(all).first(3));
                   step.attend_and_merge(device.stream(), std::span(all).last(1));
                 }),
                 .bytes = attended_bytes(step.n_kv_heads(), layers.n_tokens())});
  SparseSizes missed = sizes;
  missed.listed = sizes.chunks / 4;
  const SparseLayers misses(device, step.n_kv_heads(), missed);
  device.report(
      {.name = "decode sparse",
       .shape = fmt::format("{} chunks of at most {} and merge", missed.listed, missed.chunks),
       .us = device.time_us([&](int64_t turn) {
         const std::vector<KvSource> all = misses.layer(turn);
         step.attend_and_merge(device.stream(), std::span(all).last(1));
       }),
       .bytes = attended_bytes(step.n_kv_heads(), missed.listed * kChunkTokens)});
  batch(device, layers, step.n_kv_heads());
  device.report({.name = "merge",
                 .shape = fmt::format("2 of {} heads", step.params.n_heads),
                 .us = device.time_us([&](int64_t) { step.merge(device.stream(), 2); })});
}

}  // namespace tiercel::bench
