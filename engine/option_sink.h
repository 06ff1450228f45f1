// What takes options, typed: the command's flags and the library's table alike. Either says what becomes
// of an option as text; everything else is put down to that here.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/option_values.h"

namespace tiercel {

class OptionSink {
 public:
  virtual ~OptionSink() = default;

  // names: "-m,--model". type: what help calls it. initial: its value when nothing is given, or empty.
  // set parses, and throws Error(kUsage) as the functions of option_values.h do.
  virtual void value(const char* names, const char* type, const std::string& initial,
                     const char* help, std::function<void(const std::string&)> set) = 0;
  virtual void flag(const char* names, bool& target, const char* help) = 0;

  // A target keeps its value when nothing is given; it is shown as the initial one.
  void integer(const char* names, int64_t& target, int64_t low, int64_t high, const char* help);
  void integer(const char* names, std::optional<int64_t>& target, int64_t low, int64_t high,
               const char* help);
  // Counts that may be large: "16K" and "1M" will do.
  void tokens(const char* names, int64_t& target, int64_t low, int64_t high, const char* help);
  void tokens(const char* names, std::optional<int64_t>& target, int64_t low, int64_t high,
              const char* help);
  void number(const char* names, double& target, double low, double high, const char* help);
  void number(const char* names, std::optional<double>& target, double low, double high,
              const char* help);
  virtual void biases(const char* names, std::vector<LogitBias>& target, const char* help);
  void size(const char* names, int64_t& target, const char* help);
  template <typename E>
  void choice(const char* names, E& target, std::vector<std::pair<const char*, E>> choices,
              const char* help) {
    std::string legal, current;
    for (const auto& [name, value] : choices) {
      legal += legal.empty() ? "" : "|";
      legal += name;
      if (value == target) current = name;
    }
    value(names, legal.c_str(), current, help, [&target, choices](const std::string& text) {
      std::vector<std::string_view> all;
      for (const auto& [name, value] : choices) {
        all.emplace_back(name);
        if (text == name) {
          target = value;
          return;
        }
      }
      refuse_choice(text, all);
    });
  }

 protected:
  static constexpr const char* kTokens = "TOKENS";  // the type of tokens()
};

}  // namespace tiercel
