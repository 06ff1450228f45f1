// The index and its users: landmarks, outliers, selection for a decode step and for prefill.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/gather.h"
#include "kernels/landmark.h"
#include "kernels/select.h"
#include "tools/bench/device_landmarks.h"

namespace tiercel::bench {
namespace {

// Words with a few set bits, as the sinks and outliers of a prompt set them.
std::vector<uint64_t> excluded_bits(Device& device, int64_t n_heads, int64_t n_chunks) {
  std::vector<uint64_t> words(n_heads * (n_chunks / 64));
  for (int i = 0; i < 48 * n_heads; ++i) {
    words[device.rng()() % words.size()] |= uint64_t{1} << device.rng()() % 64;
  }
  return words;
}

// A decode step's selection, and all that it points at but the landmarks.
struct Selection {
  Selection(Device& device, int64_t n_chunks, int64_t k)
      : n_kv_heads(kv_heads(device)),
        n_heads(n_kv_heads * kGroup),
        q(device, n_heads * kHeadDim),
        excluded(device, excluded_bits(device, n_kv_heads, n_chunks)),
        ids(device, n_kv_heads * k),
        counts(device, n_kv_heads),
        workspace(device, select_workspace_floats(n_heads, n_kv_heads, n_chunks)),
        params{.q = q.data(),
               .landmark_head_stride = n_chunks * kHeadDim,
               .excluded = excluded.data(),
               .excluded_stride = n_chunks / 64,
               .end_chunk = n_chunks,
               .k = k,
               .n_heads = static_cast<int32_t>(n_heads),
               .n_kv_heads = static_cast<int32_t>(n_kv_heads),
               .head_dim = kHeadDim,
               .scale = 1 / std::sqrt(static_cast<float>(kHeadDim)),
               .ids = ids.data(),
               .counts = counts.data(),
               .workspace = workspace.data()} {}

  void check(Device& device) const {
    for (const int32_t count : counts.host()) {
      if (count != params.k) device.wrong(fmt::format("select: {} chunks selected of {}", count, params.k));
    }
  }

  int64_t n_kv_heads, n_heads;
  Noise q;
  Array<uint64_t> excluded;
  Array<int32_t> ids, counts;
  Array<float> workspace;
  SelectParams params;
};

void select(Device& device, int64_t n_chunks, int64_t k) {
  const Landmarks landmarks(device, n_chunks);
  Selection one(device, n_chunks, k);
  for (const GroupScore group : {GroupScore::kMax, GroupScore::kMean}) {
    one.params.group = group;
    const double us = device.time_us([&](int64_t turn) {
      one.params.landmarks = landmarks.plane(turn);
      cuda::select_chunks(device.stream(), one.params);
    });
    device.report({.name = group == GroupScore::kMax ? "select max" : "select mean",
                   .shape = fmt::format("{} of {} x {}", k, n_chunks, one.n_kv_heads),
                   .us = us,
                   .bytes = landmarks.plane_bytes()});
    one.check(device);
  }
  const double us = device.time_us([&](int64_t turn) {
    one.params.landmarks = landmarks.plane(turn);
    cuda::score_chunks(device.stream(), one.params);
  });
  device.report({.name = "landmark scan",
                 .shape = fmt::format("{} x {}", n_chunks, one.n_kv_heads),
                 .us = us,
                 .bytes = landmarks.plane_bytes()});
}

// Of eight sequences in one launch: each with landmarks of its own, and all behind one prefix.
void select_together(Device& device, int64_t n_chunks, int64_t k) {
  constexpr int64_t kSequences = cuda::Stream::kTogether;
  const Landmarks landmarks(device, n_chunks);
  std::vector<std::unique_ptr<Selection>> all;
  for (int64_t i = 0; i < kSequences; ++i) all.push_back(std::make_unique<Selection>(device, n_chunks, k));
  for (const bool shared : {false, true}) {
    const double us = device.time_us([&](int64_t turn) {
      together(device.stream(), kSequences, [&](int64_t i) {
        SelectParams& p = all[static_cast<size_t>(i)]->params;
        p.landmarks = landmarks.plane(shared ? turn : kSequences * turn + i);
        if (shared) p.excluded = all[0]->params.excluded;
        cuda::select_chunks(device.stream(), p);
      });
    });
    device.report({.name = shared ? "select behind one prefix" : "select of several",
                   .shape = fmt::format("{} x {} of {} x {}", kSequences, k, n_chunks, all[0]->n_kv_heads),
                   .us = us,
                   .bytes = (shared ? 1.0 : static_cast<double>(kSequences)) * landmarks.plane_bytes()});
    for (const auto& one : all) one->check(device);
  }
}

void select_prefill(Device& device, int64_t n_chunks, int64_t k) {
  const int64_t n_kv_heads = kv_heads(device), n_heads = n_kv_heads * kGroup;
  const int64_t n_tokens = device.size(4096, 128), block_tokens = device.size(256, 64);
  const int64_t n_blocks = n_tokens / block_tokens, sink_chunks = 2;
  const Landmarks landmarks(device, n_chunks);
  const Noise q(device, n_tokens * n_heads * kHeadDim);
  const Array<int32_t> ids(device, n_blocks * n_kv_heads * (sink_chunks + k));
  const Array<int32_t> counts(device, n_blocks * n_kv_heads);
  const Array<int64_t> begins(device, n_blocks);
  const double us = device.time_us([&](int64_t turn) {
    cuda::select_prefill_chunks(device.stream(),
                                {.q = q.data(),
                                 .landmarks = landmarks.plane(turn),
                                 .landmark_head_stride = n_chunks * kHeadDim,
                                 .first_position = n_chunks * kChunkTokens - n_tokens,
                                 .n_tokens = n_tokens,
                                 .block_tokens = block_tokens,
                                 .local_tokens = block_tokens,
                                 .sink_chunks = sink_chunks,
                                 .k = k,
                                 .chunk_tokens = kChunkTokens,
                                 .n_heads = static_cast<int32_t>(n_heads),
                                 .n_kv_heads = static_cast<int32_t>(n_kv_heads),
                                 .head_dim = kHeadDim,
                                 .scale = 1 / std::sqrt(static_cast<float>(kHeadDim)),
                                 .chunk_ids = ids.data(),
                                 .chunk_counts = counts.data(),
                                 .local_begin = begins.data()});
  });
  device.report(
      {.name = "select prefill",
       .shape = fmt::format("{} blocks, {} of {} x {}", n_blocks, k, n_chunks, n_kv_heads),
       .us = us,
       .bytes = landmarks.plane_bytes() + 2 * static_cast<double>(q.size())});
}

// The keys of one layer of a long prompt.
struct Keys {
  Keys(Device& device, int64_t n_tokens)
      : n_tokens(n_tokens), noise(device, kv_heads(device) * n_tokens * kHeadDim) {}
  int64_t n_tokens;
  Noise noise;
};

void landmarks_and_outliers(Device& device, const Keys& keys) {
  const int64_t n_kv_heads = kv_heads(device), n_chunks = keys.n_tokens / kChunkTokens;
  const int64_t n_outliers = device.size(48, 4);
  const Array<bf16> landmarks(device, n_kv_heads * n_chunks * kHeadDim);
  const double bytes = static_cast<double>(keys.noise.bytes() + landmarks.bytes());
  double us = device.time_us([&](int64_t) {
    cuda::build_landmarks(device.stream(), {.keys = keys.noise.data(),
                                            .key_head_stride = keys.n_tokens * kHeadDim,
                                            .landmarks = landmarks.data(),
                                            .landmark_head_stride = n_chunks * kHeadDim,
                                            .n_chunks = n_chunks,
                                            .chunk_tokens = kChunkTokens,
                                            .n_kv_heads = static_cast<int32_t>(n_kv_heads),
                                            .head_dim = kHeadDim});
  });
  device.report({.name = "build landmarks",
                 .shape = fmt::format("{} tokens x {}", keys.n_tokens, n_kv_heads),
                 .us = us,
                 .bytes = bytes});
  device.expect_finite("landmarks", landmarks.data(), landmarks.size());

  const Array<int32_t> ids(device, n_kv_heads * n_outliers);
  const int64_t words = (n_chunks + 63) / 64;
  const Array<uint64_t> excluded(device, n_kv_heads * words);
  const Array<float> workspace(device, n_kv_heads * n_chunks);
  us = device.time_us([&](int64_t) {
    cuda::find_outliers(device.stream(), {.keys = keys.noise.data(),
                                          .key_head_stride = keys.n_tokens * kHeadDim,
                                          .landmarks = landmarks.data(),
                                          .landmark_head_stride = n_chunks * kHeadDim,
                                          .end_chunk = n_chunks,
                                          .n_outliers = n_outliers,
                                          .chunk_tokens = kChunkTokens,
                                          .n_kv_heads = static_cast<int32_t>(n_kv_heads),
                                          .head_dim = kHeadDim,
                                          .ids = ids.data(),
                                          .excluded = excluded.data(),
                                          .excluded_stride = words,
                                          .workspace = workspace.data()});
  });
  device.report({.name = "find outliers",
                 .shape = fmt::format("{} of {} x {}", n_outliers, n_chunks, n_kv_heads),
                 .us = us,
                 .bytes = bytes});
}

void gather(Device& device, const Keys& keys, int64_t n_ids) {
  const int64_t n_kv_heads = kv_heads(device), n_chunks = keys.n_tokens / kChunkTokens;
  const int64_t n_lists = device.size(64, 1);
  std::vector<int32_t> lists;
  for (int64_t i = 0; i < n_lists * n_kv_heads; ++i) {
    const auto list = ascending_ids(device.rng(), n_ids, 0, n_chunks);
    lists.insert(lists.end(), list.begin(), list.end());
  }
  const Array<int32_t> ids(device, lists);
  const Array<bf16> out_keys(device, n_kv_heads * n_ids * kChunkTokens * kHeadDim);
  const Array<bf16> out_values(device, out_keys.size());
  const double us = device.time_us([&](int64_t turn) {
    cuda::gather_chunks(device.stream(), {.keys = keys.noise.data(),
                                          .values = keys.noise.data(),
                                          .head_stride = keys.n_tokens * kHeadDim,
                                          .ids = ids.data() + turn % n_lists * n_kv_heads * n_ids,
                                          .n_ids = n_ids,
                                          .out_keys = out_keys.data(),
                                          .out_values = out_values.data(),
                                          .out_head_stride = n_ids * kChunkTokens * kHeadDim,
                                          .chunk_tokens = kChunkTokens,
                                          .n_kv_heads = static_cast<int32_t>(n_kv_heads),
                                          .head_dim = kHeadDim});
  });
  device.report({.name = "gather chunks",
                 .shape = fmt::format("{} of {} x {}", n_ids, n_chunks, n_kv_heads),
                 .us = us,
                 .bytes = 4 * static_cast<double>(out_keys.bytes())});
}

}  // namespace

void run_select(Device& device) {
  select(device, device.size(16384, 256), device.size(256, 16));
  if (!device.smoke()) select(device, 131072, 256);
}

void run_select_together(Device& device) {
  select_together(device, device.size(16384, 256), device.size(256, 16));
  if (!device.smoke()) select_together(device, 131072, 256);
}

void run_select_prefill(Device& device) {
  select_prefill(device, device.size(16384, 256), device.size(256, 16));
  if (!device.smoke()) select_prefill(device, 131072, 256);
}

void run_index(Device& device) {
  const Keys keys(device, device.size(131072, 512));
  landmarks_and_outliers(device, keys);
  for (const int64_t n : {48, 256, 2048}) {
    if (n <= keys.n_tokens / kChunkTokens) gather(device, keys, n);
  }
}

}  // namespace tiercel::bench
