// cuda::Stream: the GPU's queue type, and cuda::PinnedMemory: the host tier beside it.
//
// Ops are enqueued on the stream and return at once; order between streams is expressed by tickets.
// No CUDA type appears here, so that everything above kernels/ compiles without the toolkit. Under the
// SIMT emulator of the tests the same classes run kernels on the CPU, synchronously.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tiercel::cuda {

// What a machine offers. n_devices is 0 where there is no driver or no device; reason says why.
struct Devices {
  int n_devices = 0;
  std::string reason;
};
Devices find_devices();

struct StreamOptions {
  int device = 0;
  bool urgent = false;         // its blocks are scheduled before those of other streams
  int64_t scratch_bytes = 0;   // device memory for the ops' own use, see scratch()
  int architecture = 0;        // 80, 90, ..; 0: the device's. A test runs an older path with it
  // Kernels of launch_dependent may begin before their predecessor has ended, from Hopper on.
  bool programmatic = true;
};

// Bytes of shared memory that a block can have on such a device.
constexpr int64_t shared_memory_of(int architecture) {
  if (architecture == 80 || architecture == 87) return int64_t{163} << 10;
  return (architecture >= 90 && architecture < 120 ? int64_t{227} : int64_t{99}) << 10;
}

class Graph;         // kernels/graph.h
class HeldLaunches;  // kernels/joint_launch.cuh

// Sequences whose kernels become one launch: by then a launch is a tenth of what it does, and their
// parameters still fit.
inline constexpr int kMostTogether = 8;

class Stream {
 public:
  using Graph = cuda::Graph;
  // Memory that kernels of this queue write is not readable by the host without a copy.
  static constexpr bool kHostReadable = false;
  // FLOPs of a piece of work that nothing interrupts: under a second.
  static constexpr double kRunFlops = 2e14;

  // Ops of so many sequences run at once, see together().
  static constexpr int64_t kTogether = kMostTogether;

  struct Ticket {
    void* event = nullptr;
    bool operator==(const Ticket&) const = default;
  };

  explicit Stream(const StreamOptions& options = {});
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Ticket record();
  void wait(Ticket ticket);
  // Blocks the host until everything enqueued so far is done. Throws Error for a device fault.
  void finish();
  // When the ops before it had ended, by the device's clock. Only the newest kTimeMarks are known.
  struct TimeMark {
    void* event = nullptr;
    double seconds = 0;  // in the emulator
  };
  static constexpr size_t kTimeMarks = 1024;
  TimeMark mark_time();
  // Blocks the host until both are past.
  double seconds_between(TimeMark first, TimeMark second);

  // The calling thread enqueues on this stream's device from now on; a new thread has device 0.
  void use_in_this_thread() const;
  int device() const { return device_; }
  // Whose kernels run, 10 * major + minor: the device's, but 80 for a Hopper device where the build has no
  // code for sm_90a.
  int architecture() const { return architecture_; }
  int64_t shared_memory() const { return shared_memory_; }  // bytes that a block can have
  int n_processors() const { return n_processors_; }
  const std::string& device_name() const { return device_name_; }
  int64_t device_memory_free() const;
  int64_t device_memory_total() const;

  // The stream's own device memory, for one op at a time; CHECKs that it was planned large enough.
  void* scratch(int64_t bytes);

  void copy_bytes(void* target, int64_t target_stride, const void* source, int64_t source_stride,
                  int64_t row_bytes, int64_t n_rows);
  void fill_bytes(void* target, int value, int64_t bytes);
  void call(void (*function)(void*), void* data);

  // cudaStream_t, for kernels/*.cu. Whoever asks for it may enqueue anything.
  void* raw() {
    launch_held();
    is_last_dependent_ = false;
    return raw_;
  }
  // Whether the last thing enqueued is a kernel of launch_dependent (kernels/launch.cuh).
  bool programmatic() const { return programmatic_; }
  bool is_last_dependent() const { return is_last_dependent_; }
  void mark_last_dependent() { is_last_dependent_ = true; }

  // From here on kernels of launch_joint belong to this of several sequences and are held back;
  // launch_held() enqueues them, and so does whatever else is enqueued or waited for. see together().
  void hold_for(int sequence);
  void launch_held();
  void stop_holding();  // what has not been launched is dropped
  HeldLaunches* holding() { return holding_ && !launching_held_ ? held_.get() : nullptr; }
  // Kernels launched so far; those of a replayed graph when it was recorded.
  int64_t n_launches() const { return n_launches_; }
  void count_launch() { ++n_launches_; }

  // cublasLtHandle_t and friends of this stream; kernels/*.cu know its fields.
  struct Libraries;
  Libraries& libraries();

 private:
  void create(const StreamOptions& options);
  void destroy();

  // Events in turns.
  struct EventRing {
    std::vector<void*> events;
    size_t next = 0;

    void* turn() {
      void* event = events[next];
      next = (next + 1) % events.size();
      return event;
    }
  };
  // A ticket whose event has been recorded again stands for a later moment of the stream: still right, but
  // longer to wait for. A prompt keeps one for every 4,096 tokens of a layer that are on their way home.
  static constexpr size_t kTickets = 1024;
  // Others, because what was last recorded into a graph is nothing to wait for outside of it.
  static constexpr size_t kGraphTickets = 256;
  int device_ = 0;
  int architecture_ = 0;
  int n_processors_ = 0;
  int64_t shared_memory_ = 0;
  std::string device_name_;
  void* raw_ = nullptr;
  bool programmatic_ = false;
  bool is_last_dependent_ = false;
  EventRing tickets_, graph_tickets_;
  std::vector<void*> time_marks_;  // made as they are asked for, then a ring
  size_t next_time_mark_ = 0;
  void* scratch_ = nullptr;
  int64_t scratch_bytes_ = 0;
  std::unique_ptr<Libraries> libraries_;
  std::shared_ptr<HeldLaunches> held_;  // shared: its type is known where it is made only
  bool holding_ = false, launching_held_ = false;
  int64_t n_launches_ = 0;
};

// Calls each(i) for i = 0 .. n-1. What different calls enqueue has nothing to do with each other: it may
// run in any order, or at once. Here kernels that are at the same place in every sequence become one
// launch (kernels/joint_launch.cuh), with the bits that they have apart.
template <typename Each>
void together(Stream& stream, int64_t n, Each&& each) {
  struct Holding {
    Stream& stream;
    ~Holding() { stream.stop_holding(); }
  };
  for (int64_t first = 0; first < n; first += kMostTogether) {
    if (n - first == 1) return each(first);
    const Holding holding{stream};
    for (int64_t i = first; i < n && i < first + kMostTogether; ++i) {
      stream.hold_for(static_cast<int>(i - first));
      each(i);
    }
    stream.launch_held();
  }
}

// Zeroed device memory. Throws Error(kDoesNotFit) when the device has no more.
void* allocate(Stream& stream, int64_t bytes);
void release(Stream& stream, void* address, int64_t bytes);

// Host memory that the device reads and writes directly.
class PinnedMemory {
 public:
  using Ticket = int64_t;
  explicit PinnedMemory(Stream& stream) : stream_(stream) {}
  Ticket record() { return 0; }
  void wait(Ticket) {}
  void wait(Stream::Ticket ticket);  // blocks the host
  Stream& stream() { return stream_; }

 private:
  Stream& stream_;
};
// Zeroed, and spread over the memory nearest to the device.
void* allocate(PinnedMemory& memory, int64_t bytes);
void release(PinnedMemory& memory, void* address, int64_t bytes);

}  // namespace tiercel::cuda
