// Names of files that are being written beside their place, for whoever must end the process at
// once: a signal handler can remove them, so that nothing half is left.
#pragma once

#include <string>
#include <utility>

namespace tiercel {

// Registers a file while it lives. The owner still renames or removes the file itself.
class UnfinishedFile {
 public:
  UnfinishedFile() = default;
  explicit UnfinishedFile(const std::string& path);
  ~UnfinishedFile() { forget(); }
  UnfinishedFile(UnfinishedFile&& other) noexcept : entry_(std::exchange(other.entry_, -1)) {}
  UnfinishedFile& operator=(UnfinishedFile&& other) noexcept {
    std::swap(entry_, other.entry_);
    return *this;
  }
  void forget();

 private:
  int entry_ = -1;  // -1: none
};

// Where what is written as `path` belongs: behind links, also those that lead to nothing yet, so that
// renaming replaces the file and not what leads to it.
std::string behind_links(const std::string& path);

// For a file that is written there and renamed to `path`: a name that no file has, also where a process of
// the same number was killed.
std::string unused_name_beside(const std::string& path);

// Gives the open file fd, which is about to replace the one at `path`, the permissions of that one; as far as
// the system lets it.
void take_permissions(int fd, const std::string& path);

// Removes every registered file. May be called in a signal handler; other threads may be writing.
void unlink_unfinished_files() noexcept;

}  // namespace tiercel
