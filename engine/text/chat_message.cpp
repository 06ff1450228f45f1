#include "engine/text/chat_message.h"

#include <charconv>
#include <chrono>
#include <ctime>

#include "engine/base/check.h"

namespace tiercel {

std::string_view name_of(ChatRole role) {
  switch (role) {
    case ChatRole::kSystem: return "system";
    case ChatRole::kUser: return "user";
    case ChatRole::kAssistant: return "assistant";
    case ChatRole::kTool: return "tool";
  }
  return "?";
}

ChatDate chat_date_today() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  return {.year = local.tm_year + 1900, .month = local.tm_mon + 1, .day = local.tm_mday};
}

ChatDate parse_chat_date(const std::string& text) {
  ChatDate date;
  int* const fields[] = {&date.year, &date.month, &date.day};
  const char* at = text.data();
  const char* const end = at + text.size();
  bool good = text.size() == 10;
  for (int i = 0; i < 3 && good; ++i) {
    const char* const stop = at + (i == 0 ? 4 : 2);
    const auto [next, error] = std::from_chars(at, stop, *fields[i]);
    good = error == std::errc() && next == stop && (stop == end || *stop == '-');
    at = stop + 1;
  }
  const std::chrono::year_month_day day{std::chrono::year(date.year), std::chrono::month(static_cast<unsigned>(date.month)),
                                        std::chrono::day(static_cast<unsigned>(date.day))};
  if (!good || date.year < 1 || date.month < 1 || date.day < 1 || !day.ok()) {
    fail(ErrorKind::kUsage, "expected a day as YYYY-MM-DD, found '{}'", text);
  }
  return date;
}

}  // namespace tiercel
