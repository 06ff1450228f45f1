#include "engine/base/regular_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "engine/base/check.h"

namespace tiercel {
namespace {

// O_NONBLOCK: a FIFO in the place of a file must not hang the program.
int open_for_reading(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail("{}: cannot be opened: {}", path.string(), std::strerror(errno));
  return descriptor;
}

uint64_t size_of_regular(int descriptor, const std::string& name) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) fail("{}: cannot be read: {}", name, std::strerror(errno));
  if (S_ISDIR(status.st_mode)) fail("{}: expected a file, found a directory", name);
  if (!S_ISREG(status.st_mode)) fail("{}: expected a regular file, found a device or pipe", name);
  return static_cast<uint64_t>(status.st_size);
}

}  // namespace

RegularFile::RegularFile(const std::filesystem::path& path) : descriptor_(open_for_reading(path)) {
  try {
    size_ = size_of_regular(descriptor_, path.string());
  } catch (...) {  // no destructor runs for what was not constructed
    ::close(descriptor_);
    throw;
  }
}

RegularFile::~RegularFile() { ::close(descriptor_); }

}  // namespace tiercel
