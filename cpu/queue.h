// cpu::Queue: the CPU's queue type. It owns the worker threads of a session (a oneTBB arena), the
// instruction-set level, and one block of scratch memory per worker.
//
// Ops run when they are called and have finished when they return, so tickets are always complete;
// the engine still records and waits for them, because the same code drives a GPU.
//
// Determinism: an op cuts its work into items whose number and bounds depend on shapes only. Each
// item is computed by one thread, in a fixed order, into its own place. Which thread takes which
// item never matters, so the bits do not depend on the number of threads.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "cpu/isa.h"

namespace tiercel::cpu {

// Scratch memory of one worker: enough for the staged superblock of attention and its buffers.
inline constexpr size_t kScratchBytes = size_t{4} << 20;

// What an item gets to work with.
struct Worker {
  int index = 0;              // 0 .. n_workers - 1
  std::byte* scratch = nullptr;  // kScratchBytes, 4 KiB aligned, contents undefined
};

inline constexpr int kMaxThreads = 1024;

struct QueueOptions {
  int n_threads = 0;  // 0: one per core of this process's affinity mask
  Isa isa = default_isa();
};

class Queue {
 public:
  using Ticket = int64_t;
  // The host reads what ops of this queue have written, without a copy.
  static constexpr bool kHostReadable = true;
  // FLOPs of a piece of work that nothing interrupts: about two seconds of two cores.
  static constexpr double kRunFlops = 2e12;
  // Ops of so many sequences run at once, see together().
  static constexpr int64_t kTogether = 1;

  explicit Queue(const QueueOptions& options = {});
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  int n_workers() const { return n_workers_; }
  Isa isa() const { return isa_; }

  Ticket record() { return ++last_ticket_; }
  void wait(Ticket) {}
  void finish() {}
  // When the ops before it had ended.
  using TimeMark = std::chrono::steady_clock::time_point;
  TimeMark mark_time() { return std::chrono::steady_clock::now(); }
  double seconds_between(TimeMark first, TimeMark second) {
    return std::chrono::duration<double>(second - first).count();
  }

  // Calls body(item, worker) for items 0 .. n_items-1; items are claimed in that order, so put heavy
  // ones first. Allocates nothing. body must not throw and must not call for_each.
  template <typename Body>
  void for_each(int64_t n_items, Body&& body) {
    if (n_items <= 0) return;
    struct Context {
      std::remove_reference_t<Body>* body;
      int64_t n_items;
      std::atomic<int64_t> next{0};
    } context{&body, n_items, {}};
    auto claim_items = [](void* opaque, Worker& worker) {
      auto& c = *static_cast<Context*>(opaque);
      for (int64_t item = c.next.fetch_add(1, std::memory_order_relaxed); item < c.n_items;
           item = c.next.fetch_add(1, std::memory_order_relaxed)) {
        (*c.body)(item, worker);
      }
    };
    run_on_workers(claim_items, &context, n_items > 1);
  }

 private:
  class Threads;

  // Calls work(context, worker) once on each worker that has time, at least once in all, and returns
  // when every call has returned.
  void run_on_workers(void (*work)(void*, Worker&), void* context, bool parallel);

  int n_workers_;
  Isa isa_;
  std::unique_ptr<Threads> threads_;
  std::byte* scratch_ = nullptr;
  Ticket last_ticket_ = 0;
};

// Calls each(i) for i = 0 .. n-1, whose ops have nothing to do with each other.
template <typename Each>
void together(Queue&, int64_t n, Each&& each) {
  for (int64_t i = 0; i < n; ++i) each(i);
}

}  // namespace tiercel::cpu
