// A batch of the public interface: a scheduler, and the thread that takes its turns.
//
// Locks are taken in this order: the engine's turn, the worker's mutex, a request's mutex or the
// scheduler's own. Callbacks run under the first alone, so they may call whatever takes the others.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "engine/api/state.h"
#include "engine/scheduler.h"

namespace tiercel::detail {

class BatchWorker;

// A request: what it is asked for and, once done, its result, which then stays as it is.
class SharedRequest {
 public:
  struct Wish {
    int64_t n_prompt = 0, n_prefix = 0;  // the latter among the former
    bool fills_context = false;  // the context ends before what was asked for
    bool ignores_ends = false;
    uint64_t seed = 0;
    v0::PieceCallback callback;
  };
  SharedRequest(std::shared_ptr<BatchWorker> batch, Wish wish);

  const v0::Generation& wait() const;
  bool wait_for(double seconds) const;
  bool done() const;
  void cancel();
  v0::RequestStats stats() const;

 private:
  friend class BatchWorker;

  // In the batch's thread. False: no more tokens are wanted.
  bool take(int32_t token);
  void finish(const RequestReport& report);
  void finish_result(const RequestReport& report);
  v0::RequestStats to_public(const RequestReport& report) const;
  std::shared_ptr<BatchWorker> batch() const;

  // Throws kBusy in a thread that the batch's thread waits for.
  void require_patience() const;

  int64_t id_ = -1;  // of the scheduler; set before anyone but submit knows the request
  std::atomic<bool> cancelled_{false};

  // Of the batch's thread.
  Wish wish_;
  StreamDecoder decoder_;
  std::vector<int32_t> tokens_;
  std::string text_;
  bool ended_by_token_ = false;
  std::exception_ptr raised_;  // by the callback

  mutable std::mutex mutex_;  // over the rest
  mutable std::condition_variable changed_;
  std::shared_ptr<BatchWorker> batch_;  // until it is done
  bool done_ = false;
  v0::Generation result_;
  v0::RequestStats stats_;
  v0::ErrorKind error_kind_ = v0::ErrorKind::kRuntime;
  std::string error_;  // of a failed one that did not raise
};

// The result of a request without a copy of it.
struct RequestResult {
  // As v0::Request::wait. Lasts as long as the request does.
  static const v0::Generation& wait(const v0::Request& request);
};

// What a Prefix and its copies hold.
class HeldPrefix {
 public:
  HeldPrefix(std::vector<int32_t> tokens, std::weak_ptr<BatchWorker> batch)
      : tokens_(std::make_shared<const std::vector<int32_t>>(std::move(tokens))),
        batch_(std::move(batch)) {}
  // The batch, which may be asleep, gives its memory back.
  ~HeldPrefix();
  HeldPrefix(const HeldPrefix&) = delete;
  HeldPrefix& operator=(const HeldPrefix&) = delete;

  const SharedPrefix& tokens() const { return tokens_; }
  bool is_of(const BatchWorker& batch) const { return batch_.lock().get() == &batch; }

 private:
  SharedPrefix tokens_;
  std::weak_ptr<BatchWorker> batch_;
};

class BatchWorker : public std::enable_shared_from_this<BatchWorker> {
 public:
  // Both in the engine's turn. start() throws v0::Error(kRuntime) where no thread can be had.
  BatchWorker(std::shared_ptr<EngineState> engine, v0::Options options,
              std::unique_ptr<tiercel::Batch> batch, double max_gap);
  void start();

  // prefix: what the prompt is behind, or null.
  std::shared_ptr<SharedRequest> submit(const HeldPrefix* prefix, std::vector<int32_t> prompt,
                                        int64_t n, const v0::Options& options,
                                        v0::PieceCallback callback);
  std::shared_ptr<HeldPrefix> share(std::vector<int32_t> tokens);
  std::vector<int32_t> tokenize(const HeldPrefix* prefix, std::string_view text,
                                const v0::Options& options) const;
  // There may be something to do.
  void wake();
  v0::BatchStats stats() const;
  const v0::MemoryPlan& memory() const { return memory_; }

  // Cancels everything; the thread ends by itself.
  void begin_close();
  void join();
  void detach();
  // Whether this thread's turn is what the worker waits for: then it may not wait for the worker.
  bool would_wait_for_ever() const { return engine_->turn.is_mine(); }

  const EngineState& engine() const { return *engine_; }
  void cancel(SharedRequest& request);
  v0::RequestStats stats(const SharedRequest& request) const;

 private:
  void run() noexcept;
  bool wait_for_work();
  bool take_turn();
  void forget_ended();
  void end_all(const std::string& why);
  void give_back();
  int64_t room_behind(int64_t n_prompt) const;

  const std::shared_ptr<EngineState> engine_;
  const v0::Options options_;
  const int64_t max_prompt_, context_;
  const v0::MemoryPlan memory_;

  mutable std::mutex mutex_;  // over the rest
  std::condition_variable changed_;
  std::unique_ptr<Scheduler> scheduler_;  // until the thread ends; its turns need no lock
  SchedulerReport last_report_;           // afterwards
  std::set<std::shared_ptr<SharedRequest>> live_;
  std::vector<Scheduler::RequestId> ended_;  // and not yet forgotten
  std::string failure_;                      // why there are no more turns
  bool has_work_ = false, closing_ = false, stopped_ = false;
  std::thread thread_;
};

}  // namespace tiercel::detail
