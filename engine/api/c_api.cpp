// The C interface: errors, options, engines and sessions.
#include <new>
#include <span>
#include <string>

#include "engine/api/c_handles.h"
#include "engine/api/c_numbers.h"

using namespace tiercel::c;

namespace {

// Empty where there is no memory for it; the next call tries again.
std::span<const tiercel::v0::OptionInfo> option_list() {
  try {
    static const std::vector<tiercel::v0::OptionInfo> list = tiercel::v0::Options::list();
    return list;
  } catch (const std::bad_alloc&) {
    return {};
  }
}

const char* option_text(size_t index, std::string tiercel::v0::OptionInfo::*field) {
  return index < option_list().size() ? (option_list()[index].*field).c_str() : nullptr;
}

}  // namespace

extern "C" {

const char* tiercel_version(void) { return tiercel::v0::version(); }
const char* tiercel_commit(void) { return tiercel::v0::commit(); }

tiercel_status tiercel_error_status(const tiercel_error* error) {
  return error == nullptr ? TIERCEL_OK : error->status;
}
const char* tiercel_error_message(const tiercel_error* error) {
  return error == nullptr ? "" : error->message.c_str();
}
void tiercel_error_free(tiercel_error* error) {
  if (error != &out_of_memory()) delete error;
}
void tiercel_free(void* memory) { std::free(memory); }

tiercel_options* tiercel_options_new(void) { return new (std::nothrow) tiercel_options; }
void tiercel_options_free(tiercel_options* options) { delete options; }
tiercel_status tiercel_options_set(tiercel_options* options, const char* name, const char* value,
                                   tiercel_error** error) {
  return guarded(error, [&] {
    at(options, "options").options.set(&at(name, "name"), &at(value, "value"));
    return TIERCEL_OK;
  });
}
size_t tiercel_option_count(void) { return option_list().size(); }
const char* tiercel_option_name(size_t i) { return option_text(i, &tiercel::v0::OptionInfo::name); }
const char* tiercel_option_type(size_t i) { return option_text(i, &tiercel::v0::OptionInfo::type); }
const char* tiercel_option_initial(size_t i) {
  return option_text(i, &tiercel::v0::OptionInfo::initial);
}
const char* tiercel_option_help(size_t i) { return option_text(i, &tiercel::v0::OptionInfo::help); }

tiercel_status tiercel_engine_open(const char* model, const tiercel_options* options,
                                   tiercel_engine** engine, tiercel_error** error) {
  return guarded(error, [&] {
    at(engine, "engine");  // before anything is made for it
    *engine =
        new tiercel_engine{tiercel::v0::Engine(&at(model, "model"), or_none(options))};
    return TIERCEL_OK;
  });
}
void tiercel_engine_close(tiercel_engine* engine) { delete engine; }

tiercel_status tiercel_engine_number(const tiercel_engine* engine, const char* name, double* value,
                                     tiercel_error** error) {
  return guarded(error, [&] {
    at(value, "value") =
        tiercel::detail::number(at(engine, "engine").engine.info(), &at(name, "name"));
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_engine_numbers(const tiercel_engine* engine, double* values,
                                      size_t n_values, tiercel_error** error) {
  return guarded(error, [&] {
    tiercel::detail::numbers(at(engine, "engine").engine.info(),
                             span_at(values, n_values, "values"));
    return TIERCEL_OK;
  });
}

const char* tiercel_engine_number_name(size_t i) { return tiercel::detail::model_number_name(i); }

tiercel_status tiercel_engine_end_tokens(const tiercel_engine* engine, int32_t** tokens,
                                         size_t* n_tokens, tiercel_error** error) {
  return guarded(error, [&] {
    at(tokens, "tokens");
    at(n_tokens, "n_tokens");
    const std::vector<int64_t> ids = at(engine, "engine").engine.info().end_tokens;
    give_tokens({ids.begin(), ids.end()}, tokens, n_tokens);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_engine_set_log(tiercel_engine* engine, tiercel_log_callback callback,
                                      void* user, tiercel_log_level from, tiercel_error** error) {
  return guarded(error, [&] {
    tiercel::v0::LogCallback log;
    if (callback != nullptr) {
      log = [callback, user](tiercel::v0::LogLevel level, std::string_view line) {
        callback(user, static_cast<tiercel_log_level>(level), line.data(), line.size());
      };
    }
    if (from < TIERCEL_LOG_INFO || from > TIERCEL_LOG_ERROR) {
      tiercel::detail::refuse(ErrorKind::kUsage, "from: expected a level from {} to {}, found {}",
                              TIERCEL_LOG_INFO, TIERCEL_LOG_ERROR, from);
    }
    at(engine, "engine").engine.set_log(std::move(log), static_cast<tiercel::v0::LogLevel>(from));
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_tokenize(const tiercel_engine* engine, const char* text, size_t length,
                                const tiercel_options* options, int32_t** tokens, size_t* n_tokens,
                                tiercel_error** error) {
  return guarded(error, [&] {
    at(tokens, "tokens");
    give_tokens(at(engine, "engine").engine.tokenize(text_at(text, length), or_none(options)),
                tokens, &at(n_tokens, "n_tokens"));
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_tokenize_chat(const tiercel_engine* engine, const char* const* roles,
                                     const char* const* contents, size_t n, const char* date,
                                     int32_t** tokens, size_t* n_tokens, tiercel_error** error) {
  return guarded(error, [&] {
    at(tokens, "tokens");
    at(n_tokens, "n_tokens");
    std::vector<tiercel::v0::ChatMessage> messages;
    const auto its_roles = span_at(roles, n, "roles"), texts = span_at(contents, n, "contents");
    for (size_t i = 0; i < n; ++i) {
      messages.push_back({&at(its_roles[i], "roles"), &at(texts[i], "contents")});
    }
    give_tokens(at(engine, "engine").engine.tokenize_chat(messages, date != nullptr ? date : ""),
                tokens, n_tokens);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_tokenize_chat_json(const tiercel_engine* engine, const char* conversation,
                                          size_t length, int32_t** tokens, size_t* n_tokens,
                                          tiercel_error** error) {
  return guarded(error, [&] {
    at(tokens, "tokens");
    at(n_tokens, "n_tokens");
    const std::string_view json(&at(conversation, "conversation"), length);
    give_tokens(at(engine, "engine").engine.tokenize_chat_json(json), tokens, n_tokens);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_read_answer(const tiercel_engine* engine, const int32_t* prompt,
                                   size_t n_prompt, const int32_t* answer, size_t n_answer,
                                   const char* tools, char** message, tiercel_error** error) {
  return guarded(error, [&] {
    at(message, "message");
    const tiercel::v0::ChatAnswer read = at(engine, "engine").engine.read_answer(
        span_at(prompt, n_prompt, "prompt"), span_at(answer, n_answer, "answer"),
        tools != nullptr ? tools : "");
    give_text(read.message_json, message, nullptr);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_tokenize_next_turn(const tiercel_engine* engine, const int32_t* sequence,
                                          size_t n_sequence, const char* user, int32_t** tokens,
                                          size_t* n_tokens, tiercel_error** error) {
  return guarded(error, [&] {
    at(tokens, "tokens");
    at(n_tokens, "n_tokens");
    give_tokens(at(engine, "engine")
                    .engine.tokenize_next_turn(span_at(sequence, n_sequence, "sequence"),
                                               &at(user, "user")),
                tokens, n_tokens);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_detokenize(const tiercel_engine* engine, const int32_t* tokens,
                                  size_t n_tokens, int skip_special, char** text, size_t* length,
                                  tiercel_error** error) {
  return guarded(error, [&] {
    give_text(at(engine, "engine")
                  .engine.detokenize(span_at(tokens, n_tokens, "tokens"), skip_special != 0),
              &at(text, "text"), length);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_engine_plan(const tiercel_engine* engine, int64_t n_prompt,
                                   const tiercel_options* options, const char* name, double* value,
                                   tiercel_error** error) {
  return guarded(error, [&] {
    at(value, "value") = tiercel::detail::number(
        at(engine, "engine").engine.plan(n_prompt, or_none(options)), &at(name, "name"));
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_engine_plan_numbers(const tiercel_engine* engine, int64_t n_prompt,
                                           const tiercel_options* options, double* values,
                                           size_t n_values, tiercel_error** error) {
  return guarded(error, [&] {
    tiercel::detail::numbers(at(engine, "engine").engine.plan(n_prompt, or_none(options)),
                             span_at(values, n_values, "values"));
    return TIERCEL_OK;
  });
}

const char* tiercel_engine_plan_name(size_t i) { return tiercel::detail::plan_number_name(i); }

tiercel_status tiercel_engine_plan_text(const tiercel_engine* engine, int64_t n_prompt,
                                        const tiercel_options* options, const char* name,
                                        char** text, tiercel_error** error) {
  return guarded(error, [&] {
    give_text(tiercel::detail::text(at(engine, "engine").engine.plan(n_prompt, or_none(options)),
                                    &at(name, "name")),
              &at(text, "text"), nullptr);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_open(const tiercel_engine* engine, const tiercel_options* options,
                                    tiercel_session** session, tiercel_error** error) {
  return guarded(error, [&] {
    at(session, "session");
    *session = new tiercel_session{at(engine, "engine").engine.open_session(or_none(options))};
    return TIERCEL_OK;
  });
}
void tiercel_session_close(tiercel_session* session) { delete session; }

tiercel_status tiercel_session_prefill(tiercel_session* session, const char* text, size_t length,
                                       tiercel_progress_callback progress, void* user,
                                       tiercel_error** error) {
  return guarded(error, [&] {
    const bool done =
        at(session, "session").session.prefill(text_at(text, length), wrapped(progress, user));
    return done ? TIERCEL_OK : TIERCEL_STOPPED;
  });
}

tiercel_status tiercel_session_prefill_tokens(tiercel_session* session, const int32_t* tokens,
                                              size_t n_tokens, tiercel_progress_callback progress,
                                              void* user, tiercel_error** error) {
  return guarded(error, [&] {
    const bool done =
        at(session, "session")
            .session.prefill(span_at(tokens, n_tokens, "tokens"), wrapped(progress, user));
    return done ? TIERCEL_OK : TIERCEL_STOPPED;
  });
}

tiercel_status tiercel_session_generate(tiercel_session* session, int64_t n,
                                        tiercel_piece_callback callback, void* user,
                                        tiercel_finish* finish, tiercel_error** error) {
  return guarded(error, [&] {
    const auto result = at(session, "session").session.generate(n, wrapped(callback, user));
    if (finish != nullptr) *finish = static_cast<tiercel_finish>(result.reason);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_step(tiercel_session* session, int32_t token,
                                    tiercel_error** error) {
  return guarded(error, [&] {
    at(session, "session").session.step(token);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_append(tiercel_session* session, const char* text, size_t length,
                                      tiercel_progress_callback progress, void* user,
                                      tiercel_error** error) {
  return guarded(error, [&] {
    const bool done =
        at(session, "session").session.append(text_at(text, length), wrapped(progress, user));
    return done ? TIERCEL_OK : TIERCEL_STOPPED;
  });
}

tiercel_status tiercel_session_append_tokens(tiercel_session* session, const int32_t* tokens,
                                             size_t n_tokens, tiercel_progress_callback progress,
                                             void* user, tiercel_error** error) {
  return guarded(error, [&] {
    const bool done =
        at(session, "session")
            .session.append(span_at(tokens, n_tokens, "tokens"), wrapped(progress, user));
    return done ? TIERCEL_OK : TIERCEL_STOPPED;
  });
}

tiercel_status tiercel_session_fork(tiercel_session* session, tiercel_session** fork,
                                    tiercel_error** error) {
  return guarded(error, [&] {
    at(fork, "fork");
    *fork = new tiercel_session{at(session, "session").session.fork()};
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_logits(tiercel_session* session, const float** logits, size_t* n,
                                      tiercel_error** error) {
  return guarded(error, [&] {
    at(logits, "logits");
    at(n, "n");
    const std::span<const float> found = at(session, "session").session.logits();
    *logits = found.data();
    *n = found.size();
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_copy_logits(tiercel_session* session, float* logits, size_t n,
                                           tiercel_error** error) {
  return guarded(error, [&] {
    at(session, "session").session.copy_logits(span_at(logits, n, "logits"));
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_score(tiercel_session* session, const int32_t* tokens,
                                     size_t n_tokens, double* logprobs,
                                     tiercel_progress_callback progress, void* user,
                                     tiercel_error** error) {
  return guarded(error, [&] {
    span_at(logprobs, n_tokens, "logprobs");
    const std::vector<double> found =
        at(session, "session")
            .session.score(span_at(tokens, n_tokens, "tokens"), wrapped(progress, user));
    std::copy(found.begin(), found.end(), logprobs);
    return found.size() < n_tokens ? TIERCEL_STOPPED : TIERCEL_OK;
  });
}

tiercel_status tiercel_session_set_budget(tiercel_session* session, int64_t tokens,
                                          tiercel_error** error) {
  return guarded(error, [&] {
    at(session, "session").session.set_budget(tokens);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_save(tiercel_session* session, const char* path,
                                    tiercel_progress_callback progress, void* user,
                                    tiercel_error** error) {
  return guarded(error, [&] {
    const bool done =
        at(session, "session").session.save(&at(path, "path"), wrapped(progress, user));
    return done ? TIERCEL_OK : TIERCEL_STOPPED;
  });
}

tiercel_status tiercel_session_restore(const tiercel_engine* engine, const char* path,
                                       const tiercel_options* options,
                                       tiercel_progress_callback progress, void* user,
                                       tiercel_session** session, tiercel_error** error) {
  return guarded(error, [&] {
    at(session, "session");
    auto restored =
        at(engine, "engine")
            .engine.restore(&at(path, "path"), or_none(options), wrapped(progress, user));
    if (restored.n_tokens() == 0) return TIERCEL_STOPPED;
    *session = new tiercel_session{std::move(restored)};
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_rewind(tiercel_session* session, tiercel_error** error) {
  return guarded(error, [&] {
    at(session, "session").session.rewind();
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_reset(tiercel_session* session, tiercel_error** error) {
  return guarded(error, [&] {
    at(session, "session").session.reset();
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_tokens(const tiercel_session* session, int32_t** tokens,
                                      size_t* n_tokens, tiercel_error** error) {
  return guarded(error, [&] {
    at(tokens, "tokens");
    give_tokens(at(session, "session").session.tokens(), tokens, &at(n_tokens, "n_tokens"));
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_n_tokens(const tiercel_session* session, size_t* n_tokens,
                                        tiercel_error** error) {
  return guarded(error, [&] {
    at(n_tokens, "n_tokens") = static_cast<size_t>(at(session, "session").session.n_tokens());
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_session_number(const tiercel_session* session, const char* name,
                                      double* value, tiercel_error** error) {
  return guarded(error, [&] {
    at(value, "value") = tiercel::detail::number(at(session, "session").session, &at(name, "name"));
    return TIERCEL_OK;
  });
}
tiercel_status tiercel_session_numbers(const tiercel_session* session, double* values,
                                       size_t n_values, tiercel_error** error) {
  return guarded(error, [&] {
    tiercel::detail::numbers(at(session, "session").session, span_at(values, n_values, "values"));
    return TIERCEL_OK;
  });
}
size_t tiercel_number_count(void) { return tiercel::detail::session_number_count(); }
const char* tiercel_number_name(size_t i) { return tiercel::detail::session_number_name(i); }

tiercel_status tiercel_session_text(const tiercel_session* session, const char* name, char** text,
                                    tiercel_error** error) {
  return guarded(error, [&] {
    give_text(tiercel::detail::text(at(session, "session").session, &at(name, "name")),
              &at(text, "text"), nullptr);
    return TIERCEL_OK;
  });
}

}  // extern "C"
