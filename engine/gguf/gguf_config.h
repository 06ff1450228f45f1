// What a GGUF file's metadata say a model is, as config.json and generation_config.json say it: the checks and
// defaults are those of engine/config.h.
#pragma once

#include <nlohmann/json.hpp>

#include "engine/config.h"
#include "engine/gguf/gguf_model.h"

namespace tiercel {

// The two documents. Errors: a value is missing, or of another type; something that Tiercel does not compute.
nlohmann::json gguf_config_json(const GgufModel& model);
nlohmann::json gguf_generation_json(const GgufModel& model);

// The configuration, complete: also with what only the tensors tell. Errors: those, and of parse_config.
ModelConfig gguf_config(const GgufModel& model);

}  // namespace tiercel
