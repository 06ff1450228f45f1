// Vectors that both the host and the device under test can read and write: pinned host memory on a
// GPU, plain memory in the emulator. A test calls stream.finish() between an op and a look at its output.
#pragma once

#include <vector>

#include "kernels/stream.h"

namespace tiercel::test {

// The stream under test, made on first use; device tests skip before they call it without a GPU.
cuda::Stream& stream();
// The same device with the kernels, and the shared memory, of an older architecture (86).
cuda::Stream& older_stream();
cuda::PinnedMemory& pinned();

// An op, op(stream, params), whose results the host may look at afterwards.
template <typename Op>
auto waiting(Op op) {
  return [op](const auto& params) {
    op(stream(), params);
    stream().finish();
  };
}

template <typename T>
struct SharedAllocator {
  using value_type = T;
  SharedAllocator() = default;
  template <typename U>
  SharedAllocator(const SharedAllocator<U>&) {}
  T* allocate(size_t n) {
    return static_cast<T*>(cuda::allocate(pinned(), static_cast<int64_t>(n * sizeof(T))));
  }
  void deallocate(T* p, size_t n) {
    cuda::release(pinned(), p, static_cast<int64_t>(n * sizeof(T)));
  }
  friend bool operator==(SharedAllocator, SharedAllocator) { return true; }
};

template <typename T>
using DeviceVector = std::vector<T, SharedAllocator<T>>;

}  // namespace tiercel::test
