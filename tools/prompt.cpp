#include "tools/prompt.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "engine/base/check.h"
#include "engine/text/utf8.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

std::string unescape(const std::string& text) {
  constexpr std::pair<char, char> kEscapes[] = {{'n', '\n'},  {'t', '\t'}, {'r', '\r'},
                                                {'\'', '\''}, {'"', '"'},  {'\\', '\\'}};
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '\\' && i + 1 < text.size()) {
      for (const auto& [letter, meaning] : kEscapes) {
        if (text[i + 1] != letter) continue;
        c = meaning;
        ++i;
        break;
      }
    }
    result += c;
  }
  return result;
}

std::optional<std::string> from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? std::optional<std::string>(value) : std::nullopt;
}

}  // namespace

std::string read_input(const std::string& path, const char* flag) {
  const bool standard = path == "-";
  int fd = STDIN_FILENO;
  while (!standard && (fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC)) < 0 && errno == EINTR) {
    stop_if_requested();  // a pipe waits for who writes
  }
  const std::string name = standard ? "stdin" : path;
  if (fd < 0) fail("{}: cannot open {}: {}", flag, name, std::strerror(errno));
  struct Closer {
    int fd;
    ~Closer() {
      if (fd != STDIN_FILENO) ::close(fd);
    }
  } closer{fd};
  struct stat info {};
  if (::fstat(fd, &info) != 0) fail("{}: cannot read {}: {}", flag, name, std::strerror(errno));
  if (S_ISDIR(info.st_mode)) {
    fail("{}: expected a file, found a directory: {}", flag, name);
  }
  std::string text;
  // One byte more than the file is long, so that its end is seen without growing.
  size_t room = S_ISREG(info.st_mode) ? static_cast<size_t>(info.st_size) + 1 : size_t{1} << 16;
  size_t size = 0;
  while (true) {
    text.resize(size + room);
    const ssize_t n = ::read(fd, text.data() + size, room);
    if (n < 0 && errno == EINTR) {
      stop_if_requested();
      continue;
    }
    if (n < 0) fail("{}: cannot read {}: {}", flag, name, std::strerror(errno));
    size += static_cast<size_t>(n);
    if (n == 0) break;
    stop_if_requested();
    room = std::max(size_t{1} << 16, size / 2);
  }
  stop_if_requested();  // before what is wrong with half of it is said
  text.resize(size);
  return text;
}

void check_utf8(std::string_view text, const std::string& name, const Console& console,
                bool strict) {
  if (valid_utf8_prefix(text) == text.size()) return;
  int64_t n_bad = 0, position = 0, first = -1;
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t valid = valid_utf8_prefix(rest);
    rest.remove_prefix(valid);
    position += static_cast<int64_t>(valid);
    if (rest.empty()) break;
    if (first < 0) first = position;
    const auto length = static_cast<size_t>(next_utf8(rest).length);
    n_bad += static_cast<int64_t>(length);
    rest.remove_prefix(length);
    position += static_cast<int64_t>(length);
  }
  const std::string message = fmt::format("{}: {} byte{} not valid UTF-8 (the first at offset {})",
                                          name, n_bad, n_bad == 1 ? " is" : "s are", first);
  if (strict) fail(ErrorKind::kUsage, "{}; refused because of --strict", message);
  console.warn("{}; read as U+FFFD", message);
}

std::string PromptFlags::unescaped(const std::string& text) const {
  return escape_ ? unescape(text) : text;
}

void PromptFlags::add_to(Flags& flags, bool escapes) {
  // The environment twins are read in read(): CLI11 would add a prompt of the environment to a
  // file of the command line and call that a contradiction.
  flags.section("Prompt");
  flags.without_twin([&] {
    flags.text("-p,--prompt", prompt_, "The prompt itself");
    flags.file("-f,--file", file_, Flags::FileUse::kRead,
               "File with the prompt, taken as it is; -: stdin");
  });
  flags.uses("TIERCEL_ARG_FILE", Flags::FileUse::kRead, [this] {
    return prompt_ || file_ ? "" : from_environment("TIERCEL_ARG_FILE").value_or("");
  });
  if (escapes) flags.flag("-e,--escape", escape_, "Read \\n, \\t, \\r, \\\", \\' and \\\\ in -p");
}

std::string PromptFlags::read(const Console& console, bool strict, bool required) const {
  std::optional<std::string> prompt = prompt_, file = file_;
  if (!prompt && !file) {
    prompt = from_environment("TIERCEL_ARG_PROMPT");
    file = from_environment("TIERCEL_ARG_FILE");
  }
  if (prompt && file) {
    fail(ErrorKind::kUsage, "--prompt and --file: expected one of them, found both");
  }
  if (!prompt && !file) {
    if (!required) return {};
    fail(ErrorKind::kUsage, "expected a prompt, found none; add -p TEXT, -f FILE or -f - (stdin)");
  }
  std::string text;
  if (prompt) {
    text = escape_ ? unescape(*prompt) : *prompt;
  } else {
    text = read_input(*file, "--file");
  }
  const std::string name = prompt ? "--prompt" : *file == "-" ? "stdin" : *file;
  stop_if_requested();  // before what an interrupted reading has to say
  if (text.empty()) fail(ErrorKind::kUsage, "{}: the prompt is empty", name);
  check_utf8(text, name, console, strict);
  return text;
}

}  // namespace tiercel
