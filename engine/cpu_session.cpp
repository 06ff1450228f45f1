// Session on a machine without a GPU: both tiers are cpu::Queue, each with its own budget.
#include "cpu/ops.h"
#include "engine/base/check.h"
#include "engine/base/rope.h"
#include "engine/decoder.h"
#include "engine/model.h"
#include "engine/session.h"
#include "engine/session_plan.h"

namespace tiercel {

static_assert(Backend<cpu::Queue>);
template class KvStore<cpu::Queue, cpu::Queue>;
template class Decoder<cpu::Queue, cpu::Queue>;

namespace {

float attention_scale(const ModelConfig& config, const RopeFrequencies& rope) {
  // cos and sin are kept pure; the factor that yarn puts on both lands on the scores, squared.
  return static_cast<float>(rope.attention_scaling * rope.attention_scaling /
                            std::sqrt(static_cast<double>(config.head_dim)));
}

int64_t limit_without(int64_t limit, int64_t bytes) { return limit > 0 ? limit - bytes : 0; }

class CpuSession final : public Session {
 public:
  CpuSession(std::shared_ptr<LoadedModel> model, const SessionPlan& plan)
      : model_(std::move(model)),
        plan_(plan),
        device_(model_->queue()),
        // Weights and rope tables are on the device too, but owned elsewhere.
        device_arena_(device_, "device",
                      limit_without(plan.options.device_memory, plan.memory.device.weights)),
        host_arena_(device_, "host", plan.options.host_memory),
        rope_(model_->rope().inv_freq, plan.context),
        store_(device_, device_, device_, device_arena_, host_arena_,
               KvLayout(kv_shape(model_->config()), kv_settings(plan, model_->config())),
               rope_.view(), attention_scale(model_->config(), model_->rope()),
               plan.options.exact_exp),
        decoder_(device_, device_arena_, model_->config(), model_->weights(), store_,
                 DecoderLayout(model_->config(), plan.n_prompt, plan.logprobs)) {}

  bool prefill(std::span<const int32_t> ids, const ProgressCallback& progress) override {
    return run_prompt(ids, {}, progress);
  }

  bool prefill_logprobs(std::span<const int32_t> ids, std::span<double> logprobs,
                        const ProgressCallback& progress) override {
    CHECK(plan_.logprobs, "the plan was made without logprobs");
    CHECK(logprobs.size() + 1 == ids.size(), "{} ids, {} logprobs", ids.size(), logprobs.size());
    return run_prompt(ids, logprobs, progress);
  }

  void step(int32_t token) override {
    check_token(token, n_tokens());
    if (n_tokens() >= plan_.context) {
      fail("the context of {} tokens is full; plan a longer one (-c, -n)", plan_.context);
    }
    const int64_t every = plan_.options.audit;
    store_.set_audit(every > 0 && ++steps_ % every == 0);
    decoder_.step(token);
  }

  std::span<const float> logits() const override { return decoder_.logits(); }
  int64_t n_tokens() const override { return store_.n_tokens(); }
  const SessionPlan& plan() const override { return plan_; }

  SelectionReport selection() const override {
    const SelectionCounters& c = store_.selection();
    return {c.steps, c.selected_chunks, c.hit_chunks, c.fetched_bytes};
  }
  AuditReport audit() const override {
    const MassHistogram& mass = store_.audit();
    return {mass.steps(), mass.mean(), mass.percentile(0.05)};
  }
  std::vector<double> residual_energy() const override {
    const KvSettings& s = store_.layout().settings;
    if (s.kind == StoreKind::kDense || s.exact_keys) return {};
    return store_.residual_energy();
  }
  std::string backend_description() const override {
    return fmt::format("cpu: {}, {} threads", cpu::name_of(device_.isa()), device_.n_workers());
  }

 private:
  void check_token(int32_t token, int64_t index) const {
    if (token >= 0 && token < model_->config().vocab_size) return;
    fail(ErrorKind::kUsage, "token {} at index {}: the vocabulary has {} tokens", token, index,
         model_->config().vocab_size);
  }

  bool run_prompt(std::span<const int32_t> ids, std::span<double> logprobs,
                  const ProgressCallback& progress) {
    const auto n = static_cast<int64_t>(ids.size());
    CHECK(n_tokens() == 0, "a session prefills once");
    if (n == 0) fail(ErrorKind::kUsage, "the prompt is empty");
    const int64_t planned = store_.layout().settings.prompt;
    if (n > planned) {
      fail(ErrorKind::kUsage, "the prompt has {} tokens, {} were planned", n, planned);
    }
    for (int64_t i = 0; i < n; ++i) check_token(ids[static_cast<size_t>(i)], i);
    return decoder_.prefill(ids, logprobs, progress);
  }

  std::shared_ptr<LoadedModel> model_;
  SessionPlan plan_;
  cpu::Queue& device_;
  Arena<cpu::Queue> device_arena_;
  Arena<cpu::Queue> host_arena_;
  RopeTable rope_;
  KvStore<cpu::Queue, cpu::Queue> store_;
  Decoder<cpu::Queue, cpu::Queue> decoder_;
  int64_t steps_ = 0;
};

LoadedModel& loaded(const Model& model) {
  return const_cast<LoadedModel&>(dynamic_cast<const LoadedModel&>(model));
}

}  // namespace

SessionPlan Session::plan(const Model& model, const SessionOptions& options, int64_t n_prompt,
                          int64_t n_new, bool logprobs) {
  PlanRequest request{.config = model.config(), .options = options};
  request.weight_bytes = model.weight_bytes();
  request.n_prompt = n_prompt;
  request.n_new = n_new;
  request.logprobs = logprobs;
  request.n_threads = loaded(model).queue().n_workers();
  const SessionPlan plan = make_plan(request);
  check_limits(request, plan);
  return plan;
}

std::unique_ptr<Session> Session::open(std::shared_ptr<Model> model, const SessionPlan& plan) {
  auto cpu_model = std::dynamic_pointer_cast<LoadedModel>(std::move(model));
  CHECK(cpu_model != nullptr);
  return std::make_unique<CpuSession>(std::move(cpu_model), plan);
}

}  // namespace tiercel
