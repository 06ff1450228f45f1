// A model in memory: its configuration, its weights and the queue that computes with them.
#pragma once

#include <memory>
#include <string>

#include "cpu/queue.h"
#include "engine/session.h"
#include "engine/weights.h"

namespace tiercel {

class LoadedModel final : public Model {
 public:
  static std::shared_ptr<LoadedModel> open(const std::string& directory, int n_threads);

  const ModelConfig& config() const override { return config_; }
  int64_t parameter_count() const override { return store_->n_parameters(); }
  int64_t weight_bytes() const override { return store_->bytes(); }

  cpu::Queue& queue() { return queue_; }
  const Weights& weights() const { return store_->weights(); }
  const RopeFrequencies& rope() const { return rope_; }

 private:
  LoadedModel(const std::string& directory, ModelConfig config, int n_threads);

  ModelConfig config_;
  cpu::Queue queue_;
  std::unique_ptr<WeightStore> store_;
  RopeFrequencies rope_;
};

}  // namespace tiercel
