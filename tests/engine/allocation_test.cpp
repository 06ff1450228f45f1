// The decode loop allocates nothing: every way to the heap is counted while tokens are generated.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/sampler.h"
#include "engine/session.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int64_t> allocations{0};

void* counted(std::size_t size, std::size_t alignment) {
  if (counting.load(std::memory_order_relaxed)) ++allocations;
  void* p = nullptr;
  if (alignment <= alignof(std::max_align_t)) {
    p = std::malloc(size);
  } else if (posix_memalign(&p, alignment, size) != 0) {
    p = nullptr;
  }
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

void* operator new(std::size_t size) { return counted(size, 1); }
void* operator new[](std::size_t size) { return counted(size, 1); }
void* operator new(std::size_t size, std::align_val_t a) {
  return counted(size, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t size, std::align_val_t a) {
  return counted(size, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace tiercel {
namespace {

int64_t allocations_while_decoding(const SessionOptions& options) {
  auto model = Model::open(TIERCEL_SOURCE_DIR "/tools/demo/recall-4m", 2);
  const int64_t n_prompt = 2000, n_new = 200;
  auto session = Session::open(model, Session::plan(*model, options, n_prompt, n_new));
  std::vector<int32_t> ids(static_cast<size_t>(n_prompt));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 7919) % 2000);
  EXPECT_TRUE(session->prefill(ids, {}));
  Sampler sampler(SamplingOptions{.temperature = 0.8, .top_k = 40, .top_p = 0.9, .min_p = 0.01,
                                  .repeat_penalty = 1.1},
                  model->config().vocab_size);
  // The first steps may set things up (a primitive for one row, a worker's first task).
  for (int i = 0; i < 4; ++i) session->step(sampler.sample(session->logits(), ids));
  allocations = 0;
  counting = true;
  for (int i = 0; i < 150; ++i) session->step(sampler.sample(session->logits(), ids));
  counting = false;
  return allocations;
}

TEST(DecodeLoop, DenseAllocatesNothing) {
  SessionOptions options;
  options.attention = AttentionMode::kDense;
  EXPECT_EQ(allocations_while_decoding(options), 0);
}

TEST(DecodeLoop, ShadowAllocatesNothing) {
  SessionOptions options;
  options.budget = 256;
  options.audit = 7;
  EXPECT_EQ(allocations_while_decoding(options), 0);
  options.key_codec = KeyCodec::kExact;
  EXPECT_EQ(allocations_while_decoding(options), 0);
}

TEST(DecodeLoop, TheCounterCounts) {
  counting = true;
  allocations = 0;
  auto* p = new std::vector<int>(100);
  counting = false;
  delete p;
  EXPECT_GE(allocations, 2);
}

}  // namespace
}  // namespace tiercel
