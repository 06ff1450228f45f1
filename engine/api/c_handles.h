// The C interface: handles around the C++ classes, exceptions into error objects.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/api/state.h"
#include "engine/tiercel_c.h"

struct tiercel_error {
  tiercel_status status;
  std::string message;
};
struct tiercel_options {
  tiercel::v0::Options options;
};
struct tiercel_engine {
  tiercel::v0::Engine engine;
};
struct tiercel_session {
  tiercel::v0::Session session;
};
struct tiercel_batch {
  tiercel::v0::Batch batch;
};
struct tiercel_prefix {
  tiercel::v0::Prefix prefix;
};
struct tiercel_request {
  tiercel::v0::Request request;
};

namespace tiercel::c {

using v0::Error;
using v0::ErrorKind;

inline tiercel_error& out_of_memory() {
  static tiercel_error error{TIERCEL_RUNTIME, "out of memory"};  // short: allocates nothing
  return error;
}

inline tiercel_status report(tiercel_error** error, tiercel_status status,
                             const char* message) noexcept {
  if (error == nullptr) return status;
  try {
    *error = new tiercel_error{status, message};
  } catch (const std::bad_alloc&) {
    *error = &out_of_memory();
  }
  return status;
}

template <typename F>
tiercel_status guarded(tiercel_error** error, F&& f) noexcept {
  try {
    return f();
  } catch (const Error& e) {
    return report(error, static_cast<tiercel_status>(e.kind()), e.what());
  } catch (const std::bad_alloc&) {
    return report(error, TIERCEL_RUNTIME, "out of memory");
  } catch (const std::exception& e) {
    return report(error, TIERCEL_RUNTIME, e.what());
  }
}

// The object behind a pointer that must not be NULL.
template <typename T>
T& at(T* pointer, const char* what) {
  if (pointer == nullptr) {
    detail::refuse(ErrorKind::kUsage, "{}: expected a pointer, found NULL", what);
  }
  return *pointer;
}

// A pointer with a length; NULL stands for no elements only.
template <typename T>
std::span<T> span_at(T* data, size_t n, const char* what) {
  if (n > 0) at(data, what);
  return {data, n};
}

inline std::string_view text_at(const char* text, size_t length) {
  const auto span = span_at(text, length, "text");
  return {span.data(), span.size()};
}

// A copy for the caller to free.
template <typename T>
T* copied(const T* data, size_t n) {
  auto* copy = static_cast<T*>(std::malloc(n > 0 ? n * sizeof(T) : 1));
  if (copy == nullptr) throw std::bad_alloc();
  if (n > 0) std::memcpy(copy, data, n * sizeof(T));
  return copy;
}

inline void give_text(const std::string& text, char** target, size_t* length) {
  *target = copied(text.c_str(), text.size() + 1);
  if (length != nullptr) *length = text.size();
}

inline void give_tokens(const std::vector<int32_t>& tokens, int32_t** target, size_t* n) {
  *target = copied(tokens.data(), tokens.size());
  *n = tokens.size();
}

inline const v0::Options& or_none(const tiercel_options* options) {
  static const v0::Options none;
  return options == nullptr ? none : options->options;
}

inline v0::ProgressCallback wrapped(tiercel_progress_callback progress, void* user) {
  if (progress == nullptr) return {};
  return [progress, user](const v0::Progress& p) {
    const tiercel_progress c{p.total, p.cached, p.processed, p.elapsed};
    return progress(user, &c) != 0;
  };
}

inline v0::PieceCallback wrapped(tiercel_piece_callback callback, void* user) {
  if (callback == nullptr) return {};
  return [callback, user](const v0::Piece& piece) {
    return callback(user, piece.token, piece.text.data(), piece.text.size()) != 0;
  };
}

}  // namespace tiercel::c
