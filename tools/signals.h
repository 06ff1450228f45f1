// Ctrl-C and SIGTERM. The first one asks: work stops at the next token or progress callback, and
// what was generated, the timings and the report are still written. The second one ends the
// process.
#pragma once

namespace tiercel {

// Also ignores SIGPIPE and SIGXFSZ, so that writing to a closed pipe, or more than a limit allows,
// is an error that can be handled.
void install_signal_handlers();

// True after the first SIGINT or SIGTERM.
bool stop_requested();

// Throws Error(kInterrupted) when a stop was requested. For places where nothing is worth saving.
void stop_if_requested();

}  // namespace tiercel
