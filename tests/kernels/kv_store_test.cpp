// KvStore with a GPU (or its emulation) as the device tier and pinned memory as the host tier.
#include <string>

#include "kernels/ops.h"
#include "tests/kernels/device_vector.h"
#include "tests/offload/cpu_tiers.h"
#include "tests/offload/kv_store_suite.h"

#if !defined(TIERCEL_ON_DEVICE)
#include "tests/simt/simt.h"
#endif

namespace tiercel::test {
namespace {

struct CudaTiers {
  using Device = cuda::Stream;
  using Host = cuda::PinnedMemory;
  template <typename T>
  using Vector = DeviceVector<T>;
#if defined(TIERCEL_ON_DEVICE)
  static constexpr bool kEmulated = false;
#else
  static constexpr bool kEmulated = true;
#endif

  static constexpr bool kOverlaps = true, kRoundsWeights = true;

  explicit CudaTiers(int)
      : copy_stream({.urgent = true}), side_stream({.scratch_bytes = int64_t{64} << 20}) {}
  cuda::Stream& device() { return stream(); }
  cuda::Stream& copy() { return copy_stream; }
  cuda::Stream& side() { return side_stream; }
  cuda::PinnedMemory& host() { return pinned(); }

  cuda::Stream copy_stream, side_stream;
};

INSTANTIATE_TYPED_TEST_SUITE_P(Cuda, KvStoreSuite, CudaTiers);

#if !defined(TIERCEL_ON_DEVICE)
// What a sequence keeps on the device is one block, however many layers it has.
TEST(KvStores, BlocksDoNotGrowWithTheLayers) {
  int64_t n_blocks[2] = {};
  for (const int64_t n_layers : {2, 5}) {
    Model model;
    model.n_layers = n_layers;
    model.window.assign(static_cast<size_t>(n_layers), 0);
    const int64_t before = simt::g.n_device_blocks;
    run<CudaTiers>(Sequence(model, 122, seed()), tiered(), 120);
    n_blocks[n_layers == 5] = simt::g.n_device_blocks - before;
  }
  EXPECT_EQ(n_blocks[0], n_blocks[1]);
}
#endif

// Keys are coded beside the next layer, from a plane that the layer behind that writes again: from the third
// layer on somebody must wait.
TEST(KvStores, KeyPlanesTakeTurns) {
  Model model;
  model.n_layers = 4;
  model.window.assign(4, 0);
  const int64_t n_prompt = 120, n_new = 1;
  const Sequence sequence(model, n_prompt + n_new, seed() + 12);
  KvSettings settings = tiered();
  settings.keys = KeyForm::kCoded;
  settings.key_codec = RowCodec::kInt8;
  settings.overlap = true;
  const Outcome host = run<CpuTiers>(sequence, settings, n_prompt);
  for (int i = 0; i < 6; ++i) {
    const Outcome device = run<CudaTiers>(sequence, settings, n_prompt);
    ASSERT_LT(relative_error(device.outputs, host.outputs), kSameUpToRounding<CudaTiers>) << i;
  }
}

// Both backends select the same chunks, step by step: what was selected, what of it was resident, and
// what was attended agree for every composition.
TEST(KvStores, BothBackendsSelectTheSame) {
  const int64_t n_prompt = 300, n_new = 6;
  const Sequence plain(Model{}, n_prompt + n_new, seed() + 11);
  Model model;
  model.eviction_head = true;
  const Sequence biased(model, n_prompt + n_new, seed() + 11);
  std::vector<Composition> all = compositions();
  // With an eviction head it is the head that chooses the static part.
  for (const char* name : {"a static part", "at home on the device"}) {
    const auto same = [&](const Composition& c) { return std::string(c.name) == name; };
    all.push_back(*std::find_if(all.begin(), all.end(), same));
  }
  for (size_t i = 0; i < all.size(); ++i) {
    if (is_left_out<CudaTiers>(i)) continue;
    const Composition& composition = all[i];
    const Sequence& sequence = i < compositions().size() ? plain : biased;
    KvSettings settings = tiered();
    settings.budget = 48;
    settings.slots = 2;
    settings.overlap = true;  // on both: chunks retire in the same steps
    composition.apply(settings);
    if (settings.coarse_tokens > 0) settings.coarse_share = 0.5;
    if (settings.top_p > 0) settings.top_p = 0.5;
    if (settings.miss_cap > 0) settings.miss_cap = 2;
    const Outcome device = run<CudaTiers>(sequence, settings, n_prompt);
    const Outcome host = run<CpuTiers>(sequence, settings, n_prompt);
    EXPECT_EQ(device.counters.selected_chunks, host.counters.selected_chunks) << composition.name;
    EXPECT_EQ(device.counters.hit_chunks, host.counters.hit_chunks) << composition.name;
    EXPECT_EQ(device.counters.fetched_bytes, host.counters.fetched_bytes) << composition.name;
    EXPECT_LT(relative_error(device.outputs, host.outputs), kSameUpToRounding<CudaTiers>)
        << composition.name;
  }
}

}  // namespace
}  // namespace tiercel::test
