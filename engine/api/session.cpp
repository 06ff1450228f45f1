// tiercel::Session: what is legal when, and a sequence whose last token may still be on its way.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>

#include "engine/api/session_call.h"
#include "engine/logprobs.h"

namespace tiercel {
namespace detail {
namespace {

int64_t room(const SessionState& s) {
  return s.inner->plan().context - static_cast<int64_t>(s.sequence.size());
}

void check_room(const SessionState& s, size_t n) {
  if (static_cast<int64_t>(n) <= room(s)) return;
  refuse(v0::ErrorKind::kState,
         "{} more tokens: the context of {} tokens has room for {}; plan a longer one (options "
         "n-predict, ctx-size)",
         n, s.inner->plan().context, room(s));
}

// Those after the last token.
std::span<const float> logits_now(SessionState& s) {
  return decode(s, [&] {
    flush(s);
    return s.inner->logits();
  });
}

// False: stopped. logprobs: empty, or one less than tokens.
bool run_prompt(SessionState& s, std::span<const int32_t> tokens, bool with_logprobs,
                std::span<double> logprobs, const v0::ProgressCallback& progress) {
  check_tokens(*s.engine, tokens);
  const auto n = static_cast<int64_t>(tokens.size());
  const auto compute_prompt = [&] {
    const auto start = std::chrono::steady_clock::now();
    const SessionPlan plan = tiercel::Session::plan(*s.engine->model, s.settings.session, n,
                                                    s.settings.n_predict, with_logprobs);
    s.engine->log_plan("prefill", plan);
    s.inner = tiercel::Session::open(s.engine->model, plan);
    s.open_seconds = seconds_since(start);
    // Even when nobody listens: a device's prefill is waited for only where it is reported.
    const ProgressCallback report = [&](const tiercel::Progress& p) {
      return goes_on_within(s, progress,
                            {.total = n, .cached = 0, .processed = p.tokens_done, .elapsed = p.seconds});
    };
    const bool done = with_logprobs ? s.inner->prefill_logprobs(tokens, logprobs, report)
                                    : s.inner->prefill(tokens, report);
    if (!done) {
      s.clear();
      return false;
    }
    s.prefill_seconds = seconds_since(start) - s.open_seconds;
    s.sequence.assign(tokens.begin(), tokens.end());
    s.n_prompt = n;
    s.restart_sampling();
    return true;
  };
  return passing_through([&] { return compute(s, compute_prompt); });
}

}  // namespace

SessionState::~SessionState() {
  if (inner == nullptr) return;
  try {
    const Turn turn(*engine);
    inner.reset();
  } catch (const v0::Error&) {
    inner.reset();  // destroyed in a progress callback: this thread has the turn already
  }
}

void SessionState::clear() {
  inner.reset();
  sequence = {};
  pending = false;
  n_prompt = decode_steps = 0;
  open_seconds = prefill_seconds = decode_seconds = 0;
}

void SessionState::restart_sampling() {
  const ModelConfig& config = engine->model->config();
  if (!sampler) {
    const SamplingOptions options =
        resolve_sampling(settings.sampling, config.sampling, engine->forms, settings.ignore_eos);
    initial_sampler.emplace(options, config.vocab_size);
    seed = options.seed;
  }
  sampler = initial_sampler;
  decoder.emplace(engine->tokenizer, /*skip_special=*/true);
  begin_answer(std::min(sequence.size(), static_cast<size_t>(n_prompt)));
}

void SessionState::begin_answer(size_t n) {
  AnswerForm form = settings.sampling.form;
  if (form.kind == AnswerForm::Kind::kFree) return;
  // What has begun thoughts is answered behind them.
  form.thoughts = begun_thoughts(engine->tokenizer, std::span(sequence).first(n));
  sampler->begin_answer(engine->forms.constraint(form, settings.ignore_eos));
}

}  // namespace detail

namespace v0 {

using detail::Call;
using detail::SessionState;

Session::Session(std::shared_ptr<SessionState> state) : state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&& other) noexcept {
  if (this == &other) return *this;
  if (state_ != nullptr) state_->abandoned = true;
  state_ = std::move(other.state_);
  return *this;
}
Session::~Session() {
  if (state_ != nullptr) state_->abandoned = true;
}

bool Session::prefill(std::span<const int32_t> tokens, const ProgressCallback& progress) {
  const Call call(state_);
  return detail::run_prompt(call.empty(), tokens, false, {}, progress);
}

bool Session::prefill(std::string_view text, const ProgressCallback& progress) {
  const Call call(state_);
  SessionState& s = call.empty();
  const std::vector<int32_t> tokens = detail::translated([&] {
    return s.engine->tokenizer.encode(
        text, {.add_special = !s.settings.no_bos, .parse_special = s.settings.special});
  });
  return detail::run_prompt(s, tokens, false, {}, progress);
}

Generation Session::generate(int64_t n, const PieceCallback& callback) {
  const Call call(state_);
  SessionState& s = call.with_prompt();
  if (n < 0) detail::refuse(ErrorKind::kUsage, "generate: expected a count of tokens, found {}", n);
  const std::vector<int64_t> ends =
      s.settings.ignore_eos ? std::vector<int64_t>{} : s.engine->end_tokens;
  Generation result;
  const auto emit = [&](int32_t token, const std::string& text) {
    result.text += text;
    return detail::goes_on(s, callback, {token, text});
  };
  for (int64_t i = 0; i < n; ++i) {
    if (detail::room(s) < 1) {
      result.reason = FinishReason::kContextFull;
      return result;
    }
    detail::translated([&] { s.sampler->allowed(); });  // what it throws costs a form's answer, not the session
    const int32_t token = detail::decode(s, [&] {
      detail::flush(s);
      return s.inner->sample(*s.sampler, s.sequence);
    });
    s.sequence.push_back(token);
    s.pending = true;
    result.tokens.push_back(token);
    if (std::find(ends.begin(), ends.end(), token) != ends.end()) {
      emit(token, s.decoder->finish());
      result.reason = FinishReason::kEndOfText;
      return result;
    }
    const std::string text = detail::translated([&] { return s.decoder->push(token); });
    if (!emit(token, text)) {
      result.reason = FinishReason::kStopped;
      return result;
    }
  }
  return result;
}

void Session::step(int32_t token) {
  const Call call(state_);
  SessionState& s = call.with_prompt();
  detail::check_tokens(*s.engine, {&token, 1});
  detail::check_room(s, 1);
  detail::decode(s, [&] {
    detail::flush(s);
    detail::step_now(s, token);
    s.sequence.push_back(token);
  });
  s.sampler->followed(token);
  s.decoder->finish();
}

bool Session::append(std::span<const int32_t> tokens, const ProgressCallback& progress) {
  const Call call(state_);
  SessionState& s = call.with_prompt();
  detail::check_tokens(*s.engine, tokens);
  if (tokens.empty()) return true;
  detail::check_room(s, tokens.size());
  const auto n = static_cast<int64_t>(tokens.size());
  std::exception_ptr thrown;  // by the callback: what is in stays in
  const bool done = detail::decode(s, [&] {
    detail::flush(s);
    const int64_t before = s.inner->n_tokens();
    const bool finished = s.inner->append(tokens, [&](const tiercel::Progress& p) {
      try {
        return detail::goes_on(s, progress,
                               {.total = before + n,
                                .cached = before,
                                .processed = before + p.tokens_done,
                                .elapsed = p.seconds});
      } catch (...) {
        thrown = std::current_exception();
        return false;
      }
    });
    const int64_t added = s.inner->n_tokens() - before;
    s.sequence.insert(s.sequence.end(), tokens.begin(), tokens.begin() + added);
    s.decode_steps += added;
    return finished;
  });
  s.decoder->finish();
  s.begin_answer(s.sequence.size());
  if (thrown) std::rethrow_exception(thrown);
  return done;
}

bool Session::append(std::string_view text, const ProgressCallback& progress) {
  std::vector<int32_t> tokens;
  {
    const Call call(state_);
    const SessionState& s = call.with_prompt();
    tokens = detail::translated([&] {
      return s.engine->tokenizer.encode(text, {.add_special = false,
                                               .parse_special = s.settings.special,
                                               .follows = s.engine->tokenizer.behind(s.sequence)});
    });
  }
  return append(tokens, progress);
}

std::span<const float> Session::logits() {
  const Call call(state_);
  return detail::logits_now(call.with_prompt());
}

void Session::copy_logits(std::span<float> out) {
  const Call call(state_);
  const std::span<const float> logits = detail::logits_now(call.with_prompt());
  if (out.size() != logits.size()) {
    detail::refuse(ErrorKind::kUsage, "copy_logits: expected room for {} logits, found {}", logits.size(),
                   out.size());
  }
  std::copy(logits.begin(), logits.end(), out.begin());
}

std::vector<double> Session::score(std::span<const int32_t> tokens,
                                   const ProgressCallback& progress) {
  const Call call(state_);
  SessionState& s = call.open();
  const auto n = static_cast<int64_t>(tokens.size());
  if (s.inner == nullptr) {
    std::vector<double> result(tokens.size(), std::nan(""));
    const std::span<double> behind_first =
        std::span(result).subspan(std::min<size_t>(1, result.size()));
    if (!detail::run_prompt(s, tokens, true, behind_first, progress)) return {};
    return result;
  }
  detail::check_tokens(*s.engine, tokens);
  if (tokens.empty()) return {};
  detail::check_room(s, tokens.size());
  s.decoder->finish();
  const auto start = std::chrono::steady_clock::now();
  const auto before = static_cast<int64_t>(s.sequence.size());
  std::vector<double> result;
  result.reserve(tokens.size());
  for (const int32_t token : tokens) {
    const std::span<const float> logits = detail::logits_now(s);
    result.push_back(softmax_of(logits).logprob(logits[static_cast<size_t>(token)]));
    s.sequence.push_back(token);
    s.pending = true;
    const bool go_on = detail::goes_on(s, progress,
                                       {.total = before + n,
                                        .cached = before,
                                        .processed = static_cast<int64_t>(s.sequence.size()),
                                        .elapsed = detail::seconds_since(start)});
    if (!go_on) break;
  }
  return result;
}

void Session::rewind() {
  const Call call(state_);
  SessionState& s = call.with_prompt();
  const detail::Turn turn(*s.engine);
  try {
    s.inner->rewind();
  } catch (const tiercel::Error& error) {
    throw Error(ErrorKind::kState, error.what());
  }
  s.sequence.resize(static_cast<size_t>(s.n_prompt));
  s.pending = false;
  s.decode_steps = 0;
  s.decode_seconds = 0;
  s.restart_sampling();
}

void Session::reset() {
  const Call call(state_);
  SessionState& s = call.open();
  const detail::Turn turn(*s.engine);
  s.clear();
}

void Session::close() {
  const Call call(state_);
  if (state_->closed) return;
  const detail::Turn turn(*state_->engine);
  state_->clear();
  state_->closed = true;
}

int64_t Session::n_tokens() const {
  const Call call(state_);
  return static_cast<int64_t>(call.open().sequence.size());
}

std::vector<int32_t> Session::tokens() const {
  const Call call(state_);
  return call.open().sequence;
}

Stats Session::stats() const {
  const Call call(state_);
  SessionState& s = call.open();
  Stats stats;
  stats.seed = s.seed;
  if (s.inner == nullptr) return stats;
  const detail::Turn turn(*s.engine);  // counters live on the device
  stats.prompt_tokens = s.n_prompt;
  stats.generated_tokens = static_cast<int64_t>(s.sequence.size()) - s.n_prompt;
  stats.decode_steps = s.decode_steps;
  stats.open_seconds = s.open_seconds;
  stats.prefill_seconds = s.prefill_seconds;
  stats.decode_seconds = s.decode_seconds;
  const SelectionReport selection = s.inner->selection();
  stats.selections = selection.steps;
  stats.selected_chunks = selection.selected_chunks;
  stats.hit_chunks = selection.hit_chunks;
  stats.fetched_bytes = selection.fetched_bytes;
  stats.decisions = selection.decisions;
  stats.reused = selection.reused;
  const DraftReport drafts = s.inner->drafts();
  stats.guessed_tokens = drafts.guessed;
  stats.right_guesses = drafts.right;
  const AuditReport audit = s.inner->audit();
  stats.audited_steps = audit.steps;
  stats.audit_mass_mean = audit.mass_mean;
  stats.audit_mass_p05 = audit.mass_p05;
  return stats;
}

std::string Session::backend() const {
  const Call call(state_);
  const SessionState& s = call.open();
  return s.inner == nullptr ? std::string() : s.inner->backend_description();
}

MemoryPlan Session::memory() const {
  const Call call(state_);
  const SessionState& s = call.open();
  if (s.inner == nullptr) return {};
  MemoryPlan memory = detail::to_public(s.inner->plan());
  memory.session_file = detail::translated([&] { return s.inner->file_bytes(); });
  return memory;
}

}  // namespace v0
}  // namespace tiercel
