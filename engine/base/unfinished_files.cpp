#include "engine/base/unfinished_files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <system_error>

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

std::string behind_links(const std::string& path) {
  constexpr int kMostLinks = 40;
  std::filesystem::path place = path;
  std::error_code error;
  for (int i = 0; i < kMostLinks && std::filesystem::is_symlink(place, error); ++i) {
    const std::filesystem::path target = std::filesystem::read_symlink(place, error);
    if (error) break;
    place = place.parent_path() / target;  // the target, where it is absolute
  }
  const std::filesystem::path whole = std::filesystem::canonical(place, error);
  return error ? place.string() : whole.string();
}

std::string unused_name_beside(const std::string& path) {
  constexpr size_t kMostName = 255, kSuffix = 32;
  std::filesystem::path stem = path;
  const std::string name = stem.filename().string();
  if (name.size() > kMostName - kSuffix) stem.replace_filename(name.substr(0, kMostName - kSuffix));
  const std::string first = stem.string() + ".tmp-" + std::to_string(::getpid());
  std::string candidate = first;
  struct stat info {};
  for (int n = 1; ::lstat(candidate.c_str(), &info) == 0; ++n) candidate = first + "-" + std::to_string(n);
  return candidate;
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
