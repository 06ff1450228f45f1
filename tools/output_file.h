// A file that is either complete or untouched: written beside its place, synced, then renamed.
#pragma once

#include <exception>
#include <string>
#include <string_view>

namespace tiercel {

// ::open, which for a pipe waits until somebody reads it: a signal that asks to stop ends that, with
// Error(kInterrupted). -1: errno says why.
int open_output(const std::string& path, int flags);

// Takes all steps, whichever of them fail: what cannot be written takes nothing along that can. Then throws
// what the first one threw.
template <typename... Step>
void take_all(const Step&... steps) {
  std::exception_ptr first;
  const auto take = [&](const auto& step) {
    try {
      step();
    } catch (...) {
      if (first == nullptr) first = std::current_exception();
    }
  };
  (take(steps), ...);
  if (first != nullptr) std::rethrow_exception(first);
}

class OutputFile {
 public:
  OutputFile() = default;  // no file wanted
  // Checks at once, before hours of work, that the file can be created; "-": stdout. `purpose` ("--report")
  // heads the messages. Throws Error(kRuntime).
  OutputFile(std::string path, std::string purpose);

  bool wanted() const { return !path_.empty(); }
  // Throws Error(kRuntime) naming the file and the reason; the previous content then is still
  // there.
  void write(std::string_view text) const;

 private:
  void write_directly(std::string_view text) const;
  [[noreturn]] void refuse(const char* doing, int error) const;

  std::string path_, purpose_;
  bool direct_ = false;  // a device or a pipe: it must not be replaced by a file
  int stream_ = -1;      // the file is what stdout or stderr goes to: it is written behind that
};

}  // namespace tiercel
