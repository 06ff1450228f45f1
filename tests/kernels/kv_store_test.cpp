// KvStore with a GPU (or its emulation) as the device tier and pinned memory as the host tier.
#include "kernels/ops.h"
#include "tests/kernels/device_vector.h"
#include "tests/offload/kv_store_suite.h"

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

}  // namespace
}  // namespace tiercel::test
