// Queries in the layout of a decode kernel, and arrays cut from a worker's scratch memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/decode_kernel.h"
#include "cpu/queue.h"
#include "engine/base/check.h"
#include "engine/base/dtype.h"

namespace tiercel::cpu {

// Query heads are padded with zero queries to whole tiles of 8, 4, 2 or 1.
constexpr int32_t padded_heads(int32_t n_heads) {
  const int32_t whole = n_heads / kMaxHeadTile * kMaxHeadTile;
  const int32_t rest = n_heads - whole;
  return whole + (rest > 4 ? 8 : rest > 2 ? 4 : rest);
}

inline const uint16_t* bits(const bf16* p) { return reinterpret_cast<const uint16_t*>(p); }
inline uint16_t* bits(bf16* p) { return reinterpret_cast<uint16_t*>(p); }

// Rows of one block, which is also how far ahead rows are prefetched: the next block's keys and
// values are on their way while this block is in use, and both stay in a first-level cache of 48
// KiB. Journal: on Zen 5 one block ahead reaches 37 GB/s, 16 rows 35, 4 rows 29 (gathers: 23, 14,
// 10).
inline int64_t block_rows(int32_t head_dim) {
  return head_dim > 128 ? kDecodeBlock / 2 : kDecodeBlock;
}

// head_dim rounded up to whole pieces of the kernel.
inline int64_t packed_width(const DecodeKernel& kernel, int32_t head_dim) {
  const int64_t piece = 2 * kernel.lanes;
  return (head_dim + piece - 1) / piece * piece;
}

// Calls call(element, even, odd) for the elements 0, 2 .. of a row: where it and the next one are
// in a packed row of fp32. Without a division per element, which took as long as attending a range.
template <typename Call>
void for_each_pair(const DecodeKernel& kernel, int32_t head_dim, Call call) {
  for (int32_t piece = 0; piece < head_dim; piece += 2 * kernel.lanes) {
    const int32_t n = std::min(kernel.lanes, (head_dim - piece) / 2);
    for (int32_t i = 0; i < n; ++i) call(piece + 2 * i, piece + i, piece + kernel.lanes + i);
  }
}

// Packs group rows of q into padded_heads(group) packed rows; returns the bytes of one.
inline int64_t pack_queries(const DecodeKernel& kernel, const bf16* q, int32_t group,
                            int32_t head_dim, char* packed) {
  const int64_t width = packed_width(kernel, head_dim);
  const int64_t row_bytes = width * static_cast<int64_t>(kernel.bf16_query ? 2 : 4);
  std::memset(packed, 0, static_cast<size_t>(row_bytes * padded_heads(group)));
  for (int32_t h = 0; h < group; ++h) {
    const bf16* row = q + int64_t{h} * head_dim;
    if (kernel.bf16_query) {
      std::memcpy(packed + h * row_bytes, row, static_cast<size_t>(head_dim) * sizeof(bf16));
      continue;
    }
    float* out = reinterpret_cast<float*>(packed + h * row_bytes);
    for_each_pair(kernel, head_dim, [&](int32_t element, int32_t even, int32_t odd) {
      out[even] = static_cast<float>(row[element]);
      out[odd] = static_cast<float>(row[element + 1]);
    });
  }
  return row_bytes;
}

// The inverse order: a row of the kernel's accumulators into head_dim elements.
inline void unpack_row(const DecodeKernel& kernel, const float* packed, int32_t head_dim,
                       float* out) {
  for_each_pair(kernel, head_dim, [&](int32_t element, int32_t even, int32_t odd) {
    out[element] = packed[even];
    out[element + 1] = packed[odd];
  });
}

// Cuts arrays from a worker's scratch memory, each on a cache line of its own.
class Carver {
 public:
  explicit Carver(std::byte* scratch) : next_(scratch), end_(scratch + kScratchBytes) {}

  template <typename T>
  T* take(int64_t n) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
    CHECK(next_ <= end_, "scratch of {} bytes exceeded", kScratchBytes);
    return taken;
  }

 private:
  std::byte* next_;
  std::byte* end_;
};

}  // namespace tiercel::cpu
