// A drawing, as SVG that needs nothing else: no font, script or style from elsewhere.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tiercel {

// A colour of a scale from dark (0) to bright (1) that is ordered in lightness, so it can be read
// without telling hues apart. "#rrggbb"; grey for NaN.
std::string scale_color(double value);
// Black or white, whichever is readable on scale_color(value).
const char* ink_on(double value);
// Colours of lines that stay apart in most kinds of colour blindness.
const char* line_color(size_t index);

class Svg {
 public:
  enum class Anchor : uint8_t { kStart, kMiddle, kEnd };
  void text(double x, double y, std::string_view text, Anchor anchor = Anchor::kStart,
            int size = 12, std::string_view color = "#222222");
  void rectangle(double x, double y, double width, double height, std::string_view color);
  void line(double x1, double y1, double x2, double y2, std::string_view color, double width = 1,
            bool dashed = false);
  void polyline(const std::vector<std::pair<double, double>>& points, std::string_view color);
  void dot(double x, double y, std::string_view color);

  std::string finish(double width, double height) const;

 private:
  std::string body_;
};

}  // namespace tiercel
