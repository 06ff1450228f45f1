#include "engine/tensor_info.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/regular_file.h"
#include "engine/gguf/block_format.h"

namespace tiercel {

// ---- MappedFile ----

MappedFile MappedFile::open(const std::filesystem::path& path) {
  const RegularFile opened(path);  // a mapping outlives its descriptor
  MappedFile file;
  if (opened.size() == 0) return file;  // mmap refuses a length of zero
  const auto size = static_cast<size_t>(opened.size());
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, opened.descriptor(), 0);
  if (address == MAP_FAILED) {
    fail(errno == ENOMEM ? ErrorKind::kDoesNotFit : ErrorKind::kRuntime, "{}: cannot be mapped ({} bytes): {}",
         path.string(), size, std::strerror(errno));
  }
  file.data_ = static_cast<const std::byte*>(address);
  file.size_ = size;
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), static_cast<size_t>(size_));
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::will_need(uint64_t offset, uint64_t length) const {
  if (data_ == nullptr || offset >= size_) return;
  // madvise wants a page's start; rounding down to 64 KiB holds for every page size in use.
  const uint64_t start = offset & ~uint64_t{0xffff};
  const uint64_t bytes = std::min(length, size_ - offset) + (offset - start);
  ::madvise(const_cast<std::byte*>(data_) + start, bytes, MADV_WILLNEED);
}

// ---- tensors ----

TensorInfo rows_of(const TensorInfo& tensor, int64_t first, int64_t n) {
  CHECK(!tensor.shape.empty() && first >= 0 && n >= 0 && first + n <= tensor.shape[0],
        "rows {} to {} of {}", first, first + n, tensor.name);
  TensorInfo rows = tensor;
  rows.shape[0] = n;
  const uint64_t row_bytes = tensor.shape[0] > 0 ? tensor.bytes / static_cast<uint64_t>(tensor.shape[0]) : 0;
  const uint64_t before = static_cast<uint64_t>(first) * row_bytes;
  rows.bytes = static_cast<uint64_t>(n) * row_bytes;
  rows.offset += before;
  if (rows.data != nullptr) rows.data += before;
  return rows;
}

void wont_need(const TensorInfo& tensor) {
  // Whole pages only: their neighbours may be another tensor's. 64 KiB holds for every page size in use.
  constexpr uintptr_t kPages = 0xffff;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data);
  const uintptr_t first = (begin + kPages) & ~kPages, end = (begin + tensor.bytes) & ~kPages;
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

std::string to_string(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : ", ", shape[i]);
  }
  return text + "]";
}

// ---- values ----

namespace {

// Data in a file is only aligned to a byte: every element is read through memcpy, which compilers
// turn into unaligned vector loads.
template <typename T>
T load(const std::byte* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Blocks keep the reduction branch-free, and the search for the exact place short.
template <typename T, T kExponent>
std::optional<int64_t> find_full_exponent(const std::byte* data, int64_t n) {
  constexpr int64_t kBlock = 4096;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t end = std::min(n, start + kBlock);
    T any = 0;
    for (int64_t i = start; i < end; ++i) {
      const T bits = load<T>(data, i);
      any = static_cast<T>(any | static_cast<T>((bits & kExponent) == kExponent));
    }
    if (any == 0) continue;
    for (int64_t i = start; i < end; ++i) {
      if ((load<T>(data, i) & kExponent) == kExponent) return i;
    }
  }
  return std::nullopt;
}

// All ones where `condition`, else zero.
uint32_t mask(bool condition) { return 0u - static_cast<uint32_t>(condition); }

// bf16(f16_to_float(h)) by masks instead of branches: the loop over it becomes vector code, more
// than twice as fast. Normal numbers need another exponent bias; subnormal ones are exactly (2^-14
// + m 2^-24) - 2^-14.
bf16 f16_to_bf16(uint16_t h) {
  constexpr uint32_t kSmallestNormal = 113u << 23;
  const uint32_t sign = uint32_t{h & 0x8000u} << 16;
  const uint32_t bits = uint32_t{h & 0x7fffu} << 13;
  const uint32_t is_special = mask(bits >= 0x0f800000u);  // infinity or NaN
  const uint32_t is_nan = mask(bits > 0x0f800000u);
  const uint32_t is_subnormal = mask(bits < 0x00800000u);
  const float subnormal =
      std::bit_cast<float>(kSmallestNormal + bits) - std::bit_cast<float>(kSmallestNormal);
  const uint32_t normal = bits + (112u << 23) + (is_special & (112u << 23));
  const uint32_t u =
      sign | (is_subnormal & std::bit_cast<uint32_t>(subnormal)) | (~is_subnormal & normal);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t quiet = (u >> 16) | 0x40u;
  return bf16::from_bits(static_cast<uint16_t>((is_nan & quiet) | (~is_nan & rounded)));
}

}  // namespace

int64_t to_bf16(const TensorInfo& tensor, bf16* out) {
  CHECK(tensor.supported && (tensor.data != nullptr || tensor.bytes == 0), "tensor {}",
        tensor.name);
  const int64_t n = tensor.n_elements();
  switch (tensor.dtype) {
    case DType::kBf16:
      if (n > 0) std::memcpy(out, tensor.data, tensor.bytes);
      return 0;
    case DType::kF16:
      for (int64_t i = 0; i < n; ++i) out[i] = f16_to_bf16(load<uint16_t>(tensor.data, i));
      return 0;
    case DType::kF32: {
      int64_t overflows = 0;
      for (int64_t i = 0; i < n; ++i) {
        const auto bits = load<uint32_t>(tensor.data, i);
        out[i] = bf16(std::bit_cast<float>(bits));
        const bool was_finite = (bits & 0x7f800000u) != 0x7f800000u;
        overflows += was_finite && (out[i].bits & 0x7f80u) == 0x7f80u;
      }
      return overflows;
    }
    case DType::kF8E4M3:
      for (int64_t i = 0; i < n; ++i) out[i] = bf16(f8_e4m3_to_float(load<uint8_t>(tensor.data, i)));
      return 0;
    case DType::kI8:
    case DType::kI32: break;
  }
  CHECK(false, "dtype {}", name_of(tensor.dtype));
  return 0;
}

float number_at(const TensorInfo& tensor, int64_t i) {
  if (tensor.dtype == DType::kF32) return load<float>(tensor.data, i);
  const auto bits = load<uint16_t>(tensor.data, i);
  return tensor.dtype == DType::kF16 ? f16_to_float(bits) : static_cast<float>(bf16::from_bits(bits));
}

std::optional<int64_t> find_non_finite(const TensorInfo& tensor) {
  if (const BlockFormat* blocks = tensor.blocks) {
    const auto bad = find_non_finite_block(*blocks, tensor.data, tensor.n_elements() / blocks->elements);
    return bad ? std::optional(*bad * blocks->elements) : std::nullopt;
  }
  CHECK(tensor.supported && (tensor.data != nullptr || tensor.bytes == 0), "tensor {}",
        tensor.name);
  const int64_t n = tensor.n_elements();
  switch (tensor.dtype) {
    case DType::kBf16: return find_full_exponent<uint16_t, 0x7f80>(tensor.data, n);
    case DType::kF16: return find_full_exponent<uint16_t, 0x7c00>(tensor.data, n);
    case DType::kF32: return find_full_exponent<uint32_t, 0x7f800000u>(tensor.data, n);
    case DType::kF8E4M3: return find_full_exponent<uint8_t, 0x7f>(tensor.data, n);  // its only NaN
    case DType::kI8:
    case DType::kI32: break;
  }
  CHECK(false, "dtype {}", name_of(tensor.dtype));
  return std::nullopt;
}

}  // namespace tiercel
