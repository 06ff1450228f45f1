#include "tools/user_input.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "engine/base/check.h"
#include "engine/json.h"
#include "tools/prompt.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

bool is_word(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(),
                                      [](char c) { return c >= 'a' && c <= 'z'; });
}

}  // namespace

UserInput::UserInput(const Console& console, bool strict)
    : console_(console), strict_(strict), terminal_(::isatty(STDIN_FILENO) == 1) {}

// Not std::getline: it goes on waiting when a signal comes.
std::optional<std::string> UserInput::line(const char* question) {
  if (!asked_ && terminal_) editor_ = LineEditor::open();
  asked_ = true;
  if (editor_) {
    std::optional<std::string> text = editor_->read(question);
    if (!text) console_.line("");  // the question's line
    return text;
  }
  if (terminal_) {
    std::fputs(question, stderr);
    std::fflush(stderr);
  }
  char* buffer = nullptr;
  size_t capacity = 0;
  ssize_t n = -1;
  do {
    if (stop_requested()) break;
    std::clearerr(stdin);
    errno = 0;
    n = ::getline(&buffer, &capacity, stdin);
  } while (n < 0 && errno == EINTR);
  const int error = errno;
  const std::unique_ptr<char, decltype(&std::free)> owner(buffer, std::free);
  if (n >= 0) {
    std::string text(buffer, static_cast<size_t>(n));
    if (text.ends_with('\n')) text.pop_back();
    if (text.ends_with('\r')) text.pop_back();  // of a file that ends its lines with both
    return text;
  }
  if (terminal_) console_.line("");  // the question's line
  if (!stop_requested() && std::ferror(stdin) != 0) {
    fail("stdin: cannot read: {}", std::strerror(error));
  }
  return std::nullopt;
}

std::optional<std::string> UserInput::next() {
  std::optional<std::string> text = line("> ");
  while (text && text->starts_with('/')) {
    const std::string_view command = std::string_view(*text).substr(0, text->find_last_not_of(" \t") + 1);
    if (!is_word(command.substr(1))) break;
    if (command == "/exit") return std::nullopt;
    console_.warn("{}: no such command; /exit leaves, as Ctrl-D does, and Ctrl-C stops an answer. "
                  "With a space in front it is a message", printable(command, 40));
    text = line("> ");
  }
  if (!text) return std::nullopt;
  while (text->ends_with('\\')) {
    text->pop_back();
    const std::optional<std::string> more = line(". ");
    if (stop_requested()) return std::nullopt;
    if (!more) break;
    *text += '\n' + *more;
  }
  check_utf8(*text, "stdin", console_, strict_);
  return text;
}

}  // namespace tiercel
