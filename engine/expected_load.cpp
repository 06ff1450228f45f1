#include "engine/expected_load.h"

#include <algorithm>
#include <optional>

#include "engine/base/check.h"
#include "engine/session_plan.h"
#include "engine/weights.h"

namespace tiercel {
namespace {

// Beside weights of a CUDA device that are not there yet.
PlanRequest request_for(const ModelConfig& config, const ExpectedLoad& load, int64_t weight_bytes,
                        int64_t device_free_bytes) {
  PlanRequest r{.config = config, .backend = BackendKind::kCuda, .options = load.session};
  r.options.strict = false;  // of memory
  r.weight_bytes = weight_bytes;
  r.weights_resident = false;
  r.n_prompt = load.n_prompt;
  r.n_new = load.n_new;
  r.logprobs = load.logprobs;
  r.restored = load.restored;
  r.this_machine = load.this_machine;
  r.n_sequences = load.n_sequences;
  r.n_behind = load.n_behind;
  if (device_free_bytes > 0) r.device_free_bytes = std::max<int64_t>(device_free_bytes - weight_bytes, 1);
  return r;
}

// What it takes of the device; of a batch with one sequence in it, as more come while there is room.
int64_t device_bytes_of(const PlanRequest& r) {
  const SessionPlan plan = make_plan(r);
  if (r.n_sequences == 0) return plan.memory.device.total();
  PlanRequest one = r;
  one.n_sequences = 1;
  return count_memory(one, plan).device.total() + shared_bytes(r, plan).device - shared_bytes(one, plan).device;
}

}  // namespace

int64_t host_layers_for(ModelConfig config, const ExpectedLoad& load, int64_t device_free_bytes) {
  const int64_t all = aligned_weight_bytes(config);
  std::optional<int64_t> for_weights;
  for (config.host_layers = 0;;) {
    const int64_t weights = all - host_weight_bytes(config);
    int64_t missing = device_free_bytes > 0 ? weights - (device_free_bytes - kDeviceReserve) : 0;
    if (missing <= 0) {
      if (!for_weights) for_weights = config.host_layers;
      const PlanRequest r = request_for(config, load, weights, device_free_bytes);
      const int64_t limit = device_limit(r);
      try {
        missing = limit > 0 ? device_bytes_of(r) - limit : 0;
      } catch (const Error&) {
        return *for_weights;  // said when it is planned for good
      }
    }
    if (missing <= 0) return config.host_layers;
    const int64_t more = host_layers_to_free(config, missing);
    if (more == 0) return for_weights.value_or(0);
    config.host_layers = more;
  }
}

void check_load(const ModelConfig& config, const ExpectedLoad& load, int64_t device_free_bytes) {
  const int64_t weights = aligned_weight_bytes(config) - host_weight_bytes(config);
  const PlanRequest r = request_for(config, load, weights, device_free_bytes);
  check_limits(r, make_plan(r));
}

}  // namespace tiercel
