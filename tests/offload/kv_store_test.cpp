// KvStore with main memory on both sides.
#include "cpu/ops.h"
#include "tests/offload/kv_store_suite.h"

namespace tiercel::test {
namespace {

struct CpuTiers {
  using Device = cpu::Queue;
  using Host = cpu::Queue;
  template <typename T>
  using Vector = std::vector<T>;
  static constexpr bool kEmulated = false, kOverlaps = false, kRoundsWeights = false;

  explicit CpuTiers(int n_threads) : queue({.n_threads = n_threads}) {}
  cpu::Queue& device() { return queue; }
  cpu::Queue& copy() { return queue; }
  cpu::Queue& side() { return queue; }
  cpu::Queue& host() { return queue; }

  cpu::Queue queue;
};

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
