// Threads beside the caller's, for a library that lives in somebody else's process.
#pragma once

#include <csignal>
#include <system_error>
#include <thread>
#include <vector>

namespace tiercel {

// Blocks what is sent to the process in this thread, and so in those that it starts: handlers of the
// host application run in threads of its own. Faults of a thread itself, and SIGPROF, are let through.
void block_signals(sigset_t* before = nullptr);

// Meanwhile, threads that this one starts take no signals.
class SignalsBlocked {
 public:
  SignalsBlocked() { block_signals(&before_); }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

// Calls work() in n threads, of which this is one, and waits for all of them: work() takes what it does
// from where all take it. Where no more threads can be started, fewer do it. work() may not throw.
template <typename Work>
void work_in_threads(int n, const Work& work) {
  std::vector<std::thread> threads;
  try {
    const SignalsBlocked blocked;
    for (int i = 1; i < n; ++i) threads.emplace_back([&work] { work(); });
  } catch (const std::system_error&) {
  }
  work();
  for (std::thread& thread : threads) thread.join();
}

// How many threads the system starts beside this one, of n that live at the same time.
int startable_threads(int n);

}  // namespace tiercel
