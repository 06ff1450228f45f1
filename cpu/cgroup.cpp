#include "cpu/cgroup.h"

#include <algorithm>
#include <fstream>
#include <sstream>

namespace tiercel::cpu {
namespace {

// How a version spells it.
struct Version {
  const char *limit, *usage;
  const char *inactive_file, *active_file;  // lines of memory.stat
};
constexpr Version kVersion1 = {"/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file",
                               "total_active_file"};
constexpr Version kVersion2 = {"/memory.max", "/memory.current", "inactive_file", "active_file"};

// A number in a one-line file; -1 when it is missing or says "max".
int64_t number_in(const std::string& path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;
}

int64_t cached_bytes(const std::string& folder, const Version& version) {
  std::ifstream stat(folder + "/memory.stat");
  std::string name;
  int64_t value = 0, sum = 0;
  while (stat >> name >> value) {
    if (name == version.inactive_file || name == version.active_file) sum += value;
  }
  return sum;
}

void take_least(const std::string& folder, const Version& version, CgroupMemory& least) {
  const int64_t limit = number_in(folder + version.limit);
  if (limit <= 0) return;
  const int64_t used =
      std::max<int64_t>(0, number_in(folder + version.usage) - cached_bytes(folder, version));
  least.limit = std::min(least.limit, limit);
  least.available = std::min(least.available, std::max<int64_t>(0, limit - used));
}

}  // namespace

CgroupMemory cgroup_memory(const std::string& root, std::string_view membership) {
  // Of lines such as "0::/a/b" (version 2) and "4:memory:/a/b" (version 1). A container may see the path
  // that its host knows, which is no folder here: the root is then its own.
  std::string own1, own2;
  std::istringstream lines{std::string(membership)};
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string path = line.substr(second + 1);
    if (path.find("/..") != std::string::npos) path.clear();  // outside of what is mounted
    if (controllers == ",,") own2 = path;
    if (controllers.find(",memory,") != std::string::npos) own1 = path;
  }
  CgroupMemory least;
  const auto take_all = [&](const std::string& mounted, std::string own, const Version& version) {
    while (true) {
      while (own.ends_with('/')) own.pop_back();
      take_least(mounted + own, version, least);
      const size_t last = own.rfind('/');
      if (last == std::string::npos) return;
      own.resize(last);
    }
  };
  take_all(root, own2, kVersion2);
  take_all(root + "/memory", own1, kVersion1);
  return least;
}

}  // namespace tiercel::cpu
