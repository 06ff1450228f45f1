// Model and session on a machine without a GPU: both tiers are cpu::Queue, each with its own
// budget.
#include "cpu/ops.h"
#include "engine/backend_batch.h"
#include "engine/backend_session.h"
#include "engine/weight_store.h"

namespace tiercel {

static_assert(Backend<cpu::Queue>);
template class KvStore<cpu::Queue, cpu::Queue>;
template class Decoder<cpu::Queue, cpu::Queue>;

namespace {

class CpuModel final : public LoadedModel {
 public:
  CpuModel(const WeightSource& source, ModelConfig config, const ModelOptions& options)
      : LoadedModel(std::move(config)),
        queue_(cpu::QueueOptions{.n_threads = options.n_threads}),
        store_(source.synthetic() ? WeightStore::random(this->config(), queue_)
                                  : WeightStore::load(source.directory, this->config(), queue_)) {}

  int64_t weight_bytes() const override { return store_->bytes(); }
  PlanRequest plan_request() const override {
    PlanRequest request{.config = config(), .options = {}};
    request.weight_bytes = weight_bytes();
    request.n_threads = queue_.n_workers();
    return request;
  }
  std::unique_ptr<Session> open_session(std::shared_ptr<LoadedModel> self,
                                        const SessionPlan& plan) override;
  std::unique_ptr<Batch> open_batch(std::shared_ptr<LoadedModel> self,
                                    const BatchPlan& plan) override;

 private:
  cpu::Queue queue_;
  std::unique_ptr<WeightStore> store_;
};

using CpuBackend = SessionBackend<cpu::Queue, cpu::Queue>;

// Comes before what reads its tables from the start.
struct RopeOwner {
  RopeTable rope;
  std::optional<RopeTable> short_rope = {};  // where it is another one
};

CpuBackend cpu_backend(const LoadedModel& model, cpu::Queue& queue, const Weights& weights,
                       const RopeOwner& tables) {
  return {queue,
          queue,
          queue,
          queue,
          queue,
          queue,
          weights,
          model.weight_bytes(),
          tables.rope.view(),
          (tables.short_rope ? *tables.short_rope : tables.rope).view(),
          fmt::format("cpu: {}, {} threads", cpu::name_of(queue.isa()), queue.n_workers())};
}

class CpuSession final : private RopeOwner, public BackendSession<cpu::Queue, cpu::Queue> {
 public:
  CpuSession(std::shared_ptr<LoadedModel> model, const SessionPlan& plan, cpu::Queue& queue,
             const Weights& weights)
      : RopeOwner{model->rope_table(plan)},
        BackendSession(model, plan, cpu_backend(*model, queue, weights, *this)) {}
};
class CpuBatch final : private RopeOwner, public BackendBatch<cpu::Queue, cpu::Queue> {
 public:
  CpuBatch(std::shared_ptr<LoadedModel> model, const BatchPlan& plan, cpu::Queue& queue,
           const Weights& weights)
      : RopeOwner{model->rope_table(plan.largest), model->short_rope_table(plan)},
        BackendBatch(model, plan, cpu_backend(*model, queue, weights, *this)) {}
};

std::unique_ptr<Session> CpuModel::open_session(std::shared_ptr<LoadedModel> self,
                                                const SessionPlan& plan) {
  return std::make_unique<CpuSession>(std::move(self), plan, queue_, store_->weights());
}
std::unique_ptr<Batch> CpuModel::open_batch(std::shared_ptr<LoadedModel> self,
                                            const BatchPlan& plan) {
  return std::make_unique<CpuBatch>(std::move(self), plan, queue_, store_->weights());
}

}  // namespace

std::shared_ptr<LoadedModel> open_cpu_model(const WeightSource& source, ModelConfig config,
                                            const ModelOptions& options) {
  return std::make_shared<CpuModel>(source, std::move(config), options);
}

}  // namespace tiercel
