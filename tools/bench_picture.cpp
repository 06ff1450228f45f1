// The picture of tiercel bench with -b: tokens per second by sequences decoded together, and by
// context.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "engine/base/check.h"
#include "engine/base/units.h"
#include "tools/bench_report.h"
#include "tools/svg.h"

namespace tiercel {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kMargin = 24, kWidth = 460, kHeight = 260, kGap = 70;

struct Point {
  std::string line;
  double x = 0, y = 0;
};

// One line per name; both axes from what is there, the horizontal one logarithmic, the vertical one
// from 0.
class Chart {
 public:
  Chart(Svg& svg, double left, double top) : svg_(svg), left_(left + 60), top_(top + 24) {}

  void draw(const std::string& title, std::vector<Point> points,
            const std::map<std::string, size_t>& colors) {
    svg_.text(left_ - 60, top_ - 10, title, Svg::Anchor::kStart, 14);
    double low = INFINITY, high = 0, most = 0;
    for (const Point& p : points) {
      low = std::min(low, p.x);
      high = std::max(high, p.x);
      most = std::max(most, p.y);
    }
    if (points.empty() || most <= 0) return;
    const auto at_x = [&](double x) {
      return left_ + (high > low ? (kWidth - 60) * std::log(x / low) / std::log(high / low) : 0);
    };
    const auto at_y = [&](double y) { return top_ + kHeight * (1 - y / (1.05 * most)); };
    for (int i = 0; i <= 4; ++i) {
      const double y = most * i / 4;
      svg_.line(left_, at_y(y), left_ + kWidth - 60, at_y(y), "#e0e0e0");
      svg_.text(left_ - 6, at_y(y) + 4, fmt::format("{:.4g}", y), Svg::Anchor::kEnd, 10, "#555555");
    }
    std::stable_sort(points.begin(), points.end(), [](const Point& a, const Point& b) {
      return a.line != b.line ? a.line < b.line : a.x < b.x;
    });
    std::vector<double> marks;
    for (size_t i = 0; i < points.size(); ++i) {
      const Point& p = points[i];
      const char* color = line_color(colors.at(p.line));
      if (i > 0 && points[i - 1].line == p.line) {
        svg_.polyline({{at_x(points[i - 1].x), at_y(points[i - 1].y)}, {at_x(p.x), at_y(p.y)}},
                      color);
      }
      svg_.dot(at_x(p.x), at_y(p.y), color);
      // Labels that would overlap are left out.
      const double x = at_x(p.x);
      if (std::all_of(marks.begin(), marks.end(), [&](double m) { return std::abs(m - x) > 44; })) {
        svg_.text(x, top_ + kHeight + 16, format_count(std::llround(p.x)), Svg::Anchor::kMiddle, 10,
                  "#555555");
        marks.push_back(x);
      }
    }
  }

 private:
  Svg& svg_;
  double left_, top_;
};

// An array of objects, or one object a line.
Json rows_of(const std::string& text, const std::string& name) {
  try {
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) fail("{}: the file is empty", name);
    if (text[text.find_first_not_of(" \t\r\n")] == '[') return Json::parse(text);
    Json rows = Json::array();
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      if (end > begin) rows.push_back(Json::parse(text.substr(begin, end - begin)));
      begin = end + 1;
    }
    return rows;
  } catch (const Json::exception& error) {
    fail("{}: expected the JSON that bench -b writes: {}", name, error.what());
  }
}

}  // namespace

std::string batch_picture(const std::string& json, const std::string& name) {
  std::vector<Point> by_sequences, by_context;
  std::map<std::string, size_t> colors;
  std::string title;
  const auto color = [&](const std::string& line) { colors.emplace(line, colors.size()); };
  try {
    for (const Json& row : rows_of(json, name)) {
      const double n = row.at("pl").get<double>(), speed = row.at("speed_tg").get<double>();
      if (n == 0 || speed == 0) continue;
      const double context = row.at("pp").get<double>() + row.at("tg").get<double>();
      const std::string attention = row.at("attention").get<std::string>();
      const std::string at = fmt::format("{}, {} tokens", attention,
                                         format_count(std::llround(context)));
      title = fmt::format("{}, {}{}", row.at("model_filename").get<std::string>(),
                          row.at("backend").get<std::string>(),
                          row.at("random_tokens").get<bool>() ? ", random tokens" : "");
      color(at);
      color(attention);
      by_sequences.push_back({at, n, speed});
      // The best of each context.
      const auto same = std::find_if(by_context.begin(), by_context.end(), [&](const Point& p) {
        return p.line == attention && p.x == context;
      });
      if (same == by_context.end()) {
        by_context.push_back({attention, context, speed});
      } else {
        same->y = std::max(same->y, speed);
      }
    }
  } catch (const Json::exception& error) {
    fail("{}: expected the JSON that bench -b writes: {}", name, error.what());
  }
  if (by_sequences.empty()) fail("{}: there is no row with more than no sequences", name);
  Svg svg;
  svg.text(kMargin, kMargin + 10, "tiercel bench: " + title, Svg::Anchor::kStart, 16);
  const double top = kMargin + 36;
  Chart(svg, kMargin, top)
      .draw("tokens per second by sequences decoded together", by_sequences, colors);
  Chart(svg, kMargin + kWidth + kGap, top)
      .draw("most tokens per second by tokens of context", by_context, colors);
  double y = top + kHeight + 70;
  for (const auto& [line, index] : colors) {
    svg.line(kMargin, y - 4, kMargin + 20, y - 4, line_color(index), 3);
    svg.text(kMargin + 26, y, line, Svg::Anchor::kStart, 11);
    y += 18;
  }
  return svg.finish(2 * kMargin + 2 * kWidth + kGap, y + kMargin);
}

}  // namespace tiercel
