#include "tools/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "engine/base/units.h"
#include "tools/signals.h"

namespace tiercel {
namespace {

constexpr double kWindowSeconds = 10;
constexpr double kRedrawSeconds = 0.1;
constexpr double kPlainSeconds = 3;
constexpr double kPlainFraction = 0.05;
constexpr double kPlainPatienceSeconds = 30;
constexpr size_t kBarColumns = 20;

std::string bar(double fraction) {
  const auto full = static_cast<size_t>(std::clamp(fraction, 0.0, 1.0) * kBarColumns);
  return fmt::format("[{:=<{}}{:<{}}]", "", full, "", kBarColumns - full);
}

void draw(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

std::string ProgressLine::describe(const Progress& progress) const {
  std::string text =
      fmt::format("{} {:5.1f} %  {} of {} tokens", progress.phase, 100 * progress.fraction,
                  format_count(progress.tokens_done), format_count(progress.tokens_total));
  const double seconds = progress.seconds - window_.front().seconds;
  const double work = progress.fraction - window_.front().fraction;
  if (seconds <= 0 || work <= 0) return text;
  const double tokens = static_cast<double>(progress.tokens_done) - window_.front().tokens;
  if (tokens > 0) text += fmt::format("  {} tok/s", format_rate(tokens / seconds));
  text += "  ETA " + format_duration((1 - progress.fraction) * seconds / work);
  return text;
}

bool ProgressLine::update(const Progress& progress) {
  if (stop_requested()) return false;
  if (console_.quiet()) return true;
  // A new phase starts its clock afresh.
  if (!window_.empty() && progress.seconds < window_.back().seconds) window_.clear();
  if (window_.empty()) {
    window_.push_back({0, 0, 0});
    shown_seconds_ = 0;
    shown_fraction_ = 0;
  }
  // Keep one sample older than the window, so that the rate always spans all of it.
  if (progress.seconds - window_.back().seconds >= kRedrawSeconds) {
    window_.push_back(
        {progress.seconds, progress.fraction, static_cast<double>(progress.tokens_done)});
    while (window_.size() > 2 && progress.seconds - window_[1].seconds > kWindowSeconds) {
      window_.pop_front();
    }
  }
  const double waited = progress.seconds - shown_seconds_;
  const double advanced = progress.fraction - shown_fraction_;
  if (console_.terminal()) {
    if (waited < kRedrawSeconds) return true;
    std::string text = fmt::format("{} {}", bar(progress.fraction), describe(progress));
    const auto columns = static_cast<size_t>(std::max(console_.width() - 1, 1));
    if (text.size() > columns) text.resize(columns);
    const size_t n = text.size();
    if (n < drawn_columns_) text.append(drawn_columns_ - n, ' ');
    drawn_columns_ = n;
    draw(fmt::format("\r{}", text));
  } else {
    const bool due = waited >= kPlainSeconds && advanced >= kPlainFraction;
    if (!due && waited < kPlainPatienceSeconds) return true;
    console_.line(describe(progress));
  }
  shown_seconds_ = progress.seconds;
  shown_fraction_ = progress.fraction;
  return true;
}

void ProgressLine::clear() {
  if (drawn_columns_ == 0) return;
  draw(fmt::format("\r{:{}}\r", "", drawn_columns_));
  drawn_columns_ = 0;
}

}  // namespace tiercel
