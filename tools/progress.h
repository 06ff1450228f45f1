// Shows how far a phase has come, on stderr.
//
// On a terminal one line is redrawn a few times a second; elsewhere a plain line appears every 5 %
// but not more often than every three seconds, and at least every half minute. Rate and remaining
// time come from the last ten seconds of work, weighted by FLOPs: attention makes later chunks
// dearer.
#pragma once

#include <deque>
#include <string>

#include "engine/options.h"
#include "tools/console.h"

namespace tiercel {

class ProgressLine {
 public:
  explicit ProgressLine(const Console& console) : console_(console) {}
  ~ProgressLine() { clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // Returns false once the user has asked to stop: fits ProgressCallback.
  bool update(const Progress& progress);
  // Removes the line from the terminal.
  void clear();

 private:
  struct Sample {
    double seconds, fraction, tokens;
  };
  std::string describe(const Progress& progress) const;

  const Console& console_;
  std::deque<Sample> window_;  // of recent work, oldest first
  double shown_seconds_ = 0, shown_fraction_ = 0;
  size_t drawn_columns_ = 0;
};

}  // namespace tiercel
