#include "engine/base/threads.h"

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

}  // namespace tiercel
