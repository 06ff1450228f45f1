// KvStore with main memory on both sides.
#include "tests/offload/cpu_tiers.h"
#include "tests/offload/kv_store_suite.h"

namespace tiercel::test {
namespace {

INSTANTIATE_TYPED_TEST_SUITE_P(Cpu, KvStoreSuite, CpuTiers);

TEST(KvStore, SameBitsForAnyThreadCount) {
  const Sequence sequence(Model{}, 420, seed() + 6);
  KvSettings settings = tiered();
  settings.keys = KeyForm::kLowRank;
  settings.rank = 40;
  settings.budget = 96;
  settings.slots = 2;
  const Outcome one = run<CpuTiers>(sequence, settings, 350, 1);
  for (int threads : {2, 3, 5}) {
    EXPECT_EQ(one.outputs, run<CpuTiers>(sequence, settings, 350, threads).outputs) << threads;
  }
}

}  // namespace
}  // namespace tiercel::test
