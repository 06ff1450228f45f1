// The real cuda::Stream. tests/simt/stream.cpp has the emulated one.
#include "kernels/stream.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>

#include "engine/base/check.h"
#include "kernels/launch.cuh"
#include "kernels/libraries.cuh"

namespace tiercel::cuda {

void throw_cuda_error(int code, const char* call, const char* file, int line) {
  const auto error = static_cast<cudaError_t>(code);
  cudaGetLastError();  // what is told here is not told again by the next launch
  if (error == cudaErrorMemoryAllocation) {
    fail(ErrorKind::kDoesNotFit, "{}: the device or the host has no memory left ({}:{})", call, file,
         line);
  }
  fail(ErrorKind::kRuntime, "{}: {} ({}:{}); the device is not usable any more by this process", call,
       cudaGetErrorString(error), file, line);
}

Devices find_devices() {
  Devices devices;
  const cudaError_t error = cudaGetDeviceCount(&devices.n_devices);
  if (error != cudaSuccess) {
    devices.n_devices = 0;
    int driver = 0;
    cudaDriverGetVersion(&driver);
    devices.reason = driver == 0 ? "this machine has no NVIDIA driver"
                                 : std::string("CUDA: ") + cudaGetErrorString(error);
    cudaGetLastError();  // not sticky for what comes later
  } else if (devices.n_devices == 0) {
    devices.reason = "this machine has no CUDA device";
  }
  return devices;
}

namespace {

// Its attributes say what the code for this device was compiled from, without running it.
__global__ void __launch_bounds__(TIERCEL_HOPPER_BODY ? 64 : 32) code_probe() {}

struct Code {
  bool has_hopper = false;        // the bodies behind TIERCEL_HOPPER_BODY
  bool has_programmatic = false;  // kernels that wait for their predecessors themselves
};
Code code_for_this_device() {
  cudaFuncAttributes attributes{};
  CUDA_CHECK(cudaFuncGetAttributes(&attributes, code_probe));
  return {.has_hopper = attributes.maxThreadsPerBlock == 64, .has_programmatic = attributes.ptxVersion >= 90};
}

}  // namespace

void Stream::use_in_this_thread() const { CUDA_CHECK(cudaSetDevice(device_)); }

Stream::Stream(const StreamOptions& options) : device_(options.device) {
  use_in_this_thread();
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device_));
  const int own = 10 * properties.major + properties.minor;
  if (own < 80) {
    fail(ErrorKind::kRuntime,
         "device {} ({}): expected compute capability 8.0 or newer, found {}.{}; use --backend cpu",
         device_, properties.name, properties.major, properties.minor);
  }
  CHECK(options.architecture <= own, "architecture {} on a device of {}", options.architecture, own);
  int host_pointers = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&host_pointers, cudaDevAttrCanUseHostPointerForRegisteredMem,
                                    device_));
  if (host_pointers == 0) {
    fail(ErrorKind::kRuntime,
         "device {} ({}): it cannot read host memory by the host's addresses, which every fetch does; "
         "use --backend cpu",
         device_, properties.name);
  }
  const Code code = code_for_this_device();
  architecture_ = options.architecture > 0 ? options.architecture : own;
  if (architecture_ == 90 && !code.has_hopper) architecture_ = 80;
  programmatic_ = options.programmatic && architecture_ >= 90 && code.has_programmatic;
  int shared_memory = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_));
  shared_memory_ = shared_memory;
  if (options.architecture > 0) shared_memory_ = std::min(shared_memory_, shared_memory_of(architecture_));
  n_processors_ = properties.multiProcessorCount;
  device_name_ = properties.name;
  try {
    create(options);
  } catch (...) {
    destroy();
    throw;
  }
}

Stream::~Stream() { destroy(); }

void Stream::create(const StreamOptions& options) {
  int least = 0, greatest = 0;
  CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                          options.urgent ? greatest : least));
  raw_ = stream;
  const auto create_events = [](EventRing& ring, size_t n) {
    ring.events.resize(n);
    for (void*& event : ring.events) {
      cudaEvent_t created = nullptr;
      CUDA_CHECK(cudaEventCreateWithFlags(&created, cudaEventDisableTiming));
      event = created;
    }
  };
  create_events(tickets_, kTickets);
  create_events(graph_tickets_, kGraphTickets);
  if (options.scratch_bytes > 0) {
    CUDA_CHECK(cudaMalloc(&scratch_, static_cast<size_t>(options.scratch_bytes)));
    scratch_bytes_ = options.scratch_bytes;
  }
  libraries_ = std::make_unique<Libraries>();
}

// What there is of it.
void Stream::destroy() {
  if (raw_ == nullptr) return;
  cudaStreamSynchronize(static_cast<cudaStream_t>(raw_));
  libraries_.reset();
  cudaFree(scratch_);
  const auto destroy_event = [](void* event) {
    if (event != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(event));
  };
  for (void* event : tickets_.events) destroy_event(event);
  for (void* event : graph_tickets_.events) destroy_event(event);
  for (void* event : time_marks_) destroy_event(event);
  cudaStreamDestroy(static_cast<cudaStream_t>(raw_));
}

Stream::Libraries& Stream::libraries() { return *libraries_; }

Stream::Ticket Stream::record() {
  launch_held();
  const auto stream = static_cast<cudaStream_t>(raw_);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  CUDA_CHECK(cudaStreamIsCapturing(stream, &capture));
  void* event = (capture == cudaStreamCaptureStatusNone ? tickets_ : graph_tickets_).turn();
  CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event), stream));
  return {event};
}

void Stream::wait(Ticket ticket) {
  launch_held();
  is_last_dependent_ = false;
  CUDA_CHECK(cudaStreamWaitEvent(static_cast<cudaStream_t>(raw_),
                                 static_cast<cudaEvent_t>(ticket.event), 0));
}

void Stream::finish() { CUDA_CHECK(cudaStreamSynchronize(static_cast<cudaStream_t>(raw()))); }

Stream::TimeMark Stream::mark_time() {
  if (next_time_mark_ == time_marks_.size()) {
    cudaEvent_t created = nullptr;
    CUDA_CHECK(cudaEventCreate(&created));
    time_marks_.push_back(created);
  }
  void* event = time_marks_[next_time_mark_];
  next_time_mark_ = (next_time_mark_ + 1) % kTimeMarks;
  CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(raw())));
  return {.event = event};
}

double Stream::seconds_between(TimeMark first, TimeMark second) {
  float milliseconds = 0;
  for (void* event : {first.event, second.event}) {
    CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(event)));
  }
  CUDA_CHECK(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(first.event),
                                  static_cast<cudaEvent_t>(second.event)));
  return 1e-3 * static_cast<double>(milliseconds);
}

int64_t Stream::device_memory_free() const {
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

int64_t Stream::device_memory_total() const {
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(total);
}

void* Stream::scratch(int64_t bytes) {
  CHECK(bytes <= scratch_bytes_, "{} bytes of scratch memory, {} were planned", bytes,
        scratch_bytes_);
  return scratch_;
}

void Stream::copy_bytes(void* target, int64_t target_stride, const void* source,
                        int64_t source_stride, int64_t row_bytes, int64_t n_rows) {
  if (row_bytes == 0 || n_rows == 0) return;
  const auto stream = static_cast<cudaStream_t>(raw());
  const auto bytes = static_cast<size_t>(row_bytes);
  if (n_rows == 1) {
    CUDA_CHECK(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDefault, stream));
    return;
  }
  // The pitch of a 2D copy is limited; beyond it, row by row.
  constexpr int64_t kMaxPitch = (int64_t{1} << 31) - 1;
  if (target_stride <= kMaxPitch && source_stride <= kMaxPitch) {
    CUDA_CHECK(cudaMemcpy2DAsync(target, static_cast<size_t>(target_stride), source,
                                 static_cast<size_t>(source_stride), bytes,
                                 static_cast<size_t>(n_rows), cudaMemcpyDefault, stream));
    return;
  }
  for (int64_t row = 0; row < n_rows; ++row) {
    CUDA_CHECK(cudaMemcpyAsync(static_cast<char*>(target) + row * target_stride,
                               static_cast<const char*>(source) + row * source_stride, bytes,
                               cudaMemcpyDefault, stream));
  }
}

void Stream::fill_bytes(void* target, int value, int64_t bytes) {
  if (bytes == 0) return;
  CUDA_CHECK(cudaMemsetAsync(target, value, static_cast<size_t>(bytes),
                             static_cast<cudaStream_t>(raw())));
}

void Stream::call(void (*function)(void*), void* data) {
  CUDA_CHECK(cudaLaunchHostFunc(static_cast<cudaStream_t>(raw()), function, data));
}

void* allocate(Stream& stream, int64_t bytes) {
  void* address = nullptr;
  const cudaError_t error = cudaMalloc(&address, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(ErrorKind::kDoesNotFit,
         "{}: {} bytes of device memory wanted, {} are free; lower --device-memory or shorten the "
         "context (-c, -n, the prompt)",
         stream.device_name(), bytes, stream.device_memory_free());
  }
  CUDA_CHECK(error);
  stream.fill_bytes(address, 0, bytes);
  return address;
}

// Releases run in destructors, also after a device fault has been thrown: nothing is checked here.
void release(Stream& stream, void* address, int64_t) {
  cudaStreamSynchronize(static_cast<cudaStream_t>(stream.raw()));
  cudaFree(address);
}

}  // namespace tiercel::cuda
