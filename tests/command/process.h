// Runs the built command as a user would: arguments, environment, stdin, signals; collects exit
// code, stdout and stderr.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace tiercel::test {

namespace fs = std::filesystem;

inline std::string binary() {
  const char* path = std::getenv("TIERCEL_BINARY");
  return path != nullptr ? path : TIERCEL_BINARY_DIR "/tiercel";
}

inline std::string demo_model() { return TIERCEL_SOURCE_DIR "/tools/demo/recall-4m"; }

inline std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void write_file(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A folder for one test, removed at its end.
class Scratch {
 public:
  Scratch() {
    std::string pattern = (fs::temp_directory_path() / "tiercel-test-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

struct Result {
  int code = -1;  // exit code; 128 + the signal that killed it
  std::string out, err;
};

struct Launch {
  std::vector<std::string> arguments;
  std::vector<std::pair<std::string, std::string>> environment = {};
  std::string standard_input = "/dev/null";  // path
  std::string standard_output = {};          // path; empty: collected in Result::out
};

// For exec. `words` must outlive it.
inline std::vector<char*> argv_of(std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  return argv;
}

// Its exit code, or 128 + the signal that killed it.
inline int wait_for(pid_t id) {
  int status = 0;
  ::waitpid(id, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// A running command whose output goes to files.
class Process {
 public:
  explicit Process(const Launch& launch) {
    const std::string out =
        launch.standard_output.empty() ? scratch_ / "out" : launch.standard_output;
    const std::string err = scratch_ / "err";
    std::vector<std::string> words = {binary()};
    words.insert(words.end(), launch.arguments.begin(), launch.arguments.end());
    const std::vector<char*> argv = argv_of(words);
    id_ = ::fork();
    if (id_ == 0) {
      redirect(0, launch.standard_input, O_RDONLY);
      redirect(1, out, O_WRONLY | O_CREAT | O_APPEND);
      redirect(2, err, O_WRONLY | O_CREAT | O_APPEND);
      ::signal(SIGINT, SIG_DFL);
      for (const auto& [name, value] : launch.environment) ::setenv(name.c_str(), value.c_str(), 1);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
  }
  ~Process() {
    if (id_ > 0) {
      ::kill(id_, SIGKILL);
      wait();
    }
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  std::string out() const { return read_file(scratch_ / "out"); }
  std::string err() const { return read_file(scratch_ / "err"); }
  void signal(int number) { ::kill(id_, number); }

  // Waits until the condition holds; false after a minute or when the process has ended before.
  template <typename F>
  bool wait_until(F condition) {
    for (int i = 0; i < 60000; ++i) {
      if (condition()) return true;
      siginfo_t info{};
      if (::waitid(P_PID, static_cast<id_t>(id_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
          info.si_pid != 0) {
        return condition();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  Result wait() {
    const int code = wait_for(std::exchange(id_, -1));
    return {code, out(), err()};
  }

 private:
  static void redirect(int fd, const std::string& path, int flags) {
    const int opened = ::open(path.c_str(), flags, 0600);
    if (opened < 0 || ::dup2(opened, fd) != fd) ::_exit(126);
    ::close(opened);
  }

  Scratch scratch_;
  pid_t id_ = -1;
};

inline Result run(const Launch& launch) { return Process(launch).wait(); }

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The program may be another build than these tests: only it knows what it has.
inline const std::string& version_of_program() {
  static const std::string text = run({{"version"}}).out;
  return text;
}

// Whether it has a sanitizer, in which everything takes many times as long: a test then does less
// of the same. These tests themselves need none.
inline bool sanitized() { return contains(version_of_program(), "Sanitizer"); }

// Why it runs nothing on a GPU; empty where it does.
inline std::string why_no_cuda() {
  static const std::string before = "(cuda: ";
  const std::string& text = version_of_program();
  const size_t begin = text.find(before);
  if (begin == std::string::npos) return "";
  return text.substr(begin + before.size(), text.find(")\n", begin) - begin - before.size());
}

}  // namespace tiercel::test
