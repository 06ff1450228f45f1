#include <algorithm>
#include <limits>

#include "kernels/landmark.cuh"
#include "kernels/landmark.h"
#include "kernels/launch.cuh"

namespace tiercel::cuda {

void build_landmarks(Stream& stream, const LandmarkParams& p) {
  CHECK(p.chunk_tokens > 0 && p.head_dim > 0 && p.n_chunks >= 0, "{} chunks of {} x {}", p.n_chunks,
        p.chunk_tokens, p.head_dim);
  CHECK(p.head_dim % 2 == 0 && p.key_head_stride % 2 == 0 && p.landmark_head_stride % 2 == 0,
        "head_dim {}, strides {} and {}", p.head_dim, p.key_head_stride, p.landmark_head_stride);
  CHECK(p.first_chunk * p.chunk_tokens >= p.first_row, "chunk {} starts before row {}",
        p.first_chunk, p.first_row);
  CHECK(p.first_chunk >= p.first_landmark, "chunk {} before landmark {}", p.first_chunk,
        p.first_landmark);
  if (p.n_chunks == 0 || p.n_kv_heads == 0) return;
  const bool is_wide = p.head_dim % 8 == 0 && p.key_head_stride % 8 == 0 &&
                       p.landmark_head_stride % 8 == 0 &&
                       reinterpret_cast<uintptr_t>(p.keys) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(p.landmarks) % 16 == 0;
  const int32_t per_row = p.head_dim / (is_wide ? 8 : 2);
  const dim3 grid(blocks_for(p.n_chunks * per_row, kMeanThreads),
                  static_cast<unsigned>(p.n_kv_heads));
  const bool is_mean = p.kind == IndexKind::kMean;
  if (is_mean && is_wide) {
    launch_dependent<mean_chunks<4>>(stream, grid, kMeanThreads, 0, p);
  } else if (is_mean) {
    launch_dependent<mean_chunks<1>>(stream, grid, kMeanThreads, 0, p);
  } else if (is_wide) {
    launch_dependent<extremes_of_chunks<4>>(stream, grid, kMeanThreads, 0, p);
  } else {
    launch_dependent<extremes_of_chunks<1>>(stream, grid, kMeanThreads, 0, p);
  }
}

void encode_landmarks(Stream& stream, const EncodeLandmarksParams& p) {
  CHECK(p.width > 0 && p.width % 2 == 0 && p.landmark_head_stride % 2 == 0, "width {}, stride {}",
        p.width, p.landmark_head_stride);
  CHECK(p.first_chunk >= p.first_landmark && p.first_chunk + p.n_chunks <= p.capacity,
        "{} chunks from {} on, landmarks from {}, room for {}", p.n_chunks, p.first_chunk,
        p.first_landmark, p.capacity);
  CHECK(reinterpret_cast<uintptr_t>(p.codes) % 2 == 0, "codes");
  if (p.n_chunks == 0 || p.n_kv_heads == 0) return;
  // Extremes: eight elements belong to one half.
  const bool is_wide = p.width % (p.kind == IndexKind::kMinMax ? 16 : 8) == 0 &&
                       p.landmark_head_stride % 8 == 0 &&
                       reinterpret_cast<uintptr_t>(p.landmarks) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(p.codes) % 8 == 0;
  CHECK(p.kind == IndexKind::kMean || p.width % 4 == 0, "width {}", p.width);
  const dim3 grid(blocks_for(p.n_chunks, kMeanThreads / 32), static_cast<unsigned>(p.n_kv_heads));
  if (is_wide) {
    launch_dependent<encode_chunks<4>>(stream, grid, kMeanThreads, 0, p);
  } else {
    launch_dependent<encode_chunks<1>>(stream, grid, kMeanThreads, 0, p);
  }
}

void find_outliers(Stream& stream, const OutlierParams& p) {
  const int64_t n = p.end_chunk - p.first_chunk;
  CHECK(p.first_chunk >= 0 && p.chunk_tokens > 0 && p.head_dim > 0 && p.head_dim % 2 == 0,
        "first chunk {}, chunks of {} x {}", p.first_chunk, p.chunk_tokens, p.head_dim);
  CHECK(p.n_outliers >= 0 && p.n_outliers <= std::max<int64_t>(n, 0), "{} outliers of {} chunks",
        p.n_outliers, n);
  CHECK(p.end_chunk <= std::numeric_limits<int32_t>::max() - kSegment, "{} chunks", p.end_chunk);
  if (p.n_outliers == 0 || p.n_kv_heads == 0) return;
  launch<min_cosines>(stream,
                      dim3(blocks_for(n, kCosineThreads / 32), static_cast<unsigned>(p.n_kv_heads)),
                      kCosineThreads, 0, p);
  launch<rank_outliers>(stream, dim3(static_cast<unsigned>(p.n_kv_heads)), kRankThreads,
                        sizeof(RankShared), p);
}

void keep_late_outliers(Stream& stream, const LateOutlierParams& p) {
  CHECK(p.n_most > 0 && p.chunk_tokens > 0 && p.head_dim > 0 && p.head_dim % 2 == 0,
        "{} chunks of {} x {}", p.n_most, p.chunk_tokens, p.head_dim);
  if (p.n_chunks == 0 || p.n_kv_heads == 0) return;
  launch_dependent<keep_late>(stream, dim3(static_cast<unsigned>(p.n_kv_heads)), kCosineThreads,
                              sizeof(int), p);
}

}  // namespace tiercel::cuda
