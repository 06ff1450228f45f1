// Where the prompt comes from: -p, -f, or their environment twins. Exactly one.
#pragma once

#include <optional>
#include <string>

#include "tools/console.h"
#include "tools/flags.h"

namespace tiercel {

struct PromptFlags {
  // escapes: also offer -e, which makes \n, \t, \\ and so on of -p real characters.
  void add_to(Flags& flags, bool escapes);
  // The text. Invalid UTF-8 is a warning that counts it, or refused with strict. Throws
  // Error(kUsage) when nothing, two things or an empty text is given; Error(kRuntime) when a file
  // cannot be read.
  // required = false: nothing given is an empty text.
  std::string read(const Console& console, bool strict, bool required = true) const;
  // By a flag; a variable may be meant for another command.
  bool given() const { return prompt_ || file_; }
  bool reads_stdin() const { return file_ == "-"; }
  // With -e, as it means texts of other flags.
  std::string unescaped(const std::string& text) const;

 private:
  std::optional<std::string> prompt_, file_;
  bool escape_ = false;
};

// The bytes of a file or a pipe of any size; "-" is stdin. Throws Error(kRuntime).
std::string read_input(const std::string& path, const char* flag);

// Says how many bytes of `text` are not UTF-8; each is read as U+FFFD. With strict:
// Error(kUsage).
void check_utf8(std::string_view text, const std::string& name, const Console& console,
                bool strict);

}  // namespace tiercel
