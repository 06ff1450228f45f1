// Ctrl-C, SIGTERM and SIGHUP. The first one asks: work stops at the next token or progress callback,
// and what was generated, the timings and the report are still written. The second one ends the
// process, as does the first where there is nothing to be saved yet. No file is left half written.
#pragma once

namespace tiercel {

// Where a page of a mapped file has gone (SIGBUS), names the file and ends with 1.
//
// Also ignores SIGPIPE and SIGXFSZ, so that writing to a closed pipe, or more than a limit allows,
// is an error that can be handled.
void install_signal_handlers();

// True after the first of these signals.
bool stop_requested();

// While one lives, the first signal ends the process: for work that saves nothing and does not ask.
class StopsAtOnce {
 public:
  StopsAtOnce();
  ~StopsAtOnce();
  StopsAtOnce(const StopsAtOnce&) = delete;
  StopsAtOnce& operator=(const StopsAtOnce&) = delete;
};

// Takes a SIGINT back where it has ended what it was meant for, so that the next one counts as the
// first. False: the stop was asked for by another signal, and stands.
bool forgive_interrupt();
// The stop is obeyed; what still has to be saved may take its time. One more signal ends that.
void save_before_stop();

// Throws Error(kInterrupted) when a stop was requested. For places where nothing is worth saving.
void stop_if_requested();

}  // namespace tiercel
