#include "cpu/lowrank.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/codec.h"
#include "cpu/eigen.h"
#include "cpu/levels.h"
#include "cpu/linear.h"
#include "cpu/rotary.h"
#include "engine/base/check.h"

namespace tiercel::cpu {
namespace {

constexpr int64_t kGramTokens = 4096;  // of one chunk: one item, one fp32 sum
constexpr int64_t kBlockTokens = 256;  // a panel of them is 32 KiB
constexpr int64_t kProjectTokens = 1024;

const uint16_t* bits(const bf16* values) { return reinterpret_cast<const uint16_t*>(values); }
uint16_t* bits(bf16* values) { return reinterpret_cast<uint16_t*>(values); }

int64_t panels_of(int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }

// Hands out aligned pieces of a worker's scratch memory.
class Carver {
 public:
  explicit Carver(std::byte* memory) : next_(memory), end_(memory + kScratchBytes) {}
  template <typename T>
  T* take(int64_t n) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
    CHECK(next_ <= end_, "the scratch memory of a worker is too small");
    return piece;
  }

 private:
  std::byte* next_;
  std::byte* end_;
};

// Reads keys of all heads of one token, turned back.
struct KeyReader {
  const ElementwiseLevel& level;
  const RopeView& rope;
  const uint16_t* keys;
  int64_t head_stride;
  int32_t n_kv_heads, head_dim;

  // out [w] = keys of the token at `row` of the plane and at `position`, before RoPE, minus shift
  void read(int64_t row, int64_t position, const float* shift, float* out) const {
    alignas(64) float cosines[kMaxRopeHalf];
    alignas(64) float sines[kMaxRopeHalf];
    rope_angles(level, rope, position, cosines, sines);
    for (int64_t j = 0; j < n_kv_heads; ++j) {
      const int64_t channel = j * head_dim;
      level.unrotate(keys + j * head_stride + row * head_dim, cosines, sines, shift + channel,
                     rope.half, out + channel);
    }
  }
};

KeyReader reader_of(Queue& queue, const auto& p) {
  CHECK(p.head_dim == 2 * p.rope.half && p.rope.half <= kMaxRopeHalf, "head dimension {}, table {}",
        p.head_dim, 2 * p.rope.half);
  return {elementwise_level(queue.isa()),
          p.rope,
          bits(p.keys),
          p.head_stride,
          p.n_kv_heads,
          p.head_dim};
}

// ---- fit ----------------------------------------------------------------------------------------

// Mean of the first tokens, before RoPE: per 256 tokens in fp32, across in fp64.
std::vector<float> first_mean(const KeyReader& reader, int64_t n_tokens, int64_t w) {
  const std::vector<float> zero(static_cast<size_t>(w));
  std::vector<float> row(zero), sums(zero), mean(zero);
  std::vector<double> totals(static_cast<size_t>(w));
  for (int64_t t = 0; t < n_tokens; ++t) {
    reader.read(t, t, zero.data(), row.data());
    for (size_t i = 0; i < row.size(); ++i) sums[i] += row[i];
    if ((t + 1) % kBlockTokens == 0 || t + 1 == n_tokens) {
      for (size_t i = 0; i < row.size(); ++i) totals[i] += static_cast<double>(sums[i]);
      std::fill(sums.begin(), sums.end(), 0.0f);
    }
  }
  for (size_t i = 0; i < row.size(); ++i) {
    mean[i] = static_cast<float>(totals[i] / static_cast<double>(n_tokens));
  }
  return mean;
}

// Gram matrix (upper triangle of panels) and column sums of shifted keys, of one chunk of tokens.
struct GramChunk {
  float* gram;   // [w][w]
  double* sums;  // [w]
};

void gram_of_chunk(const KeyReader& reader, const GemmLevel& gemm, int64_t first, int64_t end,
                   const float* shift, const GramChunk& out, std::byte* scratch) {
  const int64_t w = int64_t{reader.n_kv_heads} * reader.head_dim;
  const int64_t n_panels = panels_of(w);
  const int64_t panel_size = kBlockTokens * kPanelColumns;
  Carver carver(scratch);
  auto* even = carver.take<float>(w);
  auto* odd = carver.take<float>(w);
  auto* sums = carver.take<float>(w);
  auto* pairs = carver.take<uint16_t>(2 * n_panels * kPanelColumns);
  auto* panels = carver.take<uint16_t>(n_panels * panel_size);
  std::memset(pairs, 0, static_cast<size_t>(2 * n_panels * kPanelColumns) * sizeof(uint16_t));
  std::fill_n(out.sums, w, 0.0);

  for (int64_t block = first; block < end; block += kBlockTokens) {
    const int64_t n = std::min(kBlockTokens, end - block);
    // Turn back, shift, and interleave two tokens: a pair is one channel of both.
    std::fill_n(sums, w, 0.0f);
    for (int64_t t = 0; t < n; t += 2) {
      reader.read(block + t, block + t, shift, even);
      if (t + 1 < n) {
        reader.read(block + t + 1, block + t + 1, shift, odd);
      } else {
        std::fill_n(odd, w, 0.0f);
      }
      reader.level.pair_rows(even, odd, w, pairs, sums);
      for (int64_t panel = 0; panel < n_panels; ++panel) {
        std::memcpy(panels + panel * panel_size + t * kPanelColumns,
                    pairs + 2 * panel * kPanelColumns, 4 * kPanelColumns);
      }
    }
    for (int64_t i = 0; i < w; ++i) out.sums[i] += static_cast<double>(sums[i]);

    // gram[i][j] += sum over pairs, for panels j at or right of panel i
    for (int64_t j = 0; j < n_panels; ++j) {
      for (int64_t i = 0; i <= j; ++i) {
        float* target = out.gram + i * kPanelColumns * w + j * kPanelColumns;
        gemm.multiply({.a = panels + i * panel_size,
                       .row_stride = 2,
                       .pair_stride = 2 * kPanelColumns,
                       .panel = panels + j * panel_size,
                       .n_rows = std::min(kPanelColumns, w - i * kPanelColumns),
                       .n_pairs = (n + 1) / 2,
                       .n_columns = std::min(kPanelColumns, w - j * kPanelColumns),
                       .start = block > first ? target : nullptr,
                       .start_stride = w,
                       .out = target,
                       .out_stride = w,
                       .out_f32 = true});
      }
    }
  }
}

}  // namespace

void fit_basis(Queue& queue, const FitBasisParams& p) {
  const int64_t w = int64_t{p.n_kv_heads} * p.head_dim;
  const int64_t rank = p.lowrank.rank;
  CHECK(p.n_tokens > 0 && rank > 0 && rank <= w, "{} tokens, rank {} of {}", p.n_tokens, rank, w);
  const KeyReader reader = reader_of(queue, p);
  const GemmLevel& gemm = gemm_level(queue.isa());
  const std::vector<float> shift = first_mean(reader, std::min(p.n_tokens, kGramTokens), w);

  // Chunks run in waves, each into its own matrix; matrices are added in the order of the chunks.
  const int64_t n_chunks = (p.n_tokens + kGramTokens - 1) / kGramTokens;
  const int64_t n_wave = std::min<int64_t>(n_chunks, 2 * queue.n_workers());
  std::vector<float> grams(static_cast<size_t>(n_wave * w * w));
  std::vector<double> sums(static_cast<size_t>(n_wave * w));
  std::vector<double> total(static_cast<size_t>(w * w)), total_sums(static_cast<size_t>(w));
  for (int64_t wave = 0; wave < n_chunks; wave += n_wave) {
    const int64_t n = std::min(n_wave, n_chunks - wave);
    queue.for_each(n, [&](int64_t item, const Worker& worker) {
      const int64_t first = (wave + item) * kGramTokens;
      gram_of_chunk(reader, gemm, first, std::min(p.n_tokens, first + kGramTokens), shift.data(),
                    {grams.data() + item * w * w, sums.data() + item * w}, worker.scratch);
    });
    queue.for_each(w, [&](int64_t i, const Worker&) {
      for (int64_t item = 0; item < n; ++item) {
        total_sums[static_cast<size_t>(i)] += sums[static_cast<size_t>(item * w + i)];
        const float* row = grams.data() + (item * w + i) * w;
        for (int64_t j = i; j < w; ++j) {
          total[static_cast<size_t>(i * w + j)] += static_cast<double>(row[j]);
        }
      }
    });
  }

  // Covariance of the shifted keys, exactly centred.
  const double n_tokens = static_cast<double>(p.n_tokens);
  for (double& sum : total_sums) sum /= n_tokens;
  double trace = 0;
  for (int64_t i = 0; i < w; ++i) {
    for (int64_t j = i; j < w; ++j) {
      const size_t upper = static_cast<size_t>(i * w + j);
      total[upper] = total[upper] / n_tokens -
                     total_sums[static_cast<size_t>(i)] * total_sums[static_cast<size_t>(j)];
      total[static_cast<size_t>(j * w + i)] = total[upper];
    }
    trace += total[static_cast<size_t>(i * w + i)];
  }
  const Eigenvectors leading = leading_eigenvectors(total, w, rank);

  double kept = 0;
  for (int64_t r = 0; r < rank; ++r) kept += leading.values[static_cast<size_t>(r)];
  if (p.residual_energy != nullptr) {
    *p.residual_energy = trace > 0 ? std::clamp(1.0 - kept / trace, 0.0, 1.0) : 0.0;
  }
  for (int64_t i = 0; i < w; ++i) {
    const double mean = static_cast<double>(shift[static_cast<size_t>(i)]);
    p.lowrank.mean[i] = static_cast<float>(mean + total_sums[static_cast<size_t>(i)]);
    for (int64_t r = 0; r < rank; ++r) {
      p.lowrank.basis[i * rank + r] =
          bf16(static_cast<float>(leading.vectors[static_cast<size_t>(r * w + i)]));
    }
  }
}

// ---- project ------------------------------------------------------------------------------------

void project_keys(Queue& queue, const ProjectParams& p) {
  const int64_t w = int64_t{p.n_kv_heads} * p.head_dim;
  const int64_t rank = p.lowrank.rank;
  const KeyReader reader = reader_of(queue, p);
  const GemmLevel& gemm = gemm_level(queue.isa());
  const int64_t n_items = (p.n_tokens + kProjectTokens - 1) / kProjectTokens;
  queue.for_each(n_items, [&](int64_t item, const Worker& worker) {
    const int64_t first = p.first_token + item * kProjectTokens;
    const int64_t n = std::min(kProjectTokens, p.first_token + p.n_tokens - first);
    Carver carver(worker.scratch);
    auto* row = carver.take<float>(w);
    auto* rows = carver.take<uint16_t>(n * w);
    auto* panel = carver.take<uint16_t>(panel_elements(w));
    for (int64_t t = 0; t < n; ++t) {
      reader.read(first + t - p.first_row, first + t, p.lowrank.mean, row);
      reader.level.round_row(row, w, rows + t * w);
    }
    for (int64_t column = 0; column < rank; column += kPanelColumns) {
      const int64_t n_columns = std::min(kPanelColumns, rank - column);
      gemm.pack_columns(bits(p.lowrank.basis) + column, rank, n_columns, w, panel);
      gemm.multiply({.a = rows,
                     .row_stride = w,
                     .panel = panel,
                     .n_rows = n,
                     .n_pairs = w / 2,
                     .n_columns = n_columns,
                     .out = bits(p.coefficients) + first * rank + column,
                     .out_stride = rank});
    }
  });
}

// ---- rebuild ------------------------------------------------------------------------------------

namespace {

constexpr int64_t kRebuildTokens = 512;  // of one item
constexpr int64_t kRebuildRows = 24;     // gathered and multiplied at a time: 4 tiles of 6 rows
constexpr int64_t kRebuildAhead = 24;    // rows between a prefetch and its use

// Rows of coefficients as the caller keeps them.
struct CoefficientRows {
  const std::byte* rows;
  int64_t bytes;                // of a row
  const RowCodecKernel* codec;  // null: bf16
  CodedRows shape;

  const std::byte* row(int64_t token) const { return rows + token * bytes; }
  // The coefficients of one token as bf16.
  void read(int64_t token, uint16_t* out) const {
    if (codec == nullptr) {
      std::memcpy(out, row(token), static_cast<size_t>(bytes));
    } else {
      codec->decode_rows(reinterpret_cast<const uint8_t*>(row(token)), shape, out);
    }
  }
};

CoefficientRows coefficient_rows(const RebuildParams& p, const RowCodecKernel& codec) {
  const int64_t rank = p.lowrank.rank;
  const bool coded = p.coded != nullptr;
  CHECK(coded == (p.codec != RowCodec::kBf16) && (!coded || can_code(rank)),
        "coefficients of rank {} cannot be coded", rank);
  return {coded ? p.coded : reinterpret_cast<const std::byte*>(p.coefficients),
          row_bytes(p.codec, rank), coded ? &codec : nullptr, coded_rows(p.codec, rank, 1)};
}

// Rebuilds missed chunks [first, end) of the list of KV head j.
void rebuild_range(const RebuildParams& p, const CoefficientRows& coefficients,
                   const ElementwiseLevel& level, const GemmLevel& gemm, int64_t j, int64_t first,
                   int64_t end, std::byte* scratch) {
  const int64_t d = p.head_dim, rank = p.lowrank.rank, tokens = p.chunk_tokens;
  const int64_t n_panels = panels_of(d);
  const int64_t depth = (rank + 1) / 2 * 2;  // an odd rank is padded with a zero
  Carver carver(scratch);
  auto* basis = carver.take<uint16_t>(depth * d);
  auto* panels = carver.take<uint16_t>(n_panels * panel_elements(depth));
  auto* rows = carver.take<uint16_t>(kRebuildRows * depth);
  auto* keys = carver.take<float>(kRebuildRows * d);
  alignas(64) float cosines[kMaxRopeHalf];
  alignas(64) float sines[kMaxRopeHalf];
  const int32_t* chunks = p.miss_chunks + j * p.stride;
  const int32_t* slots = p.miss_slots + j * p.stride;
  const int64_t slot_size = 2 * tokens * d;

  // The rows of the basis that belong to this head, as panels.
  const uint16_t* head_basis = bits(p.lowrank.basis) + j * d * rank;
  if (depth != rank) {
    for (int64_t i = 0; i < d; ++i) {
      std::copy_n(head_basis + i * rank, rank, basis + i * depth);
      basis[i * depth + rank] = 0;
    }
    head_basis = basis;
    std::fill_n(rows, kRebuildRows * depth, uint16_t{0});
  }
  for (int64_t panel = 0; panel < n_panels; ++panel) {
    const int64_t column = panel * kPanelColumns;
    gemm.pack_rows(head_basis + column * depth, depth, std::min(kPanelColumns, d - column), depth,
                   panels + panel * panel_elements(depth));
  }

  const int64_t n_rows = (end - first) * tokens;
  for (int64_t begin = 0; begin < n_rows; begin += kRebuildRows) {
    const int64_t n = std::min(kRebuildRows, n_rows - begin);
    // Gather the coefficients, and ask for those of the next round.
    for (int64_t i = 0; i < n; ++i) {
      const int64_t chunk = chunks[first + (begin + i) / tokens];
      const int64_t token = chunk * tokens + (begin + i) % tokens;
      coefficients.read(token, rows + i * depth);
      const int64_t next = begin + i + kRebuildAhead;
      if (next < n_rows) {
        const int64_t ahead = chunks[first + next / tokens] * tokens + next % tokens;
        const std::byte* line = coefficients.row(ahead);
        for (int64_t byte = 0; byte < coefficients.bytes; byte += 64) {
          __builtin_prefetch(line + byte);
        }
      }
    }
    // keys = mean + U basis^T
    for (int64_t panel = 0; panel < n_panels; ++panel) {
      const int64_t column = panel * kPanelColumns;
      gemm.multiply({.a = rows,
                     .row_stride = depth,
                     .panel = panels + panel * panel_elements(depth),
                     .n_rows = n,
                     .n_pairs = depth / 2,
                     .n_columns = std::min(kPanelColumns, d - column),
                     .bias = p.lowrank.mean + j * d + column,
                     .out = keys + column,
                     .out_stride = d,
                     .out_f32 = true});
    }
    // RoPE at the token's own position, into the slot.
    for (int64_t i = 0; i < n; ++i) {
      const int64_t index = first + (begin + i) / tokens, in_chunk = (begin + i) % tokens;
      rope_angles(level, p.rope, chunks[index] * tokens + in_chunk, cosines, sines);
      uint16_t* slot = bits(p.slots) + j * p.slot_head_stride + slots[index] * slot_size;
      level.rotate_f32(keys + i * d, cosines, sines, p.rope.half, slot + in_chunk * d);
    }
  }
}

}  // namespace

void rebuild_keys(Queue& queue, const RebuildParams& p) {
  CHECK(p.head_dim == 2 * p.rope.half && p.rope.half <= kMaxRopeHalf, "head dimension {}, table {}",
        p.head_dim, 2 * p.rope.half);
  const ElementwiseLevel& level = elementwise_level(queue.isa());
  const GemmLevel& gemm = gemm_level(queue.isa());
  const CoefficientRows coefficients = coefficient_rows(p, row_codec_kernel(queue.isa()));
  const int64_t step = std::max<int64_t>(1, kRebuildTokens / p.chunk_tokens);
  int64_t most = 0;
  for (int64_t j = 0; j < p.n_kv_heads; ++j) most = std::max<int64_t>(most, p.miss_counts[j]);
  const int64_t n_ranges = (most + step - 1) / step;
  queue.for_each(n_ranges * p.n_kv_heads, [&](int64_t item, const Worker& worker) {
    const int64_t j = item % p.n_kv_heads, first = item / p.n_kv_heads * step;
    const int64_t end = std::min<int64_t>(p.miss_counts[j], first + step);
    if (first < end) rebuild_range(p, coefficients, level, gemm, j, first, end, worker.scratch);
  });
}

}  // namespace tiercel::cpu
