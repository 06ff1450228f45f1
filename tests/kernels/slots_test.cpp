// The slot map on the device (or its emulator) against a model, and against cpu::map_slots.
#include "kernels/slots.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/slots.h"
#include "tests/kernels/device_vector.h"
#include "tests/oracle/slots.h"
#include "tests/seed.h"

namespace tiercel {
namespace {

using Cache = test::SlotCache<test::DeviceVector>;
using test::head_of;

const test::SlotsUnderTest<test::DeviceVector> kOp = {
    test::waiting([](cuda::Stream& s, const MapSlotsParams& p) { cuda::map_slots(s, p); })};

TEST(CudaSlots, AgreesWithTheModel) { kOp.expect_models(8, 30); }
TEST(CudaSlots, TotalsAreAddedTo) { kOp.expect_totals_are_added_to(); }
TEST(CudaSlots, NothingSelectedChangesNothing) { kOp.expect_nothing_selected_changes_nothing(); }

// More slots than a strip, and than the bit map in shared memory holds.
TEST(CudaSlots, ManySlots) {
  std::mt19937_64 rng(test::seed());
  for (const int64_t n_slots : {int64_t{9001}, int64_t{70001}}) {
    const int64_t n_chunks = 3 * n_slots, k = n_slots > 10000 ? 5000 : n_slots;
    Cache a(1, n_chunks, n_slots, k), b(1, n_chunks, n_slots, k);
    std::vector<int32_t> all(n_chunks);
    std::iota(all.begin(), all.end(), 0);
    cpu::Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
    for (int step = 0; step < 5; ++step) {
      const int64_t count = step == 3 ? k : k - static_cast<int64_t>(rng() % 500);
      std::vector<int32_t> ids;
      std::sample(all.begin(), all.begin() + 2 * k, std::back_inserter(ids), count, rng);
      std::copy(ids.begin(), ids.end(), a.ids.begin());
      a.counts[0] = static_cast<int32_t>(count);
      b.ids = a.ids;
      b.counts = a.counts;
      kOp.map(a);
      cpu::map_slots(queue, b.params());
      ASSERT_EQ(a.hit_counts, b.hit_counts);
      ASSERT_EQ(a.miss_counts, b.miss_counts);
      ASSERT_EQ(a.totals, b.totals);
      ASSERT_EQ(head_of(a.hit_slots, 0, a.hit_counts[0]), head_of(b.hit_slots, 0, a.hit_counts[0]));
      for (const auto list : {&Cache::miss_chunks, &Cache::miss_slots}) {
        ASSERT_EQ(head_of(a.*list, 0, a.miss_counts[0]), head_of(b.*list, 0, a.miss_counts[0]));
      }
      ASSERT_EQ(a.order, b.order);
      ASSERT_EQ(a.chunk_of_slot, b.chunk_of_slot);
      ASSERT_EQ(a.slot_of_chunk, b.slot_of_chunk);
    }
  }
}

}  // namespace
}  // namespace tiercel
