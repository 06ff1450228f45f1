// Names and numbers to hide: unique, and absent from a given text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "tools/filler_text.h"

namespace tiercel {

class UniqueNames {
 public:
  // `avoid` may be null; nothing that it contains is given out. Both must outlive this.
  explicit UniqueNames(RandomBits& random, const std::string* avoid = nullptr);

  // "amber-cobalt", "amber cobalt" or "amber-47". While the words last, no two keys share one: a
  // wrong answer then tells of attention that missed, not of two names mistaken for each other.
  std::string key();
  // n_digits digits; 0: 3 to 9.
  std::string value(size_t n_digits = 0);
  // 32 hexadecimal digits in groups.
  std::string uuid();
  // Letters of `alphabet`.
  std::string letters(size_t n, std::string_view alphabet);
  // Two words joined by a hyphen; three when many are wanted.
  std::string compound();

 private:
  std::string word();
  bool fresh(const std::string& candidate);

  RandomBits& random_;
  const std::string* avoid_;
  std::vector<std::string_view> unused_;
  std::unordered_set<std::string> taken_;
};

}  // namespace tiercel
