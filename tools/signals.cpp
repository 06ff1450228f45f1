#include "tools/signals.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>

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

void say(const char* text) {
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
}

// Of "7f0c00000000-7f0c00200000 r--p 00000000 08:01 1234    /path/of/file": where the name of the file
// begins, if the address lies in it.
const char* name_of_mapping(const char* line, uintptr_t address) {
  uintptr_t ends[2] = {0, 0};
  for (int i = 0; *line != ' ' && *line != '\0'; ++line) {
    if (*line == '-') {
      i = 1;
      continue;
    }
    ends[i] = ends[i] * 16 + static_cast<uintptr_t>(*line <= '9' ? *line - '0' : *line - 'a' + 10);
  }
  if (address < ends[0] || address >= ends[1]) return nullptr;
  return std::strchr(line, '/');
}

// A page of a mapped file that is no longer there: somebody has cut the file short, or its disk is gone.
// Nothing can go on; only what a handler may call is called.
void on_lost_page(int, siginfo_t* info, void*) {
  static std::atomic<bool> is_told = false;
  while (is_told.exchange(true)) ::pause();  // another thread tells, and ends the process
  static char line[4096 + 128];
  const int maps = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  const char* name = nullptr;
  size_t n = 0;
  for (char c; name == nullptr && maps >= 0 && ::read(maps, &c, 1) == 1;) {
    if (c != '\n') {
      if (n + 1 < sizeof line) line[n++] = c;
      continue;
    }
    line[n] = '\0';
    n = 0;
    name = name_of_mapping(line, reinterpret_cast<uintptr_t>(info->si_addr));
  }
  say("error: ");
  say(name != nullptr ? name : "a mapped file");
  say(": it was changed while it was in use, and a part of it can no longer be read\n");
  unlink_unfinished_files();
  ::_exit(static_cast<int>(ErrorKind::kRuntime));
}

}  // namespace

void install_signal_handlers() {
  struct sigaction lost {};
  lost.sa_sigaction = on_lost_page;
  lost.sa_flags = SA_SIGINFO;
  sigemptyset(&lost.sa_mask);
  sigaction(SIGBUS, &lost, nullptr);
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
