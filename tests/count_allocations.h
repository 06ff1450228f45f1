// Counts every operator new of a test program. It replaces the global operators, so exactly one source
// file of a program includes it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace tiercel::test {

inline std::atomic<int64_t> n_allocations{0};

// Under ThreadSanitizer a queue makes fresh threads for every op (cpu/queue.cpp), which allocates.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kOpsMakeThreads = true;
#else
inline constexpr bool kOpsMakeThreads = false;
#endif

// Not inlined: gcc would see free() meet operator new and warn.
[[gnu::noinline]] inline void release(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] inline void* counted(std::size_t size, std::size_t alignment) {
  n_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), size) != 0) {
    throw std::bad_alloc();
  }
  return memory;
}

}  // namespace tiercel::test

void* operator new(std::size_t size) { return tiercel::test::counted(size, 16); }
void* operator new[](std::size_t size) { return tiercel::test::counted(size, 16); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return tiercel::test::counted(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return tiercel::test::counted(size, static_cast<std::size_t>(alignment));
}
// std::stable_sort asks this way; a library's own version would not match our delete.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return tiercel::test::counted(size, 16);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return tiercel::test::counted(size, 16);
}
void operator delete(void* p) noexcept { tiercel::test::release(p); }
void operator delete[](void* p) noexcept { tiercel::test::release(p); }
void operator delete(void* p, std::size_t) noexcept { tiercel::test::release(p); }
void operator delete[](void* p, std::size_t) noexcept { tiercel::test::release(p); }
void operator delete(void* p, std::align_val_t) noexcept { tiercel::test::release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { tiercel::test::release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { tiercel::test::release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept {
  tiercel::test::release(p);
}
