// The real graphs. tests/simt/graph.cpp has the emulated ones.
#include "kernels/graph.h"

#include "kernels/launch.cuh"

namespace tiercel::cuda {

struct Graph::State {
  cudaGraphExec_t exec = nullptr;
};

Graph::Graph() : state_(std::make_unique<State>()) {}
Graph::~Graph() {
  if (state_->exec != nullptr) cudaGraphExecDestroy(state_->exec);
}
bool Graph::empty() const { return state_->exec == nullptr; }

void begin_capture(Stream& stream) {
  CUDA_CHECK(cudaStreamBeginCapture(static_cast<cudaStream_t>(stream.raw()),
                                    cudaStreamCaptureModeThreadLocal));
}

void end_capture(Stream& stream, Graph& graph) {
  cudaGraph_t recorded = nullptr;
  CUDA_CHECK(cudaStreamEndCapture(static_cast<cudaStream_t>(stream.raw()), &recorded));
  cudaGraphExec_t& exec = graph.state().exec;
  if (exec != nullptr) {
    cudaGraphExecUpdateResultInfo result{};
    if (cudaGraphExecUpdate(exec, recorded, &result) != cudaSuccess) {
      cudaGetLastError();  // another kind of step: made anew
      cudaGraphExecDestroy(exec);
      exec = nullptr;
    }
  }
  if (exec == nullptr) {
    // Fetches go before what hides them, as in the streams that they were recorded from.
    const cudaError_t error =
        cudaGraphInstantiate(&exec, recorded, cudaGraphInstantiateFlagUseNodePriority);
    if (error != cudaSuccess) cudaGraphDestroy(recorded);
    CUDA_CHECK(error);
  }
  CUDA_CHECK(cudaGraphDestroy(recorded));
}

void abandon_capture(Stream& stream) noexcept {
  cudaGraph_t recorded = nullptr;
  cudaStreamEndCapture(static_cast<cudaStream_t>(stream.raw()), &recorded);
  if (recorded != nullptr) cudaGraphDestroy(recorded);
  cudaGetLastError();  // that it was not whole
}

void replay(Stream& stream, Graph& graph) {
  CHECK(!graph.empty(), "nothing has been recorded");
  CUDA_CHECK(cudaGraphLaunch(graph.state().exec, static_cast<cudaStream_t>(stream.raw())));
}

}  // namespace tiercel::cuda
