// Arbitrary bytes as a GGUF file. Only Error may come out; tensors that are accepted must lie within the file, and all
// that is made of it (a configuration, a tokenizer, a checkpoint's tensors, rows of blocks) must be made without harm.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/checkpoint.h"
#include "engine/config.h"
#include "engine/gguf/block_format.h"
#include "engine/text/tokenizer.h"

namespace {

using namespace tiercel;

template <typename F>
void unless_refused(F&& f) {
  try {
    f();
  } catch (const Error&) {
  }
}

// A file of these bytes, until the next call.
std::string file_of(const uint8_t* data, size_t size) {
  static const int kFile = ::memfd_create("fuzz", 0);
  CHECK(kFile >= 0 && ::ftruncate(kFile, 0) == 0 && ::pwrite(kFile, data, size, 0) == static_cast<ssize_t>(size));
  return "/proc/self/fd/" + std::to_string(kFile);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string name = "fuzz";
  unless_refused([&] {
    const auto contents = GgufFile::parse_header(std::as_bytes(std::span(data, size)), size, name);
    for (const TensorInfo& tensor : contents.tensors) {
      CHECK(tensor.offset <= size && tensor.bytes <= size - tensor.offset, "{} {}", tensor.offset, tensor.bytes);
    }
  });
  if (size < 4) return 0;  // no such file by its beginning
  const std::string path = file_of(data, size);
  unless_refused([&] { load_config(path); });
  unless_refused([&] { Tokenizer::load(path).encode("two words 12\n"); });
  unless_refused([&] {
    const Checkpoint checkpoint = Checkpoint::open(path);
    for (const std::string_view of_tensor : checkpoint.names()) {
      const TensorInfo& tensor = *checkpoint.find_any(of_tensor);
      if (tensor.n_elements() == 0 || !(tensor.supported || tensor.blocks != nullptr)) continue;
      static_cast<void>(find_non_finite(tensor));
      if (tensor.blocks == nullptr || tensor.shape.empty()) continue;
      const int64_t k = tensor.shape.back();
      std::vector<bf16> row(static_cast<size_t>(k));
      static_cast<void>(decode_row(*tensor.blocks, tensor.data, k, row.data()));
      const WeightCodec codec = tensor.blocks->codec(k);
      if (!codec.is_coded()) continue;
      std::vector<std::byte> packed(static_cast<size_t>(codec.row_bytes(k)));
      static_cast<void>(pack_row(*tensor.blocks, tensor.data, k, codec, packed.data()));
    }
  });
  return 0;
}
