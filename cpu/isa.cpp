#include "cpu/isa.h"

#include <cstdlib>
#include <string>

#include "engine/base/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tiercel::cpu {
namespace {

constexpr Isa kLevels[] = {Isa::kPortable,   Isa::kAvx2,       Isa::kAvx512,
                           Isa::kAvx512Vnni, Isa::kAvx512Bf16, Isa::kAmx};

#if defined(__x86_64__)
// Tile data is a dynamic feature (XFEATURE 18): a process has to ask for it before its first tile
// instruction (Linux, Documentation/arch/x86/xstate.rst).
bool request_tiles() {
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kXfeatureXtileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0;
}

// gcc 12's __builtin_cpu_supports knows no amx-*: CPUID leaf 7, EDX bits 22 (bf16), 24 (tile), 25
// (int8).
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  return (d >> 22 & 1u) != 0 && (d >> 24 & 1u) != 0 && (d >> 25 & 1u) != 0;
}
#endif

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kPortable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512vnni")) return Isa::kAvx512;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi")) {
    return Isa::kAvx512Vnni;
  }
  return has_amx() && request_tiles() ? Isa::kAmx : Isa::kAvx512Bf16;
#else
  return Isa::kPortable;
#endif
}

}  // namespace

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::kPortable: return "portable";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Vnni: return "avx512vnni";
    case Isa::kAvx512Bf16: return "avx512bf16";
    case Isa::kAmx: return "amx";
  }
  return "?";
}

Isa parse_isa(std::string_view name) {
  for (Isa isa : kLevels) {
    if (name == name_of(isa)) return isa;
  }
  fail(ErrorKind::kUsage,
       "TIERCEL_CPU_ISA: unknown instruction set '{}'; known: portable, avx2, avx512, avx512vnni, avx512bf16, amx",
       name);
}

Isa detected_isa() {
  static const Isa isa = detect();
  return isa;
}

Isa default_isa() {
  const char* cap = std::getenv("TIERCEL_CPU_ISA");
  if (cap == nullptr || *cap == '\0') return detected_isa();
  const Isa wanted = parse_isa(cap);
  return wanted < detected_isa() ? wanted : detected_isa();
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kLevels) {
    if (isa <= detected_isa()) isas.push_back(isa);
  }
  return isas;
}

}  // namespace tiercel::cpu
