// The tools that an answer may call.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace tiercel {

// What may be called: as a body says it, {"type": "function", "function": {"name": .., "parameters": ..}}.
class Tools {
 public:
  // Throws Error(kUsage) naming the place in the array.
  explicit Tools(std::string json);

  const std::string& json() const { return json_; }
  struct Tool {
    std::string parameters;  // their schema, as it was written; empty: none is given
    bool is_strict = false;  // arguments are held to it
  };
  const std::map<std::string, Tool>& tools() const { return tools_; }
  bool any_strict() const;
  bool has(const std::string& name) const { return is_text_.contains(name); }
  // The longest name that a text begins with; empty: none.
  std::string_view name_at(std::string_view text) const;
  // Whether a text begins with a name, or may once it goes on.
  bool may_begin(std::string_view text) const;
  // Whether a value that is written without quotes is a text.
  bool is_text(const std::string& tool, const std::string& parameter) const;

 private:
  std::string json_;
  std::map<std::string, Tool> tools_;
  std::map<std::string, std::map<std::string, bool>> is_text_;  // by name and parameter
};

}  // namespace tiercel
