#include "engine/text/utf8.h"

#include <cstring>

#include "engine/base/check.h"

namespace tiercel {
namespace {

uint8_t byte_at(std::string_view text, size_t index) { return static_cast<uint8_t>(text[index]); }

// Which second bytes may follow a leading byte; the narrow cases exclude overlong forms (E0, F0),
// surrogates (ED) and code points above 0x10FFFF (F4).
struct Lead {
  int length;  // of the whole character; 0: can start nothing
  uint8_t second_min;
  uint8_t second_max;
};
Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

size_t skip_ascii(std::string_view text, size_t position) {
  constexpr uint64_t kHighBits = 0x8080808080808080u;
  while (position + sizeof(uint64_t) <= text.size()) {
    uint64_t word;
    std::memcpy(&word, text.data() + position, sizeof(word));
    if ((word & kHighBits) != 0) break;
    position += sizeof(word);
  }
  while (position < text.size() && byte_at(text, position) < 0x80) ++position;
  return position;
}

}  // namespace

Utf8Next next_utf8(std::string_view text) {
  const Lead lead = lead_of(byte_at(text, 0));
  if (lead.length == 0) return {Utf8Step::kInvalid, 1};
  for (int i = 1; i < lead.length; ++i) {
    if (static_cast<size_t>(i) == text.size()) return {Utf8Step::kIncomplete, i};
    const uint8_t byte = byte_at(text, static_cast<size_t>(i));
    const uint8_t low = i == 1 ? lead.second_min : 0x80;
    const uint8_t high = i == 1 ? lead.second_max : 0xBF;
    if (byte < low || byte > high) return {Utf8Step::kInvalid, i};
  }
  return {Utf8Step::kValid, lead.length};
}

size_t valid_utf8_prefix(std::string_view text) {
  size_t position = 0;
  while (true) {
    position = skip_ascii(text, position);
    if (position == text.size()) return position;
    const Utf8Next next = next_utf8(text.substr(position));
    if (next.step != Utf8Step::kValid) return position;
    position += static_cast<size_t>(next.length);
  }
}

int64_t append_valid_utf8(std::string_view text, std::string* output) {
  int64_t n_replaced = 0;
  while (true) {
    const size_t valid = valid_utf8_prefix(text);
    output->append(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty()) return n_replaced;
    const Utf8Next bad = next_utf8(text);
    output->append(kReplacementCharacter);
    n_replaced += bad.length;
    text.remove_prefix(static_cast<size_t>(bad.length));
  }
}

void append_code_point(char32_t code_point, std::string* output) {
  const auto put = [output](uint32_t byte) { output->push_back(static_cast<char>(byte)); };
  const uint32_t c = code_point;
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 63));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 63));
    put(0x80 | (c & 63));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 63));
    put(0x80 | (c >> 6 & 63));
    put(0x80 | (c & 63));
  }
}

char32_t read_code_point(std::string_view text, size_t* position) {
  const uint32_t lead = byte_at(text, *position);
  const auto tail = [&](size_t i) { return byte_at(text, *position + i) & 63u; };
  char32_t result;
  if (lead < 0x80) {
    result = lead;
    *position += 1;
  } else if (lead < 0xE0) {
    result = (lead & 31) << 6 | tail(1);
    *position += 2;
  } else if (lead < 0xF0) {
    result = (lead & 15) << 12 | tail(1) << 6 | tail(2);
    *position += 3;
  } else {
    result = (lead & 7) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3);
    *position += 4;
  }
  return result;
}

void Utf8Stream::push(std::string_view bytes, std::string* output) {
  // First settle what was held: it is a proper prefix, so every new byte completes it, lengthens it
  // or shows that it was invalid.
  while (n_held_ > 0 && !bytes.empty()) {
    held_[n_held_] = bytes[0];
    const std::string_view held(held_, static_cast<size_t>(n_held_) + 1);
    const Utf8Next next = next_utf8(held);
    if (next.step == Utf8Step::kInvalid) {
      // The new byte is no part of the invalid sequence: it is looked at again on its own.
      DCHECK(next.length == n_held_, "held {} bytes, found {} invalid", n_held_, next.length);
      output->append(kReplacementCharacter);
      n_held_ = 0;
      break;
    }
    bytes.remove_prefix(1);
    ++n_held_;
    if (next.step == Utf8Step::kValid) {
      output->append(held);
      n_held_ = 0;
    }
  }
  while (!bytes.empty()) {
    const size_t valid = valid_utf8_prefix(bytes);
    output->append(bytes.substr(0, valid));
    bytes.remove_prefix(valid);
    if (bytes.empty()) return;
    const Utf8Next next = next_utf8(bytes);
    if (next.step == Utf8Step::kIncomplete) {
      std::memcpy(held_, bytes.data(), bytes.size());
      n_held_ = next.length;
      return;
    }
    output->append(kReplacementCharacter);
    bytes.remove_prefix(static_cast<size_t>(next.length));
  }
}

void Utf8Stream::finish(std::string* output) {
  if (n_held_ > 0) output->append(kReplacementCharacter);
  n_held_ = 0;
}

}  // namespace tiercel
