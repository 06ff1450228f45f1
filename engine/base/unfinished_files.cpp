#include "engine/base/unfinished_files.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace tiercel {
namespace {

// More at a time is nobody's use of one process; what finds no room is not registered.
constexpr int kEntries = 32;
// Whoever takes a name out of here owns it: the handler never touches one that was given back.
std::array<std::atomic<char*>, kEntries> g_names;
static_assert(std::atomic<char*>::is_always_lock_free, "a signal handler reads it");

}  // namespace

UnfinishedFile::UnfinishedFile(const std::string& path) {
  char* name = ::strdup(path.c_str());
  for (int i = 0; i < kEntries && name != nullptr; ++i) {
    char* none = nullptr;
    if (!g_names[static_cast<size_t>(i)].compare_exchange_strong(none, name)) continue;
    entry_ = i;
    return;
  }
  std::free(name);
}

void UnfinishedFile::forget() {
  if (entry_ >= 0) std::free(g_names[static_cast<size_t>(entry_)].exchange(nullptr));
  entry_ = -1;
}

void unlink_unfinished_files() noexcept {
  for (std::atomic<char*>& entry : g_names) {
    const char* name = entry.exchange(nullptr);
    if (name != nullptr) ::unlink(name);
  }
}

}  // namespace tiercel
