// The two ways in which something can go wrong.
//
// CHECK is for our own mistakes (a shape, an invariant, a double release): it prints the expression,
// the values and the place, and aborts. DCHECK is the same inside loops and vanishes with NDEBUG.
// Error is for the world (a bad file, a bad argument, no memory, a full disk): it is thrown, names
// what was expected and what was found, and is caught at the public boundary only.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace tiercel {

// What kind of failure an Error is; the value is the exit code of the command.
enum class ErrorKind : int {
  kRuntime = 1,      // bad file, failed write, broken model
  kUsage = 2,        // bad flag or argument
  kDoesNotFit = 3,   // the memory plan exceeds a limit; nothing has been allocated
  kInterrupted = 130 // SIGINT or SIGTERM, or a progress callback that asked to stop
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& what) : std::runtime_error(what), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

// Throws an Error with a formatted message. Messages are one or two sentences in the form
// "FILE: PLACE: expected X, found Y; HELP".
template <typename... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorKind::kRuntime, fmt::format(format, std::forward<Args>(args)...));
}

namespace detail {
[[noreturn]] void check_failed(const char* file, int line, const char* expression,
                               const std::string& message);

inline std::string check_message() { return {}; }
template <typename... Args>
std::string check_message(fmt::format_string<Args...> format, Args&&... args) {
  return fmt::format(format, std::forward<Args>(args)...);
}
}  // namespace detail

#define CHECK(condition, ...)                                                       \
  (static_cast<bool>(condition)                                                     \
       ? static_cast<void>(0)                                                       \
       : ::tiercel::detail::check_failed(__FILE__, __LINE__, #condition,            \
                                         ::tiercel::detail::check_message(__VA_ARGS__)))

#ifdef NDEBUG
#define DCHECK(condition, ...) static_cast<void>(sizeof(static_cast<bool>(condition)))
#else
#define DCHECK(condition, ...) CHECK(condition, __VA_ARGS__)
#endif

}  // namespace tiercel
