#include "tools/console.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "engine/base/check.h"

namespace tiercel {
namespace {

int write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    text.remove_prefix(static_cast<size_t>(n));
  }
  return 0;
}

}  // namespace

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

void Console::warning(std::string_view text) const {
  line(fmt::format("{} {}", color_ ? "\x1b[33mwarning:\x1b[0m" : "warning:", text));
}

void Console::error(std::string_view text) const {
  line(fmt::format("{} {}", color_ ? "\x1b[31merror:\x1b[0m" : "error:", text));
}

int Console::width() const {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

}  // namespace tiercel
