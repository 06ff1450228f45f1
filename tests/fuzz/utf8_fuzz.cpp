// However a text is cut into pushes, the stream gives what the one-shot form gives, in whole
// characters; and NFC of it is valid and stable.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "engine/base/check.h"
#include "engine/text/nfc.h"
#include "engine/text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  // The first half says where to cut, the second is the text.
  const std::string_view cuts = input.substr(0, size / 2);
  const std::string_view text = input.substr(size / 2);
  std::string expected;
  const int64_t n_replaced = append_valid_utf8(text, &expected);
  CHECK(valid_utf8_prefix(expected) == expected.size());
  CHECK((n_replaced == 0) == (valid_utf8_prefix(text) == text.size()));
  Utf8Stream stream;
  std::string joined;
  size_t at = 0;
  for (size_t i = 0; at < text.size(); ++i) {
    const size_t n = i < cuts.size() ? static_cast<uint8_t>(cuts[i]) % 6 : text.size() - at;
    std::string part;
    stream.push(text.substr(at, n), &part);
    CHECK(valid_utf8_prefix(part) == part.size());
    joined += part;
    at += std::min(n, text.size() - at);
  }
  stream.finish(&joined);
  CHECK(joined == expected);
  std::string once;
  append_nfc(expected, &once);
  std::string twice;
  append_nfc(once, &twice);
  CHECK(valid_utf8_prefix(once) == once.size());
  CHECK(once == twice);
  return 0;
}
