#include "tools/generation.h"

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "engine/base/check.h"
#include "tools/progress.h"
#include "tools/signals.h"
#include "tools/stop_text.h"
#include "tools/stopwatch.h"

namespace tiercel {
namespace {

std::string hash_of(std::span<const float> logits) {
  return fmt::format("{:016x}", XXH64(logits.data(), logits.size_bytes(), 0));
}

}  // namespace

const char* decode(Session& session, Sampler& sampler, const Tokenizer& tokenizer,
                   GenerationRequest& request, const Stopwatch& since, const Console& console,
                   Generation& result) {
  const std::vector<int64_t>& ends = request.eos_token_ids;
  StreamDecoder decoder(tokenizer, /*skip_special=*/true);
  StopText stop(request.stops);
  // On a terminal the text itself shows the progress.
  ProgressLine line(console);
  const bool show_progress = ::isatty(STDOUT_FILENO) != 1;
  const auto emit = [&](const std::string& text) {
    result.output += text;
    if (!text.empty()) result.output_errno = write_result(text);
    return result.output_errno == 0;
  };
  Stopwatch decode_watch;
  const char* reason = "length";
  for (int64_t i = 0; i < request.max_new_tokens; ++i) {
    if (i > 0) {
      session.step(request.prompt.back());
      ++result.n_steps;
    }
    const int32_t token = session.sample(sampler, request.prompt);
    if (i == 0) {
      result.time_to_first_token_seconds = since.seconds();
      decode_watch = {};
    } else {
      result.decode_seconds = decode_watch.seconds();
    }
    if (request.n_logprobs >= 0) {
      result.logprobs.push_back(logprobs_of(session.logits(), token, request.n_logprobs));
    }
    request.prompt.push_back(token);
    result.output_tokens.push_back(token);
    if (!request.ignore_eos && std::find(ends.begin(), ends.end(), token) != ends.end()) {
      reason = "stop";
      break;
    }
    std::string text;
    const bool stops = stop.push(decoder.push(token), &text);
    if (!emit(text)) return "output_closed";
    if (stops) {
      result.stopped_by_text = true;
      return "stop";
    }
    const bool go_on = !show_progress ? !stop_requested()
                                      : line.update({.phase = "decode",
                                                     .fraction = (i + 1.0) / request.max_new_tokens,
                                                     .tokens_done = i + 1,
                                                     .tokens_total = request.max_new_tokens,
                                                     .seconds = result.decode_seconds});
    if (!go_on) {
      reason = "interrupted";
      break;
    }
  }
  std::string rest;
  stop.finish(decoder.finish(), &rest);
  return emit(rest) ? reason : "output_closed";
}

bool append_tokens(Session& session, std::span<const int32_t> tokens, const Console& console,
                   Generation& result) {
  const Stopwatch watch;
  ProgressLine line(console);
  const auto more = tokens.subspan(static_cast<size_t>(session.n_tokens()));
  const bool done =
      more.empty() || session.append(more, [&](const Progress& p) { return line.update(p); });
  result.prefill_seconds += watch.seconds();
  return done;
}

namespace {

// A saved session's tokens, and what follows them.
bool restore(Session& session, GenerationRequest& request, const Console& console,
             Generation& result) {
  const Stopwatch watch;
  {
    ProgressLine line(console);
    session.restore(*request.saved, [&](const Progress& p) { return line.update(p); });
  }
  const std::vector<int32_t> ids = request.saved->ids();
  result.n_restored = static_cast<int64_t>(ids.size());
  result.restore_seconds = watch.seconds();
  request.saved.reset();  // what was mapped from it stays
  request.prompt.insert(request.prompt.begin(), ids.begin(), ids.end());
  return append_tokens(session, request.prompt, console, result);
}

}  // namespace

bool take_prompt(Session& session, GenerationRequest& request, const Console& console,
                 Generation& result) {
  if (request.saved != nullptr) return restore(session, request, console, result);
  const Stopwatch watch;
  ProgressLine line(console);
  const bool done =
      session.prefill(request.prompt, [&](const Progress& p) { return line.update(p); });
  result.prefill_seconds = watch.seconds();
  return done;
}

void save_session(Session& session, const GenerationRequest& request, const Console& console,
                  Generation& result) {
  if (request.save_path.empty()) return;
  const Stopwatch watch;
  ProgressLine line(console);
  session.save(request.save_path, request.prompt,
               [&](const Progress& p) { return line.update(p); });
  result.save_seconds = watch.seconds();
  std::error_code ignored;
  result.saved_bytes = static_cast<int64_t>(std::filesystem::file_size(request.save_path, ignored));
}

namespace {

// A prefill is worth more than its file: without one the answer is still given, and then the error.
void try_to_save(Session& session, const GenerationRequest& request, const Console& console,
                 Generation& result) {
  try {
    save_session(session, request, console, result);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kInterrupted) throw;
    console.warn("{}; the answer follows", error.what());
    result.error = error.what();
  }
}

}  // namespace

bool Generation::interrupted() const { return std::string_view(finish_reason) == "interrupted"; }

Generation generate(Session& session, Sampler& sampler, const Tokenizer& tokenizer,
                    GenerationRequest request, const Console& console) {
  Generation result;
  // `prompt` grows into the sampler's history; nothing is allocated while decoding.
  const auto n_new = static_cast<size_t>(request.max_new_tokens);
  const int64_t n_saved = request.saved != nullptr ? request.saved->n_tokens() : 0;
  request.prompt.reserve(request.prompt.size() + static_cast<size_t>(n_saved) + n_new);
  result.output_tokens.reserve(n_new);
  result.output.reserve(8 * n_new);
  const Stopwatch watch;
  try {
    result.prefilled = take_prompt(session, request, console, result);
    if (result.prefilled) try_to_save(session, request, console, result);
    result.finish_reason =
        result.prefilled ? decode(session, sampler, tokenizer, request, watch, console, result)
                         : "interrupted";
    if (result.prefilled) result.logits_hash = hash_of(session.logits());
  } catch (const Error& error) {
    if (!result.prefilled && result.prefill_seconds == 0) result.prefill_seconds = watch.seconds();
    result.finish_reason = error.kind() == ErrorKind::kInterrupted ? "interrupted" : "error";
    if (!result.interrupted()) result.error = error.what();
  }
  return result;
}

}  // namespace tiercel
