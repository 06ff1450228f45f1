// Any bytes as a tokenizer.json: they are refused with an Error, or give a tokenizer that works.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/check.h"
#include "engine/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tiercel;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    const Tokenizer tokenizer = Tokenizer::parse(input, "fuzz");
    for (const std::string_view text : {std::string_view("ab  <s>\xC3\xA9\xFF'S 12\r\n"), input}) {
      std::vector<int32_t> ids;
      try {
        ids = tokenizer.encode(text);
      } catch (const Error&) {  // a byte without a token, a pattern that gives up
      }
      StreamDecoder decoder(tokenizer);
      std::string joined;
      for (const int32_t id : ids) joined += decoder.push(id);
      joined += decoder.finish();
      CHECK(joined == tokenizer.decode(ids, false, Follows::kText));
    }
  } catch (const Error&) {
  }
  return 0;
}
