// The emulated device itself: what would go wrong on a device now and then goes wrong here, soon.
#if !defined(TIERCEL_ON_DEVICE)
#include "tests/simt/work_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/graph.h"
#include "kernels/stream.h"
#include "tests/simt/launch.h"

namespace tiercel::cuda {
namespace {

constexpr int kTries = 4000;

// How often `look` finds something wrong.
template <typename Look>
int times(Look look) {
  int n = 0;
  for (int i = 0; i < kTries; ++i) n += look() ? 1 : 0;
  return n;
}

TEST(WorkQueue, QueuesThatDoNotWaitAreOvertaken) {
  Stream first, second;
  for (const bool waits : {false, true}) {
    const int n = times([&] {
      int made = 0, found = -1;
      const auto make = [](void* made) { *static_cast<int*>(made) = 1; };
      first.call(make, &made);
      if (waits) second.wait(first.record());
      simt::queue_of(second.raw()).add([&] { found = made; });
      second.finish();
      first.finish();
      return found != 1;
    });
    EXPECT_EQ(n > 0, !waits) << n;
  }
}

TEST(WorkQueue, WhoLooksTooEarlySeesNothing) {
  Stream stream;
  PinnedMemory pinned(stream);
  for (const bool waits : {false, true}) {
    const int n = times([&] {
      std::atomic<int> made = 0;
      stream.call([](void* made) { *static_cast<std::atomic<int>*>(made) = 1; }, &made);
      if (waits) pinned.wait(stream.record());
      const bool is_early = made == 0;
      stream.finish();
      return is_early;
    });
    EXPECT_EQ(n > 0, !waits) << n;
  }
}

TEST(WorkQueue, CopiesFromPinnedMemoryReadItLate) {
  Stream stream;
  PinnedMemory pinned(stream);
  auto* target = static_cast<int*>(allocate(stream, 4));
  auto* source = static_cast<int*>(allocate(pinned, 4));
  int pageable = 0;
  for (int* from : {source, &pageable}) {
    const int n = times([&] {
      *from = 1;
      stream.copy_bytes(target, 4, from, 4, 4, 1);
      *from = 2;
      int found = 0;
      stream.copy_bytes(&found, 4, target, 4, 4, 1);  // has happened when it returns
      return found != 1;
    });
    EXPECT_EQ(n > 0, from == source) << n;
  }
  release(stream, target, 4);
  release(pinned, source, 4);
}

TEST(WorkQueue, DeviceMemoryIsZeroedByItsStream) {
  Stream stream, other;
  const int n = times([&] {
    int found = -1;
    auto* memory = static_cast<int*>(allocate(stream, 4));
    simt::queue_of(other.raw()).add([&] { found = *memory; });
    other.finish();
    release(stream, memory, 4);
    return found != 0;
  });
  EXPECT_GT(n, 0);
}

TEST(WorkQueueDeathTest, MemoryThatIsStillInUse) {
  const auto fill_late = [] {
    Stream stream;
    Stream other;
    for (int i = 0; i < kTries; ++i) {
      constexpr int64_t kBytes = 1 << 16;
      void* memory = allocate(stream, kBytes);
      other.wait(stream.record());
      other.fill_bytes(memory, 1, kBytes);
      release(stream, memory, kBytes);
    }
  };
  EXPECT_DEATH(fill_late(), "written after its release|use-after-free");
}

TEST(WorkQueue, ThreadsShareTheDevice) {
  std::vector<std::thread> threads;
  std::atomic<int> n_wrong = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      Stream first, second;
      for (int turn = 0; turn < kTries; ++turn) {
        int made = 0, found = -1;
        simt::queue_of(first.raw()).add([&] { made = turn; });
        second.wait(first.record());
        simt::queue_of(second.raw()).add([&] { found = made; });
        second.finish();
        n_wrong += found != turn;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(n_wrong, 0);
}

// Each kernel passes on what the one before it wrote; looking before it has waited is too early.
TEST(WorkQueue, DependentKernelsBeginEarly) {
  Stream stream;
  for (const bool is_late : {false, true}) {
    const int n = times([&] {
      int chain[4] = {};
      for (int i = 0; i < 3; ++i) {
        const int* from = chain + i;
        int* to = chain + i + 1;
        const auto kernel = std::make_shared<simt::Launch>(dim3(2), dim3(32), 0, /*must_wait=*/true, [=] {
          int value = *from;
          simt::wait_for_predecessors();
          if (is_late) value = *from;
          *to = value + 1;
        });
        simt::queue_of(stream.raw()).add([kernel] { kernel->run(); }, [kernel] { kernel->begin(); });
      }
      stream.finish();
      return chain[3] != 3;
    });
    EXPECT_EQ(n > 0, !is_late) << n;
  }
}

TEST(WorkQueue, AGraphKeepsWhatItsStreamsWaitedFor) {
  Stream first, second;
  Graph graph;
  std::vector<int> order;
  const auto append = [&](Stream& stream, int n) {
    simt::queue_of(stream.raw()).add([&order, n] { order.push_back(n); });
  };
  begin_capture(first);
  append(first, 1);
  second.wait(first.record());
  append(second, 2);
  append(first, 3);
  first.wait(second.record());
  append(first, 4);
  end_capture(first, graph);
  EXPECT_TRUE(order.empty());
  int n_swapped = 0;
  for (int i = 0; i < kTries; ++i) {
    order.clear();
    replay(first, graph);
    first.finish();
    const bool is_swapped = order == std::vector{1, 3, 2, 4};
    EXPECT_TRUE(is_swapped || order == (std::vector{1, 2, 3, 4}));
    n_swapped += is_swapped ? 1 : 0;
  }
  EXPECT_GT(n_swapped, 0);
  EXPECT_LT(n_swapped, kTries);
  append(second, 5);  // records no more
  second.finish();
  EXPECT_EQ(order.back(), 5);
}

TEST(WorkQueueDeathTest, WhatACaptureRefuses) {
  Stream first, second;
  Graph graph;
  const Stream::Ticket before = first.record();
  EXPECT_DEATH((begin_capture(first), first.wait(before)), "waits for what is not recorded");
  EXPECT_DEATH((begin_capture(first), first.finish()), "waits for a stream that records");
  EXPECT_DEATH((begin_capture(first), allocate(second, 4)), "an allocation while this thread records");
  EXPECT_DEATH((begin_capture(first), begin_capture(first)), "a recording within a recording");
  EXPECT_DEATH(
      {
        begin_capture(first);
        second.wait(first.record());
        simt::queue_of(second.raw()).add([] {});
        end_capture(first, graph);
      },
      "ends without waiting");
  EXPECT_DEATH(
      {
        begin_capture(first);
        const Stream::Ticket ticket = first.record();
        end_capture(first, graph);
        second.wait(ticket);
      },
      "a recording that has ended");
}

}  // namespace
}  // namespace tiercel::cuda
#endif
