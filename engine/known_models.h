// Shapes of well-known checkpoints, as their config.json has them: enough for an estimate, and for a
// speed measurement with random weights where no checkpoint is at hand.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/config.h"

namespace tiercel {

std::vector<std::string_view> known_models();
// Throws Error(kUsage) listing the names for one that is not known.
ModelConfig known_model(std::string_view name);

}  // namespace tiercel
