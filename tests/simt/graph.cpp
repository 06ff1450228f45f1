// Graphs of the SIMT emulator: a list of everything that was enqueued while recording.
#include "kernels/graph.h"

#include "engine/base/check.h"
#include "tests/simt/simt.h"

namespace tiercel::cuda {

struct Graph::State {
  std::vector<std::function<void()>> work;
};

Graph::Graph() : state_(std::make_unique<State>()) {}
Graph::~Graph() = default;
bool Graph::empty() const { return state_->work.empty(); }

namespace {
thread_local std::vector<std::function<void()>> recorded;
}

void begin_capture(Stream&) {
  CHECK(simt::recording == nullptr, "a recording within a recording");
  recorded.clear();
  simt::recording = &recorded;
}

void end_capture(Stream&, Graph& graph) {
  CHECK(simt::recording == &recorded, "no recording has begun");
  simt::recording = nullptr;
  graph.state().work = std::move(recorded);
}

void abandon_capture(Stream&) noexcept {
  simt::recording = nullptr;
  recorded.clear();
}

void replay(Stream&, Graph& graph) {
  CHECK(!graph.empty(), "nothing has been recorded");
  for (const std::function<void()>& piece : graph.state().work) piece();
}

}  // namespace tiercel::cuda
