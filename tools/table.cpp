#include "tools/table.h"

#include <fmt/format.h>

#include <algorithm>

namespace tiercel {

std::string markdown_table(const std::vector<std::vector<std::string>>& table) {
  std::vector<size_t> width(table[0].size(), 0);
  for (const auto& row : table) {
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  std::string text;
  for (size_t r = 0; r < table.size(); ++r) {
    for (size_t i = 0; i < width.size(); ++i) {
      text += fmt::format("| {:<{}} ", table[r][i], width[i]);
    }
    text += "|\n";
    if (r > 0) continue;
    for (const size_t w : width) text += "| " + std::string(w, '-') + " ";
    text += "|\n";
  }
  return text;
}

}  // namespace tiercel
