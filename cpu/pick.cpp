#include "cpu/pick.h"

#include <bit>
#include <limits>

#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

// Masses as integers that ascend with them, NaN on top; or descend.
uint32_t rank_of(float mass, bool greatest) {
  const uint32_t u = std::bit_cast<uint32_t>(mass + 0.0f);  // -0 becomes +0
  const uint32_t ascending =
      mass != mass ? ~uint32_t{0} : u ^ ((u >> 31) != 0 ? ~uint32_t{0} : uint32_t{1} << 31);
  return greatest ? ascending : ~ascending;
}

int64_t count_from(const float* mass, int64_t n, bool greatest, uint32_t least) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += rank_of(mass[i], greatest) >= least;
  return count;
}

void pick(const PickParams& p, int64_t kv_head) {
  const float* mass = p.mass + kv_head * p.mass_stride;
  const int64_t n_chunks = p.end_chunk - p.first_chunk;
  // The rank of the n-th best, bit by bit: 32 passes, and no memory.
  uint32_t bar = 0;
  for (uint32_t bit = uint32_t{1} << 31; bit != 0; bit >>= 1) {
    if (count_from(mass, n_chunks, p.greatest, bar | bit) >= p.n) bar |= bit;
  }
  const int64_t n_above = bar == ~uint32_t{0} ? 0 : count_from(mass, n_chunks, p.greatest, bar + 1);
  int64_t n_equal = p.n - n_above;  // of those at the bar, the lowest chunks
  int64_t n_picked = 0;
  uint64_t* excluded = p.excluded + kv_head * p.excluded_stride;
  for (int64_t i = 0; i < n_chunks && n_picked < p.n; ++i) {
    const uint32_t rank = rank_of(mass[i], p.greatest);
    if (rank < bar || (rank == bar && n_equal-- <= 0)) continue;
    const int64_t chunk = p.first_chunk + i;
    if (p.ids != nullptr) p.ids[kv_head * p.n + n_picked] = static_cast<int32_t>(chunk);
    excluded[chunk >> 6] |= uint64_t{1} << (chunk & 63);
    ++n_picked;
  }
}

}  // namespace

void pick_chunks(Queue& queue, const PickParams& p) {
  CHECK(p.first_chunk >= 0 && p.end_chunk <= std::numeric_limits<int32_t>::max(), "chunks {} to {}",
        p.first_chunk, p.end_chunk);
  CHECK(p.n >= 0 && (p.n == 0 || p.n <= p.end_chunk - p.first_chunk), "{} of chunks {} to {}", p.n,
        p.first_chunk, p.end_chunk);
  if (p.n == 0) return;
  queue.for_each(p.n_kv_heads, [&](int64_t kv_head, const Worker&) { pick(p, kv_head); });
}

}  // namespace tiercel::cpu
