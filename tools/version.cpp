// tiercel version: what exactly is running here.
#include <fmt/format.h>
#include <hwloc.h>
#include <tbb/version.h>
#include <xxhash.h>

#include <CLI/Version.hpp>
#include <nlohmann/json.hpp>
#include <string>

#include "cpu/isa.h"
#include "cpu/topology.h"
#include "engine/base/build_info.h"
#include "engine/base/units.h"
#include "engine/model.h"
#include "tools/commands.h"
#include "tools/console.h"
#include "tools/flags.h"
#include "tools/line_editor.h"
#include "tools/report.h"
#include "tools/serve/http_server.h"

namespace tiercel {
namespace {

std::string compiler() {
#if defined(__clang__)
  return fmt::format("clang {}.{}.{}", __clang_major__, __clang_minor__, __clang_patchlevel__);
#elif defined(__GNUC__)
  return fmt::format("g++ {}.{}.{}", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#else
  return "unknown";
#endif
}

std::string build_type() {
#ifdef NDEBUG
  std::string type = "optimised";
#else
  std::string type = "with internal checks";
#endif
#if defined(__SANITIZE_ADDRESS__)
  type += ", AddressSanitizer";
#endif
#if defined(__SANITIZE_THREAD__)
  type += ", ThreadSanitizer";
#endif
  return type;
}

}  // namespace

int command_version(int argc, char** argv) {
  Flags flags("version", "Version, compiler, libraries, instruction set.");
  if (!flags.parse(argc, argv)) return 0;
  const cpu::Topology& machine = cpu::topology();
  std::string text = fmt::format("tiercel {} (commit {})\n", version(), source_commit());
  text +=
      fmt::format("build:     {}, {}, C++{}\n", compiler(), build_type(), __cplusplus / 100 % 100);
  const std::string no_cuda = why_no_cuda();
  text += no_cuda.empty() ? "backends:  cpu, cuda\n"
                          : fmt::format("backends:  cpu (cuda: {})\n", no_cuda);
  std::string runnable;
  for (const cpu::Isa isa : cpu::runnable_isas()) {
    runnable += (runnable.empty() ? "" : ", ") + std::string(cpu::name_of(isa));
  }
  text += fmt::format("cpu:       {} (this machine runs {})\n", cpu::name_of(cpu::default_isa()),
                      runnable);
  text += fmt::format("machine:   {} cores, {} NUMA node{}, {}\n", machine.n_cores,
                      machine.n_numa_nodes, machine.n_numa_nodes == 1 ? "" : "s",
                      format_bytes(machine.memory_bytes));
  text += fmt::format("lines:     {}\n", LineEditor::built_in() ? "edited by libedit (--interactive)"
                                                               : "not edited (built without libedit)");
  text += fmt::format("server:    {}\n", http_library().empty() ? "none (built without Boost)" : http_library());
  const unsigned hwloc = hwloc_get_api_version();
  const unsigned xxhash = XXH_versionNumber();
  text += fmt::format(
      "libraries: oneTBB {}, hwloc API {}.{}, xxHash {}.{}.{}, fmt {}.{}.{}, nlohmann-json "
      "{}.{}.{}, "
      "CLI11 {}\n",
      TBB_runtime_version(), hwloc >> 16, hwloc >> 8 & 0xFF, xxhash / 10000, xxhash / 100 % 100,
      xxhash % 100, FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100,
      NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH,
      CLI11_VERSION);
  print_result(text);
  return 0;
}

}  // namespace tiercel
