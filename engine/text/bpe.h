// The merge engine of byte-pair encoding: one piece in, token ids out. What is merged first are
// bytes, or characters, with bytes for those that have no token.
//
// It promises the result of the textbook procedure ("repeat: apply the merge of lowest rank, the
// leftmost first among equals", Sennrich et al. 2016, arXiv:1508.07909, as ordered by Hugging Face
// tokenizers) in O(n log n) for a piece of n bytes. It knows nothing of text, splitting or JSON.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace tiercel {

// A merge: the pair (left, right) becomes merged. The rank of a merge is its index in the list.
struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t merged;
};

// The tokens that merging begins with.
struct BpeAlphabet {
  BpeAlphabet() { bytes.fill(-1); }

  std::array<int32_t, 256> bytes;  // the token of each single byte, -1 for none
  // Where not empty, the tokens of characters; `bytes` are for those of a character without one
  // (SentencePiece's "byte fallback"). Where empty, every byte is a symbol.
  std::unordered_map<char32_t, int32_t> characters;
};

// Open-addressing memo: bytes of a piece -> its token ids. Not thread-safe: one per thread at a
// time. Bounded: it forgets everything when it is full, which costs time and never correctness.
class PieceCache {
 public:
  static constexpr size_t kMaxPieceBytes = 128;  // longer pieces hardly ever repeat

  PieceCache();
  // The ids of `piece`, or an empty span when unknown (no piece has zero ids).
  std::span<const int32_t> find(std::string_view piece, uint64_t hash) const;
  // Remembers ids of a piece that find did not know.
  void insert(std::string_view piece, uint64_t hash, std::span<const int32_t> ids);

 private:
  struct Slot {
    uint64_t hash;
    uint32_t key_offset;  // into keys_
    uint32_t ids_offset;  // into ids_
    uint32_t key_bytes;
    uint32_t n_ids;  // 0: free
  };
  void grow();

  std::vector<Slot> slots_;  // a power of two
  std::vector<char> keys_;
  std::vector<int32_t> ids_;
  size_t n_used_ = 0;
};

// Priority queue of (rank, position), lowest rank first, then lowest position: one bucket of
// positions for each rank in use. Positions mostly come in increasing order, and then push and pop
// are O(1) in the number of positions, which makes runs of one character cheap; else O(log n).
class MergeQueue {
 public:
  void push(uint32_t rank, uint32_t position);
  // Takes the first entry; false when there is none.
  bool pop(uint32_t* rank, uint32_t* position);

 private:
  struct Bucket {
    std::vector<uint32_t> ordered;  // increasing; the first `n_taken` are gone
    size_t n_taken = 0;
    std::vector<uint32_t> late;  // a min-heap of positions that came out of order
  };

  std::vector<uint32_t> bucket_of_;  // rank -> index into buckets_ plus one; 0: none
  std::vector<Bucket> buckets_;      // as many as ever were in use at once
  std::vector<uint32_t> free_;       // buckets_ that are empty
  std::vector<uint32_t> ranks_;      // a min-heap of the ranks that have a bucket
};

// Memory that encoding needs; keep one per thread and reuse it.
struct BpeScratch {
  PieceCache cache;
  std::vector<int32_t> tokens;
  std::vector<uint32_t> ranks;
  std::vector<uint32_t> next;
  std::vector<uint32_t> previous;
  MergeQueue queue;
};

// Immutable after construction; safe to share between threads.
class Bpe {
 public:
  Bpe() = default;
  // When the same pair is listed twice, the last one counts (as in Hugging Face). whole_pieces:
  // when not empty, a piece found in it is that one token and is not merged ("ignore_merges" of
  // Llama 3).
  Bpe(const BpeAlphabet& alphabet, std::span<const BpeMerge> merges,
      std::unordered_map<std::string, int32_t> whole_pieces);

  // Appends the ids of a non-empty piece of less than 2^32 bytes to `*ids`; it must be valid UTF-8
  // where the alphabet has characters. Throws Error when a byte has no token.
  void encode(std::string_view piece, BpeScratch* scratch, std::vector<int32_t>* ids) const;

 private:
  struct Entry {
    uint64_t pair;
    uint32_t rank;
    int32_t merged;
  };
  const Entry* find(int32_t left, int32_t right) const;
  uint32_t rank_of(int32_t left, int32_t right) const;
  void merge_piece(std::string_view piece, BpeScratch* scratch, std::vector<int32_t>* ids) const;
  void append_bytes(std::string_view bytes, std::vector<int32_t>* symbols) const;
  void append_characters(std::string_view text, std::vector<int32_t>* symbols) const;
  void merge_short(BpeScratch* scratch) const;
  void merge_long(BpeScratch* scratch) const;

  BpeAlphabet alphabet_;
  std::array<int32_t, 128> ascii_{};  // alphabet_.characters below U+0080, -1 for none
  std::vector<Entry> table_;          // open addressing, a power of two
  std::unordered_map<std::string, int32_t> whole_pieces_;
};

}  // namespace tiercel
