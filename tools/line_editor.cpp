#include "tools/line_editor.h"

#if TIERCEL_HAS_LIBEDIT

#include <histedit.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstring>
#include <cwchar>
#include <string_view>

#include "tools/signals.h"

namespace tiercel {
namespace {

constexpr int kHistoryLines = 1000;

// libedit's own reader takes the first signal for a hiccup and reads on. 0: the end.
int read_character(EditLine*, wchar_t* out) {
  std::mbstate_t state{};
  while (true) {
    char byte = 0;
    const ssize_t n = stop_requested() ? 0 : ::read(STDIN_FILENO, &byte, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return static_cast<int>(n);
    const size_t used = std::mbrtowc(out, &byte, 1, &state);
    if (used == static_cast<size_t>(-2)) continue;  // more bytes to come
    if (used != static_cast<size_t>(-1)) return 1;
    state = {};  // no character of this locale: left out
  }
}

// Characters beyond ASCII need a locale that knows them.
void use_utf8() {
  std::setlocale(LC_CTYPE, "");
  std::mbstate_t state{};
  wchar_t wide = 0;
  if (std::mbrtowc(&wide, "\xc3\xa9", 2, &state) != 2) std::setlocale(LC_CTYPE, "C.UTF-8");
}

}  // namespace

struct LineEditor::State {
  EditLine* editor = nullptr;
  History* history = nullptr;
  HistEvent event{};
  const char* question = "";
  ~State() {
    if (history != nullptr) ::history_end(history);
    if (editor != nullptr) ::el_end(editor);
  }
};

LineEditor::LineEditor(std::unique_ptr<State> state) : state_(std::move(state)) {}
LineEditor::~LineEditor() = default;

bool LineEditor::built_in() { return true; }

std::unique_ptr<LineEditor> LineEditor::open() {
  if (::isatty(STDIN_FILENO) != 1 || ::isatty(STDERR_FILENO) != 1) return nullptr;
  use_utf8();
  auto state = std::make_unique<State>();
  state->editor = ::el_init("tiercel", stdin, stderr, stderr);
  state->history = ::history_init();
  if (state->editor == nullptr || state->history == nullptr) return nullptr;
  ::history(state->history, &state->event, H_SETSIZE, kHistoryLines);
  ::history(state->history, &state->event, H_SETUNIQUE, 1);
  EditLine* editor = state->editor;
  ::el_set(editor, EL_CLIENTDATA, state.get());
  char* (*prompt)(EditLine*) = [](EditLine* of) {
    State* its = nullptr;
    ::el_get(of, EL_CLIENTDATA, &its);
    return const_cast<char*>(its->question);
  };
  ::el_set(editor, EL_PROMPT, prompt);
  ::el_set(editor, EL_EDITOR, "emacs");
  ::el_set(editor, EL_HIST, ::history, state->history);
  ::el_set(editor, EL_SIGNAL, 0);  // ours
  ::el_set(editor, EL_GETCFN, read_character);
  return std::unique_ptr<LineEditor>(new LineEditor(std::move(state)));
}

std::optional<std::string> LineEditor::read(const char* question) {
  state_->question = question;
  int n = 0;
  const char* line = ::el_gets(state_->editor, &n);
  if (line == nullptr || n <= 0 || stop_requested()) return std::nullopt;
  std::string_view text(line, static_cast<size_t>(n));
  if (text.find_first_not_of(" \t\n") != text.npos) {
    ::history(state_->history, &state_->event, H_ENTER, line);
  }
  if (text.ends_with('\n')) text.remove_suffix(1);
  return std::string(text);
}

}  // namespace tiercel

#else

namespace tiercel {

struct LineEditor::State {};
LineEditor::LineEditor(std::unique_ptr<State> state) : state_(std::move(state)) {}
LineEditor::~LineEditor() = default;
bool LineEditor::built_in() { return false; }
std::unique_ptr<LineEditor> LineEditor::open() { return nullptr; }
std::optional<std::string> LineEditor::read(const char*) { return std::nullopt; }

}  // namespace tiercel

#endif
