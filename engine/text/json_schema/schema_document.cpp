#include "engine/text/json_schema/schema_document.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>

#include "engine/base/check.h"
#include "engine/json.h"
#include "engine/text/json_schema/json_numbers.h"

namespace tiercel::grammar {
namespace {

using Kind = SchemaNode::Kind;
using nlohmann::json;

// parse_json would look at all of an object's members once for each of them, and round numbers.
class TreeBuilder : public nlohmann::json_sax<json> {
 public:
  explicit TreeBuilder(const std::string& name) : name_(name) {}
  std::unique_ptr<SchemaNode> take() { return std::move(root_); }

  bool null() override { return add(Kind::kNull); }
  bool boolean(bool is) override { return add(is ? Kind::kTrue : Kind::kFalse); }
  bool number_integer(number_integer_t number) override { return add(Kind::kNumber, std::to_string(number)); }
  bool number_unsigned(number_unsigned_t number) override { return add(Kind::kNumber, std::to_string(number)); }
  bool number_float(number_float_t, const string_t& digits) override { return add(Kind::kNumber, digits); }
  bool string(string_t& text) override { return add(Kind::kString, text); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Kind::kObject); }
  bool start_array(std::size_t) override { return open(Kind::kArray); }
  bool key(string_t& name) override {
    key_ = name;
    return true;
  }
  bool end_array() override {
    open_.pop_back();
    return true;
  }
  bool end_object() override {
    SchemaNode& node = *open_.back();
    node.by_name.resize(node.parts.size());
    std::iota(node.by_name.begin(), node.by_name.end(), 0u);
    std::ranges::sort(node.by_name, {}, [&](uint32_t i) -> const std::string& { return node.parts[i]->name; });
    for (size_t i = 1; i < node.parts.size(); ++i) {
      const std::string& name = node.parts[node.by_name[i]]->name;
      if (name != node.parts[node.by_name[i - 1]]->name) continue;
      fail(ErrorKind::kUsage, "{}: key \"{}\": expected once, found twice in the same object", name_, printable(name));
    }
    open_.pop_back();
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    fail(ErrorKind::kUsage, "{}: expected JSON, found something else: {}", name_, plain_reason(error));
  }

 private:
  bool add(Kind kind, std::string text = {}) {
    auto node = std::make_unique<SchemaNode>();
    node->kind = kind;
    node->text = std::move(text);
    node->order = n_nodes_++;
    last_ = node.get();
    if (open_.empty()) {
      root_ = std::move(node);
      return true;
    }
    node->parent = open_.back();
    node->index = node->parent->parts.size();
    if (node->parent->is(Kind::kObject)) node->name = std::move(key_);
    open_.back()->parts.push_back(std::move(node));
    return true;
  }
  bool open(Kind kind) {
    if (open_.size() >= size_t{kMostJsonDepth}) {
      fail(ErrorKind::kUsage, "{}: expected at most {} nested levels, found more", name_, kMostJsonDepth);
    }
    add(kind);
    open_.push_back(last_);
    return true;
  }

  const std::string& name_;
  std::unique_ptr<SchemaNode> root_;
  std::vector<SchemaNode*> open_;
  SchemaNode* last_ = nullptr;
  std::string key_;
  size_t n_nodes_ = 0;
};

std::string description(const SchemaNode& node) {
  switch (node.kind) {
    case Kind::kNull:
    case Kind::kFalse:
    case Kind::kTrue:
      return to_json(node);
    case Kind::kNumber:
      return printable(node.text, 40);
    case Kind::kString:
      return fmt::format("\"{}\"", printable(node.text));
    case Kind::kArray:
      return fmt::format("an array of {} elements", node.parts.size());
    case Kind::kObject:
      return fmt::format("an object with {} keys", node.parts.size());
  }
  return {};
}

std::string escaped_name(const std::string& name) {
  std::string result;
  for (const char c : printable(name, 60)) result += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  return result;
}

std::optional<std::string> percent_decoded(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      result += text[i];
      continue;
    }
    uint8_t byte = 0;
    const std::string_view hex = text.substr(i + 1, 2);
    const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), byte, 16);
    if (hex.size() < 2 || error != std::errc() || end != hex.data() + 2) return std::nullopt;
    result += static_cast<char>(byte);
    i += 2;
  }
  return result;
}

std::string unescaped_name(std::string_view name) {
  std::string result;
  for (size_t i = 0; i < name.size(); ++i) {
    const bool is_escape = name[i] == '~' && i + 1 < name.size() && (name[i + 1] == '0' || name[i + 1] == '1');
    result += is_escape ? (name[++i] == '0' ? '~' : '/') : name[i];
  }
  return result;
}

const SchemaNode* step(const SchemaNode* node, const std::string& name) {
  if (!node->is(Kind::kArray)) return node->find(name);
  size_t index = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
  const bool is_index =
      error == std::errc() && end == name.data() + name.size() && (name.size() == 1 || name[0] != '0');
  return is_index && index < node->parts.size() ? node->parts[index].get() : nullptr;
}

// Pointers count from the nearest schema around that has a name of its own.
const SchemaNode* resource(const SchemaNode* node) {
  while (node->parent != nullptr) {
    const SchemaNode* id = node->find("$id");
    if (id != nullptr && id->is(Kind::kString) && !id->text.starts_with('#')) break;
    node = node->parent;
  }
  return node;
}

}  // namespace

const SchemaNode* SchemaNode::find(std::string_view member) const {
  const auto name_of = [&](uint32_t i) -> std::string_view { return parts[i]->name; };
  const auto found = std::ranges::lower_bound(by_name, member, {}, name_of);
  return found != by_name.end() && name_of(*found) == member ? parts[*found].get() : nullptr;
}

std::string to_json(const SchemaNode& node, bool in_one_form) {
  const bool is_object = node.is(Kind::kObject);
  switch (node.kind) {
    case Kind::kNull:
      return "null";
    case Kind::kFalse:
      return "false";
    case Kind::kTrue:
      return "true";
    case Kind::kNumber: {
      const auto number = in_one_form ? parse_decimal(node.text) : std::nullopt;
      return number ? to_text(*number) : node.text;
    }
    case Kind::kString:
      return json(node.text).dump();
    case Kind::kArray:
    case Kind::kObject:
      break;
  }
  std::string text = is_object ? "{" : "[";
  for (size_t i = 0; i < node.parts.size(); ++i) {
    const SchemaNode& part = *node.parts[is_object && in_one_form ? node.by_name[i] : i];
    if (i > 0) text += ',';
    if (is_object) text += json(part.name).dump() + ':';
    text += to_json(part, in_one_form);
  }
  return text + (is_object ? '}' : ']');
}

SchemaDocument::SchemaDocument(std::string_view schema, std::string name) : name_(std::move(name)) {
  if (schema.size() > kMostBytes) {
    fail(ErrorKind::kUsage, "{}: expected at most {} bytes of JSON, found {}", name_, kMostBytes, schema.size());
  }
  // nlohmann takes it for the end.
  if (schema.find('\0') != schema.npos) fail(ErrorKind::kUsage, "{}: expected JSON, found a byte of zero", name_);
  TreeBuilder builder(name_);
  json::sax_parse(schema, &builder);
  root_ = builder.take();
}

std::string SchemaDocument::place(const SchemaNode* node) const {
  std::string path;
  for (; node->parent != nullptr; node = node->parent) {
    path = "/" + (node->parent->is(Kind::kArray) ? std::to_string(node->index) : escaped_name(node->name)) + path;
  }
  return name_ + ": #" + path;
}

const SchemaNode* SchemaDocument::target(const SchemaNode* reference) const {
  if (!reference->is(Kind::kString)) refuse(reference, "a string");
  constexpr std::string_view kExpected = "a place in this schema, such as \"#/$defs/name\"";
  const std::string& text = reference->text;
  const auto decoded = percent_decoded(text);
  if (!decoded || !text.starts_with('#') || (decoded->size() > 1 && (*decoded)[1] != '/')) {
    refuse(reference, kExpected, "anchors and other documents are not looked up");
  }
  const SchemaNode* node = resource(reference);
  for (size_t begin = 1; node != nullptr && begin < decoded->size();) {
    const size_t end = std::min(decoded->find('/', begin + 1), decoded->size());
    node = step(node, unescaped_name(std::string_view(*decoded).substr(begin + 1, end - begin - 1)));
    begin = end;
  }
  if (node == nullptr) refuse(reference, kExpected, "there is nothing at that place");
  return node;
}

void SchemaDocument::refuse(const SchemaNode* node, std::string_view expected, std::string_view help) const {
  fail(ErrorKind::kUsage, "{}: expected {}, found {}{}{}", place(node), expected, description(*node),
       help.empty() ? "" : "; ", help);
}

void SchemaDocument::refuse_as(const SchemaNode* node, std::string_view message) const {
  fail(ErrorKind::kUsage, "{}: {}", place(node), message);
}

}  // namespace tiercel::grammar
