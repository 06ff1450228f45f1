// How far vectors are apart.
#pragma once

#include <cmath>
#include <span>
#include <vector>

namespace tiercel::test {

inline double rms_difference(std::span<const float> a, std::span<const float> b) {
  double square = 0;
  for (size_t i = 0; i < a.size(); ++i) square += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return std::sqrt(square / static_cast<double>(a.size()));
}

inline double rms(std::span<const float> a) {
  return rms_difference(a, std::vector<float>(a.size(), 0.0f));
}

}  // namespace tiercel::test
