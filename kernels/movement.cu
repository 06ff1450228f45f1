#include <algorithm>
#include <numeric>

#include "kernels/launch.cuh"
#include "kernels/movement.cuh"
#include "kernels/movement.h"

namespace tiercel::cuda {
namespace {

constexpr int kThreads = kFetchWarps * 32;

bool in_units_of_16(const FetchParams& p, int64_t piece_bytes) {
  const auto address = [](const bf16* x) { return reinterpret_cast<uintptr_t>(x); };
  const uintptr_t any = address(p.values) | address(p.keys) | address(p.slots) |
                        static_cast<uintptr_t>((p.value_head_stride | p.key_head_stride) * 2) |
                        static_cast<uintptr_t>(p.slot_head_stride * 2) |
                        static_cast<uintptr_t>(piece_bytes);
  return any % 16 == 0;
}

FetchKernelParams kernel_params(const FetchParams& p, int64_t piece_bytes, int64_t part_bytes) {
  FetchKernelParams k;
  k.op = p;
  k.piece_bytes = piece_bytes;
  k.part_bytes = static_cast<int32_t>(part_bytes);
  k.n_parts = static_cast<int32_t>((piece_bytes + part_bytes - 1) / part_bytes);
  k.n_kinds = p.keys != nullptr && p.values != nullptr ? 2 : 1;
  k.value_kind = p.keys != nullptr ? 1 : 0;
  CHECK(p.n_kv_heads * p.stride * k.n_kinds * k.n_parts < int64_t{1} << 31,
        "{} heads x {} misses x {} parts", p.n_kv_heads, p.stride, k.n_parts);
  return k;
}

void fetch_direct(Stream& stream, const FetchKernelParams& k, int32_t depth, unsigned blocks,
                  size_t list_bytes) {
  switch (depth) {
    case 4: return launch<fetch_direct_kernel<4>>(stream, blocks, kThreads, list_bytes, k);
    case 8: return launch<fetch_direct_kernel<8>>(stream, blocks, kThreads, list_bytes, k);
    case 16: return launch<fetch_direct_kernel<16>>(stream, blocks, kThreads, list_bytes, k);
    default: CHECK(false, "direct loads of depth {}", depth);
  }
}

template <typename Unit>
void launch_codes(Stream& stream, FetchCodesParams k, unsigned blocks) {
  constexpr int32_t kBytes = static_cast<int32_t>(sizeof(Unit)), kUnits = kCodedDepth * 32;
  // Parts of as many rows as a warp can hold, in equal shares, each a whole number of units.
  const int32_t whole = kBytes / std::gcd(kBytes, k.format.bytes);
  const int32_t most = kUnits * kBytes / k.format.bytes / whole * whole;
  CHECK(most > 0, "rows of {} bytes", k.format.bytes);
  const auto divide_up = [](int32_t a, int32_t b) { return (a + b - 1) / b; };
  k.n_parts = divide_up(k.op.chunk_tokens, most);
  k.part_rows = divide_up(divide_up(k.op.chunk_tokens, k.n_parts), whole) * whole;
  k.n_parts = divide_up(k.op.chunk_tokens, k.part_rows);
  k.part_units = std::min(k.part_rows, k.op.chunk_tokens) * k.format.bytes / kBytes;
  k.n_together = kUnits / k.part_units;
  CHECK(k.op.n_kv_heads * k.op.stride * k.n_parts < int64_t{1} << 31,
        "{} heads x {} misses x {} parts", k.op.n_kv_heads, k.op.stride, k.n_parts);
  const size_t bytes = size_t{kFetchWarps} * kUnits * kBytes +
                       (static_cast<size_t>(k.op.n_kv_heads) + 1) * sizeof(int32_t);
  launch<fetch_codes_kernel<Unit>>(stream, blocks, kThreads, bytes, k);
}

// Coded values, on any plan by direct loads.
void fetch_codes(Stream& stream, const FetchParams& p, unsigned blocks) {
  CHECK(can_code(p.head_dim), "codes of {} elements", p.head_dim);
  CHECK(reinterpret_cast<uintptr_t>(p.value_codes) % 4 == 0 && p.value_code_head_stride % 4 == 0,
        "rows of codes begin at multiples of four bytes");
  FetchCodesParams k;
  k.op = p;
  k.format = row_format(p.value_codec, p.head_dim);
  k.slot_units = reinterpret_cast<uintptr_t>(p.slots) % 16 == 0 && p.slot_head_stride % 8 == 0;
  const int64_t chunk_bytes = int64_t{p.chunk_tokens} * k.format.bytes;
  const bool whole = reinterpret_cast<uintptr_t>(p.value_codes) % 16 == 0 &&
                     p.value_code_head_stride % 16 == 0 && chunk_bytes % 16 == 0;
  if (whole) {
    launch_codes<uint4>(stream, k, blocks);
  } else {
    launch_codes<uint32_t>(stream, k, blocks);
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

FetchPlan default_fetch_plan(const Stream& stream) {
  if (stream.architecture() == 90) {
    return {.kind = FetchPlan::Kind::kBulk, .blocks = 16, .depth = 4, .stage_bytes = 2048};
  }
  return {.kind = FetchPlan::Kind::kDirect, .blocks = 16, .depth = 8};
}

void fetch(Stream& stream, const FetchParams& p) {
  fetch_with(stream, p, default_fetch_plan(stream));
}

void fetch_with(Stream& stream, const FetchParams& from, const FetchPlan& plan) {
  FetchParams p = from;
  CHECK(p.chunk_tokens > 0 && p.head_dim > 0, "chunks of {} x {}", p.chunk_tokens, p.head_dim);
  CHECK(plan.blocks > 0 && plan.depth > 0, "{} blocks, depth {}", plan.blocks, plan.depth);
  if (p.n_kv_heads == 0 || p.stride == 0) return;
  const int64_t piece_bytes = int64_t{2} * p.chunk_tokens * p.head_dim;
  const auto blocks = static_cast<unsigned>(plan.blocks);
  if (p.value_codec != RowCodec::kBf16) {
    fetch_codes(stream, p, blocks);
    if (p.keys == nullptr) return;
    p.values = nullptr;  // what is left are the keys
    p.value_head_stride = 0;
  }
  const size_t list_bytes = (static_cast<size_t>(p.n_kv_heads) + 1) * sizeof(int32_t);
  if (!in_units_of_16(p, piece_bytes)) {
    launch<fetch_elements_kernel>(stream, blocks, kThreads, list_bytes,
                                  kernel_params(p, piece_bytes, piece_bytes));
    return;
  }
  if (plan.kind == FetchPlan::Kind::kDirect) {
    fetch_direct(stream, kernel_params(p, piece_bytes, kFetchLine), plan.depth, blocks, list_bytes);
    return;
  }
  CHECK(stream.architecture() == 90, "bulk copies on architecture {}", stream.architecture());
  CHECK(plan.depth >= 2 && plan.stage_bytes >= 16 && plan.stage_bytes % 16 == 0,
        "a ring of {} stages of {} bytes", plan.depth, plan.stage_bytes);
  FetchKernelParams k =
      kernel_params(p, piece_bytes, std::min<int64_t>(piece_bytes, plan.stage_bytes));
  k.n_stages = plan.depth;
  const size_t ring_bytes = static_cast<size_t>(kFetchWarps * plan.depth) *
                            (static_cast<size_t>(k.part_bytes) + sizeof(uint64_t));
  CHECK(ring_bytes + list_bytes <= size_t{227} << 10, "rings of {} bytes", ring_bytes);
  launch<fetch_bulk_kernel>(stream, blocks, kThreads, ring_bytes + list_bytes, k);
}

}  // namespace tiercel::cuda
