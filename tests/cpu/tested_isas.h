// The instruction-set levels that a test runs at.
#pragma once

#include <vector>

#include "cpu/isa.h"
#include "tests/sanitized.h"

namespace tiercel::test {

// Every one that this machine has. Where threads are what is checked, the one whose loops are watched.
inline std::vector<cpu::Isa> selection_isas() {
  const std::vector<cpu::Isa> all = cpu::runnable_isas();
  return kThreadSanitized ? std::vector(1, all.front()) : all;
}

// The same for ops other than selection, which the avx512vnni level takes from avx512.
inline std::vector<cpu::Isa> tested_isas() {
  std::vector<cpu::Isa> isas = selection_isas();
  if (isas.size() > 1) std::erase(isas, cpu::Isa::kAvx512Vnni);
  return isas;
}

}  // namespace tiercel::test
