// Bytes between the tiers, and calls of the host.
#pragma once

#include <cstdint>

namespace tiercel {

// n_rows runs of row_bytes each; strides in bytes. Source and target may be on either tier.
struct CopyParams {
  const void* source = nullptr;
  void* target = nullptr;
  int64_t n_rows = 1, row_bytes = 0;
  int64_t source_stride = 0, target_stride = 0;
};

// The host calls function(data) when the queue gets there, and the queue goes on when it returns: what
// it wrote to host memory may be read then. It may not use the queue's backend, nor throw.
struct HostCallParams {
  void (*function)(void* data) = nullptr;
  void* data = nullptr;
};

}  // namespace tiercel
