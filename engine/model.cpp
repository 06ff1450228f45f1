#include "engine/model.h"

namespace tiercel {

std::shared_ptr<Model> Model::open(const std::string& directory, int n_threads) {
  return LoadedModel::open(directory, n_threads);
}

std::shared_ptr<LoadedModel> LoadedModel::open(const std::string& directory, int n_threads) {
  // The configuration first: its errors are the cheapest to find.
  ModelConfig config = load_config(directory);
  return std::shared_ptr<LoadedModel>(new LoadedModel(directory, std::move(config), n_threads));
}

LoadedModel::LoadedModel(const std::string& directory, ModelConfig config, int n_threads)
    : config_(std::move(config)),
      queue_(cpu::QueueOptions{.n_threads = n_threads}),
      store_(WeightStore::load(directory, config_, queue_)),
      rope_(rope_frequencies(config_.rope, static_cast<int>(config_.head_dim))) {}

}  // namespace tiercel
