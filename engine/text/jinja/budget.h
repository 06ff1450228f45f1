// What running a template may take. Everything that takes time or memory asks here first, so that a hostile template
// ends with a message instead of the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace tiercel::jinja {

// What a template does wrong, or too much of; whoever runs it knows the line (template.h).
class Problem : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Bytes that something holds, which are given back when it is gone.
class Held {
 public:
  Held() = default;
  explicit Held(std::shared_ptr<int64_t> left) : left_(std::move(left)) {}
  Held(Held&& other) noexcept : left_(std::move(other.left_)), n_(std::exchange(other.n_, 0)) {}
  Held& operator=(Held&& other) noexcept {
    std::swap(left_, other.left_);
    std::swap(n_, other.n_);
    return *this;
  }
  ~Held() {
    if (left_ != nullptr) *left_ += n_;
  }
  void grow(size_t n_bytes) {
    if (left_ == nullptr) return;
    if (*left_ < 0 || n_bytes > static_cast<size_t>(*left_)) throw Problem("the template takes too much memory");
    *left_ -= static_cast<int64_t>(n_bytes);
    n_ += static_cast<int64_t>(n_bytes);
  }

 private:
  std::shared_ptr<int64_t> left_;
  int64_t n_ = 0;
};

class Budget {
 public:
  Budget(int64_t n_steps, int64_t n_bytes) : steps_(n_steps), bytes_(std::make_shared<int64_t>(n_bytes)) {}

  // A step is what one name, operator or element takes: 10 to 50 ns.
  void step(size_t n = 1) {
    if (n > static_cast<size_t>(steps_)) throw Problem("the template takes too many steps");
    steps_ -= static_cast<int64_t>(n);
  }
  void read(size_t n_bytes) { step(n_bytes / 256); }           // as memcpy and memchr do
  void read_characters(size_t n_bytes) { step(n_bytes / 2); }  // one by one
  Held held() const { return Held(bytes_); }

 private:
  int64_t steps_;
  std::shared_ptr<int64_t> bytes_;
};

}  // namespace tiercel::jinja
