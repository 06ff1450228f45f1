// What a scheduler knows of a request, and of what requests share. Only the scheduler includes this.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "engine/draft.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"

namespace tiercel {

// A sequence of the batch, or what is to become one.
struct Scheduler::Placed {
  SessionPlan plan;
  SequenceBytes bytes;
  SequenceWork work;
  Prefix* prefix = nullptr;  // that it is behind
  int64_t sequence = -1;     // in the batch
  Batch::PrefillProgress progress;
};

struct Scheduler::Prefix : Placed {
  SharedPrefix tokens;
  int64_t n_requests = 0;  // that have not ended
  int64_t n_behind = 0;    // of them, in the batch
  int64_t last_use = 0;    // of prefixes, by their number
  bool is_ready() const { return sequence >= 0 && progress.finished; }
};

struct Scheduler::Entry : Placed {
  Entry(RequestId its_id, Request its_request) : id(its_id), request(std::move(its_request)) {}

  // Once it is in the batch: those that wait may be many, and a sampler has numbers for the whole vocabulary.
  void begin(int64_t vocab_size) {
    sampler.emplace(request.sampling, vocab_size);
    // As much as a sampler looks back on.
    if (request.prefix != nullptr) {
      const std::vector<int32_t>& tokens = *request.prefix;
      const auto n = std::min(std::ssize(tokens), request.sampling.repeat_last_n);
      history.assign(tokens.end() - n, tokens.end());
    }
    history.insert(history.end(), request.prompt.begin(), request.prompt.end());
  }

  // Where it stands among those that wait: what its prefix still takes counts too.
  double place() const {
    return order + (prefix != nullptr && !prefix->is_ready() ? prefix->work.prompt : 0);
  }

  RequestId id;
  Request request;
  std::optional<Sampler> sampler;
  std::vector<int32_t> history;  // prompt and tokens
  double order = 0;  // work done when it arrived, and its own
  int64_t overtaken = 0;
  double arrived = 0, first_token = 0;
  RequestReport report;
  std::optional<Drafts> drafts;  // while nobody else is decoded
};

// Whether it was done; where it throws, a request, or all requests behind a prefix, have failed.
template <typename Some, typename Work>
bool Scheduler::guarded(Some& some, Work work) {
  try {
    work();
    return true;
  } catch (const Error& error) {
    give_up(some, {error.kind(), error.what()});
  } catch (const std::exception& error) {
    give_up(some, {ErrorKind::kRuntime, error.what()});
  }
  return false;
}

}  // namespace tiercel
