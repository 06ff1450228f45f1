// Reading JSON that somebody else wrote: every complaint names the file, the place in the document,
// what was expected and what was found.
//
// Promises: text is bounded in size and depth before anything is built from it, a key that appears
// twice is an Error (nlohmann would keep the last one silently), and only Error escapes. Knows
// nothing of models; used by config.cpp, safetensors.cpp and checkpoint.cpp.
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace tiercel {

struct JsonLimits {
  size_t max_bytes = size_t{64} << 20;
  int max_depth = 32;
};
inline constexpr int kMostJsonDepth = 90;  // of what clients send, which chat templates write

// The whole document. `file` only serves the messages.
// Errors: longer or deeper than the limits, not JSON, not UTF-8, a duplicate key.
nlohmann::json parse_json(std::string_view text, const std::string& file,
                          const JsonLimits& limits = {});

// A member of an object, itself a member of one, and so on, as JSON in the order in which it was written; of a text that
// parse_json has taken. Empty: it is not there.
std::string ordered_member(std::string_view text, std::span<const std::string_view> path);

// The bytes of a small file. Errors: missing, no permission, not a regular file, above `max_bytes`.
std::string read_text_file(const std::filesystem::path& path, size_t max_bytes);

// A string from a file made fit for a message: control bytes become '?', long ones are cut.
std::string printable(std::string_view text, size_t max_length = 120);

// What an exception of nlohmann's says, "[json.exception.parse_error.101] parse error at ...", without its prefix.
std::string plain_reason(const std::exception& error);

// One value of a document together with its place ("rope_parameters.factor", "eos_token_id[1]").
// Looks at `value` and `file`: both must outlive it.
class JsonNode {
 public:
  JsonNode(const nlohmann::json& value, const std::string& file, std::string place = {})
      : value_(&value), file_(&file), place_(std::move(place)) {}

  const nlohmann::json& raw() const { return *value_; }
  const std::string& place() const { return place_; }
  bool is_null() const { return value_->is_null(); }

  // Members of an object. `has` counts an explicit null, `find` treats it as absent, as the
  // configuration classes of transformers mostly do; `at` demands something that is not null.
  bool has(const char* key) const;
  std::optional<JsonNode> find(const char* key) const;
  JsonNode at(const char* key) const;
  // Elements of an array.
  size_t size() const;
  JsonNode operator[](size_t index) const;

  // Typed values. Errors: another type, or outside the closed interval; numbers are never NaN or
  // infinite. An integer may be written 32.0: transformers' files contain such things.
  int64_t integer(int64_t low, int64_t high) const;
  double number(double low, double high) const;
  bool boolean() const;
  const std::string& text() const;
  // Of a member, or `fallback` where find() gives none.
  int64_t integer_or(const char* key, int64_t fallback, int64_t low, int64_t high) const;
  double number_or(const char* key, double fallback, double low, double high) const;
  bool boolean_or(const char* key, bool fallback) const;
  void expect_object() const;
  void expect_array() const;

  // Throws "FILE: PLACE: expected WHAT, found ..." with an optional "; HELP".
  [[noreturn]] void unexpected(std::string_view what, std::string_view help = {}) const;

 private:
  const nlohmann::json* value_;
  const std::string* file_;
  std::string place_;
};

}  // namespace tiercel
