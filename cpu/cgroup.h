// What control groups (of both versions) leave this process of the machine's memory.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace tiercel::cpu {

struct CgroupMemory {
  int64_t limit = std::numeric_limits<int64_t>::max();
  // Of it. Cached file pages count as free: the kernel gives them up before it refuses anything.
  int64_t available = std::numeric_limits<int64_t>::max();
};

// The least of the process's own group and of all that it is within. root: where groups are mounted;
// membership: the text of /proc/self/cgroup.
CgroupMemory cgroup_memory(const std::string& root, std::string_view membership);

}  // namespace tiercel::cpu
