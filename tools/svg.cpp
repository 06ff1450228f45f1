#include "tools/svg.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace tiercel {
namespace {

struct Rgb {
  double r, g, b;
};

// Dark blue, blue, green, light green, light yellow.
constexpr Rgb kScale[] = {
    {28, 20, 82}, {44, 90, 150}, {48, 150, 140}, {130, 205, 110}, {250, 240, 150}};
constexpr const char* kLines[] = {"#1f5fa8", "#d9591c", "#1a8a6b", "#a33b8f",
                                  "#7a6a00", "#c02942", "#4a4a4a", "#2aa5c4"};

Rgb color_at(double value) {
  const double at = std::clamp(value, 0.0, 1.0) * (std::size(kScale) - 1.0);
  const auto i = std::min(static_cast<size_t>(at), std::size(kScale) - 2);
  const double t = at - static_cast<double>(i);
  const Rgb &a = kScale[i], &b = kScale[i + 1];
  return {a.r + t * (b.r - a.r), a.g + t * (b.g - a.g), a.b + t * (b.b - a.b)};
}

std::string escape(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      // XML allows no other control bytes.
      default: result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return result;
}

}  // namespace

std::string scale_color(double value) {
  if (std::isnan(value)) return "#dddddd";
  const Rgb c = color_at(value);
  return fmt::format("#{:02x}{:02x}{:02x}", std::lround(c.r), std::lround(c.g), std::lround(c.b));
}

const char* ink_on(double value) {
  if (std::isnan(value)) return "#222222";
  const Rgb c = color_at(value);
  return 0.299 * c.r + 0.587 * c.g + 0.114 * c.b > 140 ? "#000000" : "#ffffff";
}

const char* line_color(size_t index) { return kLines[index % std::size(kLines)]; }

void Svg::text(double x, double y, std::string_view text, Anchor anchor, int size,
               std::string_view color) {
  const char* anchor_name = anchor == Anchor::kStart    ? "start"
                            : anchor == Anchor::kMiddle ? "middle"
                                                        : "end";
  body_ += fmt::format(
      "<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"{}\" text-anchor=\"{}\" fill=\"{}\">{}</text>\n",
      x, y, size, anchor_name, color, escape(text));
}

void Svg::rectangle(double x, double y, double width, double height, std::string_view color) {
  body_ += fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>\n", x, y,
      width, height, color);
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view color, double width,
               bool dashed) {
  body_ += fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
      "stroke-width=\"{}\"{}/>\n",
      x1, y1, x2, y2, color, width, dashed ? " stroke-dasharray=\"5 4\"" : "");
}

void Svg::polyline(const std::vector<std::pair<double, double>>& points, std::string_view color) {
  std::string list;
  for (const auto& [x, y] : points) list += fmt::format("{:.1f},{:.1f} ", x, y);
  body_ += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n",
                       list, color);
}

void Svg::dot(double x, double y, std::string_view color) {
  body_ +=
      fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"/>\n", x, y, color);
}

std::string Svg::finish(double width, double height) const {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 "
      "0 "
      "{0:.0f} {1:.0f}\" font-family=\"sans-serif\">\n<rect width=\"100%\" height=\"100%\" "
      "fill=\"#ffffff\"/>\n{2}</svg>\n",
      width, height, body_);
}

}  // namespace tiercel
