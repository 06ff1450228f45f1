// Values of what somebody sent as JSON.
#pragma once

#include <string_view>

#include "engine/text/jinja/value.h"

namespace tiercel::jinja {

// In the order in which it is written. Its strings are somebody's words, names of members too. Integers of more than 64
// bits are floats. Throws Problem: no JSON, too much in each other.
Value value_of_json(std::string_view json, Budget& budget);

}  // namespace tiercel::jinja
