#include "cpu/movement.h"

#include <algorithm>
#include <cstring>

#include "cpu/codec.h"
#include "cpu/levels.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kItemBytes = 1 << 20;
constexpr int64_t kMinParallelBytes = 256 * 1024;  // below, waking threads costs more than it saves
constexpr int64_t kItemChunks = 64;

void prefetch(const void* address, int64_t n_bytes) {
  // The first page is enough to start the hardware's own prefetcher for what is longer.
  const char* p = static_cast<const char*>(address);
  for (int64_t i = 0; i < std::min<int64_t>(n_bytes, 4096); i += 64) __builtin_prefetch(p + i);
}

// Misses first .. end - 1 of one KV head. The next chunk is on its way while this one is copied.
void fetch_chunks(const FetchParams& p, int64_t kv_head, int64_t first, int64_t end) {
  const int64_t chunk_elements = int64_t{p.chunk_tokens} * p.head_dim;
  const size_t chunk_bytes = static_cast<size_t>(chunk_elements) * sizeof(bf16);
  const bf16* values = p.values + kv_head * p.value_head_stride;
  const bf16* keys = p.keys == nullptr ? nullptr : p.keys + kv_head * p.key_head_stride;
  bf16* slots = p.slots + kv_head * p.slot_head_stride;
  const int32_t* chunks = p.miss_chunks + kv_head * p.stride;
  const int32_t* targets = p.miss_slots + kv_head * p.stride;
  for (int64_t i = first; i < end; ++i) {
    if (i + 1 < end) {
      const int64_t next = chunks[i + 1] * chunk_elements;
      prefetch(values + next, static_cast<int64_t>(chunk_bytes));
      if (keys != nullptr) prefetch(keys + next, static_cast<int64_t>(chunk_bytes));
    }
    const int64_t source = chunks[i] * chunk_elements;
    bf16* record = slots + targets[i] * 2 * chunk_elements;
    if (keys != nullptr) std::memcpy(record, keys + source, chunk_bytes);
    std::memcpy(record + chunk_elements, values + source, chunk_bytes);
  }
}

// The same with values to be decoded.
void fetch_coded_chunks(const FetchParams& p, const RowCodecKernel& codec, int64_t kv_head,
                        int64_t first, int64_t end) {
  const int64_t chunk_elements = int64_t{p.chunk_tokens} * p.head_dim;
  const size_t chunk_bytes = static_cast<size_t>(chunk_elements) * sizeof(bf16);
  const int64_t code_bytes = p.chunk_tokens * row_bytes(p.value_codec, p.head_dim);
  const CodedRows shape = coded_rows(p.value_codec, p.head_dim, p.chunk_tokens);
  const auto* codes =
      reinterpret_cast<const uint8_t*>(p.value_codes + kv_head * p.value_code_head_stride);
  const bf16* keys = p.keys == nullptr ? nullptr : p.keys + kv_head * p.key_head_stride;
  bf16* slots = p.slots + kv_head * p.slot_head_stride;
  const int32_t* chunks = p.miss_chunks + kv_head * p.stride;
  const int32_t* targets = p.miss_slots + kv_head * p.stride;
  for (int64_t i = first; i < end; ++i) {
    if (i + 1 < end) {
      prefetch(codes + chunks[i + 1] * code_bytes, code_bytes + 63);
      if (keys != nullptr) {
        prefetch(keys + chunks[i + 1] * chunk_elements, static_cast<int64_t>(chunk_bytes));
      }
    }
    bf16* record = slots + targets[i] * 2 * chunk_elements;
    if (keys != nullptr) std::memcpy(record, keys + chunks[i] * chunk_elements, chunk_bytes);
    codec.decode_rows(codes + chunks[i] * code_bytes, shape,
                      reinterpret_cast<uint16_t*>(record + chunk_elements));
  }
}

}  // namespace

void copy(Queue& queue, const CopyParams& p) {
  CHECK(p.n_rows >= 0 && p.row_bytes >= 0, "{} rows of {} bytes", p.n_rows, p.row_bytes);
  if (p.n_rows == 0 || p.row_bytes == 0) return;
  const char* source = static_cast<const char*>(p.source);
  char* target = static_cast<char*>(p.target);
  int64_t n_rows = p.n_rows, row_bytes = p.row_bytes;
  if (p.source_stride == row_bytes && p.target_stride == row_bytes) {
    row_bytes *= n_rows;
    n_rows = 1;
  }
  if (n_rows * row_bytes < kMinParallelBytes) {
    for (int64_t row = 0; row < n_rows; ++row) {
      std::memcpy(target + row * p.target_stride, source + row * p.source_stride,
                  static_cast<size_t>(row_bytes));
    }
    return;
  }
  // Items are pieces of long rows, or runs of short ones.
  const int64_t pieces = (row_bytes + kItemBytes - 1) / kItemBytes;
  const int64_t rows_per_item = std::max<int64_t>(kItemBytes / row_bytes, 1);
  const int64_t n_runs = (n_rows + rows_per_item - 1) / rows_per_item;
  queue.for_each(n_runs * pieces, [&](int64_t item, const Worker&) {
    const int64_t begin = item % pieces * kItemBytes;
    const int64_t n_bytes = std::min(kItemBytes, row_bytes - begin);
    const int64_t first = item / pieces * rows_per_item;
    for (int64_t row = first; row < std::min(first + rows_per_item, n_rows); ++row) {
      std::memcpy(target + row * p.target_stride + begin, source + row * p.source_stride + begin,
                  static_cast<size_t>(n_bytes));
    }
  });
}

void fetch(Queue& queue, std::span<const FetchParams> fetches) {
  if (fetches.empty()) return;
  const FetchParams& shape = fetches[0];
  CHECK(shape.chunk_tokens > 0 && shape.head_dim > 0, "chunks of {} x {}", shape.chunk_tokens,
        shape.head_dim);
  const bool coded = shape.value_codec != RowCodec::kBf16;
  CHECK(!coded || can_code(shape.head_dim), "rows of {} cannot be coded", shape.head_dim);
  const RowCodecKernel& codec = row_codec_kernel(queue.isa());
  const auto fetch_some = [&](const FetchParams& p, int64_t kv_head, int64_t first, int64_t end) {
    if (coded) return fetch_coded_chunks(p, codec, kv_head, first, end);
    fetch_chunks(p, kv_head, first, end);
  };
  const int64_t chunk_bytes =
      int64_t{2} * shape.chunk_tokens * shape.head_dim * (shape.keys != nullptr ? 2 : 1);
  const int64_t n_kv = shape.n_kv_heads, n_lists = static_cast<int64_t>(fetches.size()) * n_kv;
  const auto fetch_of = [&](int64_t list) -> const FetchParams& {
    return fetches[static_cast<size_t>(list / n_kv)];
  };
  int64_t total = 0, longest = 0;
  for (int64_t list = 0; list < n_lists; ++list) {
    const int64_t n_misses = fetch_of(list).miss_counts[list % n_kv];
    total += n_misses;
    longest = std::max(longest, n_misses);
  }
  if (total * chunk_bytes < kMinParallelBytes) {
    for (int64_t list = 0; list < n_lists; ++list) {
      fetch_some(fetch_of(list), list % n_kv, 0, fetch_of(list).miss_counts[list % n_kv]);
    }
    return;
  }
  const int64_t pieces = (longest + kItemChunks - 1) / kItemChunks;
  queue.for_each(n_lists * pieces, [&](int64_t item, const Worker&) {
    const int64_t list = item / pieces, first = item % pieces * kItemChunks;
    const FetchParams& p = fetch_of(list);
    fetch_some(p, list % n_kv, first,
               std::min<int64_t>(first + kItemChunks, p.miss_counts[list % n_kv]));
  });
}

void call_host(Queue&, const HostCallParams& p) { p.function(p.data); }

}  // namespace tiercel::cpu
