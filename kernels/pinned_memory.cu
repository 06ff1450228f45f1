// Pinned host memory: huge pages near the device, touched by several threads, then registered.
//
// cudaHostAlloc takes 0.4 s a GiB, most of it in clearing pages one after the other; a store of a long
// prompt would wait for it longer than for its first tokens.
#include <hwloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

#include "engine/base/threads.h"
#include "engine/base/units.h"
#include "kernels/launch.cuh"
#include "kernels/stream.h"
// hwloc's header has C-style code inside.
#include <hwloc/cudart.h>

namespace tiercel::cuda {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSmallPage = 4096;
constexpr unsigned kTouchThreads = 8;

// Below this a block of its own is not worth two megabytes of alignment.
bool is_large(int64_t bytes) { return static_cast<size_t>(bytes) >= 4 * kHugePage; }

size_t rounded(int64_t bytes) {
  return (static_cast<size_t>(bytes) + kHugePage - 1) / kHugePage * kHugePage;
}

// The pages of a block come from the memory nearest to the device. A refusal costs speed only.
void bind_near(int device, void* address, size_t bytes) {
  static const hwloc_topology_t machine = [] {
    hwloc_topology_t read = nullptr;
    if (hwloc_topology_init(&read) != 0) return hwloc_topology_t{nullptr};
    if (hwloc_topology_load(read) == 0) return read;
    hwloc_topology_destroy(read);
    return hwloc_topology_t{nullptr};
  }();
  if (machine == nullptr || hwloc_get_nbobjs_by_type(machine, HWLOC_OBJ_NUMANODE) < 2) return;
  hwloc_cpuset_t near = hwloc_bitmap_alloc();
  if (hwloc_cudart_get_device_cpuset(machine, device, near) == 0) {
    // Not strict: with that memory full, far memory is better than none.
    hwloc_set_area_membind(machine, address, bytes, near, HWLOC_MEMBIND_BIND, 0);
  }
  hwloc_bitmap_free(near);
}

// Fresh pages are zero; they exist once they have been written to.
void touch(std::byte* begin, size_t bytes) {
  const unsigned n = std::clamp(std::thread::hardware_concurrency(), 1u, kTouchThreads);
  const size_t piece = (bytes / n + kHugePage - 1) / kHugePage * kHugePage;
  std::atomic<size_t> next{0};
  work_in_threads(static_cast<int>(n), [&] {
    for (size_t first = piece * next++; first < bytes; first = piece * next++) {
      for (size_t at = first; at < std::min(bytes, first + piece); at += kSmallPage) {
        begin[at] = std::byte{0};
      }
    }
  });
}

[[noreturn]] void refuse(int64_t bytes, const char* reason) {
  fail(ErrorKind::kDoesNotFit,
       "{} of pinned host memory: {}; lower --host-memory, shorten the context (-c, -n, the prompt), or keep more "
       "on the device (fewer --host-layers, --hidden-home device)",
       format_bytes(bytes), reason);
}

void* allocate_large(int device, int64_t bytes) {
  const size_t size = rounded(bytes);
  void* reserved = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) refuse(bytes, std::strerror(errno));
  auto* begin = static_cast<std::byte*>(reserved);
  const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (head > 0) munmap(begin, head);
  begin += head;
  if (kHugePage > head) munmap(begin + size, kHugePage - head);
  madvise(begin, size, MADV_HUGEPAGE);
  bind_near(device, begin, size);
  touch(begin, size);
  const cudaError_t error =
      cudaHostRegister(begin, size, cudaHostRegisterPortable | cudaHostRegisterMapped);
  if (error != cudaSuccess) {
    cudaGetLastError();
    munmap(begin, size);
    refuse(bytes, cudaGetErrorString(error));
  }
  return begin;
}

}  // namespace

void PinnedMemory::wait(Stream::Ticket ticket) {
  CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(ticket.event)));
}

void* allocate(PinnedMemory& memory, int64_t bytes) {
  if (is_large(bytes)) return allocate_large(memory.stream().device(), bytes);
  void* address = nullptr;
  const cudaError_t error = cudaHostAlloc(&address, static_cast<size_t>(bytes),
                                          cudaHostAllocPortable | cudaHostAllocMapped);
  if (error != cudaSuccess) {
    cudaGetLastError();
    refuse(bytes, cudaGetErrorString(error));
  }
  std::memset(address, 0, static_cast<size_t>(bytes));
  return address;
}

void release(PinnedMemory& memory, void* address, int64_t bytes) {
  cudaStreamSynchronize(static_cast<cudaStream_t>(memory.stream().raw()));
  if (is_large(bytes)) {
    cudaHostUnregister(address);
    munmap(address, rounded(bytes));
  } else {
    cudaFreeHost(address);
  }
}

}  // namespace tiercel::cuda
