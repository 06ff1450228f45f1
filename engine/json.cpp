#include "engine/json.h"

#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/regular_file.h"

namespace tiercel {
namespace {

using nlohmann::json;

// Builds a document from the parser's events: refuses depth and duplicate keys while they are read, so a hostile
// document never costs more than its own bytes. (nlohmann's own parser with a callback looks through the elements of a
// container behind each of those that are containers themselves.)
class Builder : public nlohmann::json_sax<json> {
 public:
  Builder(const std::string& file, int max_depth) : file_(file), max_depth_(static_cast<size_t>(max_depth)) {}
  json take() { return std::move(root_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool is) override { return put(is); }
  bool number_integer(number_integer_t number) override { return put(number); }
  bool number_unsigned(number_unsigned_t number) override { return put(number); }
  bool number_float(number_float_t number, const string_t&) override { return put(number); }
  bool string(string_t& text) override { return put(std::move(text)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(json::object()); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    const auto [member, is_new] = open_.back()->emplace(std::move(name), nullptr);
    if (!is_new) {
      fail("{}: key \"{}\": expected once, found twice in the same object", file_, printable(member.key()));
    }
    member_ = &*member;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    fail("{}: expected JSON, found something else: {}; the file may be damaged or incomplete", file_,
         plain_reason(error));
  }

 private:
  bool put(json value) {
    place() = std::move(value);
    return true;
  }
  bool open(json container) {
    if (open_.size() >= max_depth_) {
      fail("{}: expected at most {} nested levels, found more", file_, max_depth_);
    }
    json& its = place();
    its = std::move(container);
    open_.push_back(&its);
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }
  // Of the next value. What is open stays where it is: only the innermost container grows.
  json& place() {
    if (open_.empty()) return root_;
    return open_.back()->is_array() ? open_.back()->emplace_back() : *member_;
  }

  const std::string& file_;
  size_t max_depth_;
  json root_;
  std::vector<json*> open_;
  json* member_ = nullptr;  // of the innermost object, that has a name and no value yet
};

// Copies the events of one member. nlohmann's own ordered documents look for every name among all others.
class MemberCopier : public nlohmann::json_sax<json> {
 public:
  explicit MemberCopier(std::span<const std::string_view> path) : path_(path) {}
  std::string take() { return std::move(copy_); }

  bool null() override { return value("null"); }
  bool boolean(bool is) override { return value(is ? "true" : "false"); }
  bool number_integer(number_integer_t number) override { return value(std::to_string(number)); }
  bool number_unsigned(number_unsigned_t number) override { return value(std::to_string(number)); }
  bool number_float(number_float_t, const string_t& digits) override { return value(digits); }
  bool string(string_t& text) override { return value(json(text).dump()); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open('{'); }
  bool start_array(std::size_t) override { return open('['); }
  bool end_object() override { return close('}'); }
  bool end_array() override { return close(']'); }
  bool key(string_t& name) override {
    if (copies_) {
      copy_ += separator_ + json(name).dump() + ":";
      separator_.clear();
    } else {
      is_next_ = depth_ == n_found_ + 1 && n_found_ < path_.size() && name == path_[n_found_];
    }
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

 private:
  bool begins() const { return is_next_ && n_found_ + 1 == path_.size(); }
  bool value(const std::string& text) {
    if (copies_ || begins()) copy_ += separator_ + text;
    if (begins()) n_found_ = path_.size() + 1;  // no other one
    is_next_ = false;
    separator_ = copies_ ? "," : "";
    return true;
  }
  bool open(char bracket) {
    if (begins()) {
      copies_ = true;
      n_found_ = path_.size() + 1;
      first_depth_ = depth_;
      separator_.clear();
    } else if (is_next_) {
      ++n_found_;
    }
    is_next_ = false;
    ++depth_;
    if (copies_) copy_ += separator_ + bracket;
    separator_.clear();
    return true;
  }
  bool close(char bracket) {
    --depth_;
    if (copies_) copy_ += bracket;
    if (copies_ && depth_ == first_depth_) copies_ = false;
    if (!copies_ && n_found_ <= path_.size() && depth_ < n_found_ + 1 && n_found_ > 0) --n_found_;
    separator_ = copies_ ? "," : "";
    return true;
  }

  std::span<const std::string_view> path_;
  std::string copy_, separator_;
  size_t depth_ = 0, n_found_ = 0, first_depth_ = 0;
  bool copies_ = false, is_next_ = false;
};

std::string describe(const json& value) {
  switch (value.type()) {
    case json::value_t::object: return fmt::format("an object with {} keys", value.size());
    case json::value_t::array: return fmt::format("an array of {} elements", value.size());
    case json::value_t::string:
      return fmt::format("\"{}\"", printable(value.get_ref<const std::string&>()));
    default: return value.dump();
  }
}

}  // namespace

std::string printable(std::string_view text, size_t max_length) {
  std::string result(text.substr(0, max_length));
  for (char& c : result) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f) c = '?';
  }
  if (text.size() > max_length) result += "...";
  return result;
}

std::string plain_reason(const std::exception& error) {
  const std::string_view text = error.what();
  const size_t end = text.find("] ");
  return printable(end == std::string_view::npos ? text : text.substr(end + 2), 200);
}

std::string ordered_member(std::string_view text, std::span<const std::string_view> path) {
  MemberCopier copier(path);
  json::sax_parse(text, &copier);
  return copier.take();
}

json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    fail("{}: expected at most {} bytes of JSON, found {}", file, limits.max_bytes, text.size());
  }
  if (text.find('\0') != text.npos) fail("{}: expected JSON, found a byte of zero", file);
  Builder builder(file, limits.max_depth);
  json::sax_parse(text, &builder);
  return builder.take();
}

std::string read_text_file(const std::filesystem::path& path, size_t max_bytes) {
  const std::string name = path.string();
  const RegularFile file(path);
  if (file.size() > max_bytes) {
    fail("{}: expected at most {} bytes, found {}", name, max_bytes, file.size());
  }
  std::string text(static_cast<size_t>(file.size()), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(file.descriptor(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("{}: cannot be read: {}", name, std::strerror(errno));
    if (n == 0)
      fail("{}: expected {} bytes, found {}: it shrank meanwhile", name, text.size(), done);
    done += static_cast<size_t>(n);
  }
  return text;
}

bool JsonNode::has(const char* key) const {
  expect_object();
  return value_->contains(key);
}

std::optional<JsonNode> JsonNode::find(const char* key) const {
  expect_object();
  const auto member = value_->find(key);
  if (member == value_->end() || member->is_null()) return std::nullopt;
  return JsonNode(*member, *file_, place_.empty() ? key : place_ + "." + key);
}

JsonNode JsonNode::at(const char* key) const {
  if (auto member = find(key)) return *std::move(member);
  fail("{}: {}{}{}: expected a value, found {}", *file_, place_, place_.empty() ? "" : ".", key,
       has(key) ? "null" : "no such key");
}

size_t JsonNode::size() const {
  expect_array();
  return value_->size();
}

JsonNode JsonNode::operator[](size_t index) const {
  expect_array();
  CHECK(index < value_->size(), "index {} of {}", index, value_->size());
  return JsonNode((*value_)[index], *file_, fmt::format("{}[{}]", place_, index));
}

int64_t JsonNode::integer(int64_t low, int64_t high) const {
  const auto complain = [&] { unexpected(fmt::format("an integer from {} to {}", low, high)); };
  int64_t result = 0;
  if (value_->is_number_unsigned()) {
    const auto wide = value_->get<uint64_t>();
    if (wide > static_cast<uint64_t>(INT64_MAX)) complain();
    result = static_cast<int64_t>(wide);
  } else if (value_->is_number_integer()) {
    result = value_->get<int64_t>();
  } else if (value_->is_number_float()) {
    const double value = value_->get<double>();
    // 2^53: above it a double no longer names one integer.
    if (!(std::fabs(value) <= 0x1p53) || value != std::floor(value)) complain();
    result = static_cast<int64_t>(value);
  } else {
    complain();
  }
  if (result < low || result > high) complain();
  return result;
}

double JsonNode::number(double low, double high) const {
  if (!value_->is_number()) unexpected(fmt::format("a number from {} to {}", low, high));
  const double result = value_->get<double>();
  if (!(result >= low && result <= high)) {
    unexpected(fmt::format("a number from {} to {}", low, high));
  }
  return result;
}

bool JsonNode::boolean() const {
  if (!value_->is_boolean()) unexpected("true or false");
  return value_->get<bool>();
}

const std::string& JsonNode::text() const {
  if (!value_->is_string()) unexpected("a string");
  return value_->get_ref<const std::string&>();
}

int64_t JsonNode::integer_or(const char* key, int64_t fallback, int64_t low, int64_t high) const {
  const auto node = find(key);
  return node ? node->integer(low, high) : fallback;
}
double JsonNode::number_or(const char* key, double fallback, double low, double high) const {
  const auto node = find(key);
  return node ? node->number(low, high) : fallback;
}
bool JsonNode::boolean_or(const char* key, bool fallback) const {
  const auto node = find(key);
  return node ? node->boolean() : fallback;
}

void JsonNode::expect_object() const {
  if (!value_->is_object()) unexpected("an object");
}

void JsonNode::expect_array() const {
  if (!value_->is_array()) unexpected("an array");
}

void JsonNode::unexpected(std::string_view what, std::string_view help) const {
  fail("{}: {}: expected {}, found {}{}{}", *file_, place_.empty() ? "the document" : place_, what,
       describe(*value_), help.empty() ? "" : "; ", help);
}

}  // namespace tiercel
