// Sessions that are saved, restored and forked, and budgets that change on the way.
#include "engine/api/session_call.h"
#include "engine/saved_session.h"

namespace tiercel {
namespace detail {
namespace {

// Calls f with what reports to `progress`. False: it asked to stop.
template <typename F>
bool stoppable(const SessionState& s, int64_t n_tokens, bool cached, const v0::ProgressCallback& progress,
               F&& f) {
  const ProgressCallback report = [&](const tiercel::Progress& p) {
    return goes_on_within(s, progress,
                          {.total = n_tokens,
                           .cached = cached ? p.tokens_done : 0,
                           .processed = p.tokens_done,
                           .elapsed = p.seconds});
  };
  try {
    f(report);
  } catch (const tiercel::Error& error) {
    if (error.kind() != tiercel::ErrorKind::kInterrupted) throw;
    return false;
  }
  return true;
}

// What the file's cache depends on is as it was saved, unless it is asked for here. The engine's
// options were not meant for it.
Settings settings_of(const SavedSession& saved, const v0::Options& engine,
                     const v0::Options& options) {
  Settings settings = resolve({&engine});
  SessionOptions& to = settings.session;
  const SessionOptions& from = saved.options();
  to.attention = from.attention;
  to.selection = from.selection;
  to.prefill = from.prefill;
  to.prefill_budget = from.prefill_budget;
  to.value_home = from.value_home;
  to.audit = from.audit;
  apply({&options}, settings);
  return settings;
}

// False: stopped, and empty.
bool restore(SessionState& s, const SavedSession& saved, const v0::ProgressCallback& progress) {
  return compute(s, [&] {
    const auto start = std::chrono::steady_clock::now();
    const SessionPlan plan =
        tiercel::Session::plan(*s.engine->model, s.settings.session, saved, s.settings.n_predict);
    s.engine->log_plan("restore", plan);
    s.inner = tiercel::Session::open(s.engine->model, plan);
    s.open_seconds = seconds_since(start);
    const bool done = stoppable(s, saved.n_tokens(), true, progress,
                                [&](const auto& report) { s.inner->restore(saved, report); });
    if (!done) {
      s.clear();
      return false;
    }
    s.prefill_seconds = seconds_since(start) - s.open_seconds;
    s.sequence = saved.ids();
    s.n_prompt = saved.n_prompt();
    s.restart_sampling();
    return true;
  });
}

}  // namespace
}  // namespace detail

namespace v0 {

bool Session::save(const std::string& path, const ProgressCallback& progress) {
  const detail::Call call(state_);
  detail::SessionState& s = call.with_prompt();
  detail::require_name("save", path);
  detail::decode(s, [&] { detail::flush(s); });  // a file has no token that is on its way
  const detail::Turn turn(*s.engine);
  return detail::passing_through([&] {
    return detail::translated([&] {
      return detail::stoppable(s, std::ssize(s.sequence), false, progress,
                               [&](const auto& report) { s.inner->save(path, s.sequence, report); });
    });
  });
}

void Session::set_budget(int64_t tokens) {
  const detail::Call call(state_);
  detail::SessionState& s = call.with_prompt();
  if (s.inner->plan().options.attention == AttentionMode::kDense) {
    detail::refuse(ErrorKind::kUsage, "set_budget: dense attention selects nothing");
  }
  detail::decode(s, [&] { detail::flush(s); });  // what was generated attended as it was asked to
  const detail::Turn turn(*s.engine);
  detail::translated([&] { s.inner->set_budget(tokens); });
}

Session Session::fork() {
  const detail::Call call(state_);
  detail::SessionState& s = call.with_prompt();
  detail::decode(s, [&] { detail::flush(s); });
  auto state = std::make_shared<detail::SessionState>(s.engine, s.settings);
  {
    const detail::Turn turn(*s.engine);
    const auto start = std::chrono::steady_clock::now();
    detail::translated([&] { state->inner = s.inner->fork(); });
    state->open_seconds = detail::seconds_since(start);
  }
  state->sequence = s.sequence;
  state->n_prompt = s.n_prompt;
  state->decode_steps = s.decode_steps;
  state->sampler = s.sampler;
  state->initial_sampler = s.initial_sampler;
  state->seed = s.seed;
  state->decoder = s.decoder;
  return Session(std::move(state));
}

Session Engine::restore(const std::string& path, const Options& options,
                        const ProgressCallback& progress) const {
  detail::EngineState& engine = detail::opened_engine(state_);
  detail::require_session_options(options);
  detail::require_name("restore", path);
  return detail::passing_through([&] {
    return detail::translated([&] {
      const auto saved = SavedSession::open(path);
      auto state = std::make_shared<detail::SessionState>(
          state_, detail::settings_of(*saved, engine.options, options));
      if (!detail::restore(*state, *saved, progress)) state->restart_sampling();
      return Session(std::move(state));
    });
  });
}

}  // namespace v0
}  // namespace tiercel
