#include "tools/console.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "engine/base/check.h"
#include "tools/output_file.h"

namespace tiercel {

int write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    text.remove_prefix(static_cast<size_t>(n));
  }
  return 0;
}

namespace {

struct Log {
  int file = -1;
  std::string path;
  LogLevel level = LogLevel::kInfo;
};
Log& the_log() {
  static Log log;
  return log;
}

// Whether stderr wants it.
bool to_log(LogLevel level, std::string_view text) {
  Log& log = the_log();
  if (level < log.level) return false;
  if (log.file >= 0) {
    std::timespec now{};
    std::timespec_get(&now, TIME_UTC);
    std::tm utc{};
    ::gmtime_r(&now.tv_sec, &utc);
    constexpr const char* kNames[] = {"info", "warning", "error"};
    // One write a line: processes may share the file. A full disk must not end the work that is logged, but
    // is said.
    const int error = write_all(
        log.file,
        fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z {:<7} {}\n", utc.tm_year + 1900,
                    utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                    now.tv_nsec / 1000000, kNames[static_cast<int>(level)], text));
    if (error != 0) {
      log.file = -1;
      static_cast<void>(write_all(STDERR_FILENO, fmt::format("warning: --log-file: cannot write {}: {}; nothing more "
                                                             "goes there\n",
                                                             log.path, std::strerror(error))));
    }
  }
  return true;
}

}  // namespace

void set_log(const std::string& path, LogLevel level) {
  Log& log = the_log();
  log.level = level;
  if (path.empty()) return;
  const int file = open_output(path, O_WRONLY | O_CREAT | O_APPEND);
  if (file < 0) fail("--log-file: {}: {}", path, std::strerror(errno));
  log.file = file;
  log.path = path;
}

void secure_standard_streams() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (::fcntl(fd, F_GETFD) != -1 || errno != EBADF) continue;
    // The lowest free number is fd itself. The wrong direction on purpose.
    if (::open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd) std::_Exit(1);
  }
}

int write_result(std::string_view text) { return write_all(STDOUT_FILENO, text); }

void print_result(std::string_view text) {
  const int error = write_result(text);
  if (error == EPIPE) throw ReaderGone{};
  if (error != 0) fail("stdout: cannot write: {}", std::strerror(error));
}

Console::Console(bool quiet) : quiet_(quiet) {
  const char* term = std::getenv("TERM");
  terminal_ = ::isatty(STDERR_FILENO) == 1 && term != nullptr && std::strcmp(term, "dumb") != 0;
  const char* no_color = std::getenv("NO_COLOR");
  color_ = terminal_ && (no_color == nullptr || *no_color == '\0');
}

void Console::line(std::string_view text) const {
  // Nowhere is left to complain about an unwritable stderr.
  static_cast<void>(write_all(STDERR_FILENO, std::string(text) + '\n'));
}

void Console::information(std::string_view text) const {
  if (to_log(LogLevel::kInfo, text) && !quiet_) line(text);
}

void Console::warn_or_refuse(bool strict, std::string_view text) const {
  if (strict) fail(ErrorKind::kUsage, "{} (--strict)", text);
  warning(text);
}

void Console::warning(std::string_view text) const {
  if (!to_log(LogLevel::kWarning, text)) return;
  line(fmt::format("{} {}", color_ ? "\x1b[33mwarning:\x1b[0m" : "warning:", text));
}

void Console::error(std::string_view text) const {
  to_log(LogLevel::kError, text);
  line(fmt::format("{} {}", color_ ? "\x1b[31merror:\x1b[0m" : "error:", text));
}

int Console::width() const {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

}  // namespace tiercel
