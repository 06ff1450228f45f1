// Picks tokens where the logits are, on a device whose memory the host cannot read: a vocabulary's logits
// are half a megabyte to bring over, and a pass over them by one core takes as long as a layer or two of
// the device. The tokens are those of Sampler::sample, draw by draw.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <type_traits>
#include <vector>

#include "engine/backend.h"
#include "engine/sampler.h"
#include "engine/token_constraint.h"
#include "offload/arena.h"

namespace tiercel {

// Its buffers: of so many tokens that are picked at once.
struct DeviceSamplerLayout {
  int64_t vocab = 0, places = 0;

  int64_t device_bytes() const { return places * sample_workspace_bytes(vocab); }
  int64_t host_bytes() const {
    return places * (kMaxLogitAdjustments * static_cast<int64_t>(sizeof(LogitAdjustment)) +
                     token_set_words(vocab) * static_cast<int64_t>(sizeof(uint32_t)) +
                     static_cast<int64_t>(sizeof(uint64_t) + sizeof(int32_t)));
  }
};

struct DevicePick {
  float* logits = nullptr;         // [vocab], on the device
  const int32_t* best = nullptr;   // where find_best put their most likely token
  Sampler* sampler = nullptr;
  std::span<const int32_t> history;
  // -1, and the sampler is as before: none can be named, or more logits are adjusted than the device does.
  int32_t token = -1;
  std::span<const LogitAdjustment> adjustments = {};  // of a draw in hand
  const TokenSet* allowed = nullptr;                  // likewise
};

template <Backend Device, HostTier Host>
class DeviceSampler {
 public:
  DeviceSampler(Device& device, Arena<Device>& arena, Arena<Host>& host_arena,
                const DeviceSamplerLayout& layout)
      : device_(device), layout_(layout) {
    workspace_ = arena.template take<std::byte>(Purpose::kActivations, layout.device_bytes());
    const int64_t n = layout.places;
    adjustments_ =
        host_arena.template take<LogitAdjustment>(Purpose::kActivations, n * kMaxLogitAdjustments);
    allowed_ = host_arena.template take<uint32_t>(Purpose::kActivations, n * token_set_words(layout.vocab));
    generators_ = host_arena.template take<uint64_t>(Purpose::kActivations, n);
    tokens_ = host_arena.template take<int32_t>(Purpose::kActivations, n);
  }

  // The most likely token of each row of logits [n][vocab], in tokens [n] of the host, -1 where none can
  // be named. Waits for nothing.
  void find_best(const float* logits, int64_t n, int32_t* tokens) {
    together(device_, n, [&](int64_t row) {
      argmax(device_, logits + row * layout_.vocab, layout_.vocab, tokens + row, workspace_of(row));
    });
  }

  // Waits for the tokens.
  void pick(std::span<DevicePick> picks) {
    device_.finish();  // what is best is known
    drawn_.clear();
    for (DevicePick& pick : picks) {
      if (pick.sampler->is_argmax()) {
        pick.token = *pick.best;
        continue;
      }
      // Why one's constraint has nothing to say is its caller's to hear, and no matter of the others'.
      try {
        pick.allowed = pick.sampler->allowed();
        pick.adjustments = pick.sampler->adjustments(pick.history);
        if (takes_best(pick)) {
          pick.token = *pick.best;
          pick.sampler->picked(pick.token, pick.sampler->generator());
          continue;
        }
      } catch (const std::exception&) {
        continue;
      }
      if (std::ssize(pick.adjustments) <= kMaxLogitAdjustments) drawn_.push_back(&pick);
    }
    std::span<DevicePick* const> left = drawn_;
    while (!left.empty()) {
      const auto some = left.first(std::min(left.size(), static_cast<size_t>(layout_.places)));
      draw_at_once(some);
      left = left.subspan(some.size());
    }
  }

 private:
  // Whether the most likely token of all, which is known, is the most likely of those that are allowed.
  static bool takes_best(const DevicePick& pick) {
    return pick.allowed != nullptr && pick.sampler->options().temperature == 0 && pick.adjustments.empty() &&
           *pick.best >= 0 && contains(*pick.allowed, *pick.best);
  }
  std::byte* workspace_of(int64_t place) const {
    return workspace_ + place % layout_.places * sample_workspace_bytes(layout_.vocab);
  }

  void draw_at_once(std::span<DevicePick* const> picks) {
    together(device_, static_cast<int64_t>(picks.size()), [&](int64_t place) {
      const DevicePick& pick = *picks[static_cast<size_t>(place)];
      LogitAdjustment* adjustments = adjustments_ + place * kMaxLogitAdjustments;
      std::copy(pick.adjustments.begin(), pick.adjustments.end(), adjustments);
      generators_[place] = pick.sampler->generator();
      uint32_t* const allowed = allowed_ + place * token_set_words(layout_.vocab);
      if (pick.allowed != nullptr) std::copy(pick.allowed->begin(), pick.allowed->end(), allowed);
      const SamplingOptions& o = pick.sampler->options();
      SampleParams p;
      p.logits = pick.logits;
      p.vocab = layout_.vocab;
      p.adjustments = adjustments;
      p.n_adjustments = std::ssize(pick.adjustments);
      p.allowed = pick.allowed != nullptr ? allowed : nullptr;
      p.temperature = o.temperature;
      p.top_k = o.top_k;
      p.top_p = o.top_p;
      p.min_p = o.min_p;
      p.generator = generators_ + place;
      p.token = tokens_ + place;
      p.workspace = workspace_of(place);
      sample(device_, p);
    });
    device_.finish();
    for (size_t place = 0; place < picks.size(); ++place) {
      DevicePick& pick = *picks[place];
      pick.token = tokens_[place];
      if (pick.token >= 0) pick.sampler->picked(pick.token, generators_[place]);
    }
  }

  Device& device_;
  DeviceSamplerLayout layout_;
  std::byte* workspace_ = nullptr;  // [places][sample_workspace_bytes]
  LogitAdjustment* adjustments_ = nullptr;  // [places][kMaxLogitAdjustments]
  uint32_t* allowed_ = nullptr;     // [places][token_set_words]
  uint64_t* generators_ = nullptr;  // [places]
  int32_t* tokens_ = nullptr;       // [places]
  std::vector<DevicePick*> drawn_;  // of the picks in hand, those that are no argmax
};

// What a decoder has of it: nothing where the host reads the logits.
struct NoDeviceSampler {
  NoDeviceSampler(const auto&...) {}
};
template <Backend Device, HostTier Host>
using DeviceSamplerOf =
    std::conditional_t<Device::kHostReadable, NoDeviceSampler, DeviceSampler<Device, Host>>;

}  // namespace tiercel
