// GGUF files made for a test.
#pragma once

#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf_file.h"

namespace tiercel::test {

class GgufWriter {
 public:
  uint32_t version = 3;
  std::string magic = "GGUF";

  GgufWriter& text(std::string_view key, std::string_view value) { return add(key, GgufType::kString, string(value)); }
  GgufWriter& u32(std::string_view key, uint32_t value) { return add(key, GgufType::kU32, bytes(value)); }
  GgufWriter& f32(std::string_view key, float value) { return add(key, GgufType::kF32, bytes(value)); }
  GgufWriter& flag(std::string_view key, bool value) { return add(key, GgufType::kBool, std::string(1, value ? 1 : 0)); }
  GgufWriter& texts(std::string_view key, const std::vector<std::string>& values) {
    std::string elements;
    for (const std::string& value : values) elements += string(value);
    return array(key, GgufType::kString, values.size(), elements);
  }
  template <typename T>
  GgufWriter& array_of(std::string_view key, GgufType element, const std::vector<T>& values) {
    std::string elements;
    for (const T& value : values) elements += bytes(value);
    return array(key, element, values.size(), elements);
  }
  GgufWriter& array(std::string_view key, GgufType element, uint64_t n, std::string_view elements) {
    return add(key, GgufType::kArray, bytes(element) + bytes(n) + std::string(elements));
  }
  GgufWriter& add(std::string_view key, GgufType type, std::string_view value) {
    metadata_ += string(key) + bytes(type) + std::string(value);
    ++n_values_;
    return *this;
  }
  // shape: a row's extent first, as the file has it.
  GgufWriter& tensor(std::string_view name, const std::vector<uint64_t>& shape, uint32_t type, std::string_view data) {
    return tensor_at(name, shape, type, data_.size(), data);
  }
  GgufWriter& tensor_at(std::string_view name, const std::vector<uint64_t>& shape, uint32_t type, uint64_t offset,
                        std::string_view data) {
    tensors_ += string(name) + bytes(static_cast<uint32_t>(shape.size()));
    for (const uint64_t extent : shape) tensors_ += bytes(extent);
    tensors_ += bytes(type) + bytes(offset);
    data_ += data;
    data_.resize((data_.size() + 31) / 32 * 32);
    ++n_tensors_;
    return *this;
  }

  std::string file() const {
    std::string all = magic + bytes(version) + bytes(n_tensors_) + bytes(n_values_) + metadata_ + tensors_;
    all.resize((all.size() + 31) / 32 * 32);
    return all + data_;
  }

  static std::string string(std::string_view text) { return bytes(uint64_t{text.size()}) + std::string(text); }
  template <typename T>
  static std::string bytes(T value) {
    std::string raw(sizeof value, '\0');
    std::memcpy(raw.data(), &value, sizeof value);
    return raw;
  }

 private:
  std::string metadata_, tensors_, data_;
  uint64_t n_values_ = 0, n_tensors_ = 0;
};

}  // namespace tiercel::test
