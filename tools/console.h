// What the command says. stdout carries results only, stderr everything else.
//
// Promises: every byte written to stdout is checked; a reader that went away (EPIPE) is told apart
// from a disk that is full. No colour unless stderr is a terminal and NO_COLOR is unset.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace tiercel {

// Thrown by print_result when the reader of stdout has gone: the command ends with exit code 1 and
// without a word, as pipelines expect.
struct ReaderGone {};

// Opens /dev/null on the standard streams that the caller has closed, so that no file of ours can
// take their number. stdout and stderr become unwritable instead: writing to them is an error.
void secure_standard_streams();

// Writes all of `text` to an open file, whatever signals come. Returns 0 or the errno.
int write_all(int fd, std::string_view text);
// Writes all of `text` to stdout at once. Returns 0 or the errno.
int write_result(std::string_view text);
// The same, but throws ReaderGone or Error(kRuntime).
void print_result(std::string_view text);

// What is said, from the least to the most urgent.
enum class LogLevel : uint8_t { kInfo, kWarning, kError };

// From now on, all that any Console of this process says at this level or above goes to the file too,
// a line each with time and level, appended; and stderr gets nothing below it. An empty path: stderr
// only. Throws Error(kRuntime) naming a file that cannot be written.
void set_log(const std::string& path, LogLevel level);

class Console {
 public:
  explicit Console(bool quiet);

  // One line. info is silent with --quiet, but for a log file; warnings are not.
  template <typename... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) const {
    information(fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void warn(fmt::format_string<Args...> format, Args&&... args) const {
    warning(fmt::format(format, std::forward<Args>(args)...));
  }
  // To stderr whatever the level, and to no log: what belongs to a screen.
  void line(std::string_view text) const;
  void information(std::string_view text) const;
  void warning(std::string_view text) const;
  // A warning, or, with --strict, Error(kUsage).
  void warn_or_refuse(bool strict, std::string_view text) const;
  void error(std::string_view text) const;

  bool quiet() const { return quiet_; }
  bool terminal() const { return terminal_; }  // stderr can redraw a line
  int width() const;                           // of the terminal, in columns

 private:
  bool quiet_, terminal_, color_;
};

}  // namespace tiercel
