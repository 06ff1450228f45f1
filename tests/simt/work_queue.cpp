#include "tests/simt/work_queue.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "tests/sanitized.h"
#include "tests/simt/simt.h"

namespace simt {

namespace {

[[noreturn]] void refuse(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::abort();
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

thread_local int n_recordings = 0;  // that this thread has begun

// Runs a piece of work, and those that next() gives, each of which has begun before the one before it ran.
template <typename Next>
void run_overlapped(Work work, Next next) {
  while (std::optional<Work> after = next()) {
    after->begin();
    work.run();
    work = std::move(*after);
  }
  work.run();
}

// More than that waits nowhere: closures have parameters, and copies of pageable memory.
constexpr size_t kMostWaiting = 4096;

}  // namespace

// All queues of the process, and what is run next. Work runs unlocked, one piece of a queue at a time.
struct Schedule {
  enum class When { kLate, kEager, kRandom };

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<WorkQueue*> queues;
  Random random;
  When when = When::kLate;
  int n_left = 0;  // enqueued before `when` is chosen anew
  size_t n_waiting = 0;

  using Lock = std::unique_lock<std::mutex>;

  bool chance(uint32_t of) { return random() % of == 0; }

  // What the first item waits for; null: nothing, or it has been reached.
  static const Moment* awaited_by(const WorkQueue& queue) {
    if (queue.is_busy_ || queue.items_.empty()) return nullptr;
    const auto* awaited = std::get_if<WorkQueue::Awaited>(&queue.items_.front());
    return awaited != nullptr && !awaited->moment->is_reached ? awaited->moment.get() : nullptr;
  }
  static bool can_run(const WorkQueue& queue) {
    return !queue.is_busy_ && !queue.items_.empty() && awaited_by(queue) == nullptr;
  }

  void run_first(WorkQueue& queue, Lock& lock) {
    struct Busy {
      Schedule& schedule;
      WorkQueue& queue;
      Lock& lock;
      ~Busy() {
        if (!lock.owns_lock()) lock.lock();
        queue.is_busy_ = false;
        schedule.changed.notify_all();
      }
    };
    WorkQueue::Item item = std::move(queue.items_.front());
    queue.items_.pop_front();
    --n_waiting;
    queue.is_busy_ = true;
    const Busy busy{*this, queue, lock};
    if (auto* passed = std::get_if<WorkQueue::Passed>(&item)) {
      passed->moment->is_reached = true;
      passed->moment->seconds = now();
    } else if (auto* work = std::get_if<Work>(&item)) {
      lock.unlock();
      run_overlapped(std::move(*work), [&] { return next_to_overlap(queue); });
    }
  }

  // The queue's next piece, if it may begin now and shall.
  std::optional<Work> next_to_overlap(WorkQueue& queue) {
    const Lock lock(mutex);
    if (queue.items_.empty() || chance(2)) return {};
    auto* next = std::get_if<Work>(&queue.items_.front());
    if (next == nullptr || !next->begin) return {};
    std::optional<Work> taken(std::move(*next));
    queue.items_.pop_front();
    --n_waiting;
    return taken;
  }

  WorkQueue* any_that_can_run() {
    const size_t n = queues.size(), first = n == 0 ? 0 : random() % n;
    for (size_t i = 0; i < n; ++i) {
      WorkQueue* queue = queues[(first + i) % n];
      if (can_run(*queue)) return queue;
    }
    return nullptr;
  }

  // The queue whose first item the first item of this one waits for, or itself.
  WorkQueue* behind_all_waits(WorkQueue* queue) const {
    for (size_t i = 0; i <= queues.size(); ++i) {
      const Moment* awaited = awaited_by(*queue);
      if (awaited == nullptr) return queue;
      queue = awaited->queue;
    }
    refuse("streams wait for each other");
  }

  // One step towards what the host waits for.
  void advance(WorkQueue& wanted, Lock& lock) {
    WorkQueue* queue = when == When::kLate ? nullptr : any_that_can_run();
    if (queue == nullptr) queue = behind_all_waits(&wanted);
    if (can_run(*queue)) {
      run_first(*queue, lock);
    } else if (queue->is_busy_) {
      changed.wait(lock);
    } else {
      refuse("a stream waits for what nobody has enqueued");
    }
  }

  // After something has been enqueued.
  void run_some(WorkQueue& queue, Lock& lock) {
    constexpr When kAll[] = {When::kLate, When::kEager, When::kRandom};
    if (n_left-- <= 0) {
      n_left = static_cast<int>(random() % 256);
      when = kAll[random() % 3];
    }
    if (when == When::kEager) {
      while (can_run(queue)) run_first(queue, lock);
    } else if (when == When::kRandom) {
      while (!chance(3)) {
        WorkQueue* any = any_that_can_run();
        if (any == nullptr) break;
        run_first(*any, lock);
      }
    }
    while (n_waiting > kMostWaiting) {
      WorkQueue* any = any_that_can_run();
      if (any == nullptr) break;
      run_first(*any, lock);
    }
  }

  static Schedule& get() {
    static auto* schedule = new Schedule;  // streams may be destroyed after static objects
    return *schedule;
  }
};

void Graph::run() const {
  std::vector<size_t> n_before(nodes.size());
  std::vector<std::vector<size_t>> next(nodes.size());
  std::vector<size_t> ready;
  for (size_t i = 0; i < nodes.size(); ++i) {
    n_before[i] = nodes[i].after.size();
    for (const size_t before : nodes[i].after) next[before].push_back(i);
    if (n_before[i] == 0) ready.push_back(i);
  }
  while (!ready.empty()) {
    std::swap(ready[g.rng() % ready.size()], ready.back());
    size_t running = ready.back();
    ready.pop_back();
    const auto end = [&](size_t but) {
      for (const size_t after : next[running]) {
        if (--n_before[after] == 0 && after != but) ready.push_back(after);
      }
    };
    run_overlapped(nodes[running].work, [&]() -> std::optional<Work> {
      for (const size_t after : next[running]) {
        if (!nodes[after].work.begin || nodes[after].after.size() > 1 || g.rng() % 2 == 0) continue;
        end(after);
        running = after;
        return nodes[after].work;
      }
      return {};
    });
    end(running);
  }
}

WorkQueue::WorkQueue(uint64_t seed) {
  Schedule& s = Schedule::get();
  const Schedule::Lock lock(s.mutex);
  if (s.queues.empty()) s.random.seed(seed);
  s.queues.push_back(this);
}

WorkQueue::~WorkQueue() {
  abandon_recording();
  drain();
  Schedule& s = Schedule::get();
  const Schedule::Lock lock(s.mutex);
  std::erase(s.queues, this);
}

void WorkQueue::push(Item item) {
  Schedule& s = Schedule::get();
  Schedule::Lock lock(s.mutex);
  items_.push_back(std::move(item));
  ++s.n_waiting;
  s.run_some(*this, lock);
}

void WorkQueue::add(std::function<void()> run, std::function<void()> begin) {
  Work work{std::move(run), std::move(begin)};
  if (graph_ == nullptr) return push(std::move(work));
  graph_->nodes.push_back({std::move(work), last_});
  last_ = {graph_->nodes.size() - 1};
}

MomentPtr WorkQueue::mark() {
  auto moment = std::make_shared<Moment>();
  moment->queue = this;
  if (graph_ != nullptr) {
    moment->graph = graph_;
    moment->after = last_;
  } else {
    push(Passed{moment});
  }
  return moment;
}

void WorkQueue::wait_for(const MomentPtr& moment) {
  if (moment == nullptr) return;  // an event that was never recorded
  if (moment->graph == nullptr) {
    if (graph_ != nullptr) refuse("a stream that records waits for what is not recorded");
    return push(Awaited{moment});
  }
  if (moment->graph->has_ended) refuse("a stream waits for a moment of a recording that has ended");
  if (graph_ == nullptr) {
    graph_ = moment->graph;
    graph_->queues.push_back(this);
  }
  if (graph_ != moment->graph) refuse("a stream that records waits for another recording");
  for (const size_t node : moment->after) {
    if (std::find(last_.begin(), last_.end(), node) == last_.end()) last_.push_back(node);
  }
}

void WorkQueue::drain() {
  if (graph_ != nullptr) refuse("the host waits for a stream that records");
  Schedule& s = Schedule::get();
  Schedule::Lock lock(s.mutex);
  while (!items_.empty() || is_busy_) s.advance(*this, lock);
}

void WorkQueue::reach(const MomentPtr& moment) {
  if (moment == nullptr) return;
  if (moment->graph != nullptr) refuse("the host waits for a moment of a recording");
  Schedule& s = Schedule::get();
  Schedule::Lock lock(s.mutex);
  while (!moment->is_reached) s.advance(*moment->queue, lock);
}

void WorkQueue::begin_recording() {
  if (graph_ != nullptr) refuse("a recording within a recording");
  graph_ = std::make_shared<Graph>();
  graph_->queues.push_back(this);
  last_.clear();
  ++n_recordings;
}

std::shared_ptr<Graph> WorkQueue::end_recording() {
  if (graph_ == nullptr || graph_->queues.front() != this) refuse("no recording has begun");
  // Everything that was recorded must come before the end of the stream that began.
  std::vector<bool> is_before(graph_->nodes.size());
  for (const size_t node : last_) is_before[node] = true;
  for (size_t i = graph_->nodes.size(); i-- > 0;) {
    if (!is_before[i]) refuse("a recording ends without waiting for a stream that waited for it");
    for (const size_t node : graph_->nodes[i].after) is_before[node] = true;
  }
  std::shared_ptr<Graph> graph = graph_;
  abandon_recording();
  return graph;
}

void WorkQueue::abandon_recording() noexcept {
  if (graph_ == nullptr) return;
  const std::shared_ptr<Graph> graph = graph_;
  graph->has_ended = true;
  for (WorkQueue* queue : graph->queues) {
    queue->graph_ = nullptr;
    queue->last_.clear();
  }
  --n_recordings;
}

void refuse_while_recording(const char* call) {
  if (n_recordings == 0) return;
  std::fprintf(stderr, "simt: %s while this thread records\n", call);
  std::abort();
}

namespace {

// What is released is filled with NaN in every float format, and with another one each time: what is copied from
// one such place to another is noticed too.
constexpr uint16_t kFreed = 0xfff0;  // | 1..15
constexpr size_t kMostFreed = size_t{32} << 20;

struct Memory {
  struct Freed {
    unsigned char* address;
    size_t bytes;
    uint16_t fill;
    unsigned char byte(size_t i) const { return static_cast<unsigned char>(i % 2 == 0 ? fill : fill >> 8); }
  };
  std::mutex mutex;
  std::map<uintptr_t, uintptr_t> ends;  // by their beginnings
  std::deque<Freed> freed;              // not given back yet
  size_t freed_bytes = 0;
  size_t n_freed = 0;

  void fill(void* address, size_t bytes) {
    const auto value = static_cast<uint16_t>(kFreed | (1 + n_freed++ % 15));
    const Freed& block = freed.emplace_back(Freed{static_cast<unsigned char*>(address), bytes, value});
    for (size_t i = 0; i < bytes; ++i) block.address[i] = block.byte(i);
    freed_bytes += bytes;
  }

  void give_back_oldest() {
    const Freed oldest = freed.front();
    freed.pop_front();
    freed_bytes -= oldest.bytes;
    for (size_t i = 0; i < oldest.bytes; ++i) {
      if (oldest.address[i] != oldest.byte(i)) refuse("memory was written after its release");
    }
    std::free(oldest.address);
  }

  static Memory& get() {
    static auto* memory = [] {
      std::atexit([] {
        while (!get().freed.empty()) get().give_back_oldest();
      });
      return new Memory;
    }();
    return *memory;
  }
};

}  // namespace

void add_memory(void* address, int64_t bytes) {
  Memory& m = Memory::get();
  const std::lock_guard lock(m.mutex);
  const auto begin = reinterpret_cast<uintptr_t>(address);
  m.ends[begin] = begin + static_cast<uintptr_t>(bytes);
}

void remove_memory(void* address) {
  Memory& m = Memory::get();
  const std::lock_guard lock(m.mutex);
  m.ends.erase(reinterpret_cast<uintptr_t>(address));
}

void free_memory(void* address) {
  Memory& m = Memory::get();
  const std::lock_guard lock(m.mutex);
  const auto found = m.ends.find(reinterpret_cast<uintptr_t>(address));
  if (found == m.ends.end()) refuse("a release of what was not allocated");
  const size_t bytes = found->second - found->first;
  m.ends.erase(found);
  if (tiercel::test::kSanitized) return std::free(address);  // the sanitizer watches that itself
  m.fill(address, bytes);
  while (m.freed_bytes > kMostFreed) m.give_back_oldest();
}

bool is_pageable(const void* address) {
  Memory& m = Memory::get();
  const std::lock_guard lock(m.mutex);
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto after = m.ends.upper_bound(at);
  return after == m.ends.begin() || at >= std::prev(after)->second;
}

}  // namespace simt
