// Instruction-set levels of the CPU kernels, chosen at run time.
//
// One file per (op, level): the suffix of its name (_avx2, _avx512, _avx512vnni, _avx512bf16, _amx)
// gives its compiler flags. Such a file includes only <immintrin.h>, fixed-width types and plain parameter
// structs, and keeps everything but its entry points inside an anonymous namespace: an inline
// function compiled there could otherwise be the copy that the linker keeps for everybody.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace tiercel::cpu {

enum class Isa : uint8_t {
  kPortable,    // plain C++ for the compiler's baseline
  kAvx2,        // AVX2, FMA, F16C
  kAvx512,      // F, BW, DQ, VL
  kAvx512Vnni,  // + VNNI: Cascade Lake, Ice Lake; where only selection differs
  kAvx512Bf16,  // + BF16, VBMI, on a core whose vdpbf16ps is fast (no AMX beside it)
  kAmx          // + AMX-TILE, AMX-BF16, AMX-INT8
};

std::string_view name_of(Isa isa);
// Throws Error(kUsage) for an unknown name; the message lists the names.
Isa parse_isa(std::string_view name);

// The best level of this machine and operating system. Requests the AMX tile state from the kernel
// once per process; when that is refused the level is kAvx512Bf16.
Isa detected_isa();

// The level to use: the detected one, capped by TIERCEL_CPU_ISA when that is set.
Isa default_isa();

// Every level that this machine can run, lowest first.
std::vector<Isa> runnable_isas();

}  // namespace tiercel::cpu
