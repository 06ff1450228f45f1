// The file of a saved session: a header, then blocks of bytes, everything under a checksum.
//
//   0         8          16             24           32          40            4096 n
//   | magic   | version  | header bytes | file bytes | checksum  | JSON | zeros | block | block |
//   ..
//             u32, u32 0   u64            u64          u64: of all that precedes the blocks,
//             without
//                                                      these 8 bytes
//   {"meta": {...}, "blocks": [{"name", "rows", "row_bytes", "offset", "xxh3"}, ..]}
//
// All numbers are little-endian, all checksums XXH3 with 64 bits. A block begins on a page and
// fills whole pages, with zeros at its end; so does each of its rows where they are long, so that a
// row can be mapped to where it is used. Its checksum covers its pages, zeros included: no byte of
// a file is outside of one. Blocks follow each other without holes.
//
// Promises: a file appears under its name complete and on the disk, or not at all. It is written as
// FILE.partial, which is removed when writing fails; a process that is killed leaves it behind, and
// the next one that saves to FILE takes it over. What is read has been checked: the header when it
// is opened, blocks by check_blocks(). The file must not be changed by others while it is open.
// Knows nothing of what the blocks mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/unfinished_files.h"

namespace tiercel {

inline constexpr uint32_t kSessionVersion = 2;
inline constexpr int64_t kSessionPage = 4096;
// Rows of this size and more begin on a page.
inline constexpr int64_t kLongRow = int64_t{64} << 10;

struct FileBlock {
  std::string name;
  int64_t n_rows = 0, row_bytes = 0;
  int64_t offset = 0;     // in the file
  uint64_t checksum = 0;  // of its pages

  int64_t row_stride() const;  // in the file
  int64_t file_bytes() const;  // whole pages
};

// Bytes of a file with this meta text (JSON) and these blocks; sets their offsets.
int64_t lay_out_file(std::string_view meta, std::vector<FileBlock>& blocks);

class SessionFileWriter {
 public:
  // Throws Error, before hours of work, when a file of so many bytes could not be saved to `path`
  // now.
  static void check_path(const std::string& path, int64_t file_bytes);

  // Makes FILE.partial and reserves its bytes, so that a full disk is found out at once. Errors: a
  // directory or device in the way, no permission, no room, another process that saves to `path`.
  SessionFileWriter(const std::string& path, std::string meta, std::vector<FileBlock> blocks);
  ~SessionFileWriter();  // removes FILE.partial where there was no commit
  SessionFileWriter(const SessionFileWriter&) = delete;
  SessionFileWriter& operator=(const SessionFileWriter&) = delete;

  // The rows of all blocks in order, in pieces of any size that do not cross the end of a row.
  void append(std::span<const std::byte> piece);
  // After the last row: writes the header, syncs, renames. Then the file is there.
  void commit();
  int64_t bytes() const { return file_bytes_; }

 private:
  struct Hash;
  // The file that is being written, by itself: it must go away, too, where a constructor throws.
  struct Partial {
    std::string name;  // empty: not ours, or not there any more
    UnfinishedFile unfinished;
    int fd = -1;
    ~Partial();
  };
  void open_partial();
  void put(std::span<const std::byte> bytes);
  void put_zeros(int64_t n);
  void flush();
  void write_at(const std::byte* bytes, int64_t n, int64_t offset);
  void end_block();
  [[noreturn]] void refuse(const char* doing, int error);

  std::string path_, meta_;
  Partial partial_;
  std::vector<FileBlock> blocks_;
  std::unique_ptr<Hash> hash_;
  std::vector<std::byte> buffer_;
  int64_t file_bytes_ = 0, written_ = 0;  // written_: up to where, without what the buffer holds
  size_t block_ = 0;                      // the row in hand, and how much of it has come
  int64_t row_ = 0, in_row_ = 0;
};

class SessionFile {
 public:
  // Maps a file and checks its header. Errors: missing, no permission, no regular file, cut short,
  // of another version, damaged.
  static std::shared_ptr<const SessionFile> open(const std::string& path);
  ~SessionFile();
  SessionFile(const SessionFile&) = delete;
  SessionFile& operator=(const SessionFile&) = delete;

  // The checks of open on a file's first bytes. Pure: what a fuzzer calls.
  struct Header {
    std::string meta;  // JSON
    std::vector<FileBlock> blocks;
  };
  static Header parse_header(std::span<const std::byte> bytes, int64_t file_bytes,
                             const std::string& name);

  // Reads everything and compares checksums. Throws Error naming the first block that is damaged.
  void check_blocks(int n_threads) const;

  const std::string& meta() const { return header_.meta; }
  const std::vector<FileBlock>& blocks() const { return header_.blocks; }
  // Null when there is none of this name.
  const FileBlock* find(std::string_view name) const;
  std::span<const std::byte> row(const FileBlock& block, int64_t row) const;
  int descriptor() const { return fd_; }
  const std::string& path() const { return path_; }
  int64_t bytes() const { return size_; }

 private:
  SessionFile() = default;

  std::string path_;
  int fd_ = -1;
  const std::byte* data_ = nullptr;
  int64_t size_ = 0;
  Header header_;
};

}  // namespace tiercel
