#include "engine/base/threads.h"

#include <exception>
#include <future>

namespace tiercel {

void block_signals(sigset_t* before) {
  sigset_t blocked;
  ::sigfillset(&blocked);
  for (const int let_through :
       {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, SIGPROF}) {
    ::sigdelset(&blocked, let_through);
  }
  ::pthread_sigmask(SIG_BLOCK, &blocked, before);
}

int startable_threads(int n) {
  std::vector<std::thread> threads;
  std::promise<void> all_started;
  const std::shared_future<void> end(all_started.get_future());
  try {
    const SignalsBlocked blocked;
    threads.reserve(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) threads.emplace_back([end] { end.wait(); });
  } catch (const std::exception&) {  // no thread, or no memory for what one needs
  }
  all_started.set_value();
  for (std::thread& thread : threads) thread.join();
  return static_cast<int>(threads.size());
}

}  // namespace tiercel
