// What stands behind the public classes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "engine/answer_form.h"
#include "engine/api/settings.h"
#include "engine/base/check.h"
#include "engine/sampler.h"
#include "engine/session.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "engine/tiercel.h"

namespace tiercel::detail {

// First come, first served: a thread that generates takes the lock again right after it has given
// it back, and with a plain mutex would leave none of the others a turn.
class TurnLock {
 public:
  // Throws v0::Error(kBusy) in a thread that holds it: a callback called back.
  void lock();
  void unlock();
  // Whether this thread holds it: then it may not wait for what needs a turn.
  bool is_mine();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t next_ticket_ = 0, serving_ = 0;
  std::thread::id owner_;
};

struct EngineState {
  EngineState(std::string from, v0::Options given, std::shared_ptr<Model> opened, Tokenizer loaded)
      : directory(std::move(from)),
        options(std::move(given)),
        model(std::move(opened)),
        tokenizer(std::move(loaded)),
        chat(ChatTemplate::find(directory)),
        end_tokens(tiercel::end_tokens(model->config(), tokenizer, chat ? &*chat : nullptr)),
        forms(tokenizer, model->config().vocab_size, end_tokens) {}

  const std::string directory;

  const v0::Options options;  // defaults of sessions
  const std::shared_ptr<Model> model;
  const Tokenizer tokenizer;
  const std::optional<ChatTemplate> chat;  // none: the model has none that can be run
  const std::vector<int64_t> end_tokens;   // generation stops at any of them
  AnswerForms forms;
  // One set of worker threads and their scratch memory, or one device: whoever computes holds it.
  TurnLock turn;

  void set_log(v0::LogCallback callback, v0::LogLevel from);
  void log(v0::LogLevel level, const std::string& line);
  // What a plan decided, and every note that it has.
  void log_plan(const char* what, const SessionPlan& plan);

 private:
  std::mutex log_mutex_;
  std::atomic<std::thread::id> logging_;  // runs the callback
  v0::LogCallback log_callback_;
  v0::LogLevel log_from_ = v0::LogLevel::kInfo;
};

struct SessionState {
  SessionState(std::shared_ptr<EngineState> of, Settings with)
      : engine(std::move(of)), settings(std::move(with)) {}
  ~SessionState();

  std::shared_ptr<EngineState> engine;
  Settings settings;
  std::atomic<bool> busy{false};
  std::atomic<bool> abandoned{false};  // the session was destroyed: what still computes stops
  bool closed = false;

  // The sequence. `pending`: its last token is not in the cache yet; it goes there when somebody
  // asks what follows it, so that the last token of an answer costs no step.
  std::unique_ptr<tiercel::Session> inner;
  std::vector<int32_t> sequence;
  bool pending = false;
  int64_t n_prompt = 0;
  std::optional<Sampler> sampler, initial_sampler;  // the second: before it has drawn anything
  std::optional<StreamDecoder> decoder;
  uint64_t seed = 0;
  int64_t decode_steps = 0;
  double open_seconds = 0, prefill_seconds = 0, decode_seconds = 0;

  // Needs the engine's turn.
  void clear();
  void restart_sampling();
  // What is picked next begins an answer to the first n tokens of the sequence.
  void begin_answer(size_t n);
};

// Calls f; the library's own errors become the public ones.
template <typename F>
auto translated(F&& f) {
  try {
    return f();
  } catch (const tiercel::Error& error) {
    const bool known = error.kind() == tiercel::ErrorKind::kUsage ||
                       error.kind() == tiercel::ErrorKind::kDoesNotFit;
    throw v0::Error(known ? static_cast<v0::ErrorKind>(error.kind()) : v0::ErrorKind::kRuntime,
                    error.what());
  } catch (const std::bad_alloc&) {
    throw v0::Error(v0::ErrorKind::kRuntime, "out of memory");
  } catch (const std::system_error& error) {  // no thread can be started
    throw v0::Error(v0::ErrorKind::kRuntime, error.what());
  }
}

// Holds the engine for what computes.
class Turn {
 public:
  explicit Turn(EngineState& engine) : lock_(engine.turn) {
    translated([&] { engine.model->use_in_this_thread(); });
  }

 private:
  std::lock_guard<TurnLock> lock_;
};

template <typename... Args>
[[noreturn]] void refuse(v0::ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw v0::Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

// Throws v0::Error(kUsage) naming one that is outside the vocabulary.
void check_tokens(const EngineState& engine, std::span<const int32_t> tokens);
// The same of one that the tokenizer does not have.
void check_decodable(const EngineState& engine, std::span<const int32_t> tokens);

// Of a file or a directory.
inline void require_name(const char* what, const std::string& name) {
  if (name.find('\0') == std::string::npos) return;
  refuse(v0::ErrorKind::kUsage, "{}: expected a name, found a zero in it", what);
}

// The engine behind a public one, unless that was moved away.
inline EngineState& opened_engine(const std::shared_ptr<EngineState>& state) {
  if (state == nullptr) refuse(v0::ErrorKind::kState, "this engine was moved away");
  return *state;
}

v0::MemoryPlan to_public(const SessionPlan& plan);

}  // namespace tiercel::detail
