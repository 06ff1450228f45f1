// What a build without CUDA says instead of opening a session on a GPU.
#include "engine/base/check.h"
#include "engine/model.h"

namespace tiercel {

std::string why_no_cuda() { return "this build has no CUDA backend"; }

int64_t cuda_scratch_bytes(const ModelConfig&, const SessionPlan&) { return 0; }

std::shared_ptr<LoadedModel> open_cuda_model(const WeightSource&, ModelConfig,
                                             const ModelOptions&) {
  fail(ErrorKind::kUsage, "--backend cuda: {}; use --backend cpu", why_no_cuda());
}

}  // namespace tiercel
