// What tells one model from another in a file that only makes sense with one of them.
#pragma once

#include <cstdint>
#include <string>

#include "engine/config.h"

namespace tiercel {

// XXH3, 16 hexadecimal digits, over what of config.json changes a result, and over every tensor's
// name, type and shape with its bytes: all of them up to 1 MiB, of larger tensors 4 KiB out of
// every MiB and the last 4 KiB. A fine-tuned model differs; one weight changed by hand in between
// does not show. directory: empty for random weights, which the configuration determines. Errors:
// those of Checkpoint::open.
std::string fingerprint_of(const ModelConfig& config, const std::string& directory);

}  // namespace tiercel
