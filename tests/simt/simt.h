// Runs CUDA-style kernels on the host: one fiber per CUDA thread, one block at a time per OS
// thread.
//
// Owns fibers, block, warp and named barriers, warp collectives, and deferred (adversarial)
// asynchronous copies and matrix products. Every launch visits blocks and threads in a new random
// order, poisons shared memory, and reports deadlocks and divergent collectives with their place.
// Streams are work_queue.h. It cannot show missing fences, missing warp barriers before reads of other lanes' data, bank
// conflicts of plain loads, register use or time.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
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
  std::vector<Fiber*> ready;    // whom the next round switches to
  std::vector<Fiber*> too_early;  // that wait for the kernels before their own
  std::vector<int> frozen;    // per warp: rounds it still has to sit out
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

inline void fiber_main() {
  (*g.body)();
  if (g.must_wait && !g.cur->has_waited) die("a dependent kernel did not wait_for_predecessors");
  g.cur->done = true;
  --g.b->live;
  ++g.b->progress;
  yield();
  std::abort();
}

inline constexpr size_t kStack = 256 << 10;

inline void prepare(Fiber& f) {
  if (!f.stack && !g.b->spare_stacks.empty()) {
    f.stack = g.b->spare_stacks.back();
    g.b->spare_stacks.pop_back();
  }
  if (!f.stack) {
    f.stack = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    mprotect(f.stack, 4096, PROT_NONE);  // guard page
  }
  // Each at its own place within 64 KiB: otherwise all compete for the same few lines of the caches.
  const int offset = f.linear % 128 * 512 + f.linear / 128 % 8 * 64;
  auto top = reinterpret_cast<uintptr_t>(f.stack + kStack - offset) & ~uintptr_t(15);
  auto* sp = reinterpret_cast<void**>(top);
  *--sp = nullptr;                               // alignment: return address slot of fiber_main
  *--sp = reinterpret_cast<void*>(&fiber_main);  // popped by ret
  for (int i = 0; i < 6; ++i) *--sp = nullptr;   // rbp rbx r12-r15
  f.sp = sp;
  f.done = false;
  f.has_waited = false;
  f.waiting = nullptr;
  f.is_parked = false;
}

inline bool run_bulk_one() {  // one bulk copy completes
  if (g.b->engine.empty()) return false;
  size_t i = g.rng() % g.b->engine.size();
  auto op = std::move(g.b->engine[i]);
  g.b->engine.erase(g.b->engine.begin() + i);
  op.run();
  ++g.b->progress;
  return true;
}

inline bool run_mma_one() {  // the oldest committed wgmma group of some warpgroup executes
  size_t n = g.b->mma_groups.size(), first = g.rng() % n;
  for (size_t i = 0; i < n; ++i) {
    auto& q = g.b->mma_groups[(first + i) % n];
    if (q.size() < 2) continue;
    for (auto& op : q.front()) op.run();
    q.erase(q.begin());
    ++g.b->progress;
    return true;
  }
  return false;
}

inline bool run_async_one() {
  return g.rng() % 2 ? run_bulk_one() || run_mma_one() : run_mma_one() || run_bulk_one();
}

inline void begin_block(Block& b) {
  g.b = &b;
  std::memset(b.smem_storage.data(), 0xFF,
              b.smem_storage.size());  // poison: NaN in every float format
  const auto forget = [](auto& meetings) {
    for (auto& meeting : meetings) {
      meeting.count = 0;
      meeting.parked.clear();
    }
  };
  forget(b.warp);
  forget(b.warpgroup);
  forget(b.named);
  b.engine.clear();
  for (auto& c : b.cp_groups) {
    c.clear();
    c.emplace_back();
  }
  for (auto& c : b.mma_groups) {
    c.clear();
    c.emplace_back();
  }
  b.ready.clear();
  b.too_early.clear();
  for (Fiber& fiber : b.fibers) {
    prepare(fiber);
    b.ready.push_back(&fiber);
  }
  b.live = static_cast<int>(b.fibers.size());
  b.frozen.assign((b.fibers.size() + 31) / 32, 0);
}

// To its end, or, where it is early, until nothing can go on without the kernels before.
inline void run_block(Block& b) {
  std::vector<Fiber*> round;
  while (b.live > 0) {
    uint64_t before = b.progress;
    if (g.rng() % 4 == 0)
      b.frozen[g.rng() % b.frozen.size()] =
          static_cast<int>(g.rng() % 64);  // a slow warp: exposes early releases
    round.swap(b.ready);
    b.ready.clear();
    g.rng.shuffle(round);  // a new interleaving every round
    for (Fiber* fiber : round) {
      if (b.frozen[fiber->linear / 32] > 0) {
        b.ready.push_back(fiber);
        continue;
      }
      g.cur = fiber;
      simt_switch(&g.main_sp, fiber->sp);
      if (!fiber->done && !fiber->is_parked) b.ready.push_back(fiber);
      if (g.bulk == Async::kRandom && (g.rng() & 7) == 0) run_bulk_one();
      if (g.mma == Async::kRandom && (g.rng() & 31) == 0) run_mma_one();
    }
    bool thaw = false;
    for (int& f : b.frozen)
      if (f > 0) {
        --f;
        thaw = true;
      }
    if (b.progress != before) continue;
    if (thaw)
      for (int& f : b.frozen) f = 0;
    else if (g.is_early)
      return;
    else if (!run_async_one())
      die("deadlock");
  }
  if (!b.engine.empty()) die("block ended with bulk copies in flight");
}

// Blocks that nothing runs, with their stacks.
inline thread_local std::vector<std::unique_ptr<Block>> idle_blocks;

// A kernel. Its blocks may run in any order; a grid whose result depends on it is wrong.
class Launch {
 public:
  Launch(dim3 grid, dim3 block, size_t smem_bytes, bool must_wait, std::function<void()> body)
      : grid_(grid), block_(block), smem_bytes_(smem_bytes), must_wait_(must_wait), body_(std::move(body)) {}

  // Lets some blocks begin before the kernel before this one has run, as far as they get. run() must follow
  // in the same thread.
  void begin() {
    choose_order();
    g.is_early = true;
    while (early_.size() < kMostEarly && early_.size() < order_.size()) {
      early_.push_back(begin_one(order_[early_.size()]));
      run_one(*early_.back());
    }
    g.is_early = false;
  }

  void run() {
    if (early_.empty()) choose_order();
    for (size_t i = 0; i < order_.size(); ++i) {
      std::unique_ptr<Block> block = i < early_.size() ? std::move(early_[i]) : begin_one(order_[i]);
      g.b = block.get();
      release(block->too_early);
      run_one(*block);
      idle_blocks.push_back(std::move(block));
    }
    early_.clear();
  }

 private:
  static constexpr size_t kMostEarly = 3;

  void choose_order() {
    constexpr Async kModes[] = {Async::kLate, Async::kEager, Async::kRandom};
    bulk_ = kModes[g.rng() % 3];  // every combination of them finds other bugs
    mma_ = kModes[g.rng() % 3];
    order_.resize(uint64_t{grid_.x} * grid_.y * grid_.z);
    for (uint64_t i = 0; i < order_.size(); ++i) order_[i] = i;
    g.rng.shuffle(order_);
  }

  std::unique_ptr<Block> begin_one(uint64_t i) const {
    if (idle_blocks.empty()) idle_blocks.push_back(std::make_unique<Block>());
    std::unique_ptr<Block> block = std::move(idle_blocks.back());
    idle_blocks.pop_back();
    Block& b = *block;
    if (b.owner != id_) shape(b);
    b.block_idx = dim3(static_cast<unsigned>(i % grid_.x), static_cast<unsigned>(i / grid_.x % grid_.y),
                       static_cast<unsigned>(i / grid_.x / grid_.y));
    begin_block(b);
    return block;
  }

  void shape(Block& b) const {
    b.owner = id_;
    b.block_dim = block_;
    b.grid_dim = grid_;
    const size_t n = size_t{block_.x} * block_.y * block_.z;
    for (size_t i = n; i < b.fibers.size(); ++i) {
      if (b.fibers[i].stack) b.spare_stacks.push_back(b.fibers[i].stack);
    }
    b.fibers.resize(n);
    for (size_t i = 0; i < n; ++i) {
      const auto at = static_cast<unsigned>(i);
      b.fibers[i].linear = static_cast<int>(i);
      b.fibers[i].tid = dim3(at % block_.x, at / block_.x % block_.y, at / (block_.x * block_.y));
    }
    b.smem_bytes = smem_bytes_;
    b.smem_storage.resize(smem_bytes_ + 2048);
    b.smem = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(b.smem_storage.data()) + 1023) &
                                        ~uintptr_t(1023));
    b.warp.resize((n + 31) / 32);
    b.warpgroup.resize((n + 127) / 128);
    b.cp_groups.resize(n);
    b.mma_groups.resize((n + 127) / 128);
  }

  void run_one(Block& b) const {
    g.b = &b;
    g.body = &body_;
    g.must_wait = must_wait_;
    g.bulk = bulk_;
    g.mma = mma_;
    run_block(b);
    g.must_wait = false;
  }

  static inline std::atomic<uint64_t> n_made = 0;
  uint64_t id_ = ++n_made;
  dim3 grid_, block_;
  size_t smem_bytes_;
  bool must_wait_;
  std::function<void()> body_;
  Async bulk_ = Async::kLate, mma_ = Async::kLate;
  std::vector<uint64_t> order_;
  std::vector<std::unique_ptr<Block>> early_;  // the first of order_
};

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
