// cuda::Stream and cuda::PinnedMemory of the SIMT emulator (work_queue.h).
#include "kernels/stream.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/base/check.h"
#include "tests/seed.h"
#include "tests/simt/simt.h"
#include "tests/simt/work_queue.h"

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

simt::MomentPtr& moment_of(void* event) {
  CHECK(event != nullptr, "no event");
  return *static_cast<simt::MomentPtr*>(event);
}

}  // namespace

Stream::Stream(const StreamOptions& options)
    : architecture_(options.architecture > 0 ? options.architecture : 90),
      n_processors_(processors()),
      shared_memory_(shared_memory_of(architecture_)),
      device_name_("emulated device"),
      raw_(new simt::WorkQueue(test::seed())),
      programmatic_(options.programmatic && architecture_ >= 90),
      scratch_bytes_(options.scratch_bytes) {
  simt::g.rng.seed(static_cast<uint32_t>(test::seed()));
  const auto create_events = [](EventRing& ring, size_t n) {
    ring.events.resize(n);
    for (void*& event : ring.events) event = new simt::MomentPtr;
  };
  create_events(tickets_, kTickets);
  create_events(graph_tickets_, kGraphTickets);
  scratch_ = std::malloc(static_cast<size_t>(scratch_bytes_) + 64);
  std::memset(scratch_, 0xff, static_cast<size_t>(scratch_bytes_));
  simt::add_memory(scratch_, scratch_bytes_);
}
Stream::~Stream() {
  delete &simt::queue_of(raw_);
  for (void* event : tickets_.events) delete &moment_of(event);
  for (void* event : graph_tickets_.events) delete &moment_of(event);
  for (void* event : time_marks_) delete &moment_of(event);
  simt::remove_memory(scratch_);
  std::free(scratch_);
}

Stream::Libraries& Stream::libraries() { return *libraries_; }
Stream::Ticket Stream::record() {
  launch_held();
  simt::WorkQueue& queue = simt::queue_of(raw_);
  void* event = (queue.is_recording() ? graph_tickets_ : tickets_).turn();
  moment_of(event) = queue.mark();
  return {event};
}
void Stream::wait(Ticket ticket) { simt::queue_of(raw()).wait_for(moment_of(ticket.event)); }
void Stream::finish() { simt::queue_of(raw()).drain(); }
Stream::TimeMark Stream::mark_time() {
  if (next_time_mark_ == time_marks_.size()) time_marks_.push_back(new simt::MomentPtr);
  void* event = time_marks_[next_time_mark_];
  next_time_mark_ = (next_time_mark_ + 1) % kTimeMarks;
  moment_of(event) = simt::queue_of(raw()).mark();
  return {.event = event};
}
double Stream::seconds_between(TimeMark first, TimeMark second) {
  for (void* event : {first.event, second.event}) simt::WorkQueue::reach(moment_of(event));
  return moment_of(second.event)->seconds - moment_of(first.event)->seconds;
}
int64_t Stream::device_memory_free() const { return int64_t{8} << 30; }
int64_t Stream::device_memory_total() const { return int64_t{8} << 30; }

void* Stream::scratch(int64_t bytes) {
  CHECK(bytes <= scratch_bytes_, "{} bytes of scratch memory, {} were planned", bytes,
        scratch_bytes_);
  return scratch_;
}

namespace {

void copy_rows(char* target, int64_t target_stride, const char* source, int64_t source_stride,
               int64_t row_bytes, int64_t n_rows) {
  CHECK(n_rows == 1 || (row_bytes <= target_stride && row_bytes <= source_stride), "rows of {} bytes, {} and {} apart",
        row_bytes, target_stride, source_stride);
  for (int64_t row = 0; row < n_rows; ++row) {
    std::memcpy(target + row * target_stride, source + row * source_stride,
                static_cast<size_t>(row_bytes));
  }
}

}  // namespace

void Stream::copy_bytes(void* target, int64_t target_stride, const void* source,
                        int64_t source_stride, int64_t row_bytes, int64_t n_rows) {
  if (row_bytes == 0 || n_rows == 0) return;
  auto* to = static_cast<char*>(target);
  const auto* from = static_cast<const char*>(source);
  simt::WorkQueue& queue = simt::queue_of(raw());
  if (simt::is_pageable(to)) {
    simt::refuse_while_recording("a copy to pageable memory");
    queue.drain();
    copy_rows(to, target_stride, from, source_stride, row_bytes, n_rows);
  } else if (simt::is_pageable(from)) {
    simt::refuse_while_recording("a copy from pageable memory");
    auto staged = std::make_shared<std::vector<char>>(static_cast<size_t>(row_bytes * n_rows));
    copy_rows(staged->data(), row_bytes, from, source_stride, row_bytes, n_rows);
    queue.add([=] { copy_rows(to, target_stride, staged->data(), row_bytes, row_bytes, n_rows); });
  } else {
    queue.add([=] { copy_rows(to, target_stride, from, source_stride, row_bytes, n_rows); });
  }
}

void Stream::fill_bytes(void* target, int value, int64_t bytes) {
  simt::queue_of(raw()).add([=] { std::memset(target, value, static_cast<size_t>(bytes)); });
}

void Stream::call(void (*function)(void*), void* data) {
  simt::queue_of(raw()).add([=] { function(data); });
}

namespace {

void* filled(int64_t bytes, int value) {
  const auto size = (static_cast<size_t>(bytes) + 255) / 256 * 256;
  void* address = std::aligned_alloc(256, size);
  CHECK(address != nullptr, "{} bytes", bytes);
  std::memset(address, value, size);
  simt::add_memory(address, bytes);
  return address;
}

}  // namespace

// Zero once the stream comes to it.
void* allocate(Stream& stream, int64_t bytes) {
  simt::refuse_while_recording("an allocation");
  ++simt::g.n_device_blocks;
  void* address = filled(bytes, 0xff);
  stream.fill_bytes(address, 0, bytes);
  return address;
}
void release(Stream& stream, void* address, int64_t) {
  stream.finish();
  simt::free_memory(address);
}
void PinnedMemory::wait(Stream::Ticket ticket) { simt::WorkQueue::reach(moment_of(ticket.event)); }
void* allocate(PinnedMemory&, int64_t bytes) {
  simt::refuse_while_recording("an allocation");
  return filled(bytes, 0);
}
void release(PinnedMemory& memory, void* address, int64_t) {
  memory.stream().finish();
  simt::free_memory(address);
}

}  // namespace tiercel::cuda
