// Hidden states of a prompt on its way through the layers, of which one run is computed at a time. They lie in
// the device's memory; or in host memory, and then the next run's are on their way while one is computed, and
// what a run has become returns behind it. Of a long prompt they are most of what a prefill takes of a device:
// 8 GB of a million tokens of width 4,096.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <utility>

#include "engine/backend.h"
#include "engine/config.h"
#include "offload/layout.h"

namespace tiercel {

// Buffers, in elements of bf16.
struct PromptStatesLayout {
  PromptStatesLayout(const ModelConfig& config, int64_t n_prompt, bool on_host)
      : device((on_host ? 2 * rows_of_place(n_prompt) : n_prompt) * config.hidden),
        host(on_host ? n_prompt * config.hidden : 0) {}
  static int64_t rows_of_place(int64_t n_prompt) { return std::min(n_prompt, kPrefillChunk); }

  int64_t device = 0, host = 0;
};

template <Backend Device>
class PromptStates {
 public:
  // on_device: [n_prompt][width]; or with on_host, which has those, two places of a run's rows. carrier: moves
  // them, in the order in which they are wanted; values that go home would keep them waiting.
  PromptStates(Device& device, Device& carrier, bf16* on_device, bf16* on_host, int64_t n_prompt, int64_t width)
      : device_(device),
        carrier_(carrier),
        on_device_(on_device),
        on_host_(on_host),
        width_(width),
        place_rows_(PromptStatesLayout::rows_of_place(n_prompt)) {}

  // Rows of the run that is computed now, which begins with this one: as they are, or room for them in the first
  // layer.
  bf16* rows(int64_t first) {
    if (on_host_ == nullptr) return on_device_ + first * width_;
    const size_t place = turn_ % 2;
    if (const auto& arrival = std::exchange(arrivals_[place], std::nullopt)) {
      device_.wait(*arrival);
    } else if (departures_[place]) {
      device_.wait(*departures_[place]);
    }
    return place_of(turn_);
  }

  // Rows of the run that comes after this one set out, while it is computed.
  void bring(int64_t first, int64_t n) {
    if (on_host_ == nullptr) return;
    const size_t place = (turn_ + 1) % 2;
    if (departures_[place]) carrier_.wait(*departures_[place]);
    move(on_host_ + first * width_, place_of(turn_ + 1), n);
    arrivals_[place] = carrier_.record();
  }

  // The run has been enqueued whole; returns: another layer wants its rows.
  void leave(int64_t first, int64_t n, bool returns) {
    if (on_host_ == nullptr) return;
    const size_t place = turn_ % 2;
    if (returns) {
      carrier_.wait(device_.record());
      move(place_of(turn_), on_host_ + first * width_, n);
      departures_[place] = carrier_.record();
    } else {
      departures_[place] = device_.record();
    }
    ++turn_;
  }

  // The last row of the run that has left last, or of the only one, which never does.
  const bf16* last_row(int64_t first, int64_t n) const {
    const bf16* rows = on_host_ == nullptr ? on_device_ + first * width_ : place_of(turn_ > 0 ? turn_ - 1 : 0);
    return rows + (n - 1) * width_;
  }

 private:
  using Ticket = decltype(std::declval<Device&>().record());

  bf16* place_of(size_t turn) const { return on_device_ + static_cast<int64_t>(turn % 2) * place_rows_ * width_; }

  void move(const bf16* source, bf16* target, int64_t n_rows) {
    copy_block(carrier_, source, target, n_rows * width_ * static_cast<int64_t>(sizeof(bf16)));
  }

  Device& device_;
  Device& carrier_;
  bf16 *on_device_, *on_host_;
  int64_t width_, place_rows_;
  size_t turn_ = 0;  // runs that have left: a run's place is that of its turn
  // By place: when what was brought is there, and when what left is gone.
  std::array<std::optional<Ticket>, 2> arrivals_, departures_;
};

}  // namespace tiercel
