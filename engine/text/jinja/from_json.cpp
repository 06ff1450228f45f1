#include "engine/text/jinja/from_json.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

namespace tiercel::jinja {
namespace {

using Json = nlohmann::json;

// Makes values of a parser's events. nlohmann's own ordered documents look for every name among all others.
class Builder : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(Budget& budget) : budget_(budget) {}
  Value take() { return std::move(result_); }

  bool null() override { return add(Value()); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(int64_t{value}); }
  bool number_unsigned(number_unsigned_t value) override {
    return value > uint64_t{INT64_MAX} ? add(static_cast<double>(value)) : add(static_cast<int64_t>(value));
  }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(Text::foreign(std::move(value))); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(true); }
  bool start_array(std::size_t) override { return open(false); }
  bool key(string_t& name) override {
    open_.back().key = Text::foreign(std::move(name));
    return true;
  }
  bool end_object() override {
    Dict dict = std::move(open_.back().dict);
    open_.pop_back();
    return add(dict_of(std::move(dict)));
  }
  bool end_array() override {
    Value list = open_.back().list.take();
    open_.pop_back();
    return add(std::move(list));
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

 private:
  struct Open {
    bool is_object;
    Dict dict;
    ListMaker list;
    Text key;
  };

  bool open(bool is_object) {
    if (open_.size() >= static_cast<size_t>(kMostNested)) throw Problem("lists and dicts are in too many others");
    open_.push_back({is_object, {}, ListMaker(budget_), {}});
    return true;
  }
  bool add(Value value) {
    if (open_.empty()) {
      result_ = std::move(value);
    } else if (open_.back().is_object) {
      open_.back().dict.set(open_.back().key, std::move(value), budget_);
    } else {
      open_.back().list.push(std::move(value));
    }
    return true;
  }

  Budget& budget_;
  std::vector<Open> open_;
  Value result_;
};

}  // namespace

Value value_of_json(std::string_view json, Budget& budget) {
  Builder builder(budget);
  if (!Json::sax_parse(json, &builder)) throw Problem("expected JSON");
  return builder.take();
}

}  // namespace tiercel::jinja
