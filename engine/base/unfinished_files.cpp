#include "engine/base/unfinished_files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>

namespace tiercel {
namespace {

// More at a time is nobody's use of one process; what finds no room is not registered.
constexpr size_t kEntries = 16;
enum State : int { kFree, kChanging, kUsed };
struct Entry {
  std::atomic<int> state = kFree;
  std::array<char, 4096> name;  // not on the heap: a signal handler reads it
};
std::array<Entry, kEntries> g_entries;
static_assert(std::atomic<int>::is_always_lock_free);

}  // namespace

UnfinishedFile::UnfinishedFile(const std::string& path) {
  if (path.size() >= g_entries[0].name.size()) return;
  for (size_t i = 0; i < kEntries; ++i) {
    int expected = kFree;
    if (!g_entries[i].state.compare_exchange_strong(expected, kChanging)) continue;
    std::memcpy(g_entries[i].name.data(), path.c_str(), path.size() + 1);
    g_entries[i].state = kUsed;
    entry_ = static_cast<int>(i);
    return;
  }
}

void UnfinishedFile::forget() {
  if (entry_ >= 0) g_entries[static_cast<size_t>(entry_)].state = kFree;
  entry_ = -1;
}

void take_permissions(int fd, const std::string& path) {
  struct stat replaced {};
  if (::stat(path.c_str(), &replaced) == 0) ::fchmod(fd, replaced.st_mode & 07777);
}

void unlink_unfinished_files() noexcept {
  for (Entry& entry : g_entries) {
    if (entry.state == kUsed) ::unlink(entry.name.data());
  }
}

}  // namespace tiercel
