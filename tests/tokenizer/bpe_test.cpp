#include "engine/bpe.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>

#include "tests/seed.h"
#include "tests/tokenizer/corpus.h"

namespace tiercel::test {
namespace {

// Merges over the letters a..d made at random: every merged string is one token.
struct RandomBpe {
  std::array<int32_t, 256> byte_ids;
  std::vector<BpeMerge> merges;

  RandomBpe(uint64_t seed, uint32_t n_merges) {
    Random random(seed);
    byte_ids.fill(-1);
    std::vector<std::string> tokens;
    std::map<std::string, int32_t> ids;
    for (const char c : {'a', 'b', 'c', 'd'}) {
      byte_ids[static_cast<uint8_t>(c)] = static_cast<int32_t>(tokens.size());
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
    for (const char c : piece) ids.push_back(byte_ids[static_cast<uint8_t>(c)]);
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
    const Bpe bpe(random_bpe.byte_ids, random_bpe.merges, {});
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
  const Bpe bpe(random_bpe.byte_ids, random_bpe.merges, {});
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
