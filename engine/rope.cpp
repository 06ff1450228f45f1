#include "engine/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "engine/base/check.h"

namespace tiercel {
namespace {

// Long wavelengths are stretched by `factor`, short ones kept, those between blended by how many
// times they fit into the original context.
double llama3_frequency(const RopeSpec& spec, double inv_freq) {
  const auto context = static_cast<double>(spec.original_max_position);
  const double rotations = context * inv_freq / (2 * std::numbers::pi);
  if (rotations < spec.low_freq_factor) return inv_freq / spec.factor;
  if (rotations > spec.high_freq_factor) return inv_freq;
  const double smooth =
      (rotations - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor);
  return (1 - smooth) * inv_freq / spec.factor + smooth * inv_freq;
}

// The channel (a real number) whose wavelength fits `rotations` times into the original context.
double yarn_channel(const RopeSpec& spec, double rotations, int rotary_dim) {
  const auto context = static_cast<double>(spec.original_max_position);
  return rotary_dim * std::log(context / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(spec.theta));
}

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double yarn_attention_scaling(const RopeSpec& spec) {
  if (spec.attention_factor) return *spec.attention_factor;
  if (spec.mscale != 0 && spec.mscale_all_dim != 0) {
    return yarn_mscale(spec.factor, spec.mscale) / yarn_mscale(spec.factor, spec.mscale_all_dim);
  }
  return yarn_mscale(spec.factor, 1.0);
}

double longrope_attention_scaling(const RopeSpec& spec) {
  if (spec.attention_factor) return *spec.attention_factor;
  if (spec.factor <= 1) return 1.0;
  return std::sqrt(1 + std::log(spec.factor) / std::log(static_cast<double>(spec.original_max_position)));
}

int rotary_dim_of(const RopeSpec& spec, int64_t head_dim) {
  const int64_t rotary = spec.rotary_dim > 0 ? spec.rotary_dim : head_dim;
  CHECK(rotary % 2 == 0 && rotary <= head_dim && head_dim % 2 == 0, "{} of {} channels", rotary,
        head_dim);
  return static_cast<int>(rotary);
}

}  // namespace

std::string_view name_of(RopeType type) {
  switch (type) {
    case RopeType::kDefault: return "default";
    case RopeType::kLinear: return "linear";
    case RopeType::kLlama3: return "llama3";
    case RopeType::kYarn: return "yarn";
    case RopeType::kLongRope: return "longrope";
  }
  return "?";
}

RopeFrequencies rope_frequencies(const RopeSpec& spec, int head_dim, bool is_long) {
  CHECK(head_dim > 0, "head_dim {}", head_dim);
  const int rotary_dim = rotary_dim_of(spec, head_dim), n = rotary_dim / 2;
  RopeFrequencies result;
  result.inv_freq.assign(static_cast<size_t>(head_dim / 2), 0.0);

  // yarn: channels below `low` keep their frequency, those above `high` are interpolated. `high` is
  // clamped to rotary_dim - 1 (not n - 1), exactly as the paper's code and transformers do.
  double low = 0, high = 0;
  if (spec.type == RopeType::kYarn) {
    low = yarn_channel(spec, spec.beta_fast, rotary_dim);
    high = yarn_channel(spec, spec.beta_slow, rotary_dim);
    if (spec.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, rotary_dim - 1.0);
    if (low == high) high += 0.001;
    result.attention_scaling = yarn_attention_scaling(spec);
  }
  const std::vector<double>& stretch = is_long ? spec.long_factor : spec.short_factor;
  if (spec.type == RopeType::kLongRope) {
    CHECK(std::ssize(stretch) == n, "{} factors for {} pairs", stretch.size(), n);
    result.attention_scaling = longrope_attention_scaling(spec);
  }

  for (int i = 0; i < n; ++i) {
    const double plain = std::pow(spec.theta, -2.0 * i / rotary_dim);
    double& inv_freq = result.inv_freq[static_cast<size_t>(i)];
    switch (spec.type) {
      case RopeType::kDefault: inv_freq = plain; break;
      case RopeType::kLinear: inv_freq = plain / spec.factor; break;
      case RopeType::kLlama3: inv_freq = llama3_frequency(spec, plain); break;
      case RopeType::kYarn: {
        const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
        inv_freq = plain / spec.factor * ramp + plain * (1 - ramp);
        break;
      }
      case RopeType::kLongRope: inv_freq = plain / stretch[static_cast<size_t>(i)]; break;
    }
  }
  return result;
}

std::vector<int64_t> rope_channel_order(const RopeSpec& spec, int64_t head_dim) {
  const int64_t rotary_dim = rotary_dim_of(spec, head_dim);
  if (rotary_dim == head_dim && !spec.interleaved) return {};
  const int64_t half = head_dim / 2, n = rotary_dim / 2;
  std::vector<int64_t> order(static_cast<size_t>(head_dim));
  for (int64_t i = 0; i < half; ++i) {
    int64_t& low = order[static_cast<size_t>(i)];
    int64_t& high = order[static_cast<size_t>(half + i)];
    if (i >= n || spec.interleaved) {  // what stands still: any two of what is left
      low = 2 * i;
      high = 2 * i + 1;
    } else {
      low = i;
      high = n + i;
    }
  }
  return order;
}

}  // namespace tiercel
