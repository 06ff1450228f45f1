// A kernel of the emulator: its blocks, one after the other, each with a fiber for every thread, in a new
// random order every time; some of them may begin before the kernel before it has run.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "tests/simt/simt.h"

namespace simt {

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

}  // namespace simt
