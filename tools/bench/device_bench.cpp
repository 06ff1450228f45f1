// bench_device: the CUDA ops on a device, each beside the ceiling that bounds it.
//
//   bench_device [stage ...] [--smoke] [--limit SECONDS] [--list]
//
// A stage is named by any beginning of its name ("prefill" is all of prefill/...); without one, all
// run. The ceilings are always measured first. Every stage runs in a process of its own with its
// own time limit, so that a fault, a failed CHECK or a hang costs one stage. Lines appear as they
// are measured, and all of them once more at the end.
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/check.h"
#include "tools/bench/device_harness.h"

namespace tiercel::bench {
namespace {

struct Stage {
  const char* name;
  void (*run)(Device&);
};

constexpr Stage kCeilings = {"ceilings", run_ceilings};
constexpr Stage kStages[] = {
    {"fetch", run_fetch},
    {"prefill/dense", run_prefill_dense},
    {"prefill/variants", run_prefill_variants},
    {"prefill/64", run_prefill_64},
    {"prefill/96", run_prefill_96},
    {"prefill/256", run_prefill_256},
    {"prefill/sparse", run_prefill_sparse},
    {"decode/dense", run_decode_dense},
    {"decode/sparse", run_decode_sparse},
    {"select/step", run_select},
    {"select/together", run_select_together},
    {"select/prefill", run_select_prefill},
    {"index", run_index},
    {"slots", run_slots},
    {"lowrank/rebuild", run_rebuild},
    {"lowrank/project", run_project},
    {"lowrank/fit", run_fit},
    {"linear", run_linear},
    {"linear/codes", run_codes},
    {"experts", run_experts},
    {"host_weights", run_host_weights},
    {"elementwise", run_elementwise},
};

struct Options {
  std::vector<std::string> stages;
  bool smoke = false, list = false;
  int limit_seconds = 120;
};

class Run {
 public:
  explicit Run(const Options& options) : options_(options), pool_(random_pool()) {}

  int all() {
    stage(kCeilings);
    if (ceilings_.copy_gbs == 0) return 1;  // no device, or none that copies
    for (const Stage& s : kStages) {
      if (is_wanted(s)) stage(s);
    }
    fmt::print("\n==== all results ====\n");
    for (const std::string& line : lines_) fmt::print("{}\n", line);
    return n_failed_ == 0 ? 0 : 1;
  }

 private:
  bool is_wanted(const Stage& s) const {
    if (options_.stages.empty()) return true;
    for (const std::string& name : options_.stages) {
      if (std::string_view(s.name).starts_with(name)) return true;
    }
    return false;
  }

  void show(const std::string& line) {
    lines_.push_back(line);
    fmt::print("{}\n", line);
    std::fflush(stdout);
  }

  // This process never calls the driver: a child made after that could not.
  void stage(const Stage& s) {
    std::fflush(stdout);
    int ends[2];
    if (pipe(ends) != 0) fail("no pipe for a stage's results");
    const auto begin = std::chrono::steady_clock::now();
    const pid_t child = fork();
    if (child < 0) fail("no process for stage {}", s.name);
    if (child == 0) {
      close(ends[0]);
      _exit(work(s, Outlet(ends[1])));
    }
    close(ends[1]);
    const bool in_time = listen(ends[0], begin + std::chrono::seconds(options_.limit_seconds));
    close(ends[0]);
    if (!in_time) kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    if (!in_time) {
      show(fmt::format("{}: FAILED: longer than {} s (--limit)", s.name, options_.limit_seconds));
    } else if (WIFSIGNALED(status)) {
      show(fmt::format("{}: FAILED: ended by signal {}", s.name, WTERMSIG(status)));
    }
    const bool ok = in_time && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    n_failed_ += ok ? 0 : 1;
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    fmt::print("-- {}: {:.1f} s\n", s.name, taken.count());
  }

  int work(const Stage& s, Outlet outlet) {
    try {
      Device device(outlet, ceilings_, pool_, options_.smoke);
      s.run(device);
      return device.is_wrong() ? 1 : 0;
    } catch (const std::exception& error) {
      outlet.line(fmt::format("{}: FAILED: {}", s.name, error.what()));
      return 1;
    }
  }

  // Until the child closes its end; false when it did not in time.
  bool listen(int file, std::chrono::steady_clock::time_point deadline) {
    std::string pending;
    char buffer[4096];
    for (;;) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          deadline - std::chrono::steady_clock::now());
      pollfd waited = {.fd = file, .events = POLLIN, .revents = 0};
      if (left.count() <= 0 || poll(&waited, 1, static_cast<int>(left.count())) <= 0) return false;
      const ssize_t n = read(file, buffer, sizeof(buffer));
      if (n <= 0) return true;
      pending.append(buffer, static_cast<size_t>(n));
      for (size_t end; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1)) {
        accept(pending.substr(0, end));
      }
    }
  }

  void accept(const std::string& message) {
    if (message.starts_with('C')) {
      parse_ceilings(message.substr(1), ceilings_);
    } else if (message.starts_with('T')) {
      show(message.substr(1));
    }
  }

  Options options_;
  std::vector<bf16> pool_;
  Ceilings ceilings_;
  std::vector<std::string> lines_;
  int n_failed_ = 0;
};

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--smoke") {
      options.smoke = true;
    } else if (argument == "--list") {
      options.list = true;
    } else if (argument == "--limit" && i + 1 < argc) {
      options.limit_seconds = std::atoi(argv[++i]);
    } else if (argument.starts_with('-')) {
      fmt::print(stderr,
                 "bench_device: expected [stage ...] [--smoke] [--limit SECONDS] [--list], "
                 "found {}\n",
                 argument);
      return false;
    } else {
      options.stages.push_back(argument);
    }
  }
  return true;
}

}  // namespace
}  // namespace tiercel::bench

int main(int argc, char** argv) {
  using namespace tiercel::bench;
  Options options;
  if (!parse(argc, argv, options)) return 2;
  if (options.list) {
    for (const Stage& s : kStages) fmt::print("{}\n", s.name);
    return 0;
  }
  return Run(options).all();
}
