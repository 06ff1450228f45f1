// A sequence of a batch that can be decoded at once.
#pragma once

#include <cstdint>
#include <span>

#include "engine/batch.h"

namespace tiercel::test {

inline void prefill(Batch& batch, int64_t sequence) {
  while (!batch.advance_prefill(sequence).finished) {
  }
}

// Its name.
inline int64_t add_prefilled(Batch& batch, const SessionPlan& plan, std::span<const int32_t> prompt,
                             int64_t prefix = -1) {
  const int64_t name = batch.add(plan, prompt, prefix);
  prefill(batch, name);
  return name;
}

}  // namespace tiercel::test
