// cuda::Stream and cuda::PinnedMemory of the SIMT emulator: everything runs when it is enqueued.
#include "kernels/stream.h"

#include <chrono>
#include <cstdlib>
#include <cstring>

#include "engine/base/check.h"
#include "tests/seed.h"
#include "tests/simt/simt.h"

namespace tiercel::cuda {

struct Stream::Libraries {};

Devices find_devices() { return {1, ""}; }

void Stream::use_in_this_thread() const {}

namespace {

// Few make tests fast; more make more splits and blocks of the same work.
int processors() {
  const char* asked = std::getenv("TIERCEL_EMULATED_PROCESSORS");
  return asked != nullptr ? std::atoi(asked) : 4;
}

}  // namespace

Stream::Stream(const StreamOptions& options)
    : architecture_(options.architecture > 0 ? options.architecture : 90),
      n_processors_(processors()),
      shared_memory_(shared_memory_of(architecture_)),
      device_name_("emulated device"),
      programmatic_(options.programmatic && architecture_ >= 90),
      scratch_bytes_(options.scratch_bytes) {
  simt::g.rng.seed(static_cast<uint32_t>(test::seed()));
  scratch_ = std::malloc(static_cast<size_t>(scratch_bytes_) + 64);
  std::memset(scratch_, 0xff, static_cast<size_t>(scratch_bytes_));
}
Stream::~Stream() { std::free(scratch_); }

Stream::Libraries& Stream::libraries() { return *libraries_; }
Stream::Ticket Stream::record() {
  launch_held();
  return {};
}
void Stream::wait(Ticket) { launch_held(); }
void Stream::finish() { launch_held(); }
Stream::TimeMark Stream::mark_time() {
  launch_held();
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return {.seconds = std::chrono::duration<double>(now).count()};
}
double Stream::seconds_between(TimeMark first, TimeMark second) {
  return second.seconds - first.seconds;
}
int64_t Stream::device_memory_free() const { return int64_t{8} << 30; }
int64_t Stream::device_memory_total() const { return int64_t{8} << 30; }

void* Stream::scratch(int64_t bytes) {
  CHECK(bytes <= scratch_bytes_, "{} bytes of scratch memory, {} were planned", bytes,
        scratch_bytes_);
  return scratch_;
}

void Stream::copy_bytes(void* target, int64_t target_stride, const void* source,
                        int64_t source_stride, int64_t row_bytes, int64_t n_rows) {
  launch_held();
  simt::run_or_record([=] {
    for (int64_t row = 0; row < n_rows; ++row) {
      std::memcpy(static_cast<char*>(target) + row * target_stride,
                  static_cast<const char*>(source) + row * source_stride,
                  static_cast<size_t>(row_bytes));
    }
  });
}

void Stream::fill_bytes(void* target, int value, int64_t bytes) {
  launch_held();
  simt::run_or_record([=] { std::memset(target, value, static_cast<size_t>(bytes)); });
}

void Stream::call(void (*function)(void*), void* data) {
  launch_held();
  simt::run_or_record([=] { function(data); });
}

namespace {

void* zeroed(int64_t bytes) {
  void* address = std::aligned_alloc(256, (static_cast<size_t>(bytes) + 255) / 256 * 256);
  CHECK(address != nullptr, "{} bytes", bytes);
  std::memset(address, 0, static_cast<size_t>(bytes));
  return address;
}

}  // namespace

void* allocate(Stream&, int64_t bytes) {
  ++simt::g.n_device_blocks;
  return zeroed(bytes);
}
void release(Stream&, void* address, int64_t) { std::free(address); }
void PinnedMemory::wait(Stream::Ticket) {}
void* allocate(PinnedMemory&, int64_t bytes) { return zeroed(bytes); }
void release(PinnedMemory&, void* address, int64_t) { std::free(address); }

}  // namespace tiercel::cuda
