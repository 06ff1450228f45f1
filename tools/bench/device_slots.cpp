// The selection cache: the slot map alone, and after a selection.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/gather.h"
#include "kernels/select.h"
#include "kernels/slots.h"
#include "tools/bench/device_landmarks.h"

namespace tiercel::bench {
namespace {

// Selections of consecutive steps: each keeps most of its predecessor's chunks.
std::vector<int32_t> drifting_lists(Device& device, int64_t n_lists, int64_t n_kv_heads, int64_t k,
                                    int64_t n_chunks, int64_t n_new) {
  std::vector<int32_t> lists(n_lists * n_kv_heads * k);
  for (int64_t j = 0; j < n_kv_heads; ++j) {
    std::vector<int32_t> list = ascending_ids(device.rng(), k, 0, n_chunks);
    for (int64_t i = 0; i < n_lists; ++i) {
      std::copy(list.begin(), list.end(), lists.begin() + (i * n_kv_heads + j) * k);
      std::shuffle(list.begin(), list.end(), device.rng());
      list.resize(static_cast<size_t>(k - n_new));
      while (static_cast<int64_t>(list.size()) < k) {
        const auto chunk = static_cast<int32_t>(device.rng()() % static_cast<uint64_t>(n_chunks));
        if (std::find(list.begin(), list.end(), chunk) == list.end()) list.push_back(chunk);
      }
      std::sort(list.begin(), list.end());
    }
  }
  return lists;
}

// Bookkeeping of one layer's slots, all empty.
struct Slots {
  Slots(Device& device, int64_t n_kv_heads, int64_t n_slots, int64_t n_chunks, int64_t stride)
      : slot_of_chunk(device, n_kv_heads * n_chunks),
        chunk_of_slot(device, n_kv_heads * n_slots),
        order(device, n_kv_heads * n_slots),
        hit_slots(device, n_kv_heads * stride),
        miss_chunks(device, n_kv_heads * stride),
        miss_slots(device, n_kv_heads * stride),
        hit_counts(device, n_kv_heads),
        miss_counts(device, n_kv_heads),
        scratch(device, n_kv_heads * n_slots) {
    params.state = {.slot_of_chunk = slot_of_chunk.data(),
                    .chunk_of_slot = chunk_of_slot.data(),
                    .order = order.data(),
                    .chunk_capacity = n_chunks,
                    .n_slots = n_slots};
    params.n_kv_heads = static_cast<int32_t>(n_kv_heads);
    params.stride = stride;
    params.hit_slots = hit_slots.data();
    params.hit_counts = hit_counts.data();
    params.miss_chunks = miss_chunks.data();
    params.miss_slots = miss_slots.data();
    params.miss_counts = miss_counts.data();
    params.scratch = scratch.data();
  }
  Array<int32_t> slot_of_chunk, chunk_of_slot, order;
  Array<int32_t> hit_slots, miss_chunks, miss_slots, hit_counts, miss_counts, scratch;
  MapSlotsParams params;
};

void map_slots(Device& device, int64_t k, int64_t n_new) {
  const int64_t n_kv_heads = kv_heads(device), n_chunks = device.size(16384, 256);
  const int64_t n_lists = 64;
  const Array<int32_t> ids(device, drifting_lists(device, n_lists, n_kv_heads, k, n_chunks, n_new));
  const Array<int32_t> counts(device, std::vector<int32_t>(n_kv_heads, static_cast<int32_t>(k)));
  Slots slots(device, n_kv_heads, 2 * k, n_chunks, k);
  cuda::reset_slots(device.stream(), slots.params.state, slots.params.n_kv_heads);
  slots.params.counts = counts.data();
  const double us = device.time_us([&](int64_t turn) {
    slots.params.ids = ids.data() + turn % n_lists * n_kv_heads * k;
    cuda::map_slots(device.stream(), slots.params);
  });
  device.report({.name = "map slots",
                 .shape = fmt::format("{} x {}, {} new", k, n_kv_heads, n_new),
                 .us = us});
}

// Selection and bookkeeping in one go, as a decode step runs them; nearly everything is a miss.
void select_and_map(Device& device, int64_t k) {
  const int64_t n_kv_heads = kv_heads(device), n_heads = n_kv_heads * kGroup;
  const int64_t n_chunks = device.size(16384, 256), n_queries = 64;
  const Landmarks landmarks(device, n_chunks);
  const Noise q(device, n_queries * n_heads * kHeadDim);
  const Array<int32_t> ids(device, n_kv_heads * k), counts(device, n_kv_heads);
  const Array<float> workspace(device, select_workspace_floats(n_heads, n_kv_heads, n_chunks));
  Slots slots(device, n_kv_heads, 2 * k, n_chunks, k);
  cuda::reset_slots(device.stream(), slots.params.state, slots.params.n_kv_heads);
  slots.params.ids = ids.data();
  slots.params.counts = counts.data();
  SelectParams p = {.landmark_head_stride = n_chunks * kHeadDim,
                    .end_chunk = n_chunks,
                    .k = k,
                    .n_heads = static_cast<int32_t>(n_heads),
                    .n_kv_heads = static_cast<int32_t>(n_kv_heads),
                    .head_dim = kHeadDim,
                    .scale = 1 / std::sqrt(static_cast<float>(kHeadDim)),
                    .ids = ids.data(),
                    .counts = counts.data(),
                    .workspace = workspace.data()};
  const double us = device.time_us([&](int64_t turn) {
    p.q = q.data() + turn % n_queries * n_heads * kHeadDim;
    p.landmarks = landmarks.plane(turn);
    cuda::select_and_map(device.stream(), p, slots.params);
  });
  device.report({.name = "select and map",
                 .shape = fmt::format("{} of {} x {}", k, n_chunks, n_kv_heads),
                 .us = us,
                 .bytes = landmarks.plane_bytes()});
}

}  // namespace

void run_slots(Device& device) {
  const int64_t k = device.size(256, 16);
  for (const int64_t tenths : {1, 4, 10}) map_slots(device, k, k * tenths / 10);
  select_and_map(device, k);
}

}  // namespace tiercel::bench
