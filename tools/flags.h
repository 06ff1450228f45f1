// Flags of one subcommand: CLI11 underneath, house rules on top.
//
// Every flag --some-name has the environment twin TIERCEL_ARG_SOME_NAME; the flag beats the
// environment, and a variable that is set but empty counts as unset. A bad value is an
// Error(kUsage) that names the flag (or the variable), what is legal and what was found. Knows
// nothing of what the flags mean: session_flags.h does.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/option_sink.h"
#include "tools/console.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace tiercel {

// f(); an Error of it begins with the place.
template <typename F>
auto at_place(std::string_view place, F&& f) {
  try {
    return f();
  } catch (const Error& error) {
    fail(error.kind(), "{}: {}", place, error.what());
  }
}

// The items between the commas of `text`, by a function that throws Error.
template <typename T, typename F>
std::vector<T> parse_list(const char* flag, std::string_view text, F parse) {
  std::vector<T> values;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    values.push_back(at_place(flag, [&] { return parse(text.substr(begin, end - begin)); }));
    begin = end + 1;
  }
  return values;
}

// "; did you mean X?", or empty where nothing known is near.
std::string did_you_mean(std::string_view found, const std::vector<std::string>& known);

class Flags : public OptionSink {
 public:
  static constexpr int64_t kNoLimit = INT64_MAX;

  // summary: one line; details: paragraphs below the list of flags.
  Flags(const char* command, const char* summary, std::string details = {});
  ~Flags() override;

  // Heads the flags that follow in --help.
  void section(const char* name) { section_ = name; }

  // names: "-m,--model". The first long one gives the environment twin. Targets keep their value
  // when neither flag nor variable is given; it is shown as the default.
  // type: what --help and completion call it.
  void text(const char* names, std::string& target, const char* help, const char* type = "TEXT");
  void text(const char* names, std::optional<std::string>& target, const char* help);
  // One that may be given several times; none of the texts is empty.
  void texts(const char* names, std::vector<std::string>& target, const char* help);
  // What is written must be no other file of the command: parse() refuses that. kReplaced: read or
  // written by flags for which it may be the same file, as it is replaced as a whole behind the reading.
  // kReadModel: the folder of a model, whose own files may not be written.
  enum class FileUse { kRead, kReadModel, kReplaced, kWritten };
  void file(const char* names, std::string& target, FileUse use, const char* help);
  void file(const char* names, std::optional<std::string>& target, FileUse use, const char* help);
  // A file that something else names than a flag added by file(). path: empty where none is.
  void uses(const char* name, FileUse use, std::function<std::string()> path);
  void flag(const char* names, bool& target, const char* help) override;
  // Flags added by `add` read no environment: the caller does.
  template <typename F>
  void without_twin(F add) {
    twins_ = false;
    add();
    twins_ = true;
  }
  // These flags are part of another command's: what is logged is that one's business.
  void without_log() { with_log_ = false; }
  // May be given several times too.
  void biases(const char* names, std::vector<LogitBias>& target, const char* help) override;
  void value(const char* names, const char* type, const std::string& default_text, const char* help,
             std::function<void(const std::string&)> set) override;

  // Reads argv[1..] (argv[0] is the subcommand). False: --help was asked for and printed, or, for
  // completion, --list-flags: "--name<TAB>type<TAB>help", a name per line.
  // Throws Error(kUsage).
  bool parse(int argc, char** argv);
  // Behind parse(): what was given, by the command line or the environment, of the flags that `others`
  // has too: {"--name", "value"}, or {"--name"} where there is none.
  std::vector<std::vector<std::string>> given_of(const Flags& others) const;

 private:
  // One that may be given several times.
  void values(const char* names, const char* type, const char* help,
              std::function<void(const std::vector<std::string>&)> set);
  CLI::Option* finish(CLI::Option* option, const char* help);
  struct File {
    std::string name;
    FileUse use;
    std::function<std::string()> path;  // empty: not given
  };
  void add_log_flags();
  std::string footer() const;
  void check_files() const;
  // That it replaces nothing of a model that is read.
  void check_models(const File& file, const std::string& path) const;
  std::string unexpected() const;
  std::string list() const;
  std::unique_ptr<CLI::App> app_;
  std::string command_, details_, section_ = "Options";
  std::vector<File> files_;
  std::string log_file_;
  LogLevel log_level_ = LogLevel::kInfo;
  bool with_log_ = true;
  bool twins_ = true;
  bool counts_tokens_ = false;
};

}  // namespace tiercel
