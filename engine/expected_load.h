// What a model is opened for decides which of its weights a CUDA device has room for.
#pragma once

#include <cstdint>

#include "engine/config.h"
#include "engine/options.h"

namespace tiercel {

// The fewest ModelConfig::host_layers with which a plan of this load fits a CUDA device of so many free bytes (0:
// unknown) and --device-memory; as many as the weights need where no number is enough.
int64_t host_layers_for(ModelConfig config, const ExpectedLoad& load, int64_t device_free_bytes);
// check_limits of a plan of this load, for a model that is not open yet.
void check_load(const ModelConfig& config, const ExpectedLoad& load, int64_t device_free_bytes);

}  // namespace tiercel
