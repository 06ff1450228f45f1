// Model and session on a GPU: the device tier is its memory, the host tier is pinned main memory.
//
// Weights are checked and converted on the CPU as for every backend, then uploaded, but for those that stay in
// pinned host memory. A session owns a stream that computes, and urgent ones that move bytes and code keys beside it.
#include <algorithm>
#include <cstring>

#include "cpu/topology.h"
#include "engine/backend_batch.h"
#include "engine/backend_session.h"
#include "engine/base/rope.h"
#include "engine/base/units.h"
#include "engine/cpu_worker.h"
#include "engine/expected_load.h"
#include "engine/weight_store.h"
#include "kernels/ops.h"
#include "kernels/stream.h"
#include "offload/arena.h"

namespace tiercel {

static_assert(Backend<cuda::Stream>);
static_assert(HostTier<cuda::PinnedMemory>);
template class KvStore<cuda::Stream, cuda::PinnedMemory>;
template class Decoder<cuda::Stream, cuda::PinnedMemory>;

namespace {

void upload(cuda::Stream& stream, const void* source, void* target, int64_t bytes) {
  stream.copy_bytes(target, bytes, source, bytes, bytes, 1);
}

// A model's tensors in one block of device memory, and one of pinned host memory for those that stay there.
class DeviceWeights {
 public:
  DeviceWeights(cuda::Stream& stream, const ModelConfig& config)
      : stream_(stream),
        host_(stream),
        config_(config),
        tensors_(weight_tensors(config, weights_)),
        sizes_(checked_sizes()),
        on_host_(host_, sizes_.host),
        on_device_(stream, sizes_.device) {
    auto* const on_device = static_cast<bf16*>(on_device_.address());
    auto* const on_host = static_cast<bf16*>(on_host_.address());
    bf16 *next = on_device, *next_on_host = on_host;
    for (const WeightTensor& tensor : tensors_) {
      const bool stays = stays_on_host(config, tensor);
      bf16*& place = stays ? next_on_host : next;
      *tensor.target = place;
      place += aligned_elements(tensor.kept_elements());
      if (!stays || tensor.feeds_layer < 0) continue;
      std::span<const bf16>& block = weights_.layers[static_cast<size_t>(tensor.feeds_layer)].host_block;
      const bf16* begin = block.empty() ? *tensor.target : block.data();
      block = {begin, static_cast<size_t>(place - begin)};
    }
    CHECK(next == on_device + on_device_.bytes() / static_cast<int64_t>(sizeof(bf16)));
    CHECK(next_on_host == on_host + on_host_.bytes() / static_cast<int64_t>(sizeof(bf16)));
    if (config.tie_word_embeddings) weights_.head = weights_.embedding;
    join_projections(config, weights_);
  }

  // The values of tensor i of weight_tensors; they are not needed any more on return.
  void put(size_t i, const bf16* values) {
    const int64_t bytes = tensors_[i].kept_elements() * static_cast<int64_t>(sizeof(bf16));
    auto* target = const_cast<bf16*>(*tensors_[i].target);
    if (stays_on_host(config_, tensors_[i])) {
      std::memcpy(target, values, static_cast<size_t>(bytes));
    } else {
      upload(stream_, values, target, bytes);
      stream_.finish();
    }
  }

  // queue: makes codes, which the device does not.
  void fill_with_noise(cpu::Queue& queue) {
    const std::vector<RandomParams> fills = synthetic_weights(tensors_);
    std::vector<bf16> codes;
    for (size_t i = 0; i < fills.size(); ++i) {
      if (!tensors_[i].codec.is_coded()) {
        fill_random(stream_, fills[i]);
        continue;
      }
      codes.resize(static_cast<size_t>(tensors_[i].kept_elements()));
      fill_random_codes(queue, fills[i], tensors_[i], codes.data());
      put(i, codes.data());
    }
    stream_.finish();
  }

  const Weights& weights() const { return weights_; }
  int64_t bytes() const { return on_device_.bytes(); }
  int64_t host_bytes() const { return on_host_.bytes(); }

 private:
  struct Sizes {
    int64_t device = 0, host = 0;
  };
  // Before anything is taken of either.
  Sizes checked_sizes() const {
    Sizes bytes{.host = host_weight_bytes(config_)};
    bytes.device = aligned_weight_bytes(config_) - bytes.host;
    const int64_t usable = std::max<int64_t>(stream_.device_memory_free() - kDeviceReserve, 0);
    if (bytes.device > usable) {
      const int64_t n_layers = host_layers_to_free(config_, bytes.device - usable);
      fail(ErrorKind::kDoesNotFit, "its weights take {} of device memory, {} can be had; {}",
           format_bytes(bytes.device), format_bytes(usable),
           n_layers > 0 ? fmt::format("--host-layers {} or more keeps enough of them in host memory, and contexts "
                                      "take room beside them",
                                      n_layers)
                        : "use a larger device, or --backend cpu");
    }
    const int64_t left = cpu::available_memory_bytes();
    if (bytes.host > left) {
      fail(ErrorKind::kDoesNotFit,
           "{} of its weights would stay in host memory (--host-layers {}), this machine has {} left; use a larger "
           "device, or a machine with more memory",
           format_bytes(bytes.host), config_.host_layers, format_bytes(left));
    }
    return bytes;
  }

  cuda::Stream& stream_;
  cuda::PinnedMemory host_;
  const ModelConfig& config_;
  Weights weights_;
  std::vector<WeightTensor> tensors_;
  Sizes sizes_;
  TierBlock<cuda::PinnedMemory> on_host_;
  TierBlock<cuda::Stream> on_device_;
};

class CudaModel final : public LoadedModel {
 public:
  CudaModel(const WeightSource& source, ModelConfig config, const ModelOptions& options)
      : LoadedModel(std::move(config)),
        options_(options),
        n_threads_(options.n_threads > 0 ? options.n_threads : cpu::topology().n_cores),
        stream_({.device = options.device}),
        free_before_(stream_.device_memory_free()),
        weights_(stream_, this->config()) {
    cpu::Queue queue(cpu::QueueOptions{.n_threads = options.n_threads});
    if (source.synthetic()) {
      weights_.fill_with_noise(queue);
      return;
    }
    read_weights(source.directory, this->config(), queue,
                 [this](size_t i, const bf16* values) { weights_.put(i, values); });
  }

  int64_t weight_bytes() const override { return weights_.bytes() + weights_.host_bytes(); }
  void use_in_this_thread() const override { stream_.use_in_this_thread(); }
  PlanRequest plan_request() const override {
    PlanRequest request{.config = config(), .backend = BackendKind::kCuda, .options = {}};
    request.weight_bytes = weights_.bytes();
    request.n_threads = n_threads_;
    request.device_free_bytes = stream_.device_memory_free();
    return request;
  }
  std::unique_ptr<Session> open_session(std::shared_ptr<LoadedModel> self,
                                        const SessionPlan& plan) override;
  std::unique_ptr<Batch> open_batch(std::shared_ptr<LoadedModel> self,
                                    const BatchPlan& plan) override;

 private:
  ModelOptions options_;
  int n_threads_ = 0;  // of a worker of the host
  cuda::Stream stream_;
  int64_t free_before_;  // of the device, without anything of this model's
  DeviceWeights weights_;
};

// Device memory for the ops' own use, of the two streams that have ops which need it.
struct Scratch {
  int64_t device = 0, side = 0;
};

Scratch scratch_of(const ModelConfig& config, const SessionPlan& plan) {
  const KvLayout layout = kv_layout(plan, config);
  Scratch bytes{.device = cuda::linear_scratch_bytes(kept_weights(config).coded), .side = 0};
  if (layout.any_low_rank()) {
    bytes.side = cuda::fit_basis_scratch_bytes(config.kv_width(), layout.settings.rank);
  }
  if (layout.settings.select_prefill) {
    PrefillSelectParams widest;
    widest.n_tokens = kPrefillChunk;
    widest.first_position = layout.chunks * layout.settings.chunk_tokens;
    widest.block_tokens = kPrefillBlock;
    widest.local_tokens = kPrefillLocal;
    widest.sink_chunks = layout.settings.sinks / layout.settings.prefill_chunk();
    widest.k = layout.prefill_ids - widest.sink_chunks;
    widest.chunk_tokens = layout.settings.prefill_chunk();
    widest.n_heads = layout.shape.n_heads;
    widest.n_kv_heads = layout.shape.n_kv_heads;
    widest.head_dim = layout.shape.head_dim;
    bytes.device = std::max(bytes.device, cuda::select_prefill_scratch_bytes(widest));
  }
  return bytes;
}

// A rotary table in device memory.
class DeviceRope {
 public:
  DeviceRope(cuda::Stream& stream, const RopeTable& table)
      : tables_(stream, static_cast<int64_t>(table.bytes())), view_(table.view()) {
    const float* source = view_.coarse_cos;
    auto* const tables = static_cast<float*>(tables_.address());
    upload(stream, source, tables, tables_.bytes());
    // The four tables follow each other in memory (RopeTable).
    for (const float** part :
         {&view_.coarse_cos, &view_.coarse_sin, &view_.fine_cos, &view_.fine_sin}) {
      *part = tables + (*part - source);
    }
    stream.finish();
  }

  const RopeView& view() const { return view_; }

 private:
  TierBlock<cuda::Stream> tables_;
  RopeView view_;
};

// What a session must own before its stores are made.
struct CudaQueues {
  CudaQueues(int device, int n_threads, const LoadedModel& model, const SessionPlan& plan,
             const std::optional<RopeTable>& short_table = {})
      : CudaQueues(device, scratch_of(model.config(), plan), model.rope_table(plan)) {
    if (short_table) short_rope.emplace(stream, *short_table);
    const ModelConfig& config = model.config();
    if (config.host_layers > 0) upload.emplace(cuda::StreamOptions{.device = device});
    if (plan.states_on_host) states.emplace(cuda::StreamOptions{.device = device});
    if (kv_layout(plan, config).has_worker()) {
      worker.emplace(n_threads, config.n_heads, config.head_dim);
    }
  }
  CudaQueues(int device, const Scratch& scratch, const RopeTable& table)
      : stream({.device = device, .scratch_bytes = scratch.device}),
        copy({.device = device, .urgent = true}),
        side({.device = device, .urgent = true, .scratch_bytes = scratch.side}),
        host(stream),
        rope(stream, table) {}

  cuda::Stream stream, copy, side;
  std::optional<cuda::Stream> upload, states;  // carry weights, and hidden states, that are in host memory
  cuda::PinnedMemory host;
  DeviceRope rope;
  std::optional<DeviceRope> short_rope;
  std::optional<CpuWorker> worker;
};

using CudaBackend = SessionBackend<cuda::Stream, cuda::PinnedMemory>;

CudaBackend cuda_backend(CudaQueues& queues, const DeviceWeights& weights) {
  return {queues.stream,
          queues.copy,
          queues.side,
          queues.upload ? *queues.upload : queues.copy,
          queues.states ? *queues.states : queues.copy,
          queues.host,
          weights.weights(),
          weights.bytes(),
          queues.rope.view(),
          queues.short_rope ? queues.short_rope->view() : queues.rope.view(),
          "cuda: " + queues.stream.device_name(),
          queues.worker ? &*queues.worker : nullptr};
}

// Nothing may still run when stores give their memory back.
void finish(CudaQueues& queues) {
  const auto if_any = [](std::optional<cuda::Stream>& queue) { return queue ? &*queue : nullptr; };
  for (cuda::Stream* queue :
       {&queues.copy, &queues.side, if_any(queues.upload), if_any(queues.states), &queues.stream}) {
    try {
      if (queue != nullptr) queue->finish();
    } catch (const Error&) {
      // A device fault has been reported already, or will be by the next session.
    }
  }
}

class CudaSession final : private CudaQueues,
                          public BackendSession<cuda::Stream, cuda::PinnedMemory> {
 public:
  CudaSession(std::shared_ptr<LoadedModel> model, const SessionPlan& plan, int device, int n_threads,
              const DeviceWeights& weights, int64_t free_before)
      : CudaQueues(device, n_threads, *model, plan),
        BackendSession(model, plan, cuda_backend(*this, weights)),
        free_before_(free_before),
        in_use_(in_use_now()) {}
  // What is loaded or made on the way (kernels, libraries, recorded steps) no plan counts one by one.
  int64_t device_bytes_in_use() const override { return std::max(in_use_, in_use_now()); }
  ~CudaSession() override { finish(*this); }

 private:
  int64_t in_use_now() const { return free_before_ - CudaQueues::stream.device_memory_free(); }

  int64_t free_before_;
  int64_t in_use_;  // with all that it takes itself
};

class CudaBatch final : private CudaQueues,
                        public BackendBatch<cuda::Stream, cuda::PinnedMemory> {
 public:
  CudaBatch(std::shared_ptr<LoadedModel> model, const BatchPlan& plan, int device, int n_threads,
            const DeviceWeights& weights)
      : CudaQueues(device, n_threads, *model, plan.largest, model->short_rope_table(plan)),
        BackendBatch(model, plan, cuda_backend(*this, weights)) {}
  ~CudaBatch() override { finish(*this); }
};

std::unique_ptr<Session> CudaModel::open_session(std::shared_ptr<LoadedModel> self,
                                                 const SessionPlan& plan) {
  return std::make_unique<CudaSession>(std::move(self), plan, options_.device, options_.n_threads,
                                       weights_, free_before_);
}
std::unique_ptr<Batch> CudaModel::open_batch(std::shared_ptr<LoadedModel> self,
                                             const BatchPlan& plan) {
  return std::make_unique<CudaBatch>(std::move(self), plan, options_.device, options_.n_threads,
                                     weights_);
}

}  // namespace

std::string why_no_cuda() { return cuda::find_devices().reason; }

int64_t cuda_scratch_bytes(const ModelConfig& config, const SessionPlan& plan) {
  const Scratch scratch = scratch_of(config, plan);
  return scratch.device + scratch.side;
}

std::shared_ptr<LoadedModel> open_cuda_model(const WeightSource& source, ModelConfig config,
                                             const ModelOptions& options) {
  const cuda::Devices devices = cuda::find_devices();
  if (devices.n_devices == 0) {
    fail(ErrorKind::kUsage, "--backend cuda: {}; use --backend cpu", devices.reason);
  }
  if (options.device >= devices.n_devices) {
    fail(ErrorKind::kUsage, "--device: expected a number below {}, found {}", devices.n_devices,
         options.device);
  }
  if (options.host_layers == kAutoLayers) {
    const cuda::Stream stream({.device = options.device});
    // What is free is measured again when a session is planned: some is taken by then that nobody counts.
    const int64_t free = stream.device_memory_free() - kDeviceReserve / 2;
    config.host_layers = host_layers_for(config, options.load, free);
    if (config.host_layers > 0 && options.load.is_certain) check_load(config, options.load, free);
  }
  return std::make_shared<CudaModel>(source, std::move(config), options);
}

}  // namespace tiercel
