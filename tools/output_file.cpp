#include "tools/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "engine/base/check.h"
#include "engine/base/unfinished_files.h"
#include "tools/console.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

// 0 or the errno.
int write_and_sync(int fd, std::string_view text) {
  if (const int error = write_all(fd, text); error != 0) return error;
  // Pipes and devices cannot be synced and say so with EINVAL or EROFS.
  if (::fsync(fd) != 0 && errno != EINVAL && errno != EROFS && errno != ENOTSUP) return errno;
  return 0;
}

}  // namespace

int open_output(const std::string& path, int flags) {
  int fd = -1;
  while ((fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666)) < 0 && errno == EINTR) stop_if_requested();
  return fd;
}

OutputFile::OutputFile(std::string path, std::string purpose)
    : path_(std::move(path)), purpose_(std::move(purpose)) {
  if (path_.empty())
    fail(ErrorKind::kUsage, "{}: expected the name of a file, found nothing", purpose_);
  if (path_ == "-") path_ = "/dev/stdout";
  struct stat info {};
  if (::stat(path_.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) refuse("write to", EISDIR);
    if (::access(path_.c_str(), W_OK) != 0) refuse("write to", errno);
    direct_ = !S_ISREG(info.st_mode);
    for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) {
      struct stat open {};
      if (direct_ || ::fstat(fd, &open) != 0) continue;
      if (open.st_dev == info.st_dev && open.st_ino == info.st_ino) stream_ = fd;
    }
    direct_ |= stream_ >= 0;
  } else if (errno != ENOENT) {
    refuse("create", errno);
  }
  if (direct_) return;
  path_ = behind_links(path_);
  const auto parent = std::filesystem::path(path_).parent_path();
  const std::string directory = parent.empty() ? "." : parent.string();
  if (::stat(directory.c_str(), &info) != 0) {
    fail("{}: cannot create {}: directory {}: {}", purpose_, path_, directory,
         std::strerror(errno));
  }
  if (!S_ISDIR(info.st_mode)) {
    fail("{}: cannot create {}: {} is not a directory", purpose_, path_, directory);
  }
  if (::access(directory.c_str(), W_OK | X_OK) != 0) {
    fail("{}: cannot create {}: directory {}: {}", purpose_, path_, directory,
         std::strerror(errno));
  }
}

void OutputFile::refuse(const char* doing, int error) const {
  fail("{}: cannot {} {}: {}", purpose_, doing, path_, std::strerror(error));
}

void OutputFile::write_directly(std::string_view text) const {
  if (stream_ >= 0) {
    if (const int error = write_and_sync(stream_, text); error != 0) refuse("write", error);
    return;
  }
  const int fd = open_output(path_, O_WRONLY);
  if (fd < 0) refuse("open", errno);
  const int write_error = write_and_sync(fd, text);
  const int close_error = ::close(fd) == 0 ? 0 : errno;
  if (write_error != 0 || close_error != 0)
    refuse("write", write_error != 0 ? write_error : close_error);
}

void OutputFile::write(std::string_view text) const {
  CHECK(wanted(), "no file");
  if (direct_) return write_directly(text);
  const std::string temporary = unused_name_beside(path_);
  const UnfinishedFile unfinished(temporary);  // before it is there: nobody else has this name
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) refuse("create", errno);
  take_permissions(fd, path_);
  int error = write_and_sync(fd, text);
  if (::close(fd) != 0 && error == 0) error = errno;
  if (error == 0 && ::rename(temporary.c_str(), path_.c_str()) != 0) error = errno;
  if (error != 0) {
    ::unlink(temporary.c_str());
    refuse("write", error);
  }
}

}  // namespace tiercel
