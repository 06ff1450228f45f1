// tiercel::Engine, versions and errors.
#include <algorithm>

#include "engine/api/state.h"
#include "engine/base/build_info.h"
#include "engine/base/units.h"
#include "engine/presets.h"

namespace tiercel {
namespace detail {

void TurnLock::lock() {
  std::unique_lock lock(mutex_);
  if (owner_ == std::this_thread::get_id()) {
    refuse(v0::ErrorKind::kBusy,
           "a callback called an engine that waits for it to return; call behind it");
  }
  const uint64_t ticket = next_ticket_++;
  changed_.wait(lock, [&] { return serving_ == ticket; });
  owner_ = std::this_thread::get_id();
}

void TurnLock::unlock() {
  {
    const std::lock_guard lock(mutex_);
    owner_ = {};
    ++serving_;
  }
  changed_.notify_all();
}

bool TurnLock::is_mine() {
  const std::lock_guard lock(mutex_);
  return owner_ == std::this_thread::get_id();
}

void check_tokens(const EngineState& engine, std::span<const int32_t> tokens) {
  const int64_t n = engine.model->config().vocab_size;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < n) continue;
    refuse(v0::ErrorKind::kUsage, "token {} at index {}: the vocabulary has {} tokens", tokens[i],
           i, n);
  }
}

void check_decodable(const EngineState& engine, std::span<const int32_t> tokens) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < engine.tokenizer.vocab_size()) continue;
    refuse(v0::ErrorKind::kUsage, "token {} at index {}: the tokenizer has ids 0 to {}", tokens[i], i,
           engine.tokenizer.vocab_size() - 1);
  }
}

void EngineState::set_log(v0::LogCallback callback, v0::LogLevel from) {
  if (logging_ == std::this_thread::get_id()) {
    refuse(v0::ErrorKind::kBusy, "a log callback called set_log; call it behind the callback");
  }
  {
    const std::lock_guard lock(log_mutex_);
    log_callback_.swap(callback);
    log_from_ = from;
  }
  // The old one goes here: what it holds may wait for somebody who logs.
}

void EngineState::log(v0::LogLevel level, const std::string& line) {
  const std::lock_guard lock(log_mutex_);
  if (!log_callback_ || level < log_from_) return;
  logging_ = std::this_thread::get_id();
  try {
    log_callback_(level, line);
  } catch (...) {
    // What is logged must not end the work that it tells of.
  }
  logging_ = std::thread::id();
}

void EngineState::log_plan(const char* what, const SessionPlan& plan) {
  const MemoryReport& m = plan.memory;
  log(v0::LogLevel::kInfo,
      fmt::format("{}: context of {} tokens; {}; {} on the device, {} on the host", what,
                  plan.context, composition(plan.options), format_bytes(m.device.total()),
                  format_bytes(m.host.total())));
  for (const std::string& note : plan.notes) log(v0::LogLevel::kWarning, note);
}

v0::MemoryPlan to_public(const SessionPlan& plan) {
  const MemoryReport& m = plan.memory;
  v0::MemoryPlan p;
  p.weights = m.device.weights;
  p.keys = m.device.keys;
  p.values = m.device.values;
  p.landmarks = m.device.landmarks;
  p.slots = m.device.slots;
  p.exact = m.device.exact;
  p.activations = m.device.activations;
  p.device_total = m.device.total();
  p.host_weights = m.host.weights;
  p.host_keys = m.host.keys;
  p.host_values = m.host.values;
  p.host_staging = m.host.staging;
  p.host_total = m.host.total();
  p.process = m.process;
  p.resident = m.resident();
  p.context = plan.context;
  p.composition = composition(plan.options);
  p.notes = plan.notes;
  return p;
}

}  // namespace detail

namespace v0 {

const char* version() { return TIERCEL_VERSION; }
const char* commit() { return source_commit(); }

Error::Error(ErrorKind kind, const std::string& what) : std::runtime_error(what), kind_(kind) {}
Error::~Error() = default;

Engine::Engine(const std::string& directory, const Options& options) try {
  state_ = detail::translated([&] {
    const detail::Settings settings = detail::resolve({&options});
    detail::require_name("the model's directory", directory);
    // The model first: its configuration has the cheapest errors.
    auto model = Model::open(directory, {.backend = settings.backend,
                                         .n_threads = static_cast<int>(settings.n_threads),
                                         .device = static_cast<int>(settings.device),
                                         .reach = settings.reach,
                                         .host_layers = settings.host_layers,
                                         .weight_form = settings.weight_form,
                                         .load = {.session = settings.session,
                                                  .n_prompt = std::max<int64_t>(settings.session.context - 1, 1)}});
    return std::make_shared<detail::EngineState>(directory, options, std::move(model),
                                                 Tokenizer::load(directory));
  });
} catch (const Error&) {
  throw;
} catch (const std::exception& error) {  // of libraries that start threads
  throw Error(ErrorKind::kRuntime, error.what());
}

Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Session Engine::open_session(const Options& options) const {
  return detail::translated([&] {
    detail::EngineState& engine = detail::opened_engine(state_);
    detail::require_session_options(options);
    auto state = std::make_shared<detail::SessionState>(
        state_, detail::resolve({&options, &engine.options}));
    state->restart_sampling();
    return Session(std::move(state));
  });
}

MemoryPlan Engine::plan(int64_t n_prompt, const Options& options) const {
  return detail::translated([&] {
    detail::EngineState& engine = detail::opened_engine(state_);
    detail::require_session_options(options);
    const detail::Turn turn(engine);
    const detail::Settings settings = detail::resolve({&options, &engine.options});
    const SessionPlan plan =
        tiercel::Session::plan(*engine.model, settings.session, n_prompt, settings.n_predict);
    MemoryPlan memory = detail::to_public(plan);
    memory.session_file = tiercel::Session::saved_bytes(*engine.model, plan, n_prompt);
    return memory;
  });
}

std::vector<int32_t> Engine::tokenize(std::string_view text, const Options& options) const {
  const detail::EngineState& engine = detail::opened_engine(state_);
  return detail::translated([&] {
    const detail::Settings settings = detail::resolve({&options, &engine.options});
    return engine.tokenizer.encode(
        text, {.add_special = !settings.no_bos, .parse_special = settings.special});
  });
}

std::string Engine::detokenize(std::span<const int32_t> tokens, bool skip_special) const {
  const detail::EngineState& engine = detail::opened_engine(state_);
  detail::check_decodable(engine, tokens);
  return detail::translated([&] { return engine.tokenizer.decode(tokens, skip_special); });
}

void Engine::set_log(LogCallback callback, LogLevel from) {
  detail::opened_engine(state_).set_log(std::move(callback), from);
}

ModelInfo Engine::info() const {
  const detail::EngineState& engine = detail::opened_engine(state_);
  const ModelConfig& config = engine.model->config();
  ModelInfo info;
  info.n_layers = config.n_layers;
  info.vocab_size = config.vocab_size;
  info.max_positions = config.max_position_embeddings;
  info.parameters = engine.model->parameter_count();
  info.weight_bytes = engine.model->weight_bytes();
  info.bos_token = config.bos_token_id.value_or(-1);
  info.end_tokens = engine.end_tokens;
  return info;
}

}  // namespace v0
}  // namespace tiercel
