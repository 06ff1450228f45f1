// Arbitrary bytes as the header of a saved session. Only Error may come out; blocks that are
// accepted must fill whole pages of the file, one behind the other, to its end.
//
// Input: byte 0 modulo 3 says what the rest is: a whole file; the JSON of a header that is right
// but for it (no fuzzer guesses a checksum); the numbers of such a header's table of blocks. Behind
// the latter two, the file has byte 0 / 3 pages.
#include <fmt/format.h>
#include <xxhash.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "engine/base/check.h"
#include "engine/session_file.h"

namespace {

using namespace tiercel;

// A block of every 5 bytes: rows and bytes of a row, of all magnitudes, and the page where it
// begins.
std::string table_of(std::span<const uint8_t> bytes) {
  std::string blocks;
  for (size_t i = 0; i + 5 <= bytes.size(); i += 5) {
    const auto number = [&](size_t at) { return uint64_t{bytes[at]} << bytes[at + 1] % 64; };
    blocks += fmt::format(
        R"({}{{"name":"b","rows":{},"row_bytes":{},"offset":{},"xxh3":"0123456789abcdef"}})",
        i > 0 ? "," : "", number(i), number(i + 2), bytes[i + 4] * kSessionPage);
  }
  return R"({"meta":{},"blocks":[)" + blocks + "]}";
}

// Pages of a header with this text, for a file with so many bytes behind it.
std::string header_of(const std::string& text, int64_t block_bytes) {
  std::string pages = std::string("TIERCEL\x1a") + std::string(32, '\0') + text;
  pages.resize((pages.size() + kSessionPage - 1) / kSessionPage * kSessionPage);
  const auto put = [&](size_t at, uint64_t value) { std::memcpy(&pages[at], &value, 8); };
  put(8, kSessionVersion);
  put(16, text.size());
  put(24, pages.size() + static_cast<uint64_t>(block_bytes));
  put(32, XXH3_64bits_withSeed(&pages[40], pages.size() - 40, XXH3_64bits(pages.data(), 32)));
  return pages;
}

}  // namespace

// What is behind the door must be reached: a header of this making is accepted.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const uint8_t row[] = {1, 0, 1, 12, 1};  // one of 4,096 bytes
  const std::string bytes = header_of(table_of(row), kSessionPage);
  const int64_t file_bytes = static_cast<int64_t>(bytes.size()) + kSessionPage;
  const auto header =
      SessionFile::parse_header(std::as_bytes(std::span(bytes)), file_bytes, "valid");
  CHECK(header.blocks.size() == 1);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  const int mode = data[0] % 3;
  const int64_t block_bytes = mode > 0 ? data[0] / 3 * kSessionPage : 0;
  if (mode > 0) bytes = header_of(mode == 1 ? bytes : table_of({data + 1, size - 1}), block_bytes);
  const int64_t file_bytes = static_cast<int64_t>(bytes.size()) + block_bytes;
  try {
    const auto header =
        SessionFile::parse_header(std::as_bytes(std::span(bytes)), file_bytes, "fuzz");
    CHECK(header.meta.starts_with('{') && header.meta.ends_with('}'), "{}", header.meta);
    int64_t end = header.blocks.empty() ? file_bytes : header.blocks[0].offset;
    for (const FileBlock& block : header.blocks) {
      CHECK(block.offset == end && end % kSessionPage == 0, "{} {}", block.offset, end);
      CHECK(block.n_rows > 0 && block.row_bytes > 0, "{} {}", block.n_rows, block.row_bytes);
      CHECK(block.row_stride() >= block.row_bytes, "{}", block.row_bytes);
      end += block.file_bytes();
      CHECK(end > block.offset && end <= file_bytes, "{} {}", end, file_bytes);
    }
    CHECK(end == file_bytes, "{} {}", end, file_bytes);
  } catch (const Error&) {
  }
  return 0;
}
