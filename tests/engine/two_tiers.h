// A CPU attends in place what its memory holds, and so does a GPU with room for everything (ValueHome). With
// these options the tiers are two: what is selected is fetched from one into the other.
#pragma once

#include "engine/options.h"

namespace tiercel::test {

inline SessionOptions two_tiers(SessionOptions options = {}) {
  options.value_home = ValueHome::kHost;
  return options;
}

}  // namespace tiercel::test
