// Tensors as they lie in files: a read-only mapping of a file, what is known of a tensor of it, and its values.
//
// Data stays where it is: a tensor is a pointer into the mapping and is only as aligned as the file makes it.
// Does not know: any file's format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/dtype.h"

namespace tiercel {

// A regular file mapped PROT_READ, MAP_PRIVATE as a whole; unmapped on destruction. An empty file
// is a valid, empty mapping. The file must not be shortened by others while it is mapped.
class MappedFile {
 public:
  MappedFile() = default;
  // Errors: missing, no permission, a directory or device, address space exhausted.
  static MappedFile open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, static_cast<size_t>(size_)}; }
  // Asks the kernel to read `length` bytes from `offset` on ahead of use. A hint: never fails.
  void will_need(uint64_t offset, uint64_t length) const;

 private:
  const std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

struct BlockFormat;  // engine/gguf/block_format.h

// A tensor as it lies in a file.
struct TensorInfo {
  std::string name;
  std::string stored_name;     // as the file has it, where that is another
  DType dtype = DType::kF32;   // only meaningful when `supported`, or of I8 and I32
  bool supported = false;      // BF16, F16, F32 or F8_E4M3: numbers by themselves
  std::string stored_dtype;    // as the file spells it, for messages
  const BlockFormat* blocks = nullptr;  // its rows are blocks of codes, which can be decoded; not `supported`
  std::vector<int64_t> shape;  // outermost first; empty for a scalar; a dimension may be 0
  uint64_t offset = 0;         // of the data, in bytes from the start of the file
  uint64_t bytes = 0;
  const std::byte* data = nullptr;  // null from parse_header; often not aligned to the element

  const std::string& label() const { return stored_name.empty() ? name : stored_name; }  // for messages
  int64_t n_elements() const {
    int64_t n = 1;
    for (const int64_t extent : shape) n *= extent;  // checked against overflow when parsed
    return n;
  }
};

// Rows first .. first + n - 1 of a tensor that has at least one dimension and so many rows.
TensorInfo rows_of(const TensorInfo& tensor, int64_t first, int64_t n);

// A mapped tensor need not stay in memory; read again it is as it was. A hint: never fails.
void wont_need(const TensorInfo& tensor);

// "[4, 64]", for messages.
std::string to_string(std::span<const int64_t> shape);

// Converts a tensor to bf16, rounding to nearest, ties to even; NaN stays NaN.
// Codes of F8_E4M3 are converted as they are: their scales are a tensor of their own (engine/fp8.h).
// out: [n_elements]. Returns how many finite f32 values were too large for bf16 and became
// infinite: the caller must say so. Always 0 for bf16 and f16.
[[nodiscard]] int64_t to_bf16(const TensorInfo& tensor, bf16* out);

// Element i of a tensor of f32, f16 or bf16: for the few numbers that say what many others mean.
float number_at(const TensorInfo& tensor, int64_t i);

// Index of the first NaN or infinity, if there is one; of blocks, of the first element of such a block. Integer compares
// on the exponent bits, one pass at memory speed: a loader can afford to look at every weight.
std::optional<int64_t> find_non_finite(const TensorInfo& tensor);

}  // namespace tiercel
