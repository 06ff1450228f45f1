// Arbitrary bytes as a safetensors file. Only Error may come out; a table that is accepted must lie
// within the file, tile its data area, and have sizes that agree with themselves.
//
// Input: byte 0 says what the rest is: even, a whole file; odd, a JSON header that gets a correct
// length in front, and a file size such that data of (byte 0 / 2) * 8 bytes follows.
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "engine/base/check.h"
#include "engine/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;
  if (size == 0) return 0;
  const uint8_t mode = data[0];
  std::string file(reinterpret_cast<const char*>(data + 1), size - 1);
  uint64_t file_size = file.size();
  if (mode % 2 == 1) {
    std::string length(8, '\0');
    for (int i = 0; i < 8; ++i)
      length[static_cast<size_t>(i)] = static_cast<char>(file.size() >> (8 * i));
    file = length + file;
    file_size = file.size() + uint64_t{mode} / 2 * 8;
  }
  try {
    const auto tensors =
        SafetensorsFile::parse_header(std::as_bytes(std::span(file)), file_size, "fuzz");
    uint64_t end = 0;
    for (const TensorInfo& tensor : tensors) {
      CHECK(end == 0 || tensor.offset == end, "{} {}", tensor.offset, end);
      end = tensor.offset + tensor.bytes;
      CHECK(end <= file_size, "{} {}", end, file_size);
      if (tensor.supported) {
        CHECK(static_cast<uint64_t>(tensor.n_elements()) * size_of(tensor.dtype) == tensor.bytes,
              "{}", tensor.bytes);
      }
    }
    CHECK(tensors.empty() || end == file_size, "{} {}", end, file_size);
  } catch (const Error&) {
  }
  return 0;
}
