#include "cpu/gather.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <numeric>

#include "cpu/topology.h"
#include "engine/base/check.h"

namespace tiercel::cpu {

void gather_chunks(Queue& queue, const GatherParams& p) {
  const int64_t row = p.head_dim;
  const int64_t chunk = p.chunk_tokens * row;
  const size_t bytes = static_cast<size_t>(chunk) * sizeof(bf16);
  queue.for_each(p.n_kv_heads, [&](int64_t head, Worker&) {
    for (int64_t i = 0; i < p.n_ids; ++i) {
      const int64_t source = head * p.head_stride + p.ids[head * p.n_ids + i] * chunk;
      const int64_t target = head * p.out_head_stride + i * chunk;
      std::memcpy(p.out_keys + target, p.keys + source, bytes);
      std::memcpy(p.out_values + target, p.values + source, bytes);
    }
  });
}

void reset_slots(Queue&, const SlotState& state, int32_t n_kv_heads) {
  std::fill_n(state.slot_of_chunk, n_kv_heads * state.chunk_capacity, -1);
  std::fill_n(state.chunk_of_slot, n_kv_heads * state.n_slots, -1);
  for (int32_t head = 0; head < n_kv_heads; ++head) {
    int32_t* order = state.order + head * state.n_slots;
    std::iota(order, order + state.n_slots, 0);
  }
}

void* allocate(Queue&, int64_t bytes) { return map_pages(static_cast<size_t>(bytes)); }
void release(Queue&, void* address, int64_t bytes) noexcept {
  unmap_pages(address, static_cast<size_t>(bytes));
}

void map_file(Queue&, void* target, int64_t bytes, int descriptor, int64_t offset) {
  const void* mapped =
      ::mmap(target, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, descriptor, static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) {
    fail(ErrorKind::kDoesNotFit, "the system refused to map {} bytes of a file: {}", bytes,
         std::strerror(errno));
  }
}

}  // namespace tiercel::cpu
