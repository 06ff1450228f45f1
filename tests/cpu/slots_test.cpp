// The slot map against a model.
#include "cpu/slots.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/oracle/slots.h"

namespace tiercel {
namespace {

template <typename T>
using Memory = std::vector<T>;
using Cache = test::SlotCache<Memory>;
using test::head_of;

void map_slots(const MapSlotsParams& p) {
  cpu::Queue queue({.n_threads = 1, .isa = cpu::Isa::kPortable});
  cpu::map_slots(queue, p);
}
const test::SlotsUnderTest<Memory> kOp = {map_slots};

// A million lookups.
TEST(Slots, AgreesWithTheModel) { kOp.expect_models(50, 1200); }
TEST(Slots, TotalsAreAddedTo) { kOp.expect_totals_are_added_to(); }
TEST(Slots, NothingSelectedChangesNothing) { kOp.expect_nothing_selected_changes_nothing(); }

TEST(Slots, SelectionOfAllSlotsReplacesEverything) {
  Cache c(1, 10, 3, 3);
  c.ids = {1, 5, 9};
  c.counts = {3};
  map_slots(c.params());
  EXPECT_EQ(c.miss_counts[0], 3);
  EXPECT_EQ(c.miss_slots, std::vector<int32_t>({0, 1, 2}));
  c.ids = {2, 5, 8};
  map_slots(c.params());
  EXPECT_EQ(c.hit_counts[0], 1);
  EXPECT_EQ(c.hit_slots[0], 1);
  EXPECT_EQ(head_of(c.miss_chunks, 0, 2), std::vector<int32_t>({2, 8}));
  EXPECT_EQ(head_of(c.miss_slots, 0, 2), std::vector<int32_t>({0, 2}));
  EXPECT_EQ(c.slot_of_chunk[1], -1);
  EXPECT_EQ(c.slot_of_chunk[9], -1);
  EXPECT_EQ(c.order, std::vector<int32_t>({1, 0, 2}));
}

TEST(SlotsDeathTest, TooFewSlots) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Cache c(1, 10, 2, 3);
  c.counts = {3};
  c.ids = {0, 1, 2};
  EXPECT_DEATH(map_slots(c.params()), "3 chunks for 2 slots");
}

}  // namespace
}  // namespace tiercel
