#include "engine/gguf/gguf_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <unordered_set>

#include "engine/base/check.h"
#include "engine/gguf/block_format.h"
#include "engine/json.h"

namespace tiercel {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr uint32_t kFirstVersion = 2, kLastVersion = 3;
constexpr uint64_t kMaxTensors = 1 << 20, kMaxValues = 1 << 16, kMaxText = uint64_t{64} << 20;
constexpr uint32_t kMaxRank = 4;
constexpr uint64_t kDefaultAlignment = 32;

// Bytes of a value; 0: of strings and arrays, which say so themselves.
uint64_t bytes_of(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool: return 1;
    case GgufType::kU16:
    case GgufType::kI16: return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32: return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64: return 8;
    case GgufType::kString:
    case GgufType::kArray: break;
  }
  return 0;
}

const char* name_of(GgufType type) {
  switch (type) {
    case GgufType::kU8: return "uint8";
    case GgufType::kI8: return "int8";
    case GgufType::kBool: return "a truth value";
    case GgufType::kU16: return "uint16";
    case GgufType::kI16: return "int16";
    case GgufType::kU32: return "uint32";
    case GgufType::kI32: return "int32";
    case GgufType::kF32: return "float32";
    case GgufType::kU64: return "uint64";
    case GgufType::kI64: return "int64";
    case GgufType::kF64: return "float64";
    case GgufType::kString: return "a string";
    case GgufType::kArray: return "an array";
  }
  return "?";
}

template <typename T>
T load(const std::byte* data) {
  T value;
  std::memcpy(&value, data, sizeof value);
  return value;
}

// An integer of any type; none: another type, or beyond int64.
std::optional<int64_t> integer_at(GgufType type, const std::byte* data) {
  switch (type) {
    case GgufType::kU8: return load<uint8_t>(data);
    case GgufType::kI8: return load<int8_t>(data);
    case GgufType::kU16: return load<uint16_t>(data);
    case GgufType::kI16: return load<int16_t>(data);
    case GgufType::kU32: return load<uint32_t>(data);
    case GgufType::kI32: return load<int32_t>(data);
    case GgufType::kI64: return load<int64_t>(data);
    case GgufType::kU64: {
      const auto value = load<uint64_t>(data);
      if (value > INT64_MAX) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    case GgufType::kBool:
    case GgufType::kF32:
    case GgufType::kF64:
    case GgufType::kString:
    case GgufType::kArray: break;
  }
  return std::nullopt;
}

double shortest_decimal(float value) {
  char digits[64];
  const auto written = std::to_chars(std::begin(digits), std::end(digits), value);
  double result = 0;
  std::from_chars(std::begin(digits), written.ptr, result);
  return result;
}

std::string_view text_at(const std::byte*& data) {
  const auto length = load<uint64_t>(data);
  const std::string_view text(reinterpret_cast<const char*>(data) + 8, static_cast<size_t>(length));
  data += 8 + length;
  return text;
}

// Reads what comes before the data, and nothing behind its end.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, uint64_t file_size, const std::string& name)
      : bytes_(bytes), file_size_(file_size), name_(name) {}

  GgufFile::Contents run() {
    read_beginning();
    GgufFile::Contents contents;
    contents.metadata.reserve(static_cast<size_t>(n_values_));
    for (uint64_t i = 0; i < n_values_; ++i) read_value(contents);
    uint64_t alignment = kDefaultAlignment;
    if (const auto entry = contents.metadata.find("general.alignment"); entry != contents.metadata.end()) {
      alignment = static_cast<uint64_t>(entry->second.integer(1, 1 << 20));
      if (alignment % 8 != 0) entry->second.unexpected("a multiple of 8");
    }
    contents.tensors.reserve(static_cast<size_t>(n_tensors_));
    for (uint64_t i = 0; i < n_tensors_; ++i) contents.tensors.push_back(read_tensor(alignment));
    place(contents.tensors, (at_ + alignment - 1) / alignment * alignment);
    return contents;
  }

 private:
  // So many bytes, from here on. `n` may be anything; `what` too.
  const std::byte* take(uint64_t n, std::string_view what) {
    if (n > bytes_.size() - at_) {
      fail("{}: expected {} at byte {}, found a file of {} bytes; it is truncated: fetch it again", name_,
           printable(what), at_, file_size_);
    }
    const std::byte* data = bytes_.data() + at_;
    at_ += n;
    return data;
  }
  uint32_t u32(std::string_view what) { return load<uint32_t>(take(4, what)); }
  uint64_t u64(std::string_view what) { return load<uint64_t>(take(8, what)); }
  std::string_view text(std::string_view what) {
    const uint64_t begin = at_, length = u64(what);
    if (length > kMaxText) {
      fail("{}: {} at byte {}: expected at most {} bytes, found a length of {}; the file is damaged", name_,
           printable(what), begin, kMaxText, length);
    }
    const std::byte* data = take(length, what);
    return {reinterpret_cast<const char*>(data), static_cast<size_t>(length)};
  }

  void read_beginning() {
    const bool is_short = bytes_.size() < kMagic.size();
    if (is_short || std::memcmp(bytes_.data(), kMagic.data(), kMagic.size()) != 0) {
      fail("{}: expected a GGUF file, which begins with \"GGUF\", found {}", name_,
           is_short ? fmt::format("{} bytes in all", file_size_) : "something else");
    }
    at_ = kMagic.size();
    const uint32_t version = u32("a version");
    if (version < kFirstVersion || version > kLastVersion) {
      const bool turned = version != 0 && (version & 0xffff) == 0;
      fail("{}: expected GGUF version {} or {}, found {}; {}", name_, kFirstVersion, kLastVersion, version,
           turned ? "it was written for machines of the other byte order" : "convert the original model again");
    }
    n_tensors_ = u64("the number of tensors");
    n_values_ = u64("the number of values");
    if (n_tensors_ > kMaxTensors || n_values_ > kMaxValues) {
      fail("{}: expected at most {} tensors and {} values, found {} and {}; the file is damaged", name_, kMaxTensors,
           kMaxValues, n_tensors_, n_values_);
    }
  }

  GgufType read_type(std::string_view key) {
    const uint32_t type = u32("a type");
    if (type > static_cast<uint32_t>(GgufType::kF64)) {
      fail("{}: {}: expected a type from 0 to 12, found {}; the file is damaged", name_, printable(key), type);
    }
    return static_cast<GgufType>(type);
  }

  void read_value(GgufFile::Contents& contents) {
    const std::string_view key = text("a key");
    const GgufType type = read_type(key);
    GgufType element = type;
    uint64_t n = 1;
    if (type == GgufType::kArray) {
      element = read_type(key);
      n = u64("the length of an array");
      if (element == GgufType::kArray) {
        fail("{}: {}: expected values or an array of them, found an array of arrays", name_, printable(key));
      }
    }
    const uint64_t begin = at_, each = bytes_of(element);
    if (each > 0) {
      if (n > bytes_.size() / each) n = bytes_.size() / each + 1;  // cannot be there, and would overflow
      take(n * each, key);
    } else {
      for (uint64_t i = 0; i < n; ++i) text(key);
    }
    const GgufValue value(key, name_, type, element, n, bytes_.subspan(begin, at_ - begin));
    if (!contents.metadata.emplace(key, value).second) {
      fail("{}: {}: expected every key once, found it twice; convert the original model again", name_, printable(key));
    }
  }

  [[noreturn]] void fail_tensor(std::string_view tensor, const std::string& message) const {
    fail("{}: tensor {}: {}", name_, printable(tensor), message);
  }

  TensorInfo read_tensor(uint64_t alignment) {
    TensorInfo info;
    info.name = text("a tensor's name");
    const uint32_t rank = u32("the number of a tensor's dimensions");
    if (rank > kMaxRank) {
      fail_tensor(info.name, fmt::format("expected at most {} dimensions, found {}", kMaxRank, rank));
    }
    // Bounded as if no extent were zero: any product of some of them is safe.
    __int128 n = 1, bound = 1;
    for (uint32_t i = 0; i < rank; ++i) {
      const uint64_t extent = u64("a tensor's extents");
      n *= extent;
      bound *= std::max<uint64_t>(extent, 1);
      if (extent > INT64_MAX || bound > (__int128{1} << 56)) {
        fail_tensor(info.name, "expected at most 2^56 elements, found more; the file is damaged");
      }
      if (extent == 0) fail_tensor(info.name, "expected a number of elements, found none; the file is damaged");
      info.shape.push_back(static_cast<int64_t>(extent));
    }
    const int64_t row = info.shape.empty() ? 1 : info.shape[0];
    std::ranges::reverse(info.shape);
    const uint32_t type = u32("a tensor's type");
    const BlockFormat* format = find_block_format(type);
    if (format == nullptr) {
      // Q4_2 and Q4_3; Q4_0 and IQ4_NL in the order of a certain processor, which llama.cpp has given up.
      const bool is_gone = type == 4 || type == 5 || (type >= 31 && type <= 33) || (type >= 36 && type <= 38);
      fail_tensor(info.name, fmt::format("expected a known type, found {}; {}", type,
                                         is_gone ? "it was given up: take a file in Q4_0 or another format"
                                                 : "it may be newer than this program"));
    }
    if (!format->is_for(row)) {
      fail_tensor(info.name, fmt::format("expected rows of a multiple of {} elements, as {} needs, found {}",
                                         format->elements, format->name, row));
    }
    info.stored_dtype = format->name;
    info.supported = format->plain.has_value();
    if (format->plain) info.dtype = *format->plain;
    if (format->unpack != nullptr) info.blocks = format;
    info.bytes = static_cast<uint64_t>(n / format->elements) * static_cast<uint64_t>(format->bytes);
    info.offset = u64("a tensor's offset");
    if (info.offset % alignment != 0) {
      fail_tensor(info.name, fmt::format("expected an offset that is a multiple of {}, found {}", alignment,
                                         info.offset));
    }
    return info;
  }

  // Offsets count from the file's beginning from here on.
  void place(std::vector<TensorInfo>& tensors, uint64_t data_start) const {
    std::unordered_set<std::string_view> names;
    for (TensorInfo& tensor : tensors) {
      if (!names.insert(tensor.name).second) {
        fail_tensor(tensor.name, "expected every name once, found it twice; convert the original model again");
      }
      const bool fits = data_start <= file_size_ && tensor.offset <= file_size_ - data_start &&
                        tensor.bytes <= file_size_ - data_start - tensor.offset;
      if (!fits) {
        fail_tensor(tensor.name,
                    fmt::format("expected {} bytes of data from byte {} on, found a file of {} bytes; it is "
                                "truncated: fetch it again",
                                tensor.bytes, tensor.offset + data_start, file_size_));
      }
      tensor.offset += data_start;
    }
    // Names of elements stay where they are: what is sorted are their descriptions.
    names.clear();
    std::ranges::sort(tensors, {}, &TensorInfo::offset);
    for (size_t i = 1; i < tensors.size(); ++i) {
      if (tensors[i].offset < tensors[i - 1].offset + tensors[i - 1].bytes) {
        fail_tensor(tensors[i].name, fmt::format("its data begins within that of {}; the file is damaged",
                                                 printable(tensors[i - 1].name)));
      }
    }
  }

  std::span<const std::byte> bytes_;
  uint64_t file_size_;
  const std::string& name_;
  uint64_t at_ = 0;
  uint64_t n_tensors_ = 0, n_values_ = 0;
};

}  // namespace

// ---- GgufValue ----

std::string GgufValue::found() const {
  if (type_ == GgufType::kArray) {
    const char* const elements = element_ == GgufType::kString ? "strings" : name_of(element_);
    return fmt::format("an array of {} {}", n_, elements);
  }
  if (type_ == GgufType::kString) {
    const std::byte* data = bytes_.data();
    return fmt::format("\"{}\"", printable(text_at(data), 60));
  }
  if (type_ == GgufType::kBool) return load<uint8_t>(bytes_.data()) != 0 ? "true" : "false";
  if (type_ == GgufType::kF32) return fmt::format("{}", load<float>(bytes_.data()));
  if (type_ == GgufType::kF64) return fmt::format("{}", load<double>(bytes_.data()));
  const std::optional<int64_t> integer = integer_at(type_, bytes_.data());
  return integer ? fmt::format("{}", *integer) : fmt::format("{}", load<uint64_t>(bytes_.data()));
}

void GgufValue::unexpected(std::string_view what, std::string_view help) const {
  fail("{}: {}: expected {}, found {}{}{}", *file_, printable(key_), what, found(), help.empty() ? "" : "; ", help);
}

int64_t GgufValue::integer(int64_t low, int64_t high) const {
  const std::optional<int64_t> value = integer_at(type_, bytes_.data());
  if (!value || *value < low || *value > high) unexpected(fmt::format("an integer from {} to {}", low, high));
  return *value;
}

double GgufValue::number(double low, double high) const {
  double value = NAN;
  if (type_ == GgufType::kF32) value = shortest_decimal(load<float>(bytes_.data()));
  if (type_ == GgufType::kF64) value = load<double>(bytes_.data());
  if (!(value >= low && value <= high)) unexpected(fmt::format("a number from {} to {}", low, high));
  return value;
}

bool GgufValue::boolean() const {
  if (type_ != GgufType::kBool) unexpected("a truth value");
  return load<uint8_t>(bytes_.data()) != 0;
}

bool GgufValue::is_neutral(bool scale) const {
  double value = NAN;
  if (type_ == GgufType::kF32) value = load<float>(bytes_.data());
  if (type_ == GgufType::kF64) value = load<double>(bytes_.data());
  if (const auto integer = integer_at(type_, bytes_.data())) value = static_cast<double>(*integer);
  return value == 0 || (scale && value == 1);
}

std::string_view GgufValue::text() const {
  if (type_ != GgufType::kString) unexpected("a string");
  const std::byte* data = bytes_.data();
  return text_at(data);
}

void GgufValue::expect_array_of(GgufType element, const char* what) const {
  if (type_ != GgufType::kArray || element_ != element) unexpected(fmt::format("an array of {}", what));
}

std::vector<std::string_view> GgufValue::texts() const {
  expect_array_of(GgufType::kString, "strings");
  std::vector<std::string_view> texts;
  texts.reserve(size());
  const std::byte* data = bytes_.data();
  for (uint64_t i = 0; i < n_; ++i) texts.push_back(text_at(data));
  return texts;
}

std::vector<int64_t> GgufValue::integers(int64_t low, int64_t high) const {
  const uint64_t each = bytes_of(element_);
  std::vector<int64_t> integers;
  if (type_ != GgufType::kArray || each == 0) unexpected("an array of integers");
  integers.reserve(size());
  for (uint64_t i = 0; i < n_; ++i) {
    const std::optional<int64_t> value = integer_at(element_, bytes_.data() + i * each);
    if (!value || *value < low || *value > high) {
      unexpected(fmt::format("an array of integers from {} to {}", low, high),
                 fmt::format("element {} is another thing", i));
    }
    integers.push_back(*value);
  }
  return integers;
}

std::vector<float> GgufValue::floats() const {
  expect_array_of(GgufType::kF32, "float32");
  std::vector<float> floats(size());
  std::memcpy(floats.data(), bytes_.data(), floats.size() * sizeof(float));
  return floats;
}

// ---- GgufFile ----

GgufFile::Contents GgufFile::parse_header(std::span<const std::byte> bytes, uint64_t file_size,
                                          const std::string& name) {
  CHECK(bytes.size() <= file_size, "{} bytes of a file of {}", bytes.size(), file_size);
  return Reader(bytes, file_size, name).run();
}

GgufFile GgufFile::open(const std::filesystem::path& path) {
  GgufFile file;
  file.name_ = std::make_unique<const std::string>(path.string());
  file.mapping_ = MappedFile::open(path);
  const std::span<const std::byte> bytes = file.mapping_.bytes();
  file.contents_ = parse_header(bytes, bytes.size(), *file.name_);
  for (TensorInfo& tensor : file.contents_.tensors) tensor.data = bytes.data() + tensor.offset;
  return file;
}

std::optional<GgufValue> GgufFile::find(std::string_view key) const {
  const auto entry = contents_.metadata.find(key);
  return entry == contents_.metadata.end() ? std::nullopt : std::optional(entry->second);
}

GgufValue GgufFile::at(std::string_view key) const {
  const std::optional<GgufValue> value = find(key);
  if (!value) fail("{}: expected {} in its metadata, found none; convert the original model again", name(), key);
  return *value;
}

std::string gguf_file_in(const std::filesystem::path& folder) {
  std::error_code ignored;
  std::string first;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    std::string name = entry.path().filename().string();
    if (name.ends_with(".gguf") && (first.empty() || name < first)) first = std::move(name);
  }
  return first;
}

bool is_gguf_file(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return false;
  if (path.extension() == ".gguf") return true;
  char beginning[kMagic.size()] = {};
  std::ifstream(path, std::ios::binary).read(beginning, sizeof beginning);
  return std::string_view(beginning, sizeof beginning) == kMagic;
}

}  // namespace tiercel
