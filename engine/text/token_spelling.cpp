#include "engine/text/token_spelling.h"

#include <fmt/format.h>

#include "engine/text/utf8.h"

namespace tiercel {
namespace {

// GPT-2's spelling of bytes as characters that are visible and no white space: printable Latin-1
// stands for itself, the other 68 bytes are U+0100 onwards in order (Radford et al. 2019,
// encoder.py).
struct ByteAlphabet {
  std::array<char32_t, 256> to_character;
  std::array<int, 0x144> to_byte;  // -1: not in the alphabet

  ByteAlphabet() {
    to_byte.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const char32_t character = visible ? static_cast<char32_t>(byte) : next++;
      to_character[static_cast<size_t>(byte)] = character;
      to_byte[character] = byte;
    }
  }
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet kAlphabet;
  return kAlphabet;
}

int hexadecimal(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string byte_level_bytes(const std::string& token) {
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const char32_t c = read_code_point(token, &at);
    const int byte = c < byte_alphabet().to_byte.size() ? byte_alphabet().to_byte[c] : -1;
    if (byte < 0) return token;
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

std::string byte_level_token(std::string_view bytes) {
  std::string token;
  for (const char byte : bytes) {
    append_code_point(byte_alphabet().to_character[static_cast<uint8_t>(byte)], &token);
  }
  return token;
}

std::string byte_token(uint8_t byte) { return fmt::format("<0x{:02X}>", byte); }

std::optional<uint8_t> byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  const int high = hexadecimal(token[3]), low = hexadecimal(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

}  // namespace tiercel
