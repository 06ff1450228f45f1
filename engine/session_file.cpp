#include "engine/session_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>

#include "engine/base/check.h"
#include "engine/base/threads.h"
#include "engine/base/units.h"
#include "engine/json.h"

namespace tiercel {
namespace {

static_assert(std::endian::native == std::endian::little, "files are written as memory holds them");

constexpr char kMagic[9] = "TIERCEL\x1a";
constexpr int64_t kPrefixBytes = 40, kChecksumAt = 32;
constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr int64_t kMaxSavedHeaderBytes = int64_t{64} << 20;

int64_t to_pages(int64_t bytes) { return (bytes + kSessionPage - 1) / kSessionPage * kSessionPage; }

std::string header_text(std::string_view meta, const std::vector<FileBlock>& blocks) {
  std::string text = fmt::format("{{\"meta\":{},\"blocks\":[", meta);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const FileBlock& b = blocks[i];
    // The checksum's width is fixed: it is not known yet when the file is laid out.
    text += fmt::format(
        "{}{{\"name\":\"{}\",\"rows\":{},\"row_bytes\":{},\"offset\":{:d},\"xxh3\":\"{:016x}\"}}",
        i > 0 ? "," : "", b.name, b.n_rows, b.row_bytes, b.offset, b.checksum);
  }
  return text + "]}";
}

// The checksum that a header's pages should carry.
uint64_t header_checksum(const std::byte* pages, int64_t bytes) {
  return XXH3_64bits_withSeed(pages + kPrefixBytes, static_cast<size_t>(bytes - kPrefixBytes),
                              XXH3_64bits(pages, static_cast<size_t>(kChecksumAt)));
}

// The header's pages, with its checksum.
std::vector<std::byte> header_bytes(std::string_view meta, const std::vector<FileBlock>& blocks,
                                    int64_t file_bytes) {
  const std::string text = header_text(meta, blocks);
  std::vector<std::byte> out(
      static_cast<size_t>(to_pages(kPrefixBytes + static_cast<int64_t>(text.size()))));
  const auto put = [&](int64_t at, const auto& value) {
    std::memcpy(out.data() + at, &value, sizeof value);
  };
  std::memcpy(out.data(), kMagic, 8);
  put(8, kSessionVersion);
  put(16, static_cast<uint64_t>(text.size()));
  put(24, static_cast<uint64_t>(file_bytes));
  std::memcpy(out.data() + kPrefixBytes, text.data(), text.size());
  put(kChecksumAt, header_checksum(out.data(), static_cast<int64_t>(out.size())));
  return out;
}

// Of pages of a mapping, which are let go piece by piece: they are the system's to keep, and what
// this process holds does not grow by a file that it only looks at.
uint64_t hash_pages(const std::byte* pages, int64_t bytes) {
  constexpr int64_t kPiece = int64_t{8} << 20;
  struct State {
    XXH3_state_t* xxh = XXH3_createState();
    ~State() { XXH3_freeState(xxh); }
  } state;
  CHECK(state.xxh != nullptr && XXH3_64bits_reset(state.xxh) == XXH_OK);
  for (int64_t at = 0; at < bytes; at += kPiece) {
    const auto n = static_cast<size_t>(std::min(kPiece, bytes - at));
    XXH3_64bits_update(state.xxh, pages + at, n);
    ::madvise(const_cast<std::byte*>(pages + at), n, MADV_DONTNEED);
  }
  return XXH3_64bits_digest(state.xxh);
}

template <typename T>
T read_as(std::span<const std::byte> bytes, int64_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

uint64_t parse_checksum(const JsonNode& node) {
  const std::string& text = node.text();
  const bool hex = text.size() == 16 && text.find_first_not_of("0123456789abcdef") == text.npos;
  if (!hex) node.unexpected("16 hexadecimal digits");
  return std::stoull(text, nullptr, 16);
}

// The table must describe exactly the pages behind the header.
std::vector<FileBlock> parse_blocks(const JsonNode& list, int64_t header_end, int64_t file_bytes) {
  std::vector<FileBlock> blocks;
  int64_t offset = header_end;
  for (size_t i = 0; i < list.size(); ++i) {
    const JsonNode node = list[i];
    FileBlock block;
    block.name = node.at("name").text();
    block.n_rows = node.at("rows").integer(1, file_bytes);
    block.row_bytes = node.at("row_bytes").integer(1, file_bytes);
    if (block.n_rows > file_bytes / block.row_bytes) node.unexpected("rows that fit into the file");
    block.offset = node.at("offset").integer(0, file_bytes);
    if (block.offset != offset) node.unexpected(fmt::format("an offset of {}", offset));
    block.checksum = parse_checksum(node.at("xxh3"));
    offset += block.file_bytes();
    if (offset > file_bytes) node.unexpected("rows that fit into the file");
    blocks.push_back(std::move(block));
  }
  if (offset != file_bytes) {
    list.unexpected(fmt::format("blocks of {} bytes in all", file_bytes - header_end));
  }
  return blocks;
}

// Where a session's file of this name belongs. Links are followed, so that renaming replaces the
// file and not the link that leads to it.
std::string place_of(const std::string& path) {
  if (path.empty()) {
    fail(ErrorKind::kUsage, "a session's file: expected a name, found an empty text");
  }
  // Of the name that it has while it is written.
  constexpr size_t kMostName = 255 - std::string_view(".partial").size();
  const std::string place = behind_links(path);
  if (const size_t n = std::filesystem::path(place).filename().string().size(); n > kMostName) {
    fail("{}: cannot save a session: expected a file name of at most {} bytes, found {}", path, kMostName, n);
  }
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return place;
    fail("{}: cannot save a session: {}", path, std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) {
    fail("{}: cannot save a session: expected a file, or nothing yet, found {}", path,
         S_ISDIR(info.st_mode) ? "a directory" : "a device or a pipe");
  }
  if (::access(path.c_str(), W_OK) != 0) fail("{}: cannot save a session: {}", path, std::strerror(errno));
  return place;
}

std::string directory_of(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

int64_t FileBlock::row_stride() const {
  return row_bytes >= kLongRow ? to_pages(row_bytes) : row_bytes;
}
int64_t FileBlock::file_bytes() const { return to_pages(n_rows * row_stride()); }

// Offsets are part of the header, whose length they change: two or three rounds settle it.
int64_t lay_out_file(std::string_view meta, std::vector<FileBlock>& blocks) {
  int64_t header = 0;
  while (true) {
    int64_t offset = header;
    for (FileBlock& block : blocks) {
      block.offset = offset;
      offset += block.file_bytes();
    }
    const int64_t needed =
        to_pages(kPrefixBytes + static_cast<int64_t>(header_text(meta, blocks).size()));
    if (needed <= header) return offset;
    header = needed;
  }
}

// ---- writing ------------------------------------------------------------------------------------

struct SessionFileWriter::Hash {
  XXH3_state_t* state = XXH3_createState();
  Hash() { CHECK(state != nullptr && XXH3_64bits_reset(state) == XXH_OK); }
  ~Hash() { XXH3_freeState(state); }
  Hash(const Hash&) = delete;
  Hash& operator=(const Hash&) = delete;
};

void SessionFileWriter::check_path(const std::string& path, int64_t file_bytes) {
  const std::string directory = directory_of(place_of(path));
  const auto refuse = [&](const char* why) {
    fail("{}: cannot save a session: directory {}: {}", path, directory, why);
  };
  if (::access(directory.c_str(), W_OK | X_OK) != 0) refuse(std::strerror(errno));
  struct statvfs info {};
  if (::statvfs(directory.c_str(), &info) != 0) refuse(std::strerror(errno));
  const auto room = static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
  if (room < file_bytes) {
    fail(
        "{}: cannot save a session: its file takes {}, the disk has {} left; save elsewhere, or try "
        "--value-codec int8",
        path, format_bytes(file_bytes), format_bytes(room));
  }
}

SessionFileWriter::SessionFileWriter(const std::string& path, std::string meta,
                                     std::vector<FileBlock> blocks)
    : path_(path),
      meta_(std::move(meta)),
      blocks_(std::move(blocks)),
      hash_(std::make_unique<Hash>()) {
  CHECK(!blocks_.empty());
  for (FileBlock& block : blocks_) block.checksum = 0;
  file_bytes_ = lay_out_file(meta_, blocks_);
  written_ = blocks_[0].offset;
  path_ = place_of(path_);
  open_partial();
  buffer_.reserve(kBufferBytes);
}

// Whoever holds the lock owns the partial file, also one that a killed process left.
void SessionFileWriter::open_partial() {
  const std::string name = path_ + ".partial";
  // A file that is there and not yet registered would outlive a process that a signal ends.
  const SignalsBlocked blocked;
  partial_.fd = ::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (partial_.fd < 0) refuse("create", errno);
  struct stat ours {
  }, named{};
  const bool locked = ::flock(partial_.fd, LOCK_EX | LOCK_NB) == 0;
  // Between opening and locking, its owner may have renamed or removed it.
  const bool is_it = locked && ::fstat(partial_.fd, &ours) == 0 &&
                     ::stat(name.c_str(), &named) == 0 && ours.st_ino == named.st_ino &&
                     ours.st_dev == named.st_dev;
  if (!is_it) fail("{}: cannot save a session: another process is writing {}", path_, name);
  partial_.name = name;
  partial_.unfinished = UnfinishedFile(name);
  if (::ftruncate(partial_.fd, 0) != 0) refuse("write", errno);
  // Not every file system can reserve; then a full disk shows when its last byte is written.
  if (::fallocate(partial_.fd, 0, 0, file_bytes_) != 0 && errno != EOPNOTSUPP && errno != ENOSYS &&
      errno != EINVAL && errno != EINTR) {
    refuse("reserve", errno);
  }
}

void SessionFileWriter::refuse(const char* doing, int error) {
  const bool no_room = error == ENOSPC || error == EDQUOT || error == EFBIG;
  fail("{}: cannot {} a session's file of {}: {}{}", path_, doing, format_bytes(file_bytes_),
       std::strerror(error), no_room ? "; nothing was saved" : "");
}

SessionFileWriter::~SessionFileWriter() = default;

SessionFileWriter::Partial::~Partial() {
  if (!name.empty()) ::unlink(name.c_str());
  if (fd >= 0) ::close(fd);
}

void SessionFileWriter::write_at(const std::byte* bytes, int64_t n, int64_t offset) {
  while (n > 0) {
    const ssize_t done = ::pwrite(partial_.fd, bytes, static_cast<size_t>(n), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) refuse("write", errno);
    if (done == 0) refuse("write", ENOSPC);
    bytes += done;
    offset += done;
    n -= done;
  }
}

void SessionFileWriter::flush() {
  write_at(buffer_.data(), static_cast<int64_t>(buffer_.size()), written_);
  written_ += static_cast<int64_t>(buffer_.size());
  buffer_.clear();
}

void SessionFileWriter::put(std::span<const std::byte> bytes) {
  XXH3_64bits_update(hash_->state, bytes.data(), bytes.size());
  if (buffer_.size() + bytes.size() > kBufferBytes) flush();
  if (bytes.size() >= kBufferBytes) {
    write_at(bytes.data(), static_cast<int64_t>(bytes.size()), written_);
    written_ += static_cast<int64_t>(bytes.size());
  } else {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  }
}

void SessionFileWriter::put_zeros(int64_t n) {
  static constexpr std::byte kZeros[kSessionPage] = {};
  CHECK(n >= 0 && n < kSessionPage, "{}", n);
  if (n > 0) put({kZeros, static_cast<size_t>(n)});
}

void SessionFileWriter::append(std::span<const std::byte> piece) {
  if (piece.empty()) return;
  CHECK(block_ < blocks_.size(), "more bytes than blocks");
  const FileBlock& block = blocks_[block_];
  const auto n = static_cast<int64_t>(piece.size());
  CHECK(in_row_ + n <= block.row_bytes, "{}: {} bytes of a row of {}", block.name, in_row_ + n,
        block.row_bytes);
  put(piece);
  in_row_ += n;
  if (in_row_ < block.row_bytes) return;
  put_zeros(block.row_stride() - block.row_bytes);
  in_row_ = 0;
  if (++row_ == block.n_rows) end_block();
}

void SessionFileWriter::end_block() {
  FileBlock& block = blocks_[block_++];
  put_zeros(block.file_bytes() - block.n_rows * block.row_stride());
  block.checksum = XXH3_64bits_digest(hash_->state);
  XXH3_64bits_reset(hash_->state);
  row_ = 0;
}

void SessionFileWriter::commit() {
  CHECK(block_ == blocks_.size() && !partial_.name.empty(), "{} of {} blocks", block_,
        blocks_.size());
  flush();
  CHECK(written_ == file_bytes_, "{} of {} bytes", written_, file_bytes_);
  const std::vector<std::byte> header = header_bytes(meta_, blocks_, file_bytes_);
  CHECK(static_cast<int64_t>(header.size()) == blocks_[0].offset, "{}", header.size());
  write_at(header.data(), static_cast<int64_t>(header.size()), 0);
  take_permissions(partial_.fd, path_);
  if (::fsync(partial_.fd) != 0) refuse("write", errno);
  if (::rename(partial_.name.c_str(), path_.c_str()) != 0) refuse("rename", errno);
  partial_.name.clear();
  partial_.unfinished.forget();
  // The name must outlive a loss of power, too. Not every file system syncs directories.
  const int directory = ::open(directory_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return;
  const int error = ::fsync(directory) == 0 ? 0 : errno;
  ::close(directory);
  if (error != 0 && error != EINVAL && error != ENOTSUP) {
    fail("{}: the session is written, but its directory cannot be synced: {}", path_,
         std::strerror(error));
  }
}

// ---- reading ------------------------------------------------------------------------------------

SessionFile::Header SessionFile::parse_header(std::span<const std::byte> bytes, int64_t file_bytes,
                                              const std::string& name) {
  const auto n = static_cast<int64_t>(bytes.size());
  if (n < kPrefixBytes || std::memcmp(bytes.data(), kMagic, 8) != 0) {
    fail("{}: expected a saved session, found something else; --save-session makes one", name);
  }
  const auto version = read_as<uint32_t>(bytes, 8);
  if (version != kSessionVersion) {
    fail("{}: expected version {} of the session file, found {}; save the session again", name,
         kSessionVersion, version);
  }
  const auto expected = read_as<uint64_t>(bytes, 24);
  if (expected != static_cast<uint64_t>(file_bytes)) {
    fail(
        "{}: expected a file of {} bytes, found {}; it was cut short or damaged, save the session "
        "again",
        name, expected, file_bytes);
  }
  const auto text_bytes = read_as<uint64_t>(bytes, 16);
  const bool sane = text_bytes <= static_cast<uint64_t>(std::min(kMaxSavedHeaderBytes, file_bytes));
  const int64_t header_end =
      sane ? to_pages(kPrefixBytes + static_cast<int64_t>(text_bytes)) : file_bytes + 1;
  if (header_end > n ||
      header_checksum(bytes.data(), header_end) != read_as<uint64_t>(bytes, kChecksumAt)) {
    fail(
        "{}: the checksum of its header does not match; the file was damaged, save the session "
        "again",
        name);
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kPrefixBytes,
                              static_cast<size_t>(text_bytes));
  const nlohmann::json json = parse_json(text, name);
  const JsonNode root(json, name);
  Header header;
  root.at("meta").expect_object();
  header.meta = root.at("meta").raw().dump();
  header.blocks = parse_blocks(root.at("blocks"), header_end, file_bytes);
  return header;
}

std::shared_ptr<const SessionFile> SessionFile::open(const std::string& path) {
  std::shared_ptr<SessionFile> file(new SessionFile);
  file->path_ = path;
  file->fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  const auto refuse = [&](const std::string& why) {
    fail("{}: cannot open a saved session: {}", path, why);
  };
  if (file->fd_ < 0) refuse(std::strerror(errno));
  struct stat info {};
  if (::fstat(file->fd_, &info) != 0) refuse(std::strerror(errno));
  if (!S_ISREG(info.st_mode)) {
    refuse(S_ISDIR(info.st_mode) ? "it is a directory" : "it is no regular file");
  }
  file->size_ = info.st_size;
  if (file->size_ > 0) {
    void* data =
        ::mmap(nullptr, static_cast<size_t>(file->size_), PROT_READ, MAP_SHARED, file->fd_, 0);
    if (data == MAP_FAILED) refuse(std::strerror(errno));
    file->data_ = static_cast<const std::byte*>(data);
  }
  file->header_ = parse_header({file->data_, static_cast<size_t>(file->size_)}, file->size_, path);
  return file;
}

SessionFile::~SessionFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<std::byte*>(data_), static_cast<size_t>(size_));
  }
  if (fd_ >= 0) ::close(fd_);
}

void SessionFile::check_blocks(int n_threads) const {
  ::madvise(const_cast<std::byte*>(data_), static_cast<size_t>(size_), MADV_WILLNEED);
  std::vector<size_t> order(blocks().size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  // The longest first, so that the threads end together.
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return blocks()[a].file_bytes() > blocks()[b].file_bytes();
  });
  std::atomic<size_t> next{0}, bad{blocks().size()};
  const auto work = [&] {
    for (size_t i = next++; i < order.size(); i = next++) {
      const FileBlock& block = blocks()[order[i]];
      if (hash_pages(data_ + block.offset, block.file_bytes()) != block.checksum) {
        bad = order[i];
        return;
      }
    }
  };
  work_in_threads(std::clamp<int>(n_threads, 1, static_cast<int>(std::min<size_t>(order.size(), 64))),
                  work);
  if (bad == blocks().size()) return;
  const FileBlock& block = blocks()[bad];
  fail(
      "{}: block '{}' ({} bytes from byte {}): its checksum does not match; the file was damaged, "
      "save the session again",
      path_, block.name, block.file_bytes(), block.offset);
}

const FileBlock* SessionFile::find(std::string_view name) const {
  const auto found = std::find_if(blocks().begin(), blocks().end(),
                                  [&](const FileBlock& b) { return b.name == name; });
  return found == blocks().end() ? nullptr : &*found;
}

std::span<const std::byte> SessionFile::row(const FileBlock& block, int64_t row) const {
  CHECK(row >= 0 && row < block.n_rows, "{}", row);
  return {data_ + block.offset + row * block.row_stride(), static_cast<size_t>(block.row_bytes)};
}

}  // namespace tiercel
