// A table of text that is readable as it is and as Markdown.
#pragma once

#include <string>
#include <vector>

namespace tiercel {

// Rows of equally many cells, the header first.
std::string markdown_table(const std::vector<std::vector<std::string>>& table);

}  // namespace tiercel
