// Arbitrary bytes as the header of a saved session. Only Error may come out; blocks that are
// accepted must fill whole pages of the file, one behind the other, to its end.
//
// Input: byte 0 says what the rest is: even, a whole file; odd, the JSON of a header that is right
// but for it (no fuzzer guesses a checksum), of a file with byte 0 / 2 pages of blocks behind it.
#include <xxhash.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "engine/base/check.h"
#include "engine/session_file.h"

namespace {

using namespace tiercel;

// Pages of a header with this text, for a file with so many bytes behind it.
std::string header_of(const std::string& text, int64_t block_bytes) {
  std::string pages = std::string("TIERCEL\x1a") + std::string(32, '\0') + text;
  pages.resize((pages.size() + kSessionPage - 1) / kSessionPage * kSessionPage);
  const auto put = [&](size_t at, uint64_t value) { std::memcpy(&pages[at], &value, 8); };
  put(8, 1);
  put(16, text.size());
  put(24, pages.size() + static_cast<uint64_t>(block_bytes));
  put(32, XXH3_64bits_withSeed(&pages[40], pages.size() - 40, XXH3_64bits(pages.data(), 32)));
  return pages;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  const int64_t block_bytes = data[0] % 2 == 1 ? data[0] / 2 * kSessionPage : 0;
  if (data[0] % 2 == 1) bytes = header_of(bytes, block_bytes);
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
