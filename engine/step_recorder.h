// A decode step of some sequences, recorded once and replayed for as long as the steps that follow enqueue
// the same ops: one launch for hundreds of kernels, with the bits that they have when enqueued anew.
//
// A replay comes behind what the device's own queue holds, and not behind what the copy and side queues
// still do. So what a step leaves there for a later one must be waited for in the same step (what retires is,
// by the layer's fetch), and a prompt on its way shares nothing with recorded steps but what these never use,
// as are the queues that carry weights and hidden states from host memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "engine/backend.h"
#include "engine/base/ops.h"

namespace tiercel {

template <typename Q>
struct GraphOf {
  struct None {};
  using Type = None;
};
template <Replays Q>
struct GraphOf<Q> {
  using Type = typename Q::Graph;
};

// Store: KvStore.
template <typename Device, typename Store>
class StepRecorder {
 public:
  // at_least: steps that a recording must serve to be made.
  StepRecorder(Device& device, int64_t at_least) : device_(device), at_least_(at_least) {}

  // Without it nothing is recorded. clock: [1], on the device.
  void record_by(int64_t* clock) { clock_ = clock; }

  // What was recorded no longer describes the next step; stores may be gone.
  void forget() {
    n_replays_ = 0;
    is_loaded_ = false;
    stores_.clear();
  }

  // Takes a step of these stores, which `enqueue` enqueues whole. False: nothing was done, as it is a step
  // like no other, or the first of its kind: kernels are loaded by steps that are not recorded.
  template <typename Enqueue>
  bool step(std::span<Store* const> stores, Enqueue&& enqueue) {
    if constexpr (Replays<Device>) {
      if (clock_ == nullptr) return false;
      if (!std::ranges::equal(stores, stores_)) {
        forget();
        stores_.assign(stores.begin(), stores.end());
      }
      const int64_t n_alike = steps_alike();
      if (n_alike == 0) n_replays_ = 0;
      if (n_replays_ == 0) {
        const bool loaded = std::exchange(is_loaded_, n_alike > 1);  // for the next one, which is of its kind then
        if (!loaded || n_alike < at_least_) return false;
        record(enqueue);
        n_replays_ = n_alike;
        is_loaded_ = false;  // what comes behind them is of another kind
      } else {
        for (Store* store : stores_) store->count_replayed_step();
      }
      --n_replays_;
      replay(device_, graph_);
      return true;
    } else {
      return false;
    }
  }

 private:
  int64_t steps_alike() const {
    int64_t n = std::numeric_limits<int64_t>::max();
    for (const Store* store : stores_) n = std::min(n, store->steps_alike());
    return n;
  }

  template <typename Enqueue>
  void record(Enqueue&& enqueue) {
    const auto set_clock = [&](const int64_t* clock) {
      for (Store* store : stores_) store->record_by(clock);
    };
    move_clock(device_, {.clock = clock_, .reset = true});
    begin_capture(device_);
    set_clock(clock_);
    try {
      enqueue();
      move_clock(device_, {.clock = clock_});
    } catch (...) {
      set_clock(nullptr);
      abandon_capture(device_);
      forget();
      throw;
    }
    set_clock(nullptr);
    end_capture(device_, graph_);
  }

  Device& device_;
  const int64_t at_least_;
  int64_t* clock_ = nullptr;
  std::vector<Store*> stores_;  // of the newest step
  typename GraphOf<Device>::Type graph_;
  int64_t n_replays_ = 0;  // so many times what graph_ holds may still be replayed
  bool is_loaded_ = false;  // the newest step was enqueued, and the next one is of its kind
};

}  // namespace tiercel
