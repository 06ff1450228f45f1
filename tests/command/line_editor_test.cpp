// --interactive on a terminal: lines are edited, and the arrows bring earlier ones back.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>

#include "engine/saved_session.h"
#include "engine/text/tokenizer.h"
#include "tests/command/process.h"

namespace tiercel::test {
namespace {

// The command with a terminal around it.
class Terminal {
 public:
  explicit Terminal(std::vector<std::string> words) {
    words.insert(words.begin(), binary());
    const std::vector<char*> argv = argv_of(words);
    id_ = ::forkpty(&fd_, nullptr, nullptr, nullptr);
    if (id_ == 0) {
      ::setenv("TERM", "xterm", 1);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
  }
  ~Terminal() {
    if (id_ > 0) {
      ::kill(id_, SIGKILL);
      wait();
    }
    ::close(fd_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  // Once a question stands there.
  void type(const std::string& keys) {
    constexpr const char* kQuestion = "\n> ";  // not one that is drawn anew
    for (int i = 0; i < 600 && shown_.find(kQuestion, answered_) == std::string::npos; ++i) {
      read(100);
    }
    const size_t question = shown_.find(kQuestion, answered_);
    ASSERT_NE(question, std::string::npos) << shown_;
    answered_ = question + 3;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // as fast as nobody types
    ASSERT_EQ(::write(fd_, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }
  int wait() {
    while (read(60000)) {
    }
    ::kill(id_, SIGALRM);  // where it does not end by itself
    return wait_for(std::exchange(id_, -1));
  }
  const std::string& shown() const { return shown_; }

 private:
  bool read(int milliseconds) {
    pollfd waits{fd_, POLLIN, 0};
    if (::poll(&waits, 1, milliseconds) <= 0) return false;
    char buffer[4096];
    const ssize_t n = ::read(fd_, buffer, sizeof buffer);
    if (n > 0) shown_.append(buffer, static_cast<size_t>(n));
    return n > 0;
  }

  pid_t id_ = -1;
  int fd_ = -1;
  std::string shown_;
  size_t answered_ = 0;  // up to here
};

bool has_terminals() {
  const int fd = ::posix_openpt(O_RDWR | O_NOCTTY);
  if (fd >= 0) ::close(fd);
  return fd >= 0;
}

std::vector<std::string> interactive(const std::string& file) {
  return {"run", "-m", demo_model(), "--backend", "cpu", "-i", "-c", "2000", "-n", "2",
          "--save-session", file};
}

TEST(LineEditor, EditsLinesAndKnowsEarlierOnes) {
  if (!has_terminals()) GTEST_SKIP() << "no pseudo terminal can be opened here";
  if (contains(run({.arguments = {"version"}}).out, "not edited")) {
    GTEST_SKIP() << "built without libedit";
  }
  const Scratch scratch;
  const std::string file = scratch / "s.session";
  Terminal terminal(interactive(file));
  terminal.type("good morning\r");
  terminal.type("\x1b[A\r");                     // up
  terminal.type("h\xc3\xa9llo\x1b[D\x1b[DX\r");  // left, left
  terminal.type("/exit\r");
  EXPECT_EQ(terminal.wait(), 0) << terminal.shown();
  const std::string said =
      Tokenizer::load(demo_model()).decode(SavedSession::open(file)->ids(), /*skip_special=*/true);
  const size_t first = said.find("good morning");
  ASSERT_NE(first, std::string::npos) << said;
  EXPECT_NE(said.find("good morning", first + 1), std::string::npos) << said;
  EXPECT_NE(said.find("h\xc3\xa9lXlo"), std::string::npos) << said;
}

TEST(LineEditor, CtrlCLeaves) {
  if (!has_terminals()) GTEST_SKIP() << "no pseudo terminal can be opened here";
  const Scratch scratch;
  Terminal terminal(interactive(scratch / "s.session"));
  terminal.type("good morning\r");
  terminal.type("half a line\x03");
  EXPECT_EQ(terminal.wait(), 130) << terminal.shown();
  EXPECT_TRUE(fs::exists(scratch / "s.session"));
}

}  // namespace
}  // namespace tiercel::test
