#include <algorithm>
#include <numeric>
#include <span>

#include "kernels/launch.cuh"
#include "kernels/movement.cuh"
#include "kernels/movement.h"

namespace tiercel::cuda {
namespace {

constexpr int kThreads = kFetchWarps * 32;
// Fetches of one launch: its parameters hold them.
constexpr int64_t kMostFetches = 16;

using Fetches = std::span<const FetchParams>;

bool in_units_of_16(Fetches fetches, int64_t piece_bytes) {
  const auto address = [](const bf16* x) { return reinterpret_cast<uintptr_t>(x); };
  auto any = static_cast<uintptr_t>(piece_bytes);
  for (const FetchParams& p : fetches) {
    any |= address(p.values) | address(p.keys) | address(p.slots) |
           static_cast<uintptr_t>((p.value_head_stride | p.key_head_stride) * 2) |
           static_cast<uintptr_t>(p.slot_head_stride * 2);
  }
  return any % 16 == 0;
}

template <int kMost>
FetchBatch<kMost> batch_of(Fetches fetches, int64_t parts_per_miss) {
  FetchBatch<kMost> batch;
  std::copy(fetches.begin(), fetches.end(), batch.ops);
  batch.n_ops = static_cast<int32_t>(fetches.size());
  batch.n_kv_heads = fetches[0].n_kv_heads;
  batch.chunk_tokens = fetches[0].chunk_tokens;
  int64_t most_parts = 0;
  for (const FetchParams& p : fetches) most_parts += p.n_kv_heads * p.stride * parts_per_miss;
  CHECK(most_parts < int64_t{1} << 31, "{} parts", most_parts);
  return batch;
}

template <int kMost>
FetchKernelParams<kMost> kernel_params(Fetches fetches, int64_t piece_bytes, int64_t part_bytes) {
  const FetchParams& p = fetches[0];
  FetchKernelParams<kMost> k;
  k.piece_bytes = piece_bytes;
  k.part_bytes = static_cast<int32_t>(part_bytes);
  k.n_parts = static_cast<int32_t>((piece_bytes + part_bytes - 1) / part_bytes);
  k.n_kinds = p.keys != nullptr && p.values != nullptr ? 2 : 1;
  k.value_kind = p.keys != nullptr ? 1 : 0;
  k.batch = batch_of<kMost>(fetches, int64_t{k.n_kinds} * k.n_parts);
  return k;
}

size_t list_bytes(Fetches fetches) {
  return (fetches.size() * static_cast<size_t>(fetches[0].n_kv_heads) + 1) * sizeof(int32_t);
}

template <int kMost>
void fetch_direct(Stream& stream, const FetchKernelParams<kMost>& k, int32_t depth, unsigned blocks,
                  size_t bytes) {
  switch (depth) {
    case 4: return launch<fetch_direct_kernel<4, kMost>>(stream, blocks, kThreads, bytes, k);
    case 8: return launch<fetch_direct_kernel<8, kMost>>(stream, blocks, kThreads, bytes, k);
    case 16: return launch<fetch_direct_kernel<16, kMost>>(stream, blocks, kThreads, bytes, k);
    default: CHECK(false, "direct loads of depth {}", depth);
  }
}

template <typename Unit, int kMost>
void launch_codes(Stream& stream, Fetches fetches, FetchCodesParams<kMost> k, unsigned blocks) {
  constexpr int32_t kBytes = static_cast<int32_t>(sizeof(Unit)), kUnits = kCodedDepth * 32;
  // Parts of as many rows as a warp can hold, in equal shares, each a whole number of units.
  const int32_t whole = kBytes / std::gcd(kBytes, k.format.bytes);
  const int32_t most = kUnits * kBytes / k.format.bytes / whole * whole;
  CHECK(most > 0, "rows of {} bytes", k.format.bytes);
  const auto divide_up = [](int32_t a, int32_t b) { return (a + b - 1) / b; };
  const int32_t chunk_tokens = fetches[0].chunk_tokens;
  k.n_parts = divide_up(chunk_tokens, most);
  k.part_rows = divide_up(divide_up(chunk_tokens, k.n_parts), whole) * whole;
  k.n_parts = divide_up(chunk_tokens, k.part_rows);
  k.part_units = std::min(k.part_rows, chunk_tokens) * k.format.bytes / kBytes;
  k.n_together = kUnits / k.part_units;
  k.batch = batch_of<kMost>(fetches, k.n_parts);
  const size_t bytes = size_t{kFetchWarps} * kUnits * kBytes + list_bytes(fetches);
  launch<fetch_codes_kernel<Unit, kMost>>(stream, blocks, kThreads, bytes, k);
}

// Coded values, on any plan by direct loads.
template <int kMost>
void fetch_codes(Stream& stream, Fetches fetches, unsigned blocks) {
  const FetchParams& shape = fetches[0];
  CHECK(can_code(shape.head_dim), "codes of {} elements", shape.head_dim);
  FetchCodesParams<kMost> k;
  k.format = row_format(shape.value_codec, shape.head_dim);
  k.slot_units = true;
  bool whole = int64_t{shape.chunk_tokens} * k.format.bytes % 16 == 0;
  for (const FetchParams& p : fetches) {
    CHECK(reinterpret_cast<uintptr_t>(p.value_codes) % 4 == 0 && p.value_code_head_stride % 4 == 0,
          "rows of codes begin at multiples of four bytes");
    k.slot_units &= reinterpret_cast<uintptr_t>(p.slots) % 16 == 0 && p.slot_head_stride % 8 == 0;
    whole &= reinterpret_cast<uintptr_t>(p.value_codes) % 16 == 0 &&
             p.value_code_head_stride % 16 == 0;
  }
  if (whole) {
    launch_codes<uint4, kMost>(stream, fetches, k, blocks);
  } else {
    launch_codes<uint32_t, kMost>(stream, fetches, k, blocks);
  }
}

// Planes of bf16: values, keys or both.
template <int kMost>
void fetch_planes(Stream& stream, Fetches fetches, const FetchPlan& plan) {
  const FetchParams& shape = fetches[0];
  const int64_t piece_bytes = int64_t{2} * shape.chunk_tokens * shape.head_dim;
  const auto blocks = static_cast<unsigned>(plan.blocks);
  const size_t lists = list_bytes(fetches);
  if (!in_units_of_16(fetches, piece_bytes)) {
    launch<fetch_elements_kernel<kMost>>(stream, blocks, kThreads, lists,
                                         kernel_params<kMost>(fetches, piece_bytes, piece_bytes));
    return;
  }
  if (plan.kind == FetchPlan::Kind::kDirect) {
    fetch_direct(stream, kernel_params<kMost>(fetches, piece_bytes, kFetchLine), plan.depth, blocks,
                 lists);
    return;
  }
  CHECK(stream.architecture() == 90, "bulk copies on architecture {}", stream.architecture());
  CHECK(plan.depth >= 2 && plan.stage_bytes >= 16 && plan.stage_bytes % 16 == 0,
        "a ring of {} stages of {} bytes", plan.depth, plan.stage_bytes);
  FetchKernelParams<kMost> k =
      kernel_params<kMost>(fetches, piece_bytes, std::min<int64_t>(piece_bytes, plan.stage_bytes));
  k.n_stages = plan.depth;
  const size_t ring_bytes = static_cast<size_t>(kFetchWarps * plan.depth) *
                            (static_cast<size_t>(k.part_bytes) + sizeof(uint64_t));
  CHECK(ring_bytes + lists <= size_t{227} << 10, "rings of {} bytes", ring_bytes);
  launch<fetch_bulk_kernel<kMost>>(stream, blocks, kThreads, ring_bytes + lists, k);
}

// What one launch takes: fetches of the same shape, at most kMost.
template <int kMost>
void fetch_some(Stream& stream, Fetches fetches, const FetchPlan& plan) {
  if (fetches[0].value_codec == RowCodec::kBf16) {
    fetch_planes<kMost>(stream, fetches, plan);
    return;
  }
  fetch_codes<kMost>(stream, fetches, static_cast<unsigned>(plan.blocks));
  if (fetches[0].keys == nullptr) return;
  FetchParams planes[kMost];
  std::copy(fetches.begin(), fetches.end(), planes);
  for (FetchParams& p : planes) {  // what is left are the keys
    p.values = nullptr;
    p.value_head_stride = 0;
  }
  fetch_planes<kMost>(stream, {planes, fetches.size()}, plan);
}

void check_alike(Fetches fetches) {
  const FetchParams& shape = fetches[0];
  CHECK(shape.chunk_tokens > 0 && shape.head_dim > 0, "chunks of {} x {}", shape.chunk_tokens,
        shape.head_dim);
  for (const FetchParams& p : fetches) {
    CHECK(are_alike(p, shape), "fetches of several shapes");
  }
}

}  // namespace

void copy(Stream& stream, const CopyParams& p) {
  CHECK(p.n_rows >= 0 && p.row_bytes >= 0, "{} rows of {} bytes", p.n_rows, p.row_bytes);
  if (p.n_rows == 0 || p.row_bytes == 0) return;
  const bool one_run = p.source_stride == p.row_bytes && p.target_stride == p.row_bytes;
  stream.copy_bytes(p.target, p.target_stride, p.source, p.source_stride,
                    one_run ? p.n_rows * p.row_bytes : p.row_bytes, one_run ? 1 : p.n_rows);
}

void call_host(Stream& stream, const HostCallParams& p) { stream.call(p.function, p.data); }

FetchPlan default_fetch_plan(const Stream& stream) {
  if (stream.architecture() == 90) {
    return {.kind = FetchPlan::Kind::kBulk, .blocks = 16, .depth = 4, .stage_bytes = 2048};
  }
  return {.kind = FetchPlan::Kind::kDirect, .blocks = 16, .depth = 8};
}

void fetch(Stream& stream, std::span<const FetchParams> fetches) {
  fetch_with(stream, fetches, default_fetch_plan(stream));
}

void fetch_with(Stream& stream, std::span<const FetchParams> fetches, const FetchPlan& plan) {
  CHECK(plan.blocks > 0 && plan.depth > 0, "{} blocks, depth {}", plan.blocks, plan.depth);
  if (fetches.empty() || fetches[0].n_kv_heads == 0) return;
  check_alike(fetches);
  if (fetches.size() == 1) {
    if (fetches[0].stride > 0) fetch_some<1>(stream, fetches, plan);
    return;
  }
  for (size_t first = 0; first < fetches.size(); first += kMostFetches) {
    const size_t n = std::min(fetches.size() - first, static_cast<size_t>(kMostFetches));
    fetch_some<kMostFetches>(stream, fetches.subspan(first, n), plan);
  }
}

}  // namespace tiercel::cuda
