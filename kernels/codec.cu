#include <algorithm>

#include "kernels/codec.cuh"
#include "kernels/codec.h"
#include "kernels/joint_launch.cuh"

namespace tiercel::cuda {
namespace {

using namespace codec;

template <typename... Pointers>
bool aligned16(const Pointers*... p) {
  return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}
bool aligned16(const RopeView& r) {
  return aligned16(r.coarse_cos, r.coarse_sin, r.fine_cos, r.fine_sin);
}

void check_rows(RowCodec codec, int64_t width, const void* codes, int64_t code_head_stride) {
  CHECK(codec != RowCodec::kBf16 && can_code(width) && width <= 1 << 16, "codes of {} elements",
        width);
  CHECK(reinterpret_cast<uintptr_t>(codes) % 4 == 0 && code_head_stride % 4 == 0,
        "rows of codes begin at multiples of four bytes");
}
void check_rope(const RopeView& rope, int64_t head_dim) {
  CHECK(head_dim == 2 * rope.half, "head dimension {}, table {}", head_dim, 2 * rope.half);
}

}  // namespace

void encode_rows(Stream& stream, const EncodeParams& p) {
  check_rows(p.codec, p.width, p.codes, p.code_head_stride);
  if (p.mean != nullptr) check_rope(p.rope, p.width);
  CHECK(p.first_token >= p.first_row && p.first_token >= p.first_code,
        "token {} before row {} or code {}", p.first_token, p.first_row, p.first_code);
  if (p.n_tokens == 0 || p.n_kv_heads == 0) return;
  EncodeKernelParams k;
  k.op = p;
  k.format = row_format(p.codec, p.width);
  k.units = p.head_stride % 8 == 0 && aligned16(p.rows, p.mean) && aligned16(p.rope);
  const dim3 grid(blocks_for(p.n_tokens * (p.width / 8), kEncodeThreads),
                  static_cast<unsigned>(p.n_kv_heads));
  launch_dependent<encode_kernel>(stream, grid, kEncodeThreads, 0, k);
}

void mean_keys(Stream& stream, const MeanKeysParams& p) {
  check_rope(p.rope, p.head_dim);
  CHECK(p.n_tokens > 0, "{} tokens", p.n_tokens);
  if (p.n_kv_heads == 0) return;
  MeanKernelParams k;
  k.op = p;
  k.units =
      p.rope.half % 8 == 0 && p.head_stride % 8 == 0 && aligned16(p.keys) && aligned16(p.rope);
  const dim3 grid(blocks_for(p.rope.half, 8), static_cast<unsigned>(p.n_kv_heads));
  launch_dependent<mean_kernel>(stream, grid, codec::kMeanThreads, kMeanBytes, k);
}

void decode_keys(Stream& stream, const DecodeKeysParams& p) {
  check_rows(p.codec, p.head_dim, p.codes, p.code_head_stride);
  check_rope(p.rope, p.head_dim);
  CHECK(p.chunk_tokens > 0, "chunks of {} tokens", p.chunk_tokens);
  if (p.n_kv_heads == 0 || p.stride == 0) return;
  DecodeKernelParams k;
  k.op = p;
  k.format = row_format(p.codec, p.head_dim);
  k.units = p.slot_head_stride % 8 == 0 && aligned16(p.slots, p.mean) && aligned16(p.rope);
  // A thread per unit, but no more than fill the device: then they loop.
  const int64_t items = p.stride * p.chunk_tokens * (p.rope.half / 8);
  const int64_t parallel = std::max<int64_t>(1, 4 * stream.n_processors() / p.n_kv_heads);
  const int64_t wanted = (items + kDecodeThreads - 1) / kDecodeThreads;
  const dim3 grid(blocks_for(std::min(wanted, parallel), 1), static_cast<unsigned>(p.n_kv_heads));
  launch_joint<DecodeMissedKeys>(stream, grid, 0, k);
}

}  // namespace tiercel::cuda
