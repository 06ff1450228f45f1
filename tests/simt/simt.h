// CUDA-style kernels on the host: one fiber per CUDA thread, one block at a time per OS thread.
//
// Owns fibers, block, warp and named barriers, warp collectives, and deferred (adversarial)
// asynchronous copies and matrix products. Every launch visits blocks and threads in a new random
// order, poisons shared memory, and reports deadlocks and divergent collectives with their place.
// Kernels as a whole are launch.h, streams work_queue.h. It cannot show missing fences, missing warp
// barriers before reads of other lanes' data, bank conflicts of plain loads, register use or time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

// Saves the callee-saved registers and the stack pointer to *save, and continues at load.
extern "C" void simt_switch(void** save, void* load);

namespace simt {

[[noreturn]] inline void die(const char* what);

struct Fiber {
  void* sp = nullptr;
  char* stack = nullptr;
  dim3 tid{0, 0, 0};
  int linear = 0;
  bool done = true;
  bool has_waited = false;        // for the kernels before its own
  bool is_parked = false;         // not switched to before it is released
  const char* waiting = nullptr;  // what this fiber waits for; for the deadlock report
};

struct Collective {  // rendezvous of a set of lanes; the last arriver computes for all
  int count = 0;
  uint64_t site = 0;
  void* args[128] = {};
  std::vector<Fiber*> parked;
};

struct AsyncOp {
  std::function<void()> run;
};

struct Block {
  uint64_t owner = 0;  // the launch that it has the shape of
  dim3 block_dim, block_idx, grid_dim;
  std::vector<Fiber> fibers;
  std::vector<char*> spare_stacks;  // of fibers that a smaller launch did not need
  std::vector<uint8_t> smem_storage;
  uint8_t* smem = nullptr;
  size_t smem_bytes = 0;
  std::vector<Collective> warp, warpgroup;
  struct Named {
    int count = 0, expected = 0;
    std::vector<Fiber*> parked;
  } named[16];
  std::vector<AsyncOp> engine;  // bulk copies in flight
  // per thread: cp.async groups; per warpgroup: wgmma groups
  std::vector<std::vector<std::vector<AsyncOp>>> cp_groups;
  std::vector<std::vector<std::vector<AsyncOp>>> mma_groups;
  std::vector<Fiber*> ready;      // whom the next round switches to
  std::vector<Fiber*> too_early;  // that wait for the kernels before their own
  std::vector<int> frozen;        // per warp: rounds it still has to sit out
  int live = 0;
  uint64_t progress = 0;
};

enum class Async { kLate, kEager, kRandom };

// xorshift64*. Initialised at compile time, which no engine of the standard library is: otherwise
// every use of `g` would ask first whether this thread has initialised it.
class Random {
 public:
  void seed(uint64_t value) { state_ = (value + 1) * 0x9E3779B97F4A7C15u | 1; }
  uint32_t operator()() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>(state_ * 0x2545F4914F6CDD1Du >> 32);
  }
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (size_t n = items.size(); n > 1; --n) {
      std::swap(items[n - 1], items[static_cast<uint64_t>((*this)()) * n >> 32]);
    }
  }

 private:
  uint64_t state_ = 1;
};

struct State {
  Block* b = nullptr;
  Fiber* cur = nullptr;
  void* main_sp = nullptr;
  const std::function<void()>* body = nullptr;
  bool must_wait = false;  // the kernel was launched as a dependent one
  bool is_early = false;   // and the one before it has not run
  Random rng;              // test_main seeds it
  Async bulk = Async::kLate,
        mma = Async::kLate;  // when copies land, when wgmma executes; independent on purpose
  uint64_t switches = 0, ldmatrix_conflicts = 0, ldmatrix_count = 0;
  int64_t n_device_blocks = 0;  // allocated so far
};
constinit inline thread_local State g;

inline void yield() {
  ++g.switches;
  simt_switch(&g.cur->sp, g.main_sp);
}

template <class P>
inline void wait_until(const char* what, P pred) {
  while (!pred()) {
    g.cur->waiting = what;
    yield();
  }
  g.cur->waiting = nullptr;
  ++g.b->progress;
}

// Until it is released.
inline void park(const char* what, std::vector<Fiber*>& parked) {
  parked.push_back(g.cur);
  g.cur->is_parked = true;
  wait_until(what, [] { return !g.cur->is_parked; });
}

inline void wait_for_predecessors() {
  g.cur->has_waited = true;
  if (g.is_early) park("the kernels before this one", g.b->too_early);
}

// All of them; they run from the next round on.
inline void release(std::vector<Fiber*>& parked) {
  for (Fiber* fiber : parked) fiber->is_parked = false;
  g.b->ready.insert(g.b->ready.end(), parked.begin(), parked.end());
  parked.clear();
}

inline void die(const char* what) {
  std::fprintf(stderr, "simt: %s; block (%u,%u,%u)\n", what, g.b->block_idx.x, g.b->block_idx.y,
               g.b->block_idx.z);
  int shown = 0;
  for (auto& f : g.b->fibers)
    if (!f.done && shown++ < 16)
      std::fprintf(stderr, "  thread %d waits for %s\n", f.linear,
                   f.waiting ? f.waiting : "(running)");
  std::abort();
}

// --- rendezvous: every participant deposits `arg`; the last one runs `all(args)`; all continue
// afterwards.
template <class F>
inline void rendezvous(Collective& c, int slot, int expected, uint64_t site, void* arg,
                       const char* what, F all) {
  if (c.count == 0) c.site = site;
  if (c.site != site) die("divergent collective: lanes meet at different instructions");
  c.args[slot] = arg;
  if (++c.count == expected) {
    all(c.args);
    c.count = 0;
    release(c.parked);
    ++g.b->progress;
    return;
  }
  park(what, c.parked);
}

inline int lane() { return g.cur->linear & 31; }
inline int warp_id() { return g.cur->linear >> 5; }

template <class F>
inline void warp_all(uint64_t site, void* arg, F f) {
  rendezvous(g.b->warp[warp_id()], lane(), 32, site, arg, "warp collective", f);
}
template <class F>
inline void warpgroup_all(uint64_t site, void* arg, F f) {
  rendezvous(g.b->warpgroup[g.cur->linear >> 7], g.cur->linear & 127, 128, site, arg,
             "warpgroup collective", f);
}

inline void bar_sync(int id, int threads, bool wait) {
  auto& n = g.b->named[id];
  if (n.count == 0) n.expected = threads;
  if (n.expected != threads) die("named barrier used with two thread counts");
  ++g.b->progress;
  if (++n.count == threads) {
    n.count = 0;
    release(n.parked);
    return;
  }
  if (wait) park("named barrier", n.parked);
}

}  // namespace simt
