#include "kernels/gather.cuh"
#include "kernels/gather.h"
#include "kernels/launch.cuh"

namespace tiercel::cuda {

void gather_chunks(Stream& stream, const GatherParams& p) {
  if (p.n_ids == 0 || p.n_kv_heads == 0) return;
  const int64_t chunk = int64_t{p.chunk_tokens} * p.head_dim;
  const auto is_wide = [&](const bf16* plane, int64_t head_stride) {
    return reinterpret_cast<uintptr_t>(plane) % 16 == 0 && head_stride % 8 == 0 && chunk % 8 == 0;
  };
  const dim3 grid(static_cast<unsigned>(p.n_ids), static_cast<unsigned>(p.n_kv_heads), 2);
  if (is_wide(p.keys, p.head_stride) && is_wide(p.values, p.head_stride) &&
      is_wide(p.out_keys, p.out_head_stride) && is_wide(p.out_values, p.out_head_stride)) {
    launch<copy_chunks<uint4>>(stream, grid, kGatherThreads, 0, p);
  } else {
    launch<copy_chunks<bf16>>(stream, grid, kGatherThreads, 0, p);
  }
}

void reset_slots(Stream& stream, const SlotState& state, int32_t n_kv_heads) {
  stream.fill_bytes(state.slot_of_chunk, 0xff, n_kv_heads * state.chunk_capacity * 4);  // -1
  stream.fill_bytes(state.chunk_of_slot, 0xff, n_kv_heads * state.n_slots * 4);
  if (state.n_slots == 0 || n_kv_heads == 0) return;
  launch<count_up>(
      stream, dim3(blocks_for(state.n_slots, kGatherThreads), static_cast<unsigned>(n_kv_heads)),
      kGatherThreads, 0, OrderParams{state.order, state.n_slots});
}

}  // namespace tiercel::cuda
