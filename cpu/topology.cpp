#include "cpu/topology.h"

#include <hwloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "cpu/cgroup.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// The value in bytes of a "Name:   123 kB" line of a /proc file; -1 when it is missing.
int64_t proc_bytes(const char* path, const char* name) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind(name, 0) == 0) {
      long long kib = 0;
      if (std::sscanf(line.c_str() + std::strlen(name), ": %lld", &kib) == 1) return kib * 1024;
    }
  }
  return -1;
}

CgroupMemory own_cgroup_memory() {
  std::ifstream file("/proc/self/cgroup");
  const std::string membership{std::istreambuf_iterator<char>(file), {}};
  return cgroup_memory("/sys/fs/cgroup", membership);
}

// Cores among the processing units that this process may run on: two hyperthreads count once.
int allowed_cores(hwloc_topology_t machine) {
  hwloc_bitmap_t allowed = hwloc_bitmap_alloc();
  if (hwloc_get_cpubind(machine, allowed, HWLOC_CPUBIND_PROCESS) != 0) {
    hwloc_bitmap_copy(allowed, hwloc_topology_get_allowed_cpuset(machine));
  }
  int cores = 0;
  for (hwloc_obj_t core = nullptr;
       (core = hwloc_get_next_obj_by_type(machine, HWLOC_OBJ_CORE, core)) != nullptr;) {
    cores += hwloc_bitmap_intersects(core->cpuset, allowed) ? 1 : 0;
  }
  if (cores == 0) cores = hwloc_bitmap_weight(allowed);
  hwloc_bitmap_free(allowed);
  return std::max(cores, 1);
}

int64_t cache_bytes(hwloc_topology_t machine, hwloc_obj_type_t type) {
  hwloc_obj_t cache = hwloc_get_obj_by_type(machine, type, 0);
  return cache != nullptr ? static_cast<int64_t>(cache->attr->cache.size) : 0;
}

// hwloc's view of the machine, null where it could not be read. Lives as long as the process.
hwloc_topology_t machine() {
  static const hwloc_topology_t instance = [] {
    hwloc_topology_t read = nullptr;
    if (hwloc_topology_init(&read) != 0) return hwloc_topology_t{nullptr};
    if (hwloc_topology_load(read) == 0) return read;
    hwloc_topology_destroy(read);
    return hwloc_topology_t{nullptr};
  }();
  return instance;
}

Topology read_topology() {
  Topology result;
  result.memory_bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  result.memory_bytes = std::min(result.memory_bytes, own_cgroup_memory().limit);
  if (machine() == nullptr) return result;
  result.n_cores = allowed_cores(machine());
  result.n_numa_nodes = std::max(1, hwloc_get_nbobjs_by_type(machine(), HWLOC_OBJ_NUMANODE));
  result.l2_bytes = cache_bytes(machine(), HWLOC_OBJ_L2CACHE);
  result.l3_bytes = cache_bytes(machine(), HWLOC_OBJ_L3CACHE);
  return result;
}

// Every op may run on any core, so on a machine of several nodes the pages of a large block are dealt
// out to all of them: each core then sees the mean of near and far, and all memory channels work. A
// refusal costs speed only.
void spread_over_nodes(void* address, size_t bytes) {
  if (topology().n_numa_nodes < 2 || machine() == nullptr) return;
  hwloc_set_area_membind(machine(), address, bytes,
                         hwloc_topology_get_allowed_nodeset(machine()), HWLOC_MEMBIND_INTERLEAVE,
                         HWLOC_MEMBIND_BYNODESET);
}

size_t rounded(size_t bytes) {
  const size_t page = bytes >= kHugePage ? kHugePage : size_t{4096};
  return (bytes + page - 1) / page * page;
}

}  // namespace

const Topology& topology() {
  static const Topology instance = read_topology();
  return instance;
}

int64_t available_memory_bytes() {
  int64_t available = proc_bytes("/proc/meminfo", "MemAvailable");
  if (available < 0) available = topology().memory_bytes;
  return std::min(available, own_cgroup_memory().available);
}

int64_t memory_of_this_process_bytes() {
  int64_t taken = 0;
  for (const char* kind : {"RssAnon", "RssShmem"}) {
    taken += std::max<int64_t>(0, proc_bytes("/proc/self/status", kind));
  }
  return available_memory_bytes() + taken;
}

void* map_pages(size_t bytes) {
  if (bytes == 0) return nullptr;
  const size_t size = rounded(bytes);
  const bool huge = size >= kHugePage;
  // Over-allocate by one huge page and give the ends back, so that the block is aligned to it.
  const size_t reserve = huge ? size + kHugePage : size;
  void* block = mmap(nullptr, reserve, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block == MAP_FAILED) {
    fail(ErrorKind::kDoesNotFit, "the system refused {} bytes of memory: {}", size,
         std::strerror(errno));
  }
  if (!huge) return block;
  auto* begin = static_cast<std::byte*>(block);
  const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (head > 0) munmap(begin, head);
  if (kHugePage > head) munmap(begin + head + size, kHugePage - head);
  madvise(begin + head, size, MADV_HUGEPAGE);
  spread_over_nodes(begin + head, size);
  return begin + head;
}

void unmap_pages(void* address, size_t bytes) noexcept {
  if (address != nullptr) munmap(address, rounded(bytes));
}

int64_t current_rss_bytes() { return proc_bytes("/proc/self/status", "VmRSS"); }
int64_t peak_rss_bytes() { return proc_bytes("/proc/self/status", "VmHWM"); }

}  // namespace tiercel::cpu
