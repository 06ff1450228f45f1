// A model in memory: what the backends share, and what each of them adds.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "engine/base/rope.h"
#include "engine/session.h"
#include "engine/session_plan.h"
#include "engine/weights.h"

namespace tiercel {

class LoadedModel : public Model {
 public:
  explicit LoadedModel(ModelConfig config) : config_(std::move(config)) {}

  const ModelConfig& config() const final { return config_; }
  int64_t parameter_count() const final { return tiercel::parameter_count(config_); }
  RopeTable rope_table(const SessionPlan& plan) const;
  // Of sequences of a batch that are shorter than LongRoPE's original context, where others may not be.
  std::optional<RopeTable> short_rope_table(const BatchPlan& plan) const;
  // Multiplies q . k before softmax. cos and sin are kept pure; the factor that YaRN and LongRoPE put on
  // both lands on the scores, squared.
  float attention_scale() const;

  const std::string& fingerprint() const override { return fingerprint_; }
  void set_fingerprint(std::string fingerprint) { fingerprint_ = std::move(fingerprint); }

  // A request with everything that the backend knows filled in.
  virtual PlanRequest plan_request() const = 0;
  virtual std::unique_ptr<Session> open_session(std::shared_ptr<LoadedModel> self,
                                                const SessionPlan& plan) = 0;
  virtual std::unique_ptr<Batch> open_batch(std::shared_ptr<LoadedModel> self,
                                            const BatchPlan& plan) = 0;

 private:
  ModelConfig config_;
  std::string fingerprint_;
};

// Where weights come from: a directory, or nowhere: then they are random.
struct WeightSource {
  std::string directory;
  bool synthetic() const { return directory.empty(); }
};

std::shared_ptr<LoadedModel> open_cpu_model(const WeightSource& source, ModelConfig config,
                                            const ModelOptions& options);
// Throws Error(kUsage) where this build has no CUDA backend or the machine no device.
std::shared_ptr<LoadedModel> open_cuda_model(const WeightSource& source, ModelConfig config,
                                             const ModelOptions& options);

// Why --backend cuda cannot be had here; empty when it can.
std::string why_no_cuda();
// Bytes of device memory that a CUDA session takes for its ops' own use.
int64_t cuda_scratch_bytes(const ModelConfig& config, const SessionPlan& plan);

}  // namespace tiercel
