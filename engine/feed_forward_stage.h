// Feed-forward matrices that stay in host memory beside a GPU (ModelConfig::host_layers), brought to one
// place on the device for prompts and appended tokens, whose products read a matrix many times. What reads it
// once, a step, reads it where it is.
//
// A layer is on its way while what comes before its products is computed: a queue of its own carries it,
// behind what still reads the layer before.
#pragma once

#include <cstdint>
#include <iterator>
#include <utility>

#include "engine/backend.h"
#include "engine/weights.h"

namespace tiercel {

template <Backend Device>
class FeedForwardStage {
 public:
  // block: room on the device for the largest layer (largest_host_layer_bytes), or null where there is none.
  FeedForwardStage(Device& device, Device& upload, const Weights& weights, bf16* block)
      : device_(device), upload_(upload), weights_(weights), block_(block) {}

  // The next layer from this one on that is in host memory sets out, if it has not. Products of the one that
  // was brought before are all enqueued by now, or it has to be brought again.
  void bring_from(int64_t layer) {
    if (block_ == nullptr) return;
    const auto n_layers = std::ssize(weights_.layers);
    while (layer < n_layers && weights_of(layer).host_block.empty()) ++layer;
    if (layer < n_layers) bring(layer);
  }

  // The layer's weights as what is enqueued on `device` next may read them, many times.
  const LayerWeights& at(int64_t layer) {
    const LayerWeights& w = weights_of(layer);
    if (w.host_block.empty()) return w;
    bring(layer);
    if (on_its_way_) device_.wait(arrival_);
    on_its_way_ = false;
    return staged_;
  }

 private:
  const LayerWeights& weights_of(int64_t layer) const {
    return weights_.layers[static_cast<size_t>(layer)];
  }

  void bring(int64_t layer) {
    if (layer == layer_) return;
    const LayerWeights& w = weights_of(layer);
    upload_.wait(device_.record());
    copy_block(upload_, w.host_block.data(), block_, static_cast<int64_t>(w.host_block.size_bytes()));
    arrival_ = upload_.record();
    on_its_way_ = true;
    layer_ = layer;
    staged_ = w;
    const auto move = [&](const bf16*& matrix) {
      if (matrix != nullptr) matrix = block_ + (matrix - w.host_block.data());
    };
    for (WeightMatrix* matrix : {&staged_.gate, &staged_.up, &staged_.down}) move(matrix->values);
    for (ExpertWeights* experts : {&staged_.expert_gate, &staged_.expert_up, &staged_.expert_down}) {
      for (const bf16*& matrix : experts->of) move(matrix);
    }
  }

  Device& device_;
  Device& upload_;
  const Weights& weights_;
  bf16* block_;
  int64_t layer_ = -1;  // what the block holds, or will
  bool on_its_way_ = false;
  decltype(std::declval<Device&>().record()) arrival_{};
  LayerWeights staged_;
};

}  // namespace tiercel
