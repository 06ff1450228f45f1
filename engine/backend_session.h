// A session on one backend: the same code for every pair of tiers.
#pragma once

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/topology.h"
#include "engine/base/check.h"
#include "engine/decoder.h"
#include "engine/draft.h"
#include "engine/logprobs.h"
#include "engine/model.h"
#include "engine/saved_session.h"
#include "engine/session_backend.h"
#include "engine/state_files.h"

namespace tiercel {

inline int64_t limit_without(int64_t limit, int64_t bytes) { return limit > 0 ? limit - bytes : 0; }

template <typename Device, typename Host>
class BackendSession : public Session {
 public:
  BackendSession(std::shared_ptr<LoadedModel> model, const SessionPlan& plan,
                 SessionBackend<Device, Host> backend)
      : model_(std::move(model)),
        plan_(plan),
        backend_(std::move(backend)),
        // Weights and rope tables are on the device too, but owned elsewhere.
        device_arena_(backend_.device, "device",
                      limit_without(plan.options.device_memory, plan.memory.device.weights)),
        host_arena_(backend_.host, "host",
                    limit_without(plan.options.host_memory, plan.memory.host.weights)),
        layout_(kv_layout(plan, model_->config())),
        workspace_(device_arena_, layout_),
        store_({backend_.device, backend_.copy, backend_.side, backend_.host, backend_.worker},
               device_arena_, host_arena_, workspace_, layout_, backend_.rope,
               model_->attention_scale(), plan.options.exact_exp),
        decoder_(
            {backend_.device, backend_.upload, backend_.states}, device_arena_, host_arena_,
            model_->config(), backend_.weights, store_,
            DecoderLayout(model_->config(), plan, !Device::kHostReadable), !plan.options.no_graphs) {
    if (plan.draft > 0) drafts_.emplace(plan.options.draft, plan.draft, plan.context);
  }

  bool prefill(std::span<const int32_t> ids, const ProgressCallback& progress) override {
    return run_prompt(ids, {}, progress);
  }

  bool prefill_logprobs(std::span<const int32_t> ids, std::span<double> logprobs,
                        const ProgressCallback& progress) override {
    CHECK(plan_.logprobs, "the plan was made without logprobs");
    CHECK(logprobs.size() + 1 == ids.size(), "{} ids, {} logprobs", ids.size(), logprobs.size());
    const bool done = run_prompt(ids, logprobs, progress);
    if (done) check_logprobs(logprobs);
    return done;
  }

  void step(int32_t token) override {
    check_token(token, n_tokens());
    if (n_tokens() >= plan_.context) {
      fail("the context of {} tokens is full; plan a longer one (-c, -n)", plan_.context);
    }
    const int64_t every = plan_.options.audit;
    store_.set_audit(every > 0 && ++steps_ % every == 0);
    if (drafts_) {
      step_drafting(token);
    } else {
      decoder_.step(token);
    }
  }

  bool append(std::span<const int32_t> ids, const ProgressCallback& progress) override {
    const auto n = static_cast<int64_t>(ids.size());
    for (int64_t i = 0; i < n; ++i) check_token(ids[static_cast<size_t>(i)], n_tokens() + i);
    if (n_tokens() + n > plan_.context) {
      fail("{} more tokens: the context of {} tokens has room for {}; plan a longer one (-c, -n)", n,
           plan_.context, plan_.context - n_tokens());
    }
    take_back_drafts();
    const auto start = std::chrono::steady_clock::now();
    store_.set_audit(false);
    const int64_t n_context = n_tokens() + n;
    const int64_t most =
        layout_.continues ? std::min(plan_.continued, segment_tokens(model_->config(), layout_.settings, n_tokens(),
                                                                     Device::kRunFlops))
                          : 0;
    std::unique_ptr<Segments> segments;
    for (const AppendRun& run : cut_append(plan_.options, n, most)) {
      const auto some = ids.subspan(static_cast<size_t>(run.first), static_cast<size_t>(run.n_tokens));
      if (run.is_segment) {
        if (segments == nullptr) segments = std::make_unique<Segments>(decoder_);
        decoder_.append_segment(some, n_context, run.dense);
      } else {
        segments.reset();
        decoder_.append(some, run.share);
      }
      if (drafts_) drafts_->append(some);
      if (!progress) continue;
      backend_.device.finish();  // what is reported is done
      const int64_t end = run.first + run.n_tokens;
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      const double fraction = static_cast<double>(end) / static_cast<double>(n);
      if (!progress({"append", fraction, end, n, seconds.count()})) return false;
    }
    return true;
  }

  void rewind() override {
    take_back_drafts();
    if (store_.rewind()) {
      decoder_.rewind();
      if (drafts_) drafts_->rewind(n_prompt_);
      return;
    }
    fail("rewind: {} tokens were generated, more than a session with --recent {} can take back",
         n_tokens() - n_prompt_, plan_.options.selection.recent);
  }

  void set_budget(int64_t tokens) override {
    const KvLayout& layout = store_.layout();
    const int64_t most = layout.settings.budget;
    if (tokens == kBudgetAll) tokens = most;
    if (tokens < 1 || tokens > most) {
      fail(ErrorKind::kUsage, "budget: expected 1 to {} tokens, as planned, found {}", most, tokens);
    }
    take_back_drafts();
    const int64_t chunk = layout.settings.chunk_tokens;
    store_.set_selected(std::min((tokens + chunk - 1) / chunk, layout.select));
    decoder_.forget_recording();
  }

  void save(const std::string& path, std::span<const int32_t> ids,
            const ProgressCallback& progress) override {
    if (n_tokens() == 0 || static_cast<int64_t>(ids.size()) != n_tokens()) {
      fail(ErrorKind::kUsage, "save: the session holds {} tokens, {} ids are given", n_tokens(),
           ids.size());
    }
    take_back_drafts();
    store_.settle();
    const ModelConfig& config = model_->config();
    const SessionImage image = this->image();
    SessionFileWriter file(path, image.meta, image.blocks);
    std::vector<float> logits(static_cast<size_t>(config.vocab_size));
    std::vector<bf16> prompt_end(static_cast<size_t>(config.hidden));
    decoder_.read_end(logits.data(), prompt_end.data());
    ByteProgress bytes("save", n_tokens(), image.file_bytes, progress);
    file.append(std::as_bytes(ids));
    file.append(std::as_bytes(std::span(logits)));
    file.append(std::as_bytes(std::span(prompt_end)));
    StateFiles<Device, Host>(backend_.device, store_).write(image.state_blocks, file, bytes);
    bytes.finish();
    file.commit();
  }

  int64_t file_bytes() override {
    take_back_drafts();
    return image().file_bytes;
  }

  void restore(const SavedSession& saved, const ProgressCallback& progress) override {
    if (n_tokens() > 0) fail(ErrorKind::kUsage, "restore: the session holds tokens already");
    const ModelConfig& config = model_->config();
    saved.check_fits(config, model_->fingerprint(), plan_);
    const SessionFile& file = saved.file();
    const int n_threads = plan_.options.n_threads;
    file.check_blocks(n_threads > 0 ? n_threads
                                    : static_cast<int>(std::thread::hardware_concurrency()));
    const std::vector<int32_t> ids = saved.ids();
    for (size_t i = 0; i < ids.size(); ++i) check_token(ids[i], static_cast<int64_t>(i));
    const std::span<const float> logits = ends_of<float>(file, kLogitsBlock, config.vocab_size);
    const std::span<const bf16> prompt_end = ends_of<bf16>(file, kPromptEndBlock, config.hidden);
    const KvState state = saved.state_for(store_.layout(), plan_.backend);
    const std::vector<StateBlock> blocks = state_blocks(store_.layout(), state);
    StateFiles<Device, Host> files(backend_.device, store_);
    files.check(blocks, file);
    ByteProgress bytes("restore", saved.n_tokens(), file.bytes(), progress);
    bytes.add(0);  // the last moment to stop
    store_.adopt(state);
    files.read(blocks, file, bytes);
    decoder_.write_end(logits.data(), prompt_end.data());
    if (drafts_) drafts_->append(ids);
    n_prompt_ = saved.n_prompt();
    bytes.finish();
  }

  std::unique_ptr<Session> fork() override {
    if (n_tokens() == 0) fail(ErrorKind::kUsage, "fork: the session holds no tokens");
    take_back_drafts();
    std::unique_ptr<Session> opened = model_->open_session(model_, plan_fork());
    auto& copy = dynamic_cast<BackendSession&>(*opened);
    store_.settle();
    const KvState state = store_.state();
    copy.store_.adopt(state);
    copy.store_.settle();  // its memory is zeroed on queues of its own
    StateFiles<Device, Host>(backend_.device, store_).copy_to(copy.store_, state);
    std::vector<float> logits(static_cast<size_t>(model_->config().vocab_size));
    std::vector<bf16> prompt_end(static_cast<size_t>(model_->config().hidden));
    decoder_.read_end(logits.data(), prompt_end.data());
    copy.decoder_.write_end(logits.data(), prompt_end.data());
    copy.store_.set_selected(store_.selected());
    copy.n_prompt_ = n_prompt_;
    if (drafts_) copy.drafts_->append(drafts_->tokens());
    return opened;
  }

  std::span<const float> logits() override {
    const std::span<const float> all = decoder_.logits();
    end_step();
    return all;
  }
  int32_t sample(Sampler& sampler, std::span<const int32_t> history) override {
    std::optional<int32_t> token = decoder_.sample(sampler, history);
    if (token) {
      end_step();
    } else {
      token = sampler.sample(logits(), history);
    }
    if (drafts_) drafts_->expect(*token, sampler.expected());
    return *token;
  }
  int64_t n_tokens() const override { return store_.n_tokens() - (drafts_ ? drafts_->ahead() : 0); }
  const SessionPlan& plan() const override { return plan_; }

  SelectionReport selection() const override {
    return report_of(store_.selection());
  }
  DraftReport drafts() const override { return drafts_ ? drafts_->report() : DraftReport{}; }
  AuditReport audit() const override {
    const MassHistogram mass = store_.audit();
    AuditReport report{mass.steps(), mass.mean(), mass.percentile(0.05), {}};
    for (int64_t layer = 0; layer < model_->config().n_layers; ++layer) {
      const MassHistogram& one = store_.audit(layer);
      report.layer_mass.push_back(one.samples() > 0 ? one.mean()
                                                    : std::numeric_limits<double>::quiet_NaN());
    }
    return report;
  }
  std::vector<double> residual_energy() const override { return store_.residual_energy(); }
  double key_coding_seconds() const override { return store_.key_coding_seconds(); }
  std::string backend_description() const override { return backend_.description; }

 protected:
  const Arena<Device>& device_arena() const { return device_arena_; }

 private:
  // Between the first segment of a text and the last one, whatever ends them.
  class Segments {
   public:
    explicit Segments(Decoder<Device, Host>& decoder) : decoder_(decoder) { decoder.begin_segments(); }
    ~Segments() {
      try {
        decoder_.end_segments();
      } catch (...) {
        // A device that has failed says so again when it is used next.
      }
    }
    Segments(const Segments&) = delete;
    Segments& operator=(const Segments&) = delete;

   private:
    Decoder<Device, Host>& decoder_;
  };

  void step_drafting(int32_t token) {
    if (drafts_->is_next(token)) {
      decoder_.show(drafts_->row());
      return;
    }
    take_back_drafts();
    step_began_ = std::chrono::steady_clock::now();
    const int64_t room = std::min(store_.most_to_take_back(), plan_.context - n_tokens());
    const std::span<const int32_t> tokens = drafts_->begin_step(token, std::max<int64_t>(room - 1, 0));
    try {
      if (tokens.size() > 1) {
        decoder_.step_drafted(tokens);
      } else {
        decoder_.step(token);
      }
    } catch (...) {
      drafts_->cancel_step();
      throw;
    }
    if constexpr (Device::kHostReadable) end_step();  // elsewhere when somebody has waited for the logits
  }
  // Guesses that nobody has stepped with leave the store.
  void take_back_drafts() {
    step_began_.reset();
    if (!drafts_ || drafts_->ahead() == 0) return;
    store_.take_back(drafts_->ahead());
    drafts_->drop();
  }
  // The logits of the step in hand are there.
  void end_step() {
    if (!step_began_) return;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - *step_began_;
    drafts_->took(seconds.count());
    step_began_.reset();
  }

  // Nothing will be prefilled.
  SessionPlan plan_fork() const {
    PlanRequest request = model_->plan_request();
    SessionPlan plan = plan_;
    plan.n_prompt = 1;
    plan.prefills = plan.states_on_host = false;
    request.options = plan.options;
    plan.memory = count_memory(request, plan);
    const MemoryReport& m = plan.memory;
    const int64_t wanted = m.host.total() - m.host.weights + (m.one_memory ? m.device.total() - m.device.weights : 0);
    const int64_t left = cpu::available_memory_bytes();
    if (wanted > left) {
      fail(ErrorKind::kDoesNotFit, "fork: another {} bytes of memory are needed, this machine has {} left",
           wanted, left);
    }
    return plan;
  }

  void check_token(int32_t token, int64_t index) const {
    tiercel::check_token(model_->config(), token, index);
  }

  template <typename T>
  static std::span<const T> ends_of(const SessionFile& file, const char* name, int64_t n) {
    const FileBlock* block = file.find(name);
    if (block == nullptr || block->n_rows != 1 ||
        block->row_bytes != n * static_cast<int64_t>(sizeof(T))) {
      fail("{}: expected a block '{}' of {} numbers", file.path(), name, n);
    }
    return {reinterpret_cast<const T*>(file.row(*block, 0).data()), static_cast<size_t>(n)};
  }

  SessionImage image() const {
    return session_image(model_->config(), model_->fingerprint(), plan_, store_.state());
  }

  bool run_prompt(std::span<const int32_t> ids, std::span<double> logprobs,
                  const ProgressCallback& progress) {
    const auto n = static_cast<int64_t>(ids.size());
    if (n_tokens() > 0) {
      fail(ErrorKind::kUsage, "prefill: the session holds {} tokens already; step() appends",
           n_tokens());
    }
    if (n == 0) fail(ErrorKind::kUsage, "the prompt is empty");
    const int64_t planned = store_.layout().settings.prompt;
    if (n > planned) {
      fail(ErrorKind::kUsage, "the prompt has {} tokens, {} were planned", n, planned);
    }
    for (int64_t i = 0; i < n; ++i) check_token(ids[static_cast<size_t>(i)], i);
    n_prompt_ = n;
    if (!decoder_.prefill(ids, logprobs, progress)) return false;
    if (drafts_) drafts_->append(ids);
    return true;
  }

  std::shared_ptr<LoadedModel> model_;
  SessionPlan plan_;
  SessionBackend<Device, Host> backend_;
  Arena<Device> device_arena_;
  Arena<Host> host_arena_;
  KvLayout layout_;
  KvWorkspace<Device> workspace_;
  KvStore<Device, Host> store_;
  Decoder<Device, Host> decoder_;
  std::optional<Drafts> drafts_;
  std::optional<std::chrono::steady_clock::time_point> step_began_;  // of a step whose logits nobody has seen yet
  int64_t steps_ = 0;
  int64_t n_prompt_ = 0;
};

}  // namespace tiercel
