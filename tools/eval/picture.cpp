// The picture of an evaluation: a grid of scores per series, then lines over the budget.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "engine/base/units.h"
#include "tools/eval/results.h"
#include "tools/svg.h"

namespace tiercel {
namespace {

constexpr double kMargin = 20, kGap = 36, kRow = 24, kColumn = 72;
constexpr double kLabel = 150;  // width of the row labels
constexpr double kChartWidth = 300, kChartHeight = 190;
constexpr double kPageWidth = 1420;

struct Row {
  EvalTask task;
  std::optional<double> depth;
  std::string label;
};

std::vector<Row> rows_of(const EvalResults& results) {
  std::vector<Row> rows;
  const auto tasks = results.tasks();
  for (const EvalTask task : tasks) {
    std::vector<std::optional<double>> depths = {std::nullopt};
    const bool has_depths =
        std::any_of(results.records.begin(), results.records.end(), [&](const EvalRecord& r) {
          return r.task == task && r.depth &&
                 std::count(results.depths.begin(), results.depths.end(), *r.depth) > 0;
        });
    if (has_depths && results.depths.size() > 1) {
      depths.assign(results.depths.begin(), results.depths.end());
    }
    for (const auto& depth : depths) {
      const std::string at = depth ? fmt::format("depth {:.0f} %", 100 * *depth) : "";
      rows.push_back({task, depth,
                      tasks.size() == 1 && depth ? at
                      : depth ? fmt::format("{}, {:.0f} %", name_of(task), 100 * *depth)
                              : name_of(task)});
    }
  }
  return rows;
}

class Picture {
 public:
  explicit Picture(const EvalResults& results)
      : results_(results), lengths_(results.lengths()), rows_(rows_of(results)) {}

  std::string draw() {
    double y = kMargin + 16;
    svg_.text(kMargin, y,
              fmt::format("tiercel eval: {}, {} prompts, seed {}", results_.model, results_.style,
                          results_.seed),
              Svg::Anchor::kStart, 16);
    y = grids(y + 30);
    if (has_budgets()) y = charts(y);
    return svg_.finish(width_ + kMargin, y + kMargin);
  }

 private:
  double grid_width() const { return kLabel + kColumn * static_cast<double>(lengths_.size()); }

  // Returns where the next thing may begin.
  double grids(double top) {
    const double height = 40 + kRow * static_cast<double>(rows_.size());
    double x = kMargin, y = top;
    for (size_t s = 0; s < results_.series.size(); ++s) {
      if (x > kMargin && x + grid_width() > kPageWidth - kMargin) {
        x = kMargin;
        y += height + kGap;
      }
      grid(s, x, y);
      x += grid_width();
      width_ = std::max(width_, x);
      x += kGap;
    }
    y += height + kGap;
    legend(kMargin, y);
    return y + 30;
  }

  void grid(size_t series, double x, double y) {
    svg_.text(x, y, results_.series[series].name, Svg::Anchor::kStart, 13);
    for (size_t c = 0; c < lengths_.size(); ++c) {
      svg_.text(x + kLabel + kColumn * (static_cast<double>(c) + 0.5), y + 18,
                format_count(lengths_[c]), Svg::Anchor::kMiddle, 11, "#555555");
    }
    for (size_t r = 0; r < rows_.size(); ++r) {
      const double top = y + 24 + kRow * static_cast<double>(r);
      svg_.text(x + kLabel - 8, top + 16, rows_[r].label, Svg::Anchor::kEnd, 11, "#555555");
      for (size_t c = 0; c < lengths_.size(); ++c) {
        const double score = summarize(results_, [&](const EvalRecord& record) {
                               return record.series == series && record.length == lengths_[c] &&
                                      record.task == rows_[r].task &&
                                      (!rows_[r].depth || record.depth == rows_[r].depth);
                             }).score;
        const double left = x + kLabel + kColumn * static_cast<double>(c);
        svg_.rectangle(left, top, kColumn - 1, kRow - 1, scale_color(score));
        svg_.text(left + kColumn / 2, top + 16,
                  std::isnan(score) ? "-" : fmt::format("{:.0f}", 100 * score),
                  Svg::Anchor::kMiddle, 11, ink_on(score));
      }
    }
  }

  void legend(double x, double y) {
    constexpr int kSteps = 20;
    svg_.text(x, y + 12, "score %", Svg::Anchor::kStart, 11, "#555555");
    for (int i = 0; i <= kSteps; ++i) {
      const double value = static_cast<double>(i) / kSteps;
      svg_.rectangle(x + 60 + 9 * i, y, 9, 14, scale_color(value));
    }
    svg_.text(x + 60, y + 26, "0", Svg::Anchor::kStart, 10, "#555555");
    svg_.text(x + 60 + 9 * (kSteps + 1), y + 26, "100", Svg::Anchor::kEnd, 10, "#555555");
  }

  // Where a series stands on the horizontal axis: the value that is swept, or the tokens attended
  // per KV head of the longest prompt; 0: all.
  double place_of(size_t series) const {
    if (sweeps()) return results_.series[series].swept.value_or(0);
    const EvalPlan* plan = results_.plan_of(series, lengths_.back());
    return plan == nullptr || plan->selected == kBudgetAll
               ? 0
               : static_cast<double>(plan->selected + plan->always);
  }

  bool sweeps() const { return !results_.swept_flag.empty(); }

  bool has_budgets() const {
    std::map<std::string, int> count;
    for (size_t s = 0; s < results_.series.size(); ++s) {
      if (place_of(s) > 0 && ++count[results_.series[s].line] > 1) return true;
    }
    return false;
  }

  using Value = std::function<double(const EvalSummary&)>;

  double charts(double y) {
    y += 30;
    width_ = std::max(width_, kMargin + 3 * (kChartWidth + 80));
    chart(kMargin, y, "score %", 100, [](const EvalSummary& s) { return 100 * s.score; });
    if (!results_.reference.empty()) {
      chart(kMargin + kChartWidth + 80, y, fmt::format("KL from {}, nats", results_.reference), 0,
            [](const EvalSummary& s) { return s.fidelity.kl(); });
      chart(kMargin + 2 * (kChartWidth + 80), y, "attention mass covered %", 100,
            [](const EvalSummary& s) { return 100 * s.traffic.mass(); });
    }
    y += kChartHeight + 56;
    if (sweeps()) {
      chart(kMargin, y, "hit rate %", 100,
            [](const EvalSummary& s) { return 100 * s.traffic.hit_rate(); });
      chart(kMargin + kChartWidth + 80, y, "lists that stayed %", 100,
            [](const EvalSummary& s) { return 100 * s.traffic.reuse_rate(); });
      chart(kMargin + 2 * (kChartWidth + 80), y, "KiB fetched per step", 0,
            [](const EvalSummary& s) { return s.traffic.fetched_per_step() / 1024; });
      y += kChartHeight + 56;
    }
    double x = kMargin;
    for (const auto& [line, index] : lines()) {
      svg_.line(x, y - 4, x + 20, y - 4, line_color(index), 3);
      svg_.text(x + 26, y, line, Svg::Anchor::kStart, 11);
      x += 40 + 7 * static_cast<double>(line.size());
    }
    return y + 10;
  }

  std::vector<std::pair<std::string, size_t>> lines() const {
    std::vector<std::pair<std::string, size_t>> all;
    for (const EvalSeries& series : results_.series) {
      if (std::none_of(all.begin(), all.end(),
                       [&](const auto& one) { return one.first == series.line; })) {
        all.emplace_back(series.line, all.size());
      }
    }
    return all;
  }

  struct Point {
    size_t line;
    double tokens, value;  // tokens: 0 for all
  };

  std::vector<Point> points_of(const Value& value) const {
    std::vector<Point> points;
    for (const auto& [line, index] : lines()) {
      for (size_t s = 0; s < results_.series.size(); ++s) {
        if (results_.series[s].line != line) continue;
        const double v =
            value(summarize(results_, [&](const EvalRecord& r) { return r.series == s; }));
        if (std::isfinite(v)) points.push_back({index, place_of(s), v});
      }
    }
    std::stable_sort(points.begin(), points.end(), [](const Point& a, const Point& b) {
      return a.line != b.line ? a.line < b.line : a.tokens < b.tokens;
    });
    return points;
  }

  // The vertical axis goes from 0 to `top`, or to the largest value where that is more.
  void chart(double x, double y, const std::string& title, double top, const Value& value) {
    const std::vector<Point> points = points_of(value);
    svg_.text(x, y,
              fmt::format("{} by {}", title,
                          sweeps() ? "--" + results_.swept_flag : std::string("tokens attended")),
              Svg::Anchor::kStart, 13);
    double low = INFINITY, high = 0;
    for (const Point& p : points) {
      top = std::max(top, p.value);
      if (p.tokens == 0) continue;
      low = std::min(low, p.tokens);
      high = std::max(high, p.tokens);
    }
    if (top == 0) top = 1;
    const double left = x + 44, bottom = y + 14 + kChartHeight;
    const auto place_x = [&](double tokens) {
      if (high <= low) return left;
      // Thresholds are linear; counts are not.
      const double share = sweeps() && high <= 1 ? (tokens - low) / (high - low)
                                                 : std::log(tokens / low) / std::log(high / low);
      return left + (kChartWidth - 44) * share;
    };
    const auto place_y = [&](double v) { return bottom - kChartHeight * v / top; };
    for (int i = 0; i <= 4; ++i) {
      const double v = top * i / 4;
      svg_.line(left, place_y(v), x + kChartWidth, place_y(v), "#e0e0e0");
      svg_.text(left - 6, place_y(v) + 4, fmt::format("{:.3g}", v), Svg::Anchor::kEnd, 10,
                "#555555");
    }
    std::vector<double> marks;
    for (size_t i = 0; i < points.size(); ++i) {
      const Point& p = points[i];
      const char* color = line_color(p.line);
      if (p.tokens == 0) {
        svg_.line(left, place_y(p.value), x + kChartWidth, place_y(p.value), color, 1.5, true);
        continue;
      }
      const double at = place_x(p.tokens);
      if (i > 0 && points[i - 1].line == p.line && points[i - 1].tokens > 0) {
        svg_.polyline(
            {{place_x(points[i - 1].tokens), place_y(points[i - 1].value)}, {at, place_y(p.value)}},
            color);
      }
      svg_.dot(at, place_y(p.value), color);
      // Labels that would overlap are left out.
      if (std::all_of(marks.begin(), marks.end(),
                      [&](double m) { return std::abs(m - at) > 40; })) {
        svg_.text(at, bottom + 16,
                  sweeps() ? fmt::format("{:.4g}", p.tokens) : format_count(std::llround(p.tokens)),
                  Svg::Anchor::kMiddle, 10, "#555555");
        marks.push_back(at);
      }
    }
  }

  const EvalResults& results_;
  std::vector<int64_t> lengths_;
  std::vector<Row> rows_;
  Svg svg_;
  double width_ = 640;
};

}  // namespace

std::string eval_svg(const EvalResults& results) { return Picture(results).draw(); }

}  // namespace tiercel
