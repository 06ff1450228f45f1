#include "tools/generation.h"

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "engine/base/check.h"
#include "tools/progress.h"
#include "tools/signals.h"
#include "tools/stopwatch.h"

namespace tiercel {
namespace {

std::string hash_of(std::span<const float> logits) {
  return fmt::format("{:016x}", XXH64(logits.data(), logits.size_bytes(), 0));
}

// Decodes until something ends it; returns what.
const char* decode(Session& session, Sampler& sampler, const Tokenizer& tokenizer,
                   GenerationRequest& request, const Stopwatch& watch, const Console& console,
                   Generation& result) {
  const std::vector<int64_t>& ends = request.eos_token_ids;
  StreamDecoder decoder(tokenizer, /*skip_special=*/true);
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
      result.time_to_first_token_seconds = watch.seconds();
      decode_watch = {};
    } else {
      result.decode_seconds = decode_watch.seconds();
    }
    request.prompt.push_back(token);
    result.output_tokens.push_back(token);
    if (!request.ignore_eos && std::find(ends.begin(), ends.end(), token) != ends.end()) {
      reason = "stop";
      break;
    }
    if (!emit(decoder.push(token))) return "output_closed";
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
  return emit(decoder.finish()) ? reason : "output_closed";
}

}  // namespace

bool Generation::interrupted() const { return std::string_view(finish_reason) == "interrupted"; }

Generation generate(Session& session, Sampler& sampler, const Tokenizer& tokenizer,
                    GenerationRequest request, const Console& console) {
  Generation result;
  // `prompt` grows into the sampler's history; nothing is allocated while decoding.
  const auto n_new = static_cast<size_t>(request.max_new_tokens);
  request.prompt.reserve(request.prompt.size() + n_new);
  result.output_tokens.reserve(n_new);
  result.output.reserve(8 * n_new);
  const Stopwatch watch;
  try {
    {
      ProgressLine line(console);
      result.prefilled =
          session.prefill(request.prompt, [&](const Progress& p) { return line.update(p); });
    }
    result.prefill_seconds = watch.seconds();
    result.finish_reason =
        result.prefilled ? decode(session, sampler, tokenizer, request, watch, console, result)
                         : "interrupted";
    if (result.prefilled) result.logits_hash = hash_of(session.logits());
  } catch (const Error& error) {
    if (result.prefill_seconds == 0) result.prefill_seconds = watch.seconds();
    result.finish_reason = error.kind() == ErrorKind::kInterrupted ? "interrupted" : "error";
    if (!result.interrupted()) result.error = error.what();
  }
  return result;
}

}  // namespace tiercel
