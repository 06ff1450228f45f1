// Graphs of the SIMT emulator (work_queue.h).
#include "kernels/graph.h"

#include "engine/base/check.h"
#include "tests/simt/work_queue.h"

namespace tiercel::cuda {

struct Graph::State {
  std::shared_ptr<simt::Graph> recorded;
};

Graph::Graph() : state_(std::make_unique<State>()) {}
Graph::~Graph() = default;
bool Graph::empty() const { return state_->recorded == nullptr; }

void begin_capture(Stream& stream) { simt::queue_of(stream.raw()).begin_recording(); }

void end_capture(Stream& stream, Graph& graph) {
  graph.state().recorded = simt::queue_of(stream.raw()).end_recording();
}

void abandon_capture(Stream& stream) noexcept { simt::queue_of(stream.raw()).abandon_recording(); }

void replay(Stream& stream, Graph& graph) {
  CHECK(!graph.empty(), "nothing has been recorded");
  simt::queue_of(stream.raw()).add([recorded = graph.state().recorded] { recorded->run(); });
}

}  // namespace tiercel::cuda
