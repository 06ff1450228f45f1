#include "tools/unique_names.h"

#include <fmt/format.h>

#include <iterator>

namespace tiercel {
namespace {

constexpr std::string_view kKeyWords[] = {
    "amber",  "cobalt",  "falcon",  "lantern", "marble",  "onyx",    "pebble", "quartz",
    "raven",  "saffron", "topaz",   "umber",   "velvet",  "willow",  "zephyr", "badger",
    "cedar",  "dolphin", "ember",   "fjord",   "garnet",  "heron",   "indigo", "jasper",
    "kiwi",   "lotus",   "mango",   "nectar",  "otter",   "panther", "quill",  "ruby",
    "sable",  "tulip",   "unicorn", "vortex",  "walrus",  "xenon",   "yonder", "zinc",
    "acorn",  "bison",   "crimson", "drift",   "eagle",   "fern",    "goblin", "hazel",
    "iris",   "jade",    "krypton", "lemur",   "magnet",  "nova",    "opal",   "piston",
    "raptor", "scarlet", "tundra",  "violet",  "wizard",  "argon",   "bronze", "cactus",
    "dagger", "fossil",  "gecko",   "hermit",  "ivory",   "jaguar",  "kelp",   "lilac",
    "meteor", "neptune", "oyster",  "pepper",  "quokka",  "rocket",  "sphinx", "tiger",
    "pluto",  "viking",  "wombat",  "python",  "yeti",    "zebra",   "aurora", "bamboo",
    "coral",  "domino",  "emerald", "ferret",  "granite", "hornet",  "igloo",  "jigsaw"};

// From so many names on, two words leave too few that are still free.
constexpr size_t kManyNames = 4000;

}  // namespace

UniqueNames::UniqueNames(RandomBits& random, const std::string* avoid)
    : random_(random), avoid_(avoid), unused_(std::begin(kKeyWords), std::end(kKeyWords)) {}

bool UniqueNames::fresh(const std::string& candidate) {
  if (avoid_ != nullptr && avoid_->find(candidate) != std::string::npos) return false;
  return taken_.insert(candidate).second;
}

std::string UniqueNames::word() {
  if (unused_.empty()) return std::string(kKeyWords[random_.below(std::size(kKeyWords))]);
  std::swap(unused_[random_.below(unused_.size())], unused_.back());
  const std::string_view taken = unused_.back();
  unused_.pop_back();
  return std::string(taken);
}

std::string UniqueNames::key() {
  std::string key;
  do {
    const std::string first = word();
    key = taken_.size() > kManyNames ? fmt::format("{} {}", word(), first) : first;
    if (random_.below(4) == 0) {
      key += fmt::format("-{}", 10 + random_.below(90));
      continue;
    }
    std::string second = word();
    while (second == first) second = word();
    key += (random_.below(2) == 0 ? '-' : ' ');
    key += second;
  } while (!fresh(key));
  return key;
}

std::string UniqueNames::value(size_t n_digits) {
  std::string value;
  do {
    value = static_cast<char>('1' + random_.below(9));
    const size_t n = n_digits > 0 ? n_digits : 3 + random_.below(7);
    while (value.size() < n) value += static_cast<char>('0' + random_.below(10));
  } while (!fresh(value));
  return value;
}

std::string UniqueNames::uuid() {
  std::string uuid;
  do {
    uuid.clear();
    for (const size_t n : {8, 4, 4, 4, 12}) {
      if (!uuid.empty()) uuid += '-';
      for (size_t i = 0; i < n; ++i) uuid += "0123456789abcdef"[random_.below(16)];
    }
  } while (!fresh(uuid));
  return uuid;
}

std::string UniqueNames::letters(size_t n, std::string_view alphabet) {
  std::string text;
  do {
    text.clear();
    while (text.size() < n) text += alphabet[random_.below(alphabet.size())];
  } while (!fresh(text));
  return text;
}

std::string UniqueNames::compound() {
  const auto any = [&] { return kKeyWords[random_.below(std::size(kKeyWords))]; };
  std::string text;
  do {
    // Drawn one by one: the order in which arguments are evaluated is nobody's promise.
    const std::string_view first = any(), second = any();
    text = fmt::format("{}-{}", first, second);
    if (taken_.size() > kManyNames) text += fmt::format("-{}", any());
  } while (!fresh(text));
  return text;
}

}  // namespace tiercel
