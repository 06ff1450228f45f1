// Which chunk a position of a selection is.
//
//   all       chunk = origin + position
//   blocks    position   0 .. block_positions - 1                | block_positions ..
//             chunk      those of the listed blocks from `first` | first_loose ..
//                        on, one block after the other           |
//
// How many blocks are listed is known on the device only, so positions are as many as there can be,
// never more than there are chunks between first and end: those behind the list are no chunks.
// Chunks rise with positions.
#pragma once

#include "kernels/gpu.cuh"

namespace tiercel::cuda {

struct ChunkMap {
  int32_t origin;
  const int32_t* blocks;  // [n_kv_heads][stride], ascending; or null: all
  const int32_t* counts;  // [n_kv_heads]
  int64_t stride;         // 0: all KV heads have the same list
  int32_t block_chunks, block_positions;
  int32_t first, first_loose, end;  // first <= first_loose <= end

  // -1: none.
  GPU int32_t chunk_at(int64_t kv_head, int32_t position) const {
    if (blocks == nullptr) return origin + position;
    if (position >= block_positions) {
      const int32_t chunk = first_loose + (position - block_positions);
      return chunk < end ? chunk : -1;
    }
    const int32_t* list = blocks + kv_head * stride;
    const int32_t count = counts[stride == 0 ? 0 : kv_head], first_block = first / block_chunks;
    int32_t at = 0;
    while (at < count && list[at] < first_block) ++at;  // hardly ever: it has no candidates
    if (at < count && list[at] == first_block) position += first % block_chunks;
    at += position / block_chunks;
    if (at >= count) return -1;
    const int32_t chunk = list[at] * block_chunks + position % block_chunks;
    return chunk < first_loose ? chunk : -1;
  }
};

}  // namespace tiercel::cuda
