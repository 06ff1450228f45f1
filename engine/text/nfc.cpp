#include "engine/text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/unicode_additions.h"
#include "engine/text/utf8.h"

namespace tiercel {
namespace {

struct Range {
  char32_t first;
  char32_t last;
};
// Characters of Unicode 10 to 15 that have a combining class, a decomposition or a composition
// (U+11938 = U+11935 U+11930) in utf8proc and none in Unicode 9. Sorted.
// clang-format off
constexpr Range kNewerThanUnicode9[] = {
    {0x7FD, 0x7FD}, {0x898, 0x89F}, {0x8CA, 0x8D3}, {0x9FE, 0x9FE}, {0xC3C, 0xC3C},
    {0xD3B, 0xD3C}, {0xEBA, 0xEBA}, {0x1715, 0x1715}, {0x1ABF, 0x1ACE}, {0x1DF6, 0x1DFA},
    {0xA82C, 0xA82C}, {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
    {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11930}, {0x11935, 0x11935},
    {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
    {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1},
    {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF},
    {0x1E4EC, 0x1E4EF},
};
// clang-format on

// The list above and all that came after Unicode 14, sorted.
const std::vector<Range>& newer_ranges() {
  static const std::vector<Range> kRanges = [] {
    std::vector<Range> ranges(std::begin(kNewerThanUnicode9), std::end(kNewerThanUnicode9));
    for (const CategoryRange& range : kNewCharacters) ranges.push_back({range.first, range.last});
    // The two lists overlap in places; an end that never decreases keeps the search valid.
    std::sort(ranges.begin(), ranges.end(),
              [](const Range& x, const Range& y) { return x.first < y.first; });
    for (size_t i = 1; i < ranges.size(); ++i) {
      ranges[i].last = std::max(ranges[i].last, ranges[i - 1].last);
      if (ranges[i].first <= ranges[i - 1].last) ranges[i].first = ranges[i - 1].first;
    }
    return ranges;
  }();
  return kRanges;
}

bool is_newer(char32_t c) {
  static const std::vector<Range>& ranges = newer_ranges();
  const auto range = std::partition_point(ranges.begin(), ranges.end(),
                                          [c](const Range& r) { return r.last < c; });
  return range != ranges.end() && range->first <= c;
}

bool is_mark(utf8proc_category_t category) {
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC ||
         category == UTF8PROC_CATEGORY_ME;
}

// True if text may be cut before `c`: nothing before it can combine with it or move past it, and it
// is its own NFC. Conservative: false costs time only.
bool is_boundary(char32_t c) {
  if (c < 0x300 || (c >= 0x3400 && c < 0xA000) || (c >= 0xAC00 && c < 0xD7A4)) return true;
  const bool medial_or_final_jamo = c >= 0x1160 && c < 0x1200;
  const utf8proc_property_t* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
  const bool decomposes = property->decomp_type == 0 && property->decomp_seqindex != UINT16_MAX;
  const bool combines = medial_or_final_jamo || property->combining_class != 0 ||
                        is_mark(static_cast<utf8proc_category_t>(property->category));
  return (!decomposes && !combines) || is_newer(c);
}

int combining_class(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

// NFC of one run of valid UTF-8 that holds no character newer than Unicode 9.
void append_normalized_run(std::string_view run, std::vector<utf8proc_int32_t>* points,
                           std::string* output) {
  constexpr auto kDecompose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
  constexpr auto kCompose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  points->clear();
  for (size_t at = 0; at < run.size();) {
    utf8proc_int32_t parts[8];
    int unused_break_state = 0;
    const auto c = static_cast<utf8proc_int32_t>(read_code_point(run, &at));
    const utf8proc_ssize_t n = utf8proc_decompose_char(c, parts, static_cast<int>(std::size(parts)),
                                                       kDecompose, &unused_break_state);
    CHECK(n > 0 && n <= 8, "decomposition of U+{:X}: {}", static_cast<uint32_t>(c), n);
    points->insert(points->end(), parts, parts + n);
  }
  for (auto first = points->begin(); first != points->end();) {
    if (combining_class(*first) == 0) {
      ++first;
      continue;
    }
    const auto last =
        std::find_if(first, points->end(), [](auto c) { return combining_class(c) == 0; });
    std::stable_sort(first, last,
                     [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    first = last;
  }
  const utf8proc_ssize_t n = utf8proc_normalize_utf32(
      points->data(), static_cast<utf8proc_ssize_t>(points->size()), kCompose);
  CHECK(n >= 0, "utf8proc: {}", utf8proc_errmsg(n));
  for (utf8proc_ssize_t i = 0; i < n; ++i) {
    append_code_point(static_cast<char32_t>((*points)[static_cast<size_t>(i)]), output);
  }
}

}  // namespace

void append_nfc(std::string_view text, std::string* output) {
  std::vector<utf8proc_int32_t> points;
  size_t copied = 0;    // everything before is in the output
  size_t previous = 0;  // start of the character before `at`, if it may combine with what follows
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    if (static_cast<uint8_t>(text[at]) < 0xCC) {  // below U+0300
      read_code_point(text, &at);
      previous = start;
      continue;
    }
    char32_t c = read_code_point(text, &at);
    if (is_boundary(c)) {
      // A newer character combines with nothing: the next run must not include it.
      previous = is_newer(c) ? at : start;
      continue;
    }
    output->append(text.substr(copied, previous - copied));
    copied = at;
    while (at < text.size() && !is_boundary(read_code_point(text, &at))) copied = at;
    at = copied;
    append_normalized_run(text.substr(previous, copied - previous), &points, output);
    previous = copied;
  }
  output->append(text.substr(copied));
}

}  // namespace tiercel
