// One call on a session: what may be called now, and computing in the engine's turn.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <type_traits>

#include "engine/api/state.h"

namespace tiercel::detail {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// One call on a session, or kBusy. Blocking instead would let two callbacks wait for each other.
class Call {
 public:
  // Of a session that may be destroyed in a callback of this very call.
  explicit Call(const std::shared_ptr<SessionState>& state) : state_(state) {
    if (state_ == nullptr) refuse(v0::ErrorKind::kState, "this session was moved away");
    if (state_->busy.exchange(true, std::memory_order_acquire)) {
      refuse(v0::ErrorKind::kBusy,
             "another call on this session is running; a session serves one at a time");
    }
  }
  ~Call() { state_->busy.store(false, std::memory_order_release); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  SessionState& open() const {
    if (state_->closed) refuse(v0::ErrorKind::kState, "this session is closed");
    return *state_;
  }
  SessionState& with_prompt() const {
    if (open().inner == nullptr) {
      refuse(v0::ErrorKind::kState, "this session is empty; give it a prompt first (prefill)");
    }
    return *state_;
  }
  SessionState& empty() const {
    if (open().inner != nullptr) {
      refuse(v0::ErrorKind::kState,
             "a session takes one prompt and holds {} tokens; reset() it or open another",
             state_->sequence.size());
    }
    return *state_;
  }

 private:
  std::shared_ptr<SessionState> state_;
};

// Computes in the engine's turn. What fails half-way leaves no sequence to go on with.
template <typename F>
auto compute(SessionState& s, F&& f) {
  const Turn turn(*s.engine);
  return translated([&] {
    try {
      return f();
    } catch (...) {
      s.clear();
      throw;
    }
  });
}

// As compute, and counts as decoding. A device's step is waited for where its logits are wanted.
template <typename F>
auto decode(SessionState& s, F&& f) {
  return compute(s, [&] {
    struct Clock {
      SessionState& state;
      std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
      ~Clock() { state.decode_seconds += seconds_since(start); }
    } const clock{s};
    return f();
  });
}

// Asked of who listens, if anyone does. False: it is to stop here.
template <typename T>
bool goes_on(const SessionState& s, const std::function<bool(const T&)>& callback,
             const std::type_identity_t<T>& what) {
  if (callback && !s.abandoned && !callback(what)) return false;
  return !s.abandoned;
}

// What a callback threw, on its way through the engine: none of the engine's own errors.
struct Thrown {
  std::exception_ptr what;
};

// The same where the engine's errors become the public ones: within passing_through.
template <typename T>
bool goes_on_within(const SessionState& s, const std::function<bool(const T&)>& callback,
                    const std::type_identity_t<T>& what) {
  try {
    return goes_on(s, callback, what);
  } catch (...) {
    throw Thrown{std::current_exception()};
  }
}
template <typename F>
auto passing_through(F&& f) {
  try {
    return f();
  } catch (const Thrown& thrown) {
    std::rethrow_exception(thrown.what);
  }
}

inline void step_now(SessionState& s, int32_t token) {
  s.inner->step(token);
  ++s.decode_steps;
}

inline void flush(SessionState& s) {
  if (!s.pending) return;
  step_now(s, s.sequence.back());
  s.pending = false;
}

}  // namespace tiercel::detail
