// The C interface: batches and their requests.
#include "engine/api/batch_worker.h"
#include "engine/api/c_handles.h"
#include "engine/api/c_numbers.h"

using namespace tiercel::c;

namespace {

const tiercel::v0::Generation& result_of(const tiercel_request* request) {
  return tiercel::detail::RequestResult::wait(at(request, "request").request);
}

// prompt: text or tokens, behind a prefix or not.
tiercel_status submit(tiercel_batch* batch, int64_t n, const tiercel_options* options,
                      tiercel_piece_callback callback, void* user, tiercel_request** request,
                      const auto&... prompt) {
  at(request, "request");
  *request = new tiercel_request{
      at(batch, "batch").batch.submit(prompt..., n, or_none(options), wrapped(callback, user))};
  return TIERCEL_OK;
}

}  // namespace

extern "C" {

tiercel_status tiercel_batch_open(const tiercel_engine* engine, const tiercel_options* options,
                                  tiercel_batch** batch, tiercel_error** error) {
  return guarded(error, [&] {
    at(batch, "batch");
    *batch = new tiercel_batch{at(engine, "engine").engine.open_batch(or_none(options))};
    return TIERCEL_OK;
  });
}
void tiercel_batch_close(tiercel_batch* batch) { delete batch; }

tiercel_status tiercel_batch_submit(tiercel_batch* batch, const char* text, size_t length,
                                    int64_t n, const tiercel_options* options,
                                    tiercel_piece_callback callback, void* user,
                                    tiercel_request** request, tiercel_error** error) {
  return guarded(error, [&] {
    return submit(batch, n, options, callback, user, request, text_at(text, length));
  });
}

tiercel_status tiercel_batch_submit_tokens(tiercel_batch* batch, const int32_t* tokens,
                                           size_t n_tokens, int64_t n,
                                           const tiercel_options* options,
                                           tiercel_piece_callback callback, void* user,
                                           tiercel_request** request, tiercel_error** error) {
  return guarded(error, [&] {
    return submit(batch, n, options, callback, user, request, span_at(tokens, n_tokens, "tokens"));
  });
}

tiercel_status tiercel_batch_share(tiercel_batch* batch, const char* text, size_t length,
                                   const tiercel_options* options, tiercel_prefix** prefix,
                                   tiercel_error** error) {
  return guarded(error, [&] {
    at(prefix, "prefix");
    *prefix = new tiercel_prefix{
        at(batch, "batch").batch.share(text_at(text, length), or_none(options))};
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_batch_share_tokens(tiercel_batch* batch, const int32_t* tokens,
                                          size_t n_tokens, tiercel_prefix** prefix,
                                          tiercel_error** error) {
  return guarded(error, [&] {
    at(prefix, "prefix");
    *prefix =
        new tiercel_prefix{at(batch, "batch").batch.share(span_at(tokens, n_tokens, "tokens"))};
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_batch_submit_behind(tiercel_batch* batch, const tiercel_prefix* prefix,
                                           const char* text, size_t length, int64_t n,
                                           const tiercel_options* options,
                                           tiercel_piece_callback callback, void* user,
                                           tiercel_request** request, tiercel_error** error) {
  return guarded(error, [&] {
    return submit(batch, n, options, callback, user, request, at(prefix, "prefix").prefix,
                  text_at(text, length));
  });
}

tiercel_status tiercel_batch_submit_tokens_behind(
    tiercel_batch* batch, const tiercel_prefix* prefix, const int32_t* tokens, size_t n_tokens,
    int64_t n, const tiercel_options* options, tiercel_piece_callback callback, void* user,
    tiercel_request** request, tiercel_error** error) {
  return guarded(error, [&] {
    return submit(batch, n, options, callback, user, request, at(prefix, "prefix").prefix,
                  span_at(tokens, n_tokens, "tokens"));
  });
}

size_t tiercel_prefix_n_tokens(const tiercel_prefix* prefix) {
  return prefix == nullptr ? 0 : static_cast<size_t>(prefix->prefix.n_tokens());
}
void tiercel_prefix_free(tiercel_prefix* prefix) { delete prefix; }

tiercel_status tiercel_batch_number(const tiercel_batch* batch, const char* name, double* value,
                                    tiercel_error** error) {
  return guarded(error, [&] {
    at(value, "value") = tiercel::detail::number(at(batch, "batch").batch, &at(name, "name"));
    return TIERCEL_OK;
  });
}
tiercel_status tiercel_batch_numbers(const tiercel_batch* batch, double* values, size_t n_values,
                                     tiercel_error** error) {
  return guarded(error, [&] {
    tiercel::detail::numbers(at(batch, "batch").batch, span_at(values, n_values, "values"));
    return TIERCEL_OK;
  });
}
const char* tiercel_batch_number_name(size_t i) { return tiercel::detail::batch_number_name(i); }

tiercel_status tiercel_batch_text(const tiercel_batch* batch, const char* name, char** text,
                                  tiercel_error** error) {
  return guarded(error, [&] {
    give_text(tiercel::detail::text(at(batch, "batch").batch.memory(), &at(name, "name")),
              &at(text, "text"), nullptr);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_request_wait(const tiercel_request* request, tiercel_finish* finish,
                                    tiercel_error** error) {
  return guarded(error, [&] {
    const auto reason = static_cast<tiercel_finish>(result_of(request).reason);
    if (finish != nullptr) *finish = reason;
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_request_wait_for(const tiercel_request* request, double seconds, int* done,
                                        tiercel_error** error) {
  return guarded(error, [&] {
    at(done, "done") = at(request, "request").request.wait_for(seconds) ? 1 : 0;
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_request_tokens(const tiercel_request* request, int32_t** tokens,
                                      size_t* n_tokens, tiercel_error** error) {
  return guarded(error, [&] {
    at(tokens, "tokens");
    at(n_tokens, "n_tokens");
    give_tokens(result_of(request).tokens, tokens, n_tokens);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_request_text(const tiercel_request* request, char** text, size_t* length,
                                    tiercel_error** error) {
  return guarded(error, [&] {
    at(text, "text");
    give_text(result_of(request).text, text, length);
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_request_logprobs(const tiercel_request* request, double** logprobs,
                                        size_t* n_tokens, tiercel_error** error) {
  return guarded(error, [&] {
    at(logprobs, "logprobs");
    at(n_tokens, "n_tokens");
    std::vector<double> all;
    for (const auto& one : result_of(request).logprobs) all.push_back(one.logprob);
    *logprobs = copied(all.data(), all.size());
    *n_tokens = all.size();
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_request_top_logprobs(const tiercel_request* request, size_t index,
                                            int32_t** tokens, double** logprobs, size_t* n,
                                            tiercel_error** error) {
  return guarded(error, [&] {
    at(tokens, "tokens");
    at(logprobs, "logprobs");
    at(n, "n");
    const auto& all = result_of(request).logprobs;
    if (index >= all.size()) {
      tiercel::detail::refuse(ErrorKind::kUsage, "index: expected less than {} log probabilities, found {}",
                              all.size(), index);
    }
    std::vector<int32_t> its_tokens;
    std::vector<double> its_logprobs;
    for (const auto& one : all[index].top) {
      its_tokens.push_back(one.token);
      its_logprobs.push_back(one.logprob);
    }
    double* const copy = copied(its_logprobs.data(), its_logprobs.size());
    try {
      give_tokens(its_tokens, tokens, n);
    } catch (...) {
      std::free(copy);
      throw;
    }
    *logprobs = copy;
    return TIERCEL_OK;
  });
}

tiercel_status tiercel_request_number(const tiercel_request* request, const char* name,
                                      double* value, tiercel_error** error) {
  return guarded(error, [&] {
    at(value, "value") =
        tiercel::detail::number(at(request, "request").request.stats(), &at(name, "name"));
    return TIERCEL_OK;
  });
}
tiercel_status tiercel_request_numbers(const tiercel_request* request, double* values,
                                       size_t n_values, tiercel_error** error) {
  return guarded(error, [&] {
    tiercel::detail::numbers(at(request, "request").request.stats(),
                             span_at(values, n_values, "values"));
    return TIERCEL_OK;
  });
}
const char* tiercel_request_number_name(size_t i) {
  return tiercel::detail::request_number_name(i);
}

tiercel_status tiercel_request_cancel(tiercel_request* request, tiercel_error** error) {
  return guarded(error, [&] {
    at(request, "request").request.cancel();
    return TIERCEL_OK;
  });
}
void tiercel_request_free(tiercel_request* request) { delete request; }

}  // extern "C"
