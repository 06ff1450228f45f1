#include "engine/safetensors.h"

#include <algorithm>
#include <tuple>

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

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto entry = by_name_.find(name);
  return entry == by_name_.end() ? nullptr : &tensors_[entry->second];
}

}  // namespace tiercel
