#include "cpu/attention_prefill.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/isa.h"
#include "cpu/queue.h"
#include "engine/base/check.h"
#include "engine/base/ops.h"

namespace tiercel::cpu {
namespace prefill {
namespace {

constexpr int64_t kFewestRows = 256;
constexpr int64_t kManyItems = 32;
constexpr double kLog2e = 1.4426950408889634;

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

const uint16_t* bits(const bf16* p) { return reinterpret_cast<const uint16_t*>(p); }

// Kernels are made for these; a head dim between two of them is filled up with zeros.
int64_t padded_dim(int64_t head_dim) {
  for (int64_t made : {64, 96, 128, 192}) {
    if (head_dim <= made) return made;
  }
  return kMaxHeadDim;
}

// How the whole op is cut. Depends on shapes only.
struct Plan {
  int64_t group = 1;  // G
  int64_t padded_dim = 0;
  int64_t block_tokens = 0;  // queries that share a key list (all of them when it is dense)
  int64_t item_tokens = 0;   // queries per item; an item lies within one block
  int64_t items_per_block = 0;
  int64_t n_items = 0;        // over query blocks and KV heads
  int64_t rows_per_head = 0;  // item_tokens, padded for the kernel
  int64_t n_rows = 0;
  int64_t superblock_keys = 0;
};

Plan make_plan(const PrefillAttendParams& p, const Kernel& kernel) {
  Plan plan;
  plan.group = p.n_heads / p.n_kv_heads;
  plan.padded_dim = padded_dim(p.head_dim);
  const bool blocks = p.block_tokens > 0;
  const int64_t row_bytes = plan.padded_dim * (kernel.element_bytes + int64_t{sizeof(float)});
  const int64_t rows = std::min<int64_t>(kernel.item_rows, kernel.item_bytes / row_bytes);
  const int64_t most = std::clamp<int64_t>(rows / plan.group / 16 * 16, 16, kernel.item_rows / 2);
  if (blocks) {
    plan.block_tokens = p.block_tokens;
    plan.items_per_block = ceil_div(p.block_tokens, most);
    plan.item_tokens = round_up(ceil_div(p.block_tokens, plan.items_per_block), 16);
    plan.items_per_block = ceil_div(p.block_tokens, plan.item_tokens);
  } else {
    // Short prompts are cut finer, so that many cores have something to do. Where the queries are
    // cut never changes a bit: a key's place in the inner blocks does not depend on it.
    int64_t tokens = most;
    while (tokens > 16 && tokens * plan.group > kFewestRows &&
           ceil_div(p.n_tokens, tokens) * p.n_kv_heads < kManyItems) {
      tokens = round_up(tokens / 2, 16);
    }
    plan.block_tokens = plan.item_tokens = tokens;
    plan.items_per_block = 1;
  }
  plan.n_items = ceil_div(p.n_tokens, plan.block_tokens) * plan.items_per_block * p.n_kv_heads;
  plan.rows_per_head = round_up(plan.item_tokens, kernel.head_tile);
  plan.n_rows = round_up(plan.rows_per_head * plan.group, kernel.row_tile);
  const int64_t key_bytes = 2 * plan.padded_dim * kernel.element_bytes;
  plan.superblock_keys = kernel.staged_bytes / key_bytes / kKeyBlock * kKeyBlock;
  return plan;
}

// A worker's scratch memory, cut up.
struct Buffers {
  std::byte *q, *keys, *values, *kernel_buffer;
  float *out, *sum, *reference, *bias;
  int32_t *begin, *end;
  int64_t* rows;
  uint8_t* failed;

  Buffers(std::byte* scratch, const Plan& plan, const Kernel& kernel) {
    std::byte* next = scratch;
    const auto take = [&next](int64_t bytes) {
      std::byte* taken = next;
      next += round_up(bytes, 64);
      return taken;
    };
    const int64_t staged = plan.superblock_keys * plan.padded_dim * kernel.element_bytes;
    keys = take(staged);
    values = take(staged);
    kernel_buffer = take(kernel.buffer_bytes);
    q = take(plan.n_rows * plan.padded_dim * kernel.element_bytes);
    out = reinterpret_cast<float*>(take(plan.n_rows * plan.padded_dim * 4));
    sum = reinterpret_cast<float*>(take(plan.n_rows * 4));
    reference = reinterpret_cast<float*>(take(plan.n_rows * 4));
    begin = reinterpret_cast<int32_t*>(take(plan.n_rows * 4));
    end = reinterpret_cast<int32_t*>(take(plan.n_rows * 4));
    rows = reinterpret_cast<int64_t*>(take(plan.superblock_keys * 8));
    bias = reinterpret_cast<float*>(take(plan.superblock_keys * 4));
    failed = reinterpret_cast<uint8_t*>(take(plan.n_rows));
    CHECK(next - scratch <= static_cast<int64_t>(kScratchBytes),
          "{} query heads per KV head of dim {} need {} bytes of scratch", plan.group,
          plan.padded_dim, next - scratch);
  }
};

// The queries of one item, and the list of keys that any of them may see:
//   index u in [0, n_chunk_keys)          row u of the chosen chunks, one after the other
//   index u in [n_chunk_keys, n_keys)     position local_begin + u - n_chunk_keys
// Of a part that all queries come behind, each of them sees the whole list.
struct Item {
  int64_t first_token = 0, n_tokens = 0;
  int64_t kv_head = 0;
  const int32_t* ids = nullptr;
  int64_t n_chunk_keys = 0;
  int64_t local_begin = 0;
  int64_t n_keys = 0;

  int64_t position(const PrefillAttendParams& p, int64_t t) const {
    return p.first_position + first_token + t;
  }
  // Query t sees the keys [begin, end) of the list.
  int64_t end(const PrefillAttendParams& p, int64_t t) const {
    const int64_t end = p.part.end > 0 ? p.part.end : position(p, t) + 1;
    return n_chunk_keys + std::max<int64_t>(0, end - local_begin);
  }
  int64_t begin(const PrefillAttendParams& p, int64_t t) const {
    return p.window == 0 ? 0 : std::max<int64_t>(0, position(p, t) - p.window + 1 - local_begin);
  }
  int64_t row_of_key(const PrefillAttendParams& p, int64_t u) const {
    if (u >= n_chunk_keys) return local_begin + u - n_chunk_keys;
    return int64_t{ids[u / p.chunk_tokens]} * p.chunk_tokens + u % p.chunk_tokens;
  }
};

// Leaves of an item's list what is in the part in hand.
void clip_to_part(const PrefillAttendParams& p, Item& item) {
  const PrefillPart& part = p.part;
  item.local_begin = std::max(item.local_begin, part.begin);
  const auto n_chunks = p.block_tokens > 0 ? item.n_chunk_keys / p.chunk_tokens : 0;
  if (n_chunks == 0) return;
  const bool brought = part.chunks != nullptr;
  const int32_t* chunks = brought ? part.chunks + (item.ids - p.chunk_ids) : item.ids;
  const auto chunks_before = [&](int64_t chunk) { return std::lower_bound(chunks, chunks + n_chunks, chunk) - chunks; };
  const int64_t first = chunks_before(brought ? part.first_chunk : part.begin / p.chunk_tokens);
  int64_t end = n_chunks;
  if (brought || part.end > 0) end = chunks_before(brought ? part.end_chunk : part.end / p.chunk_tokens);
  item.ids += first;
  item.n_chunk_keys = (end - first) * p.chunk_tokens;
}

// Item i of the work list; the last queries, which see most, come first. No queries: n_tokens <= 0.
Item make_item(const PrefillAttendParams& p, const Plan& plan, int64_t i) {
  Item item;
  const int64_t cut = (plan.n_items - 1 - i) / p.n_kv_heads;
  item.kv_head = i % p.n_kv_heads;
  const int64_t block = cut / plan.items_per_block;
  const int64_t offset = cut % plan.items_per_block * plan.item_tokens;
  item.first_token = block * plan.block_tokens + offset;
  item.n_tokens =
      std::min({plan.item_tokens, plan.block_tokens - offset, p.n_tokens - item.first_token});
  if (item.n_tokens <= 0) return item;
  if (p.block_tokens > 0) {
    const int64_t list = block * p.n_kv_heads + item.kv_head;
    item.ids = p.chunk_ids + list * p.max_chunks;
    item.n_chunk_keys = int64_t{p.chunk_counts[list]} * p.chunk_tokens;
    item.local_begin = p.local_begin[block];
    CHECK(p.chunk_counts[list] >= 0 && p.chunk_counts[list] <= p.max_chunks, "{} chunks of {}",
          p.chunk_counts[list], p.max_chunks);
    CHECK(item.local_begin >= 0 && item.local_begin <= item.position(p, 0),
          "local range begins at {} after query {}", item.local_begin, item.position(p, 0));
    for (int32_t c = 0; c < p.chunk_counts[list]; ++c) {
      DCHECK(item.ids[c] >= 0 && (int64_t{item.ids[c]} + 1) * p.chunk_tokens <= item.local_begin,
             "chunk {} of {} tokens reaches past {}", item.ids[c], p.chunk_tokens,
             item.local_begin);
    }
  } else if (p.window > 0) {
    // Rounded down so that a key meets the same inner block whatever the cut of the queries.
    item.local_begin =
        std::max<int64_t>(0, item.position(p, 0) - p.window + 1) / kKeyBlock * kKeyBlock;
  }
  if (p.part.state != nullptr) clip_to_part(p, item);
  item.n_keys = item.end(p, item.n_tokens - 1);
  return item;
}

// Where keys first .. first + n_keys of the list start in a plane, in elements.
void list_rows(const PrefillAttendParams& p, const Item& item, int64_t first, int64_t n_keys,
               int64_t* rows) {
  int64_t n = 0;
  while (n < n_keys && first + n < item.n_chunk_keys) {
    const int64_t within = (first + n) % p.chunk_tokens;
    const int64_t row = item.row_of_key(p, first + n);
    const int64_t run = std::min(n_keys - n, p.chunk_tokens - within);
    for (int64_t i = 0; i < run; ++i) rows[n++] = (row + i) * p.head_dim;
  }
  for (; n < n_keys; ++n) rows[n] = item.row_of_key(p, first + n) * p.head_dim;
}

// Returns the largest |q| as a bf16 word, where the kernel says it.
uint16_t pack_queries(const PrefillAttendParams& p, const Plan& plan, const Kernel& kernel,
                      const Item& item, const Buffers& b) {
  uint16_t largest = 0;
  const int64_t row_bytes = plan.padded_dim * kernel.element_bytes;
  PackRows pack;
  pack.source_stride = int64_t{p.n_heads} * p.head_dim;
  pack.n_rows = static_cast<int32_t>(item.n_tokens);
  pack.head_dim = p.head_dim;
  pack.padded_dim = static_cast<int32_t>(plan.padded_dim);
  pack.scale = static_cast<float>(p.scale * kLog2e);
  pack.largest = &largest;
  for (int64_t g = 0; g < plan.group; ++g) {
    const int64_t head = item.kv_head * plan.group + g;
    pack.source = bits(p.q) + (item.first_token * p.n_heads + head) * p.head_dim;
    pack.target = b.q + g * plan.rows_per_head * row_bytes;
    kernel.pack(pack);
    const int64_t used = g * plan.rows_per_head + item.n_tokens;
    const int64_t next = g + 1 < plan.group ? (g + 1) * plan.rows_per_head : plan.n_rows;
    std::memset(b.q + used * row_bytes, 0, static_cast<size_t>((next - used) * row_bytes));
  }
  return largest;
}

// No sum of padded_dim products of them, in any order, is infinite or NaN.
bool scores_are_finite(uint16_t largest_query, uint16_t largest_key) {
  static_assert(kMaxHeadDim <= 256);
  constexpr int kNotFinite = 255, kBias = 127, kLargest = 127;
  const int query = largest_query >> 7, key = largest_key >> 7;
  return query < kNotFinite && key < kNotFinite && (query - kBias + 1) + (key - kBias + 1) + 8 <= kLargest;
}

// What each row sees of the superblock [first, first + n_keys). Rows of padding see nothing.
void set_limits(const PrefillAttendParams& p, const Plan& plan, const Item& item, int64_t first,
                int64_t n_keys, const Buffers& b) {
  std::memset(b.begin, 0, static_cast<size_t>(plan.n_rows) * 4);
  std::memset(b.end, 0, static_cast<size_t>(plan.n_rows) * 4);
  for (int64_t t = 0; t < item.n_tokens; ++t) {
    const auto clip = [&](int64_t u) {
      return static_cast<int32_t>(std::clamp<int64_t>(u - first, 0, n_keys));
    };
    b.begin[t] = clip(item.begin(p, t));
    b.end[t] = clip(item.end(p, t));
  }
  for (int64_t g = 1; g < plan.group; ++g) {
    const int64_t row = g * plan.rows_per_head;
    std::memcpy(b.begin + row, b.begin, static_cast<size_t>(item.n_tokens) * 4);
    std::memcpy(b.end + row, b.end, static_cast<size_t>(item.n_tokens) * 4);
  }
}

// One row in fp64, key by key: for rows that the kernels could not finish, so for broken input, and
// fast only in giving up: a score of NaN or +inf makes the whole row NaN.
void attend_row_exactly(const PrefillAttendParams& p, const Item& item, int64_t t, int64_t head) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const int64_t at = ((item.first_token + t) * p.n_heads + head) * p.head_dim;
  const bf16* keys = p.keys + item.kv_head * p.head_stride;
  const bf16* values = p.values + item.kv_head * p.head_stride;
  double out[kMaxHeadDim] = {};
  double max = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t u = item.begin(p, t); u < item.end(p, t); ++u) {
    const int64_t row = item.row_of_key(p, u) * p.head_dim;
    double score = 0;
    for (int64_t i = 0; i < p.head_dim; ++i) {
      score += static_cast<double>(static_cast<float>(p.q[at + i])) *
               static_cast<double>(static_cast<float>(keys[row + i]));
    }
    score *= p.scale * kLog2e;
    if (p.bias != nullptr) {
      score += static_cast<double>(p.bias[item.kv_head * p.bias_head_stride + item.row_of_key(p, u)]);
    }
    if (!(score < std::numeric_limits<double>::infinity())) {
      sum = kNan;
      break;
    }
    if (score > max) {
      const double factor = std::exp2(max - score);  // exp2(-inf) = 0 the first time
      sum *= factor;
      for (double& o : out) o *= factor;
      max = score;
    }
    const bool nothing = score == -std::numeric_limits<double>::infinity();
    const double weight = nothing ? 0.0 : std::exp2(score - max);
    sum += weight;
    for (int64_t i = 0; i < p.head_dim; ++i) {
      out[i] += weight * static_cast<double>(static_cast<float>(values[row + i]));
    }
  }
  // sum 0: all scores are -inf, a quotient 0 / 0.
  for (int64_t i = 0; i < p.head_dim; ++i) {
    p.out[at + i] = bf16(static_cast<float>(sum == 0 ? kNan : out[i] / sum));
  }
}

// Returns how many rows had to be computed again.
int64_t store_rows(const PrefillAttendParams& p, const Plan& plan, const Kernel& kernel,
                   const Item& item, const Buffers& b) {
  StoreRows store;
  store.target_stride = int64_t{p.n_heads} * p.head_dim;
  store.n_rows = static_cast<int32_t>(item.n_tokens);
  store.head_dim = p.head_dim;
  store.padded_dim = static_cast<int32_t>(plan.padded_dim);
  store.failed = b.failed;
  int64_t n_rescued = 0;
  for (int64_t g = 0; g < plan.group; ++g) {
    const int64_t head = item.kv_head * plan.group + g;
    const int64_t row = g * plan.rows_per_head;
    store.out = b.out + row * plan.padded_dim;
    store.sum = b.sum + row;
    store.target =
        reinterpret_cast<uint16_t*>(p.out) + (item.first_token * p.n_heads + head) * p.head_dim;
    kernel.store(store);
    for (int64_t t = 0; t < item.n_tokens; ++t) {
      if (b.failed[t] == 0 || p.part.state != nullptr) continue;
      attend_row_exactly(p, item, t, head);
      ++n_rescued;
    }
  }
  return n_rescued;
}

// Calls each(row of the item, its place in PrefillPart::state) for rows of queries.
template <typename Each>
void for_each_row(const PrefillAttendParams& p, const Plan& plan, const Item& item, Each&& each) {
  for (int64_t g = 0; g < plan.group; ++g) {
    for (int64_t t = 0; t < item.n_tokens; ++t) {
      each(g * plan.rows_per_head + t,
           (item.first_token + t) * p.n_heads + item.kv_head * plan.group + g);
    }
  }
}

// PrefillPart::state, as kernels have it: references, sums, out.
struct PartState {
  PartState(const PrefillAttendParams& p, const Plan& plan)
      : n(p.n_tokens * p.n_heads),
        stride(prefill_state_floats(1, 1, p.head_dim) - 2),
        row_bytes(static_cast<size_t>(plan.padded_dim) * sizeof(float)),
        reference(p.part.state),
        sum(reference + n),
        out(sum + n) {
    DCHECK(plan.padded_dim <= stride);
  }

  int64_t n, stride;
  size_t row_bytes;
  float *reference, *sum, *out;
};

void load_state(const PrefillAttendParams& p, const Plan& plan, const Item& item, const Buffers& b) {
  const PartState state(p, plan);
  for_each_row(p, plan, item, [&](int64_t row, int64_t place) {
    b.reference[row] = state.reference[place];
    b.sum[row] = state.sum[place];
    std::memcpy(b.out + row * plan.padded_dim, state.out + place * state.stride, state.row_bytes);
  });
}

void save_state(const PrefillAttendParams& p, const Plan& plan, const Item& item, const Buffers& b) {
  const PartState state(p, plan);
  for_each_row(p, plan, item, [&](int64_t row, int64_t place) {
    state.reference[place] = b.reference[row];
    state.sum[place] = b.sum[row];
    std::memcpy(state.out + place * state.stride, b.out + row * plan.padded_dim, state.row_bytes);
  });
}

int64_t attend_item(const PrefillAttendParams& p, const Plan& plan, const Kernel& kernel,
                    const Item& item, const Buffers& b) {
  const uint16_t largest_query = pack_queries(p, plan, kernel, item, b);
  std::memset(b.out, 0, static_cast<size_t>(plan.n_rows * plan.padded_dim) * 4);
  std::fill_n(b.sum, plan.n_rows, 0.0f);
  std::fill_n(b.reference, plan.n_rows, -std::numeric_limits<float>::infinity());
  if (p.part.state != nullptr && !p.part.is_first) load_state(p, plan, item, b);
  for (int64_t first = 0; first < item.n_keys; first += plan.superblock_keys) {
    const int64_t n_keys = std::min(plan.superblock_keys, item.n_keys - first);
    const int64_t n_staged = round_up(n_keys, kKeyMultiple);
    list_rows(p, item, first, n_keys, b.rows);
    std::fill(b.rows + n_keys, b.rows + n_staged, b.rows[n_keys - 1]);
    set_limits(p, plan, item, first, n_keys, b);
    for (int64_t i = 0; p.bias != nullptr && i < n_staged; ++i) {
      const int64_t row = b.rows[i] / p.head_dim;
      b.bias[i] = p.bias[item.kv_head * p.bias_head_stride + row] * kernel.units_per_octave;
    }
    uint16_t largest_key = 0;
    kernel.stage({.keys = bits(p.keys) + item.kv_head * p.head_stride,
                  .values = bits(p.values) + item.kv_head * p.head_stride,
                  .rows = b.rows,
                  .n_keys = static_cast<int32_t>(n_staged),
                  .head_dim = p.head_dim,
                  .padded_dim = static_cast<int32_t>(plan.padded_dim),
                  .staged_keys = b.keys,
                  .staged_values = b.values,
                  .largest = &largest_key});
    kernel.attend({.q = b.q,
                   .keys = b.keys,
                   .values = b.values,
                   .out = b.out,
                   .sum = b.sum,
                   .reference = b.reference,
                   .begin = b.begin,
                   .end = b.end,
                   .n_rows = static_cast<int32_t>(plan.n_rows),
                   .n_keys = static_cast<int32_t>(n_staged),
                   .padded_dim = static_cast<int32_t>(plan.padded_dim),
                   .exact_exp = p.exact_exp,
                   .finite_scores = scores_are_finite(largest_query, largest_key),
                   .bias = p.bias == nullptr ? nullptr : b.bias,
                   .buffer = b.kernel_buffer});
  }
  if (p.part.is_last) return store_rows(p, plan, kernel, item, b);
  save_state(p, plan, item, b);
  return 0;
}

void check_params(const PrefillAttendParams& p) {
  CHECK(p.n_kv_heads > 0 && p.n_heads % p.n_kv_heads == 0, "{} heads over {} KV heads", p.n_heads,
        p.n_kv_heads);
  CHECK(p.head_dim > 0 && p.head_dim <= kMaxHeadDim && p.head_dim % 2 == 0, "head dim {}",
        p.head_dim);
  CHECK(p.first_position >= 0 && p.window >= 0, "position {}, window {}", p.first_position,
        p.window);
  CHECK(p.block_tokens == 0 || p.window == 0, "blocks with a window of {}", p.window);
  CHECK(p.part.state == nullptr || (p.window == 0 && p.part.end <= p.first_position),
        "a part up to {}, queries from {} on, window {}", p.part.end, p.first_position, p.window);
  CHECK(p.block_tokens == 0 ||
            (p.local_begin != nullptr && p.chunk_counts != nullptr && p.chunk_tokens > 0),
        "blocks of {} without chunks of {}", p.block_tokens, p.chunk_tokens);
}

}  // namespace

const Kernel& kernel_of(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kPortable: return kPortableKernel;
    case Isa::kAvx2: return kAvx2Kernel;
    case Isa::kAvx512:
    case Isa::kAvx512Vnni: return kAvx512Kernel;
    case Isa::kAvx512Bf16: return kAvx512Bf16Kernel;
    case Isa::kAmx: return kAmxKernel;
  }
#else
  (void)isa;
#endif
  return kPortableKernel;
}

void attend(Queue& queue, const PrefillAttendParams& p, const Kernel& kernel, int64_t* n_rescued) {
  if (p.n_tokens == 0) return;
  check_params(p);
  const Plan plan = make_plan(p, kernel);
  queue.for_each(plan.n_items, [&](int64_t i, const Worker& worker) {
    const Item item = make_item(p, plan, i);
    if (item.n_tokens <= 0) return;
    const int64_t n = attend_item(p, plan, kernel, item, Buffers(worker.scratch, plan, kernel));
    if (n_rescued != nullptr) __atomic_fetch_add(n_rescued, n, __ATOMIC_RELAXED);
  });
}

}  // namespace prefill

void attend_prefill(Queue& queue, const PrefillAttendParams& params) {
  prefill::attend(queue, params, prefill::kernel_of(queue.isa()));
}

}  // namespace tiercel::cpu
