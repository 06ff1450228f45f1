#include "engine/text/grammar/character_sets.h"

#include <utf8proc.h>

#include <array>
#include <string>
#include <utility>

namespace tiercel::grammar {
namespace {

// In utf8proc's order.
constexpr std::string_view kCategories = "CnLuLlLtLmLoMnMcMeNdNlNoPcPdPsPePiPfPoSmScSkSoZsZlZpCcCfCsCo";
constexpr size_t kNCategories = kCategories.size() / 2;
// Their long names (Unicode's PropertyValueAliases.txt).
constexpr std::string_view kLongNames =
    " Other=C Control=Cc cntrl=Cc Format=Cf Unassigned=Cn Private_Use=Co Surrogate=Cs Letter=L Cased_Letter=LC "
    "Lowercase_Letter=Ll Modifier_Letter=Lm Other_Letter=Lo Titlecase_Letter=Lt Uppercase_Letter=Lu Mark=M "
    "Combining_Mark=M Spacing_Mark=Mc Enclosing_Mark=Me Nonspacing_Mark=Mn Number=N Decimal_Number=Nd digit=Nd "
    "Letter_Number=Nl Other_Number=No Punctuation=P punct=P Connector_Punctuation=Pc Dash_Punctuation=Pd "
    "Close_Punctuation=Pe Final_Punctuation=Pf Initial_Punctuation=Pi Other_Punctuation=Po Open_Punctuation=Ps "
    "Symbol=S Currency_Symbol=Sc Modifier_Symbol=Sk Math_Symbol=Sm Other_Symbol=So Separator=Z Line_Separator=Zl "
    "Paragraph_Separator=Zp Space_Separator=Zs ";

const std::array<Ranges, kNCategories>& categories() {
  static const std::array<Ranges, kNCategories> all = [] {
    std::array<Ranges, kNCategories> result;
    for (char32_t c = 0; c <= kLastCharacter; ++c) {
      Ranges& ranges = result[static_cast<size_t>(utf8proc_category(static_cast<utf8proc_int32_t>(c)))];
      if (!ranges.empty() && ranges.back().last + 1 == c) {
        ranges.back().last = c;
      } else {
        ranges.push_back({c, c});
      }
    }
    return result;
  }();
  return all;
}

}  // namespace

Ranges complement(Ranges ranges) { return characters_except(std::move(ranges))->ranges; }

std::optional<Ranges> escape_set(char32_t letter) {
  switch (letter) {
    case 'd':
      return Ranges{{'0', '9'}};
    case 'w':
      return Ranges{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    case 's':
      return Ranges{{'\t', '\r'},     {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
                    {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
    case 'D':
    case 'W':
    case 'S':
      return complement(*escape_set(letter | 32));
    default:
      return std::nullopt;
  }
}

Ranges dot_set() { return complement({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}); }

std::optional<Ranges> property_set(std::string_view name) {
  if (name == "Any") return Ranges{{0, kLastCharacter}};
  if (name == "ASCII") return Ranges{{0, 0x7F}};
  if (name == "Assigned") return complement(categories()[UTF8PROC_CATEGORY_CN]);
  for (const std::string_view prefix : {"General_Category=", "gc="}) {
    if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
  }
  if (name.find_first_of(" =") != name.npos) return std::nullopt;
  if (const size_t at = kLongNames.find(" " + std::string(name) + "="); at != kLongNames.npos) {
    name = kLongNames.substr(at + name.size() + 2);
    name = name.substr(0, name.find(' '));
  }
  Ranges ranges;
  bool is_known = false;
  for (size_t i = 0; i < kNCategories; ++i) {
    const std::string_view category = kCategories.substr(2 * i, 2);
    const bool is_cased = category == "Lu" || category == "Ll" || category == "Lt";
    if (name != category && name != category.substr(0, 1) && !(name == "LC" && is_cased)) continue;
    is_known = true;
    ranges.insert(ranges.end(), categories()[i].begin(), categories()[i].end());
  }
  return is_known ? std::optional(characters(std::move(ranges))->ranges) : std::nullopt;
}

}  // namespace tiercel::grammar
