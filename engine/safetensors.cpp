#include "engine/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <tuple>
#include <utility>

#include "engine/base/check.h"
#include "engine/json.h"

namespace tiercel {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxRank = 16;

struct StoredDType {
  std::string_view name;
  int bits;  // sub-byte types exist: F4 packs two elements into a byte
  std::optional<DType> dtype;
};

constexpr StoredDType kStoredDTypes[] = {
    {"BF16", 16, DType::kBf16},       {"F16", 16, DType::kF16},
    {"F32", 32, DType::kF32},         {"F64", 64, std::nullopt},
    {"C64", 64, std::nullopt},        {"I64", 64, std::nullopt},
    {"U64", 64, std::nullopt},        {"I32", 32, DType::kI32},
    {"U32", 32, std::nullopt},        {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},        {"I8", 8, DType::kI8},
    {"U8", 8, std::nullopt},          {"BOOL", 8, std::nullopt},
    {"F8_E4M3", 8, DType::kF8E4M3},   {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},     {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt}, {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},     {"F4", 4, std::nullopt},
};

const StoredDType* find_stored_dtype(std::string_view name) {
  for (const StoredDType& stored : kStoredDTypes) {
    if (stored.name == name) return &stored;
  }
  return nullptr;
}

// Errors of one tensor start the same way.
[[noreturn]] void fail_tensor(const std::string& file, const std::string& tensor,
                              const std::string& message) {
  fail("{}: tensor {}: {}", file, printable(tensor), message);
}

void check_metadata(const JsonNode& metadata) {
  metadata.expect_object();
  for (const auto& [key, value] : metadata.raw().items()) {
    if (!value.is_string()) {
      metadata.unexpected("an object of strings", "the format allows nothing else in __metadata__");
    }
  }
}

// One entry of the header, checked by itself; its place among the others is checked afterwards.
TensorInfo parse_entry(const std::string& tensor, const JsonNode& node, uint64_t data_start,
                       uint64_t data_bytes, const std::string& file) {
  TensorInfo info;
  info.name = tensor;
  node.expect_object();
  info.stored_dtype = printable(node.at("dtype").text(), 32);
  const StoredDType* stored = find_stored_dtype(node.at("dtype").text());
  if (stored != nullptr && stored->dtype) {
    info.dtype = *stored->dtype;
    info.supported = info.dtype != DType::kI8 && info.dtype != DType::kI32;
  }

  const JsonNode shape = node.at("shape");
  if (shape.size() > kMaxRank) {
    fail_tensor(file, tensor,
                fmt::format("expected at most {} dimensions, found {}", kMaxRank, shape.size()));
  }
  // The product is bounded as if no extent were zero: any later product of some of them is safe
  // too.
  __int128 bound = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    const int64_t extent = shape[i].integer(0, INT64_MAX);
    info.shape.push_back(extent);
    bound *= std::max<int64_t>(extent, 1);
    if (bound > (__int128{1} << 56)) {  // so that the size in bits fits into 64 bits, too
      fail_tensor(file, tensor,
                  fmt::format("expected at most 2^56 elements, found shape {}; the "
                              "header is damaged",
                              shape.raw().dump()));
    }
  }

  const JsonNode offsets = node.at("data_offsets");
  if (offsets.size() != 2) offsets.unexpected("two offsets, [begin, end)");
  const auto begin = static_cast<uint64_t>(offsets[0].integer(0, INT64_MAX));
  const auto end = static_cast<uint64_t>(offsets[1].integer(0, INT64_MAX));
  if (begin > end) {
    fail_tensor(file, tensor,
                fmt::format("data_offsets: expected begin <= end, found [{}, {}]", begin, end));
  }
  if (end > data_bytes) {
    fail_tensor(file, tensor,
                fmt::format("expected its data to end at byte {} of the file, found a file of {} "
                            "bytes; it is truncated: fetch it again",
                            data_start + end, data_start + data_bytes));
  }
  info.offset = data_start + begin;
  info.bytes = end - begin;
  // A dtype that this table does not know cannot be measured; it cannot be used either.
  if (stored != nullptr) {
    const auto bits =
        static_cast<uint64_t>(stored->bits) * static_cast<uint64_t>(info.n_elements());
    if (bits % 8 != 0 || bits / 8 != info.bytes) {
      fail_tensor(file, tensor,
                  fmt::format("expected {} bytes for {} {}, found {} (data_offsets [{}, {}])",
                              (bits + 7) / 8, info.stored_dtype, to_string(info.shape), info.bytes,
                              begin, end));
    }
  }
  return info;
}

// Sorts by position and demands that the tensors tile the data area exactly.
void check_tiling(std::vector<TensorInfo>& tensors, uint64_t data_start, uint64_t file_size,
                  const std::string& file) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  uint64_t expected = data_start;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset != expected) {
      fail_tensor(file, tensor.name,
                  fmt::format("expected its data to start at byte {}, where the previous tensor "
                              "ends, found {}; {} are not allowed by the format",
                              expected, tensor.offset,
                              tensor.offset < expected ? "overlapping tensors" : "holes"));
    }
    expected = tensor.offset + tensor.bytes;
  }
  if (expected != file_size) {
    fail(
        "{}: expected the file to end after its last tensor, at byte {}, found {} bytes more; it "
        "does not belong to its header",
        file, expected, file_size - expected);
  }
}

}  // namespace

// ---- MappedFile ----

MappedFile MappedFile::open(const std::filesystem::path& path) {
  const std::string name = path.string();
  // O_NONBLOCK: a FIFO in the place of a file must not hang the program.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail("{}: cannot be opened: {}", name, std::strerror(errno));
  struct Closer {
    int descriptor;
    ~Closer() { ::close(descriptor); }
  } closer{descriptor};  // a mapping outlives its descriptor

  struct stat status {};
  if (::fstat(descriptor, &status) != 0) fail("{}: cannot be read: {}", name, std::strerror(errno));
  if (S_ISDIR(status.st_mode)) fail("{}: expected a file, found a directory", name);
  if (!S_ISREG(status.st_mode)) fail("{}: expected a regular file, found a device or pipe", name);

  MappedFile file;
  if (status.st_size == 0) return file;  // mmap refuses a length of zero
  const auto size = static_cast<size_t>(status.st_size);
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (address == MAP_FAILED) {
    fail(errno == ENOMEM ? ErrorKind::kDoesNotFit : ErrorKind::kRuntime, "{}: cannot be mapped ({} bytes): {}",
         name, size, std::strerror(errno));
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

// ---- SafetensorsFile ----

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

std::vector<TensorInfo> SafetensorsFile::parse_header(std::span<const std::byte> bytes,
                                                      uint64_t file_size, const std::string& name) {
  CHECK(bytes.size() <= file_size, "{} bytes of a file of {}", bytes.size(), file_size);
  if (bytes.size() < kLengthBytes) {
    fail(
        "{}: expected a safetensors file, which starts with 8 bytes, found {} bytes in all; it is "
        "truncated: fetch it again",
        name, file_size);
  }
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    header_bytes |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  }
  if (header_bytes > kMaxHeaderBytes) {
    fail(
        "{}: expected a header of at most {} bytes, found a length of {}; this is not a "
        "safetensors "
        "file",
        name, kMaxHeaderBytes, header_bytes);
  }
  if (header_bytes > file_size - kLengthBytes || header_bytes > bytes.size() - kLengthBytes) {
    fail(
        "{}: expected a header of {} bytes, found a file of {} bytes; it is truncated: fetch it "
        "again",
        name, header_bytes, file_size);
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
                              static_cast<size_t>(header_bytes));
  if (text.empty() || text.front() != '{') {
    fail("{}: expected a header that starts with '{{', found {}; this is not a safetensors file",
         name, text.empty() ? "an empty one" : fmt::format("\"{}\"", printable(text, 8)));
  }

  const std::string header_name = name + ": header";
  const nlohmann::json document =
      parse_json(text, header_name, {.max_bytes = kMaxHeaderBytes, .max_depth = 8});
  const JsonNode root(document, header_name);
  root.expect_object();

  const uint64_t data_start = kLengthBytes + header_bytes;
  std::vector<TensorInfo> tensors;
  tensors.reserve(document.size());
  for (const auto& [key, value] : document.items()) {
    const JsonNode node(value, header_name, printable(key));
    if (key == "__metadata__") {
      check_metadata(node);
    } else {
      tensors.push_back(parse_entry(key, node, data_start, file_size - data_start, name));
    }
  }
  check_tiling(tensors, data_start, file_size, name);
  return tensors;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile file;
  file.name_ = path.string();
  file.mapping_ = MappedFile::open(path);
  const std::span<const std::byte> bytes = file.mapping_.bytes();
  file.tensors_ = parse_header(bytes, bytes.size(), file.name_);
  for (size_t i = 0; i < file.tensors_.size(); ++i) {
    file.tensors_[i].data = bytes.data() + file.tensors_[i].offset;
    file.by_name_.emplace(file.tensors_[i].name, i);
  }
  return file;
}

const TensorInfo* SafetensorsFile::find_any(std::string_view name) const {
  const auto entry = by_name_.find(name);
  return entry == by_name_.end() ? nullptr : &tensors_[entry->second];
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const TensorInfo* tensor = find_any(name);
  if (tensor != nullptr && !tensor->supported) {
    fail_tensor(name_, tensor->name,
                fmt::format("expected dtype BF16, F16, F32 or F8_E4M3, found {}; quantised weights are supported "
                            "where config.json says how (gptq, awq, compressed-tensors): use such a checkpoint, or "
                            "the original one",
                            tensor->stored_dtype));
  }
  return tensor;
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
