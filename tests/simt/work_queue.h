// What the emulated device has been given and has not done yet.
//
// A stream is a WorkQueue. What is enqueued there runs in its order, but when is anybody's guess, as on a
// device: at once, when somebody waits for it and not before, or somewhere between, and in any order
// beside other queues, but for what moments ask for. The guess changes all the time. So a queue that does
// not wait for another, a host that looks too early, and memory that is written again or released while
// a copy is still to come from it show as wrong results, or under AddressSanitizer.
//
// A queue that records keeps its work in a graph instead, as do the queues that wait for it; what
// cudaStreamBeginCapture would refuse ends the process, with the reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <variant>
#include <vector>

namespace simt {

// begin: a part of it that may be done before the work before it, if there is any.
struct Work {
  std::function<void()> run;
  std::function<void()> begin;
};
class WorkQueue;

// Work of one or several queues, each piece behind those that it names.
struct Graph {
  struct Node {
    Work work;
    std::vector<size_t> after;
  };
  std::vector<Node> nodes;
  std::vector<WorkQueue*> queues;  // that record; the first one began
  bool has_ended = false;

  void run() const;  // in any order that is allowed
};

// A place in a queue.
struct Moment {
  WorkQueue* queue = nullptr;
  bool is_reached = false;
  double seconds = 0;            // of the host's clock, when it was reached
  std::shared_ptr<Graph> graph;  // recorded there, so never reached
  std::vector<size_t> after;
};
using MomentPtr = std::shared_ptr<Moment>;

class WorkQueue {
 public:
  explicit WorkQueue(uint64_t seed);
  ~WorkQueue();  // drains
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  void add(std::function<void()> run, std::function<void()> begin = nullptr);
  MomentPtr mark();
  void wait_for(const MomentPtr& moment);

  // The host waits: until all that was enqueued here has run, until a moment is reached.
  void drain();
  static void reach(const MomentPtr& moment);

  void begin_recording();
  std::shared_ptr<Graph> end_recording();
  void abandon_recording() noexcept;
  bool is_recording() const { return graph_ != nullptr; }

 private:
  friend struct Schedule;
  struct Passed {
    MomentPtr moment;
  };
  struct Awaited {
    MomentPtr moment;
  };
  using Item = std::variant<Work, Passed, Awaited>;

  void push(Item item);

  std::deque<Item> items_;
  bool is_busy_ = false;  // some thread runs its first item
  // While it records:
  std::shared_ptr<Graph> graph_;
  std::vector<size_t> last_;  // nodes that come before whatever is recorded next
};

// What cuda::Stream::raw() is in the emulator.
inline WorkQueue& queue_of(void* raw) { return *static_cast<WorkQueue*>(raw); }

// What a call that a capture in the calling thread would break is called with: ends the process there.
void refuse_while_recording(const char* call);

// Memory that copies reach by themselves. What is neither the device's nor pinned is pageable: a copy from
// there has read it, a copy to there has written it, when the call that enqueues it returns.
void add_memory(void* address, int64_t bytes);
void remove_memory(void* address);
// As free(), but what some queue still writes there ends the process, later, and what it reads is no number.
void free_memory(void* address);
bool is_pageable(const void* address);

}  // namespace simt
