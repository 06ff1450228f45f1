// What this machine is made of (hwloc), and memory taken from it: pages, huge where possible.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace tiercel::cpu {

struct Topology {
  int n_cores = 1;           // cores (not hyperthreads) that this process may use
  int n_numa_nodes = 1;
  int64_t l2_bytes = 0;      // per core; 0: unknown
  int64_t l3_bytes = 0;      // of the first package; 0: unknown
  int64_t memory_bytes = 0;  // physical memory, or the control groups' limit where that is lower
};
const Topology& topology();

// Bytes that can still be taken without swapping: MemAvailable, or what control groups leave.
int64_t available_memory_bytes();
// With what this process has taken already. Pages of files that it maps are available as they are.
int64_t memory_of_this_process_bytes();

// Anonymous zeroed pages, 2 MiB aligned and advised to be huge when bytes >= 2 MiB. Address space
// only: a page is taken when it is first touched. Throws Error(kDoesNotFit) when the system refuses.
void* map_pages(size_t bytes);
void unmap_pages(void* address, size_t bytes) noexcept;

// Resident set of this process now, and its peak, in bytes.
int64_t current_rss_bytes();
int64_t peak_rss_bytes();

}  // namespace tiercel::cpu
