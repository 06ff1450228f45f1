// One line from a terminal, with the keys of a shell: editing, and the lines before it with the
// arrows.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace tiercel {

class LineEditor {
 public:
  static bool built_in();  // with libedit
  // Null where it was built without libedit, or where stdin or stderr is no terminal.
  static std::unique_ptr<LineEditor> open();
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // Without its line break. None at the end of input (Ctrl-D), and when a signal came
  // (stop_requested()). The line joins the history, which ends with the program.
  std::optional<std::string> read(const char* question);

 private:
  struct State;
  explicit LineEditor(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tiercel
