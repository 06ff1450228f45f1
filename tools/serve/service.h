// What tiercel serve answers: OpenAI's endpoints for completions, by a scheduler that decodes all requests together.
//
//   POST /v1/chat/completions, /v1/completions   whole, or as a stream of events
//   POST /tokenize, /detokenize                  tokens of a prompt or a conversation, as vLLM's; and back
//   GET  /v1/models                              the model
//   GET  /health                                 {"status": "ok"}
//   GET  /metrics                                counters, as Prometheus reads them
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model.h"
#include "engine/scheduler.h"
#include "engine/text/tokenizer.h"
#include "tools/batch/requests.h"
#include "tools/console.h"
#include "tools/serve/http_server.h"
#include "tools/serve/live_request.h"
#include "tools/serve/prefix_cache.h"

namespace tiercel {

struct ServiceOptions {
  std::string model;              // what it is called
  std::string api_key;            // that clients must know; empty: none
  bool loopback = false;          // it listens at an address of this machine to itself
  std::vector<int32_t> ends;      // tokens that end a text
  bool shares_prefixes = true;    // PrefixCache
  int64_t most_waiting = 1024;    // requests; more are refused
};

class Service {
 public:
  // All of them must outlive this, and what it has given to the scheduler.
  Service(const Model& model, const BatchRequestReader& reader, const Tokenizer& tokenizer, Scheduler& scheduler,
          const Console& console, ServiceOptions options);
  ~Service();

  // Of a server that has no service yet.
  static HttpAnswer answer_while_loading();

  // What needs no body and no time, and what is not to be answered. Safe from any thread.
  std::optional<HttpAnswer> answer_at_once(const HttpRequest& request) const;
  // The others. Safe from any thread. Throws nothing.
  void handle(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply);

  // Of the thread that takes the scheduler's turns, between runs of a prompt: says how far prompts are, to who wants to
  // know.
  void tell_progress();
  // Likewise: waits until there may be something to do, or so long.
  void wait_for_work(double seconds);
  // Tells everybody who waits for an answer that there will be none, and takes no more requests.
  void shut_down();

 private:
  bool has_key(std::string_view authorization) const;
  std::string why_strange(const HttpRequest& request) const;
  HttpAnswer tokenize(const HttpRequest& request) const;
  HttpAnswer detokenize(const HttpRequest& request) const;
  void complete(const HttpRequest& request, RequestForm form, const std::shared_ptr<HttpReply>& reply);
  std::vector<BatchRequest> read_prompts(nlohmann::json& body, std::string_view text, RequestForm form,
                                         int64_t number) const;
  SharedPrefix prefix_for(const BatchRequest& request) const;
  bool has_room_behind(const std::vector<int32_t>& prefix, const BatchRequest& request) const;
  void take_prefix(BatchRequest& prompt);
  void submit(const std::shared_ptr<LiveRequest>& live);
  Scheduler::RequestId submit(const std::shared_ptr<LiveRequest>& live, size_t choice);
  void end(LiveRequest& live, size_t choice, const RequestReport& report);
  std::string metrics() const;

  const Model& model_;
  const BatchRequestReader& reader_;
  const Tokenizer& tokenizer_;
  Scheduler& scheduler_;
  const Console& console_;
  const ServiceOptions options_;
  const int64_t context_;  // tokens of a prompt and its answer
  const std::string instance_;  // part of ids, another one in each process
  PrefixCache prefixes_;
  std::mutex submitting_;  // what one finds to share, the next one knows
  std::atomic<int64_t> n_requests_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable work_;
  bool has_work_ = false, stopping_ = false;
  std::map<const LiveRequest*, std::shared_ptr<LiveRequest>> live_;
  std::chrono::steady_clock::time_point told_;  // tell_progress, last
};

}  // namespace tiercel
