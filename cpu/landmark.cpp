#include "cpu/landmark.h"

#include <algorithm>
#include <limits>

#include "cpu/levels.h"
#include "cpu/query.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kItemBytes = 512 * 1024;  // keys of one work item

int64_t chunks_per_item(int32_t chunk_tokens, int32_t head_dim) {
  return std::max<int64_t>(kItemBytes / (int64_t{2} * chunk_tokens * head_dim), 1);
}

// The n_outliers lowest cosines of one KV head: their ids, and their bits.
void take_lowest(const OutlierParams& p, int64_t kv_head) {
  const int64_t n = p.end_chunk - p.first_chunk;
  const float* cosines = p.workspace + kv_head * n;
  int32_t* ids = p.ids + kv_head * p.n_outliers;
  // A max-heap of the best so far, worst on top, in the place of the result: any n_outliers fits.
  const auto better = [cosines](int32_t a, int32_t b) {
    return cosines[a] < cosines[b] || (cosines[a] == cosines[b] && a < b);
  };
  for (int64_t i = 0; i < p.n_outliers; ++i) ids[i] = static_cast<int32_t>(i);
  std::make_heap(ids, ids + p.n_outliers, better);
  for (int64_t i = p.n_outliers; i < n; ++i) {
    if (!(cosines[i] < cosines[ids[0]])) continue;  // a later chunk loses a tie
    std::pop_heap(ids, ids + p.n_outliers, better);
    ids[p.n_outliers - 1] = static_cast<int32_t>(i);
    std::push_heap(ids, ids + p.n_outliers, better);
  }
  std::sort(ids, ids + p.n_outliers);
  uint64_t* excluded = p.excluded + kv_head * p.excluded_stride;
  for (int64_t i = 0; i < p.n_outliers; ++i) {
    ids[i] += static_cast<int32_t>(p.first_chunk);
    excluded[ids[i] >> 6] |= uint64_t{1} << (ids[i] & 63);
  }
}

// Where the chunk goes among the kept ones of its KV head.
int32_t admit(const LateOutlierParams& p, int64_t kv_head, int64_t i, float cosine) {
  int32_t* ids = p.ids + kv_head * p.n_most;
  float* cosines = p.cosines + kv_head * p.n_most;
  uint64_t* excluded = p.excluded + kv_head * p.excluded_stride;
  int64_t place = p.n_kept + i;
  if (place >= p.n_most) {
    place = std::max_element(cosines, cosines + p.n_most) - cosines;
    if (!(cosine < cosines[place])) return -1;
    excluded[ids[place] >> 6] &= ~(uint64_t{1} << (ids[place] & 63));
  }
  ids[place] = static_cast<int32_t>(p.first_chunk + i);
  cosines[place] = cosine;
  excluded[ids[place] >> 6] |= uint64_t{1} << (ids[place] & 63);
  return static_cast<int32_t>(place);
}

// Where another layer put the chunk; -1: nowhere. Behind the places in use names may be left from
// before a rewind: the first one counts.
int64_t named_place(const LateOutlierParams& p, int64_t kv_head, int64_t chunk) {
  const int32_t* ids = p.ids + kv_head * p.n_most;
  const int64_t place = std::find(ids, ids + p.n_most, chunk) - ids;
  return place < p.n_most ? place : -1;
}

}  // namespace

void build_landmarks(Queue& queue, const LandmarkParams& p) {
  CHECK(p.chunk_tokens > 0 && p.head_dim > 0 && p.n_chunks >= 0, "{} chunks of {} x {}", p.n_chunks,
        p.chunk_tokens, p.head_dim);
  CHECK(p.first_chunk * p.chunk_tokens >= p.first_row, "chunk {} starts before row {}",
        p.first_chunk, p.first_row);
  CHECK(p.first_chunk >= p.first_landmark, "chunk {} before landmark {}", p.first_chunk,
        p.first_landmark);
  const LandmarkKernel& kernel = landmark_kernel(queue.isa());
  const int64_t size = chunks_per_item(p.chunk_tokens, p.head_dim);
  const int64_t n_items = (p.n_chunks + size - 1) / size;
  queue.for_each(p.n_kv_heads * n_items, [&](int64_t item, const Worker&) {
    const int64_t kv_head = item / n_items;
    const int64_t chunk = p.first_chunk + item % n_items * size;
    const int64_t n = std::min(chunk + size, p.first_chunk + p.n_chunks) - chunk;
    const uint16_t* rows = bits(p.keys + kv_head * p.key_head_stride +
                                (chunk * p.chunk_tokens - p.first_row) * p.head_dim);
    auto* landmarks = reinterpret_cast<uint16_t*>(p.landmarks + kv_head * p.landmark_head_stride +
                                                  (chunk - p.first_landmark) *
                                                      landmark_width(p.kind, p.head_dim));
    if (p.kind == IndexKind::kMinMax) {
      kernel.bound_rows({rows, landmarks, n, p.chunk_tokens, p.head_dim});
    } else {
      kernel.mean_rows({rows, landmarks, n, p.head_dim, p.chunk_tokens, p.head_dim});
    }
  });
}

void encode_landmarks(Queue& queue, const EncodeLandmarksParams& p) {
  CHECK(p.width > 0 && (p.kind != IndexKind::kMinMax || p.width % 2 == 0), "landmarks of {}",
        p.width);
  CHECK(p.first_chunk >= p.first_landmark && p.first_chunk + p.n_chunks <= p.capacity,
        "chunks {} to {}, capacity {}", p.first_chunk, p.first_chunk + p.n_chunks, p.capacity);
  const LandmarkKernel& kernel = landmark_kernel(queue.isa());
  const int64_t size = chunks_per_item(1, p.width);
  const int64_t n_items = (p.n_chunks + size - 1) / size;
  queue.for_each(p.n_kv_heads * n_items, [&](int64_t item, const Worker&) {
    const int64_t kv_head = item / n_items;
    const int64_t chunk = p.first_chunk + item % n_items * size;
    const int64_t row = kv_head * p.capacity + chunk;
    kernel.encode_landmarks({bits(p.landmarks + kv_head * p.landmark_head_stride +
                                  (chunk - p.first_landmark) * p.width),
                             p.codes + row * p.width, p.scales + row,
                             std::min(size, p.first_chunk + p.n_chunks - chunk), p.width,
                             p.kind == IndexKind::kMinMax});
  });
}

void find_outliers(Queue& queue, const OutlierParams& p) {
  const int64_t n = p.end_chunk - p.first_chunk;
  CHECK(p.first_chunk >= 0 && p.chunk_tokens > 0 && p.head_dim > 0);
  CHECK(p.n_outliers >= 0 && p.n_outliers <= std::max<int64_t>(n, 0), "{} outliers of {} chunks",
        p.n_outliers, n);
  CHECK(p.end_chunk <= std::numeric_limits<int32_t>::max(), "{} chunks", p.end_chunk);
  if (p.n_outliers == 0) return;
  const LandmarkKernel& kernel = landmark_kernel(queue.isa());
  const int64_t size = chunks_per_item(p.chunk_tokens, p.head_dim);
  const int64_t n_items = (n + size - 1) / size;
  queue.for_each(p.n_kv_heads * n_items, [&](int64_t item, const Worker&) {
    const int64_t kv_head = item / n_items;
    const int64_t chunk = p.first_chunk + item % n_items * size;
    MinCosine cosine{};
    cosine.rows = bits(p.keys + kv_head * p.key_head_stride + chunk * p.chunk_tokens * p.head_dim);
    cosine.means = bits(p.landmarks + kv_head * p.landmark_head_stride + chunk * p.head_dim);
    cosine.cosines = p.workspace + kv_head * n + (chunk - p.first_chunk);
    cosine.n_chunks = std::min(chunk + size, p.end_chunk) - chunk;
    cosine.chunk_tokens = p.chunk_tokens;
    cosine.head_dim = p.head_dim;
    kernel.min_cosine(cosine);
  });
  queue.for_each(p.n_kv_heads, [&](int64_t kv_head, const Worker&) { take_lowest(p, kv_head); });
}

void keep_late_outliers(Queue& queue, const LateOutlierParams& p) {
  CHECK(p.n_most > 0 && p.chunk_tokens > 0 && p.head_dim > 0, "{} chunks of {} x {}", p.n_most,
        p.chunk_tokens, p.head_dim);
  const LandmarkKernel& kernel = landmark_kernel(queue.isa());
  const int64_t size = int64_t{p.chunk_tokens} * p.head_dim;
  queue.for_each(p.n_kv_heads, [&](int64_t kv_head, const Worker&) {
    for (int64_t i = 0; i < p.n_chunks; ++i) {
      const int64_t chunk = p.first_chunk + i;
      const int64_t from = kv_head * p.head_stride + chunk * size - p.first_row * p.head_dim;
      int64_t place = -1;
      if (p.choose) {
        float lowest = 0;
        MinCosine cosine{};
        cosine.rows = bits(p.keys + from);
        cosine.means = bits(p.landmarks + kv_head * p.landmark_head_stride +
                            (chunk - p.first_landmark) * p.head_dim);
        cosine.cosines = &lowest;
        cosine.n_chunks = 1;
        cosine.chunk_tokens = p.chunk_tokens;
        cosine.head_dim = p.head_dim;
        kernel.min_cosine(cosine);
        place = admit(p, kv_head, i, lowest);
      } else {
        place = named_place(p, kv_head, chunk);
      }
      if (place < 0) continue;
      const int64_t to = (kv_head * p.n_most + place) * size;
      std::copy_n(p.keys + from, size, p.kept_keys + to);
      std::copy_n(p.values + from, size, p.kept_values + to);
    }
  });
}

}  // namespace tiercel::cpu
