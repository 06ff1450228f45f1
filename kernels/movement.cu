#include <algorithm>

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
  k.n_kinds = p.keys != nullptr ? 2 : 1;
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

void fetch_with(Stream& stream, const FetchParams& p, const FetchPlan& plan) {
  CHECK(p.chunk_tokens > 0 && p.head_dim > 0, "chunks of {} x {}", p.chunk_tokens, p.head_dim);
  CHECK(plan.blocks > 0 && plan.depth > 0, "{} blocks, depth {}", plan.blocks, plan.depth);
  if (p.n_kv_heads == 0 || p.stride == 0) return;
  const int64_t piece_bytes = int64_t{2} * p.chunk_tokens * p.head_dim;
  const auto blocks = static_cast<unsigned>(plan.blocks);
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
