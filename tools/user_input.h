// What a user types, message by message.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "tools/console.h"
#include "tools/line_editor.h"

namespace tiercel {

class UserInput {
 public:
  // strict: text that is not UTF-8 is an Error. The console must outlive it.
  UserInput(const Console& console, bool strict);

  // One line, or several of which all but the last end in a backslash, without the last line break;
  // may be empty. /help and other words like it are answered here. None at the end of input, at
  // /exit, and when a signal came (stop_requested()).
  // Throws Error(kRuntime) when stdin cannot be read. Asks with "> " where stdin is a terminal.
  std::optional<std::string> next();

 private:
  std::optional<std::string> line(const char* question);
  const Console& console_;
  bool strict_, terminal_;
  bool asked_ = false;
  std::unique_ptr<LineEditor> editor_;  // null: lines are read as they come
};

}  // namespace tiercel
