// A regular file, open for reading: what else may stand at a path is refused first.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace tiercel {

class RegularFile {
 public:
  // Errors: missing, no permission, a directory, a device or pipe.
  explicit RegularFile(const std::filesystem::path& path);
  ~RegularFile();
  RegularFile(const RegularFile&) = delete;
  RegularFile& operator=(const RegularFile&) = delete;

  int descriptor() const { return descriptor_; }
  uint64_t size() const { return size_; }  // bytes, when it was opened

 private:
  int descriptor_;
  uint64_t size_ = 0;
};

}  // namespace tiercel
