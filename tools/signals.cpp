#include "tools/signals.h"

#include <unistd.h>

#include <csignal>

#include "engine/base/check.h"
#include "engine/base/unfinished_files.h"

namespace tiercel {
namespace {

// The signal that came, and whether the first one ends the process. A handler can reach nothing
// else.
volatile std::sig_atomic_t g_stop = 0;
volatile std::sig_atomic_t g_at_once = 0;

void on_signal(int signal) {
  if (g_stop != 0 || g_at_once != 0) {
    unlink_unfinished_files();
    ::_exit(static_cast<int>(ErrorKind::kInterrupted));
  }
  g_stop = signal;
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = 0;  // no SA_RESTART: waiting for stdin must end too
  sigemptyset(&action.sa_mask);
  // Also where a shell started us with SIGINT ignored, as scripts' background jobs are: a long run
  // must always be stoppable in a way that keeps its results.
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  // A terminal that goes away; but whoever was started with nohup means to stay.
  struct sigaction old {};
  if (sigaction(SIGHUP, nullptr, &old) == 0 && old.sa_handler != SIG_IGN) {
    sigaction(SIGHUP, &action, nullptr);
  }
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

StopsAtOnce::StopsAtOnce() {
  g_at_once = g_at_once + 1;
  if (!stop_requested()) return;
  g_at_once = g_at_once - 1;
  stop_if_requested();
}
StopsAtOnce::~StopsAtOnce() { g_at_once = g_at_once - 1; }

bool stop_requested() { return g_stop != 0; }

bool forgive_interrupt() {
  if (g_stop != SIGINT) return false;
  g_stop = 0;
  return true;
}

void save_before_stop() { g_stop = 0; }

void stop_if_requested() {
  if (stop_requested()) fail(ErrorKind::kInterrupted, "interrupted");
}

}  // namespace tiercel
