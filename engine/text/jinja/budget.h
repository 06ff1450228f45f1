// What running a template may take. Everything that takes time or memory asks here first, so that a hostile template
// ends with a message instead of the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace tiercel::jinja {

// What a template does wrong, or too much of; whoever runs it knows the line (template.h).
class Problem : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Budget {
 public:
  // Of memory nothing is given back: what is made is counted, not what is held.
  Budget(int64_t n_steps, int64_t n_bytes) : steps_(n_steps), bytes_(n_bytes) {}

  // A step is what one name, operator or element takes: up to 100 ns or so.
  void step(size_t n = 1) {
    if (n > static_cast<size_t>(steps_)) throw Problem("the template takes too many steps");
    steps_ -= static_cast<int64_t>(n);
  }
  void read(size_t n_bytes) { step(n_bytes / 256); }
  void make(size_t n_bytes) {
    if (n_bytes > static_cast<size_t>(bytes_)) throw Problem("the template takes too much memory");
    bytes_ -= static_cast<int64_t>(n_bytes);
    read(n_bytes);
  }

 private:
  int64_t steps_, bytes_;
};

}  // namespace tiercel::jinja
