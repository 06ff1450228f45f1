#include "cpu/queue.h"

#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#include <tbb/task_scheduler_observer.h>

#include <atomic>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/topology.h"
#include "engine/base/check.h"
#include "engine/base/threads.h"

#if defined(__SANITIZE_THREAD__)
#define TIERCEL_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TIERCEL_TSAN 1
#endif
#endif

namespace tiercel::cpu {
namespace {

// TBB allows no more threads than cores unless told to, and a user may ask for more. Of several
// controls the lowest counts, so the process keeps one for good; it only permits threads, it makes none.
void allow_threads() {
  static const tbb::global_control control(tbb::global_control::max_allowed_parallelism,
                                           kMaxThreads + 1);
}

// TBB's own threads start each other, and one that finds no more ends the process: what can be started is
// seen before.
void check_threads(int n) {
  static std::atomic<int> most_seen{1};
  if (n <= most_seen) return;
  if (const int found = 1 + startable_threads(n - 1); found < n) {
    fail("{} threads: the system lets this process have {}; lower --threads (-t), or raise its limits of "
         "processes and of address space",
         n, found);
  }
  most_seen = n;
}

// TBB's threads take no signals once they have worked here.
class SignalObserver final : public tbb::task_scheduler_observer {
 public:
  explicit SignalObserver(tbb::task_arena& arena) : tbb::task_scheduler_observer(arena) {
    observe(true);
  }
  ~SignalObserver() override { observe(false); }

  void on_scheduler_entry(bool is_worker) override {
    static thread_local bool blocked = false;
    if (is_worker && !std::exchange(blocked, true)) block_signals();
  }
};

}  // namespace

class Queue::Threads {
 public:
  explicit Threads(int n) : arena_(n) {
    allow_threads();
    arena_.initialize();
    observer_.emplace(arena_);
  }

  template <typename Work>
  void run(int n, Work&& work) {
#ifdef TIERCEL_TSAN
    // ThreadSanitizer cannot see the synchronisation inside TBB's library and would call every hand-over
    // a race; plain threads run the same items.
    std::vector<std::thread> threads;
    for (int index = 1; index < n; ++index) threads.emplace_back([&, index] { work(index); });
    work(0);
    for (std::thread& thread : threads) thread.join();
#else
    arena_.execute([&] {
      tbb::parallel_for(0, n, [&](int) { work(tbb::this_task_arena::current_thread_index()); });
    });
#endif
  }

 private:
  tbb::task_arena arena_;
  std::optional<SignalObserver> observer_;
};

Queue::Queue(const QueueOptions& options)
    : n_workers_(options.n_threads > 0 ? options.n_threads : topology().n_cores),
      isa_(options.isa) {
  CHECK(options.isa <= detected_isa(), "level {} on a machine that has {}", name_of(options.isa),
        name_of(detected_isa()));
  CHECK(n_workers_ <= kMaxThreads, "{} threads", n_workers_);
  check_threads(n_workers_);
  threads_ = std::make_unique<Threads>(n_workers_);
  scratch_ = static_cast<std::byte*>(map_pages(static_cast<size_t>(n_workers_) * kScratchBytes));
}

Queue::~Queue() { unmap_pages(scratch_, static_cast<size_t>(n_workers_) * kScratchBytes); }

void Queue::run_on_workers(void (*work)(void*, Worker&), void* context, bool parallel) {
  auto run = [&](int index) {
    Worker worker{index, scratch_ + static_cast<size_t>(index) * kScratchBytes};
    work(context, worker);
  };
  if (parallel && n_workers_ > 1) {
    threads_->run(n_workers_, run);
  } else {
    run(0);
  }
}

}  // namespace tiercel::cpu
