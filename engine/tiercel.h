// Tiercel as a library: continue one prompt, however long, with what memory there is.
//
//   tiercel::Engine engine("path/to/model");               // a Hugging Face directory
//   tiercel::Session session = engine.open_session({{"budget", "2048"}});
//   session.prefill("The capital of France is");
//   auto print = [](const tiercel::Piece& piece) { return bool(std::cout << piece.text); };
//   session.generate(16, print);
//
// An Engine is a model in memory, a Session one sequence of tokens with its cache. Options are
// pairs of strings with the names and values of the command's flags ("tiercel run --help" explains
// them).
//
// Errors: a call that cannot do what it says throws Error and leaves everything as it was. The one
// exception: a kRuntime error in the middle of computing (a device fault, say) leaves a session
// empty. Anything that a callback throws passes through. No call prints.
//
// Threads: Engine's calls are safe from any thread at any time. A Session serves one call at a
// time: a call that meets another one on the same session (from a second thread, or from that
// call's own callback) throws Error(kBusy). Sessions of one engine may be used from different
// threads; their computing is serialised, first come, first served, a step or a prefill at a time,
// so answers are those of one thread. Destroying, moving or assigning an object while another
// thread uses it is a mistake that nothing catches. Each class says what differs.
//
// This header needs C++20's library and nothing else. Its ABI belongs to one compiler family and
// one minor version; engine/tiercel_c.h has the one that lasts.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if defined(__GNUC__)
#define TIERCEL_API __attribute__((visibility("default")))
#else
#define TIERCEL_API
#endif

namespace tiercel {

namespace detail {
struct EngineState;
struct SessionState;
}  // namespace detail

// Inside the library, classes of the same names exist; there these are v0::Session and so on.
#ifdef TIERCEL_BUILDING_LIBRARY
namespace v0 {
#else
inline namespace v0 {
#endif

TIERCEL_API const char* version();  // "0.1.0", semantic versioning
TIERCEL_API const char* commit();   // of the sources, 12 digits, or "unknown"

enum class ErrorKind : int {
  kRuntime = 1,     // a bad file, a failed read, no memory
  kUsage = 2,       // a bad argument or option
  kDoesNotFit = 3,  // the memory plan exceeds a limit; nothing was allocated
  kState = 4,       // not now: a step before a prompt, a full context, a closed session
  kBusy = 5         // another call on this session is running, or a callback called back
};

// what() is one or two sentences: place, what was expected, what was found, what would help.
class TIERCEL_API Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& what);
  ~Error() override;
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

// What an option is, for help texts.
struct OptionInfo {
  std::string name;     // "budget"
  std::string type;     // "N|X%|all"
  std::string initial;  // value when it is not set; empty: none, or the model says
  std::string help;     // one sentence
};

// Names and values, checked when they are set. An option that is set beats what a preset
// ("attention") says, in whatever order they come. Threads: a plain value, as std::string is.
class TIERCEL_API Options {
 public:
  Options() = default;
  // Options{{"attention", "quest"}, {"budget", "4096"}}
  Options(std::initializer_list<std::pair<std::string, std::string>> values);
  // Throws Error(kUsage) for an unknown name, listing those that exist, and for an illegal value,
  // saying what is legal.
  Options& set(const std::string& name, const std::string& value);

  const std::vector<std::pair<std::string, std::string>>& values() const { return values_; }
  static std::vector<OptionInfo> list();

 private:
  std::vector<std::pair<std::string, std::string>> values_;  // by canonical name, each once
};

struct Progress {
  int64_t total = 0;   // tokens of the prompt
  int64_t cached = 0;  // of these, taken over from earlier work instead of computed
  int64_t processed =
      0;               // done, cached ones included; layers come in turn, so by share of the work
  double elapsed = 0;  // seconds
};
// Return false to stop.
using ProgressCallback = std::function<bool(const Progress&)>;

// A token and the characters that it completes: whole UTF-8 characters, often none.
struct Piece {
  int32_t token = -1;
  std::string_view text;  // valid during the call
};
// Return false to stop; the token stays in the sequence.
using PieceCallback = std::function<bool(const Piece&)>;

enum class FinishReason : int {
  kLength = 0,      // as many tokens as asked for
  kEndOfText = 1,   // a token that ends texts; it is the last one in `tokens`
  kStopped = 2,     // the callback said so
  kContextFull = 3  // no room for another token
};

struct Generation {
  std::vector<int32_t> tokens;
  std::string text;  // valid UTF-8; a character that is not complete yet comes with the next call
  FinishReason reason = FinishReason::kLength;
};

// Bytes that a session takes, weights included.
struct MemoryPlan {
  int64_t weights = 0, keys = 0, values = 0, landmarks = 0, slots = 0, exact = 0, activations = 0;
  int64_t device_total = 0;  // the sum of the above
  int64_t host_keys = 0, host_values = 0, host_staging = 0;
  int64_t host_total = 0;
  int64_t process = 0;             // the program itself
  int64_t resident = 0;            // of main memory
  int64_t context = 0;             // tokens that the session can hold
  std::string composition;         // what selection will do, in one line
  std::vector<std::string> notes;  // what was adjusted or is worth a warning; whole sentences
};

// Of the sequence since its prefill or its last rewind; zeros in an empty session.
struct Stats {
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;  // behind the prompt: generated, stepped or scored
  int64_t decode_steps = 0;
  double open_seconds = 0;  // planning and allocating
  double prefill_seconds = 0;
  double decode_seconds = 0;  // of these and of picking tokens, without waiting for turns
  uint64_t seed = 0;          // of sampling, drawn or given; 0: greedy
  int64_t selections = 0;     // layer steps that selected
  int64_t selected_chunks = 0, hit_chunks = 0;  // hits needed no fetch
  int64_t fetched_bytes = 0;
  int64_t decisions = 0, reused = 0;  // whether an earlier selection may stay, and how often it did
  int64_t audited_steps = 0;          // with option "audit"
  double audit_mass_mean = 0, audit_mass_p05 = 0;  // share of the attention mass that was selected
};

struct ModelInfo {
  int64_t n_layers = 0, vocab_size = 0, max_positions = 0;
  int64_t parameters = 0, weight_bytes = 0;
  int64_t bos_token = -1;           // -1: none
  std::vector<int64_t> end_tokens;  // generation stops at any of them
};

// One sequence. It begins empty, takes a prompt once (prefill or score), and grows behind it.
// Threads: one call at a time, see the head of this file.
class TIERCEL_API Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  // Plans memory for the prompt and "n-predict" tokens behind it, allocates, and runs the prompt.
  // False: the callback asked to stop; the session is empty again, as when it throws. The callback
  // comes every few hundred milliseconds to seconds and may not call sessions of the same engine
  // (kBusy). Throws kState when the session is not empty, kUsage for an empty prompt or an id
  // outside the vocabulary, kDoesNotFit naming the option that would help.
  bool prefill(std::span<const int32_t> tokens, const ProgressCallback& progress = {});
  // The same of Engine::tokenize(text).
  bool prefill(std::string_view text, const ProgressCallback& progress = {});

  // Appends up to n tokens, picked by the sampling options. Splitting n over several calls changes
  // nothing. The callback may call any other session, and the engine. Throws kState without a
  // prompt.
  Generation generate(int64_t n, const PieceCallback& callback = {});

  // Appends one token. Throws kState without a prompt or when the context is full, kUsage for an id
  // outside the vocabulary.
  void step(int32_t token);
  // fp32 [vocab_size] behind the last token. Valid until the next call on this session.
  std::span<const float> logits();

  // Appends tokens and returns log p(token | all before it), natural logarithm, one per token. In
  // an empty session they become the prompt, as by prefill, and the first value is NaN: nothing
  // precedes it. Empty: the callback (of a prompt only) asked to stop; the session is empty again.
  // Throws kState when they do not fit into the context behind a prompt.
  std::vector<double> score(std::span<const int32_t> tokens, const ProgressCallback& progress = {});

  // Back to the end of the prompt: what came behind it is forgotten, and sampling begins anew.
  // Throws kState without a prompt, or where so much was generated that the prompt's last tokens
  // left the recent window (option "recent").
  void rewind();
  // Empty again, memory given back. The options stay.
  void reset();
  // As reset, for good: every later call throws kState, except close.
  void close();

  int64_t n_tokens() const;  // of the sequence
  std::vector<int32_t> tokens() const;
  Stats stats() const;
  // "cpu: avx512bf16, 8 threads"; empty in an empty session.
  std::string backend() const;
  // The plan of the present sequence; zeros in an empty session.
  MemoryPlan memory() const;

 private:
  friend class Engine;
  explicit Session(std::unique_ptr<detail::SessionState> state);
  std::unique_ptr<detail::SessionState> state_;
};

// A model, its tokenizer, and the threads or the device that compute. Lives on in its sessions.
// Threads: every call is safe from any thread; what computes waits for its turn.
class TIERCEL_API Engine {
 public:
  // `directory`: config.json, tokenizer.json, model.safetensors[.index.json] as Hugging Face
  // publishes them. Options: "backend", "device" and "threads" count here only, the others become
  // the defaults of sessions. Throws Error naming the file and the place in it.
  explicit Engine(const std::string& directory, const Options& options = {});
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

  // Empty and cheap: memory is planned and taken by prefill. Throws kUsage for an option of the
  // engine.
  Session open_session(const Options& options = {}) const;
  // The memory that a prompt of so many tokens would take. Allocates nothing. Throws as prefill.
  MemoryPlan plan(int64_t n_prompt, const Options& options = {}) const;

  // Ids of arbitrary bytes; invalid UTF-8 becomes U+FFFD. Begin-of-text is added unless option
  // "no-bos" is on; "<|special|>" is text unless option "special" is.
  std::vector<int32_t> tokenize(std::string_view text, const Options& options = {}) const;
  // Valid UTF-8. Throws kUsage for an id outside the vocabulary.
  std::string detokenize(std::span<const int32_t> tokens, bool skip_special = false) const;
  ModelInfo info() const;

 private:
  std::shared_ptr<detail::EngineState> state_;
};

}  // namespace v0
}  // namespace tiercel
