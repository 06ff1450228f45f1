// A decode step, recorded once and replayed: one launch for some hundred kernels.
//
// What is enqueued between begin_capture and end_capture on the stream, and on streams that wait for it
// and that it waits for, is recorded and not run. A second recording of the same kinds of nodes updates
// the first in place. Pointers and counts are those of the recording; what changes from step to step is
// read from device memory (ops.h, `later`).
#pragma once

#include <memory>

#include "kernels/stream.h"

namespace tiercel::cuda {

class Graph {
 public:
  Graph();
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  bool empty() const;  // nothing has been recorded

  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

void begin_capture(Stream& stream);
void end_capture(Stream& stream, Graph& graph);
void abandon_capture(Stream& stream) noexcept;  // instead of end_capture, behind an error
void replay(Stream& stream, Graph& graph);

}  // namespace tiercel::cuda
