#include "tests/kernels/device_vector.h"

namespace tiercel::test {

namespace {
constexpr int64_t kScratch = int64_t{256} << 20;
}

cuda::Stream& stream() {
  static cuda::Stream stream({.scratch_bytes = kScratch});
  return stream;
}
cuda::Stream& older_stream() {
  static cuda::Stream stream({.scratch_bytes = kScratch, .architecture = 86});
  return stream;
}
cuda::PinnedMemory& pinned() {
  static cuda::PinnedMemory memory(stream());
  return memory;
}

}  // namespace tiercel::test
