#include "engine/text/bpe.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>

#include "engine/text/character_cuts.h"
#include "tests/seed.h"
#include "tests/tokenizer/corpus.h"

namespace tiercel::test {
namespace {

// Merges over the letters a..d made at random: every merged string is one token.
struct RandomBpe {
  BpeAlphabet alphabet;
  std::vector<BpeMerge> merges;

  RandomBpe(uint64_t seed, uint32_t n_merges) {
    Random random(seed);
    std::vector<std::string> tokens;
    std::map<std::string, int32_t> ids;
    for (const char c : {'a', 'b', 'c', 'd'}) {
      alphabet.bytes[static_cast<uint8_t>(c)] = static_cast<int32_t>(tokens.size());
      ids[std::string(1, c)] = static_cast<int32_t>(tokens.size());
      tokens.push_back(std::string(1, c));
    }
    for (uint32_t i = 0; i < n_merges; ++i) {
      const auto left = static_cast<int32_t>(random.below(static_cast<uint32_t>(tokens.size())));
      const auto right = static_cast<int32_t>(random.below(static_cast<uint32_t>(tokens.size())));
      const std::string both =
          tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)];
      const auto [place, is_new] = ids.emplace(both, static_cast<int32_t>(tokens.size()));
      if (is_new) tokens.push_back(both);
      merges.push_back({left, right, place->second});
    }
  }

  // The textbook: find the lowest rank, leftmost; merge; repeat.
  std::vector<int32_t> naive(std::string_view piece) const {
    std::vector<int32_t> ids;
    for (const char c : piece) ids.push_back(alphabet.bytes[static_cast<uint8_t>(c)]);
    while (true) {
      size_t best_rank = merges.size();
      size_t best_at = 0;
      for (size_t at = 0; at + 1 < ids.size(); ++at) {
        for (size_t rank = merges.size(); rank-- > 0;) {
          if (merges[rank].left != ids[at] || merges[rank].right != ids[at + 1]) continue;
          if (rank < best_rank) {
            best_rank = rank;
            best_at = at;
          }
          break;  // of a pair listed twice the last one counts
        }
      }
      if (best_rank == merges.size()) return ids;
      ids[best_at] = merges[best_rank].merged;
      ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
    }
  }
};

TEST(Bpe, EqualsTheTextbookForShortAndLongPieces) {
  Random random(seed());
  BpeScratch scratch;
  for (uint64_t round = 0; round < 60; ++round) {
    const RandomBpe random_bpe(seed() + round, 5 + random.below(60));
    const Bpe bpe(random_bpe.alphabet, random_bpe.merges, {});
    scratch.cache = PieceCache();
    for (int i = 0; i < 40; ++i) {
      std::string piece;
      const uint32_t n = 1 + random.below(i % 2 == 0 ? 48 : 300);
      const uint32_t n_letters = 1 + random.below(4);
      for (uint32_t j = 0; j < n; ++j) piece += static_cast<char>('a' + random.below(n_letters));
      std::vector<int32_t> ids;
      bpe.encode(piece, &scratch, &ids);
      ASSERT_EQ(ids, random_bpe.naive(piece)) << "round " << round << " " << piece;
      std::vector<int32_t> again;
      bpe.encode(piece, &scratch, &again);
      ASSERT_EQ(again, ids) << "from the cache: " << piece;
    }
  }
}

// Merges over characters of one to four bytes, with bytes for a few that have no token.
TEST(CharacterCuts, PiecesHaveTheTokensOfTheWhole) {
  const std::vector<std::string> letters = {"a", "b", "\u2581", "\u00e9", "\U0001F600"};
  const std::vector<std::string> others = {"c", "\u4f60"};
  Random random(seed());
  int64_t n_pieces = 0, n_texts = 0;
  for (int round = 0; round < 200; ++round) {
    BpeAlphabet alphabet;
    std::vector<std::string> tokens;
    std::map<std::string, int32_t> ids;
    const auto id_of = [&](const std::string& token) {
      const auto [place, is_new] = ids.emplace(token, static_cast<int32_t>(tokens.size()));
      if (is_new) tokens.push_back(token);
      return place->second;
    };
    for (size_t byte = 0; byte < 256; ++byte)
      alphabet.bytes[byte] = id_of(fmt::format("<{}>", byte));
    const auto n_bytes = static_cast<uint32_t>(tokens.size());
    for (const std::string& letter : letters) {
      size_t end = 0;
      alphabet.characters[read_code_point(letter, &end)] = id_of(letter);
    }
    std::vector<BpeMerge> merges;
    for (uint32_t i = 3 + random.below(20); i > 0; --i) {
      const auto any = [&] {
        return static_cast<int32_t>(n_bytes +
                                    random.below(static_cast<uint32_t>(tokens.size()) - n_bytes));
      };
      const int32_t left = any(), right = any();
      const std::string both =
          tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)];
      merges.push_back({left, right, id_of(both)});
    }
    const Bpe bpe(alphabet, merges, {});
    const CharacterCuts cuts(merges, tokens);
    BpeScratch scratch;
    for (int i = 0; i < 20; ++i) {
      std::string text;
      for (uint32_t n = 1 + random.below(200); n > 0; --n) {
        text += random.below(10) == 0 ? others[random.below(2)] : letters[random.below(5)];
      }
      std::vector<int32_t> whole, of_pieces;
      bpe.encode(text, &scratch, &whole);
      std::string joined;
      cuts.split(text, [&](std::string_view piece) {
        ASSERT_FALSE(piece.empty());
        joined += piece;
        bpe.encode(piece, &scratch, &of_pieces);
        ++n_pieces;
      });
      ASSERT_EQ(joined, text);
      ASSERT_EQ(of_pieces, whole) << "round " << round << ": " << text;
      ++n_texts;
    }
  }
  EXPECT_GT(n_pieces, 4 * n_texts);  // it does cut
}

TEST(Bpe, CacheForgetsAndStaysRight) {
  PieceCache cache;
  const uint32_t n = kSanitized ? 20000 : 700000;
  for (uint32_t i = 0; i < n; ++i) {
    const std::string piece = std::to_string(i);
    const int32_t ids[] = {static_cast<int32_t>(i), 7};
    // Pairs of pieces share a hash: the bytes must decide.
    const uint64_t hash = (i / 2) * 0x9E3779B97F4A7C15u >> 20;
    cache.insert(piece, hash, ids);
    const auto found = cache.find(piece, hash);
    ASSERT_EQ(found.size(), 2u);
    ASSERT_EQ(found[0], static_cast<int32_t>(i));
  }
  EXPECT_TRUE(cache.find("none", 1).empty());
}

TEST(Bpe, TenMegabytesWithoutASplit) {
  const RandomBpe random_bpe(seed(), 50);
  const Bpe bpe(random_bpe.alphabet, random_bpe.merges, {});
  BpeScratch scratch;
  for (const size_t n_bytes : {size_t{1} << 20, size_t{10} << 20}) {
    std::string piece;
    Random random(3);
    for (size_t i = 0; i < n_bytes; ++i) piece += static_cast<char>('a' + random.below(4));
    const auto start = std::chrono::steady_clock::now();
    std::vector<int32_t> ids;
    bpe.encode(piece, &scratch, &ids);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("one piece of %zu MiB: %.2f s, %zu tokens\n", n_bytes >> 20, seconds.count(),
                ids.size());
    EXPECT_LT(ids.size(), n_bytes);
    if (kSanitized) break;
  }
}

}  // namespace
}  // namespace tiercel::test
