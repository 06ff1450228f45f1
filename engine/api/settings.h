// Options by name: what the library's setters take, from the same rows as the command's flags.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/option_values.h"
#include "engine/options.h"
#include "engine/sampling_request.h"
#include "engine/tiercel.h"

namespace tiercel::detail {

// Everything that an option can change.
struct Settings {
  BackendKind backend = BackendKind::kAuto;
  int64_t device = 0, n_threads = 0;
  SessionOptions session;
  SamplingRequest sampling;
  int64_t n_predict = 512;
  bool ignore_eos = false, no_bos = false, special = false;
};

// The sink that engine/option_rows.h fills. A row's setter writes into the Settings that the table
// was made for, which must outlive it.
class OptionTable {
 public:
  struct Row {
    std::vector<std::string> names;  // without dashes, the canonical one first
    std::string type, initial, help;
    bool of_engine;                               // says where to compute
    std::function<void(const std::string&)> set;  // throws Error(kUsage) without the name
  };
  explicit OptionTable(Settings& settings);

  const std::vector<Row>& rows() const { return rows_; }
  // Throws v0::Error(kUsage) listing the names.
  const Row& find(const std::string& name) const;

  // ---- the sink ----
  void section(const char*) {}
  void integer(const char* names, int64_t& target, int64_t low, int64_t high, const char* help);
  void integer(const char* names, std::optional<int64_t>& target, int64_t low, int64_t high,
               const char* help);
  void number(const char* names, double& target, double low, double high, const char* help);
  void number(const char* names, std::optional<double>& target, double low, double high,
              const char* help);
  void size(const char* names, int64_t& target, const char* help);
  void flag(const char* names, bool& target, const char* help);
  template <typename E>
  void choice(const char* names, E& target, std::vector<std::pair<const char*, E>> choices,
              const char* help) {
    std::string legal, current;
    for (const auto& [name, value] : choices) {
      if (!legal.empty()) legal += '|';
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
  void value(const char* names, const char* type, const std::string& initial, const char* help,
             std::function<void(const std::string&)> set);

 private:
  std::vector<Row> rows_;
  bool of_engine_ = true;
};

// The settings of an engine's options, overruled by those of a session.
Settings resolve(const v0::Options& engine, const v0::Options& session);
// Throws v0::Error(kUsage) for options that count only where an engine is opened.
void require_session_options(const v0::Options& options);

}  // namespace tiercel::detail
