// The text that the tokenizer is compared on: made of fragments.json and random numbers exactly as
// tests/golden/tokenizer/make_golden.py makes it, so that only hashes need to be stored.
#pragma once

#include <cstdint>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/text/utf8.h"
#include "tests/sanitized.h"

namespace tiercel::test {

inline constexpr size_t kBlockBytes = 65536;
inline constexpr uint32_t kSweepPoints = 4096;

inline std::string golden_path(const std::string& name) {
  return std::string(TIERCEL_SOURCE_DIR) + "/tests/golden/tokenizer/" + name;
}

inline std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  CHECK(stream.good(), "{}", path);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

inline nlohmann::json read_json(const std::string& name) {
  return nlohmann::json::parse(read_file(golden_path(name)));
}

inline std::vector<std::string> fragments() {
  return read_json("fragments.json").get<std::vector<std::string>>();
}

// xorshift64* (Vigna 2016).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint32_t below(uint32_t n) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545F4914F6CDD1Du) >> 33) % n;
  }

 private:
  uint64_t state_;
};

inline char32_t random_code_point(Random* random) {
  const uint32_t kind = random->below(8);
  const uint32_t plane = kind < 4 ? 0 : kind < 6 ? 1 : kind < 7 ? 2 : random->below(17);
  const uint32_t point = plane * 0x10000 + random->below(0x10000);
  return point >= 0xD800 && point < 0xE000 ? 0x20 : point;
}

// Block `index` of the mixed corpus: fragments, random code points of every plane, invalid bytes,
// runs of white space, numbers, words.
inline std::string mixed_block(uint64_t index, const std::vector<std::string>& fragments,
                               size_t n_bytes = kBlockBytes) {
  constexpr char32_t kSpaces[] = {0x09,   0x0A,   0x0B,   0x0C,   0x0D,   0x20,   0x20,
                                  0x20,   0x20,   0x85,   0xA0,   0x1680, 0x2000, 0x2004,
                                  0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0 /* CR LF */};
  Random random(index + 1);
  std::string out;
  const auto byte = [&out](uint32_t value) { out.push_back(static_cast<char>(value)); };
  while (out.size() < n_bytes) {
    const uint32_t kind = random.below(100);
    if (kind < 72) {
      out += fragments[random.below(static_cast<uint32_t>(fragments.size()))];
    } else if (kind < 79) {
      const uint32_t n = 1 + random.below(6);
      for (uint32_t i = 0; i < n; ++i) append_code_point(random_code_point(&random), &out);
    } else if (kind < 83) {
      const uint32_t n = 1 + random.below(5);
      for (uint32_t i = 0; i < n; ++i) byte(random.below(256));
    } else if (kind < 85) {
      const uint32_t n = 1 + random.below(4);
      for (uint32_t i = 0; i < n; ++i) byte(0x80 + random.below(128));
    } else if (kind < 89) {
      std::string space;
      const char32_t c = kSpaces[random.below(static_cast<uint32_t>(std::size(kSpaces)))];
      if (c == 0) {
        space = "\r\n";
      } else {
        append_code_point(c, &space);
      }
      const uint32_t n = 1 + random.below(24);
      for (uint32_t i = 0; i < n; ++i) out += space;
    } else if (kind < 93) {
      const uint32_t n = 1 + random.below(12);
      for (uint32_t i = 0; i < n; ++i) byte(0x30 + random.below(10));
    } else {
      if (random.below(2) != 0) byte(0x20);
      const uint32_t n = 1 + random.below(14);
      for (uint32_t i = 0; i < n; ++i) byte(0x61 + random.below(26));
    }
  }
  return out;
}

// Block `index` of the sweep: every code point next to a digit, a letter, a space, an apostrophe,
// itself and combining marks.
inline std::string sweep_block(uint32_t index) {
  std::string out;
  for (uint32_t point = index * kSweepPoints; point < (index + 1) * kSweepPoints; ++point) {
    if (point >= 0xD800 && point < 0xE000) continue;
    std::string c;
    append_code_point(point, &c);
    out += c + "1" + c + "b " + c + "'" + c + c + "q\xCD\x85" + c + "\xCC\xB4";
  }
  return out;
}

// FNV-1a over the ids as little-endian 32-bit integers, in hexadecimal.
inline std::string hash_ids(std::span<const int32_t> ids) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ (static_cast<uint32_t>(id) >> shift & 255)) * 0x100000001B3u;
    }
  }
  return fmt::format("{:016x}", hash);
}

}  // namespace tiercel::test
