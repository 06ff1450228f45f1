// A CPU beside a device: it attends what the host tier holds, where it lies.
#pragma once

#include "engine/base/ops.h"

namespace tiercel {

class HostWorker {
 public:
  virtual ~HostWorker() = default;
  // The ops of the same names, on the worker's threads; they have ended on return. The workspace is the
  // worker's own. Called by the host's side of a queue (HostCallParams), once at a time. Neither throws.
  virtual void attend_decode(DecodeAttendParams params) = 0;
  virtual void weighted_values(WeightedValuesParams params) = 0;
};

}  // namespace tiercel
