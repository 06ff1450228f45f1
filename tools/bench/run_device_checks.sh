#!/usr/bin/env bash
# Builds the CUDA half, tests it and measures it on the device of this machine. A step that fails or
# takes too long does not keep the next one from running; the summary stands last.
#
#   tools/bench/run_device_checks.sh [BUILD] [--sanitize] [--no-bench] [-- STAGE ...]
#
#   BUILD        build directory, default build/cuda
#   --sanitize   the tests once more under compute-sanitizer (memcheck, racecheck, synccheck)
#   STAGE ...    stages of bench_device, default all
#
# Environment: ARCHITECTURES (90a-real), LOG_DIR (BUILD/logs), JOBS, TEST_FILTER and SANITIZE_FILTER
# (as --gtest_filter), and the limits in seconds of each step: BUILD_LIMIT (1200), TEST_LIMIT (300),
# SANITIZE_LIMIT (600 for each tool), BENCH_LIMIT (600).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

build=build/cuda sanitize=0 bench=1 stages=()
while (($#)); do
  case $1 in
    --sanitize) sanitize=1 ;;
    --no-bench) bench=0 ;;
    --) shift; stages=("$@"); break ;;
    -*) echo "run_device_checks.sh: expected --sanitize, --no-bench or --, found $1" >&2; exit 2 ;;
    *) build=$1 ;;
  esac
  shift
done
logs=${LOG_DIR:-$build/logs}
mkdir -p "$logs"
summary=() failed=0

# step NAME LIMIT COMMAND...: output goes to LOG_DIR/NAME.log, with live=1 also to the terminal.
step() {
  local name=$1 limit=$2 begin=$SECONDS result rc
  shift 2
  echo "== $name"
  if ((${live:-0})); then
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$logs/$name.log"
    rc=${PIPESTATUS[0]}
  else
    timeout --kill-after=10 "$limit" "$@" >"$logs/$name.log" 2>&1
    rc=$?
  fi
  case $rc in
    0) result=ok ;;
    124 | 137) result="FAILED: longer than $limit s" ;;
    *) result="FAILED: exit status $rc" ;;
  esac
  ((rc == 0)) || failed=1
  summary+=("$(printf '%-12s %5d s  %s' "$name" $((SECONDS - begin)) "$result")")
  return "$rc"
}

# What a log has to say in few lines.
show() {
  grep -E "$2" "$logs/$1.log" | tail -n "${3:-20}"
}

step configure 120 cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DTIERCEL_CUDA=ON \
  -DTIERCEL_CUDA_ARCHITECTURES="${ARCHITECTURES:-90a-real}" -DTIERCEL_BUILD_BENCH=ON ||
  show configure 'Error|not found' 5
# One target's failure must not cost the other: ninja goes on with what it can.
step build "${BUILD_LIMIT:-1200}" cmake --build "$build" -j "${JOBS:-$(nproc)}" \
  --target test_kernels_device bench_device -- -k 0 || show build 'FAILED|error' 20

tests=$build/tests/test_kernels_device
if [[ -x $tests ]]; then
  step tests "${TEST_LIMIT:-300}" "$tests" --gtest_filter="${TEST_FILTER:-*}"
  show tests '^\[  (FAILED|PASSED|SKIPPED)|^seed|CHECK|tests ran' 40
  if ((sanitize)); then
    for tool in memcheck racecheck synccheck; do
      step "$tool" "${SANITIZE_LIMIT:-600}" compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "$tests" --gtest_filter="${SANITIZE_FILTER:-*}"
      show "$tool" 'SUMMARY|^========= (Invalid|Error|Race|Barrier|Warning)' 12
    done
  fi
else
  failed=1
  summary+=("tests              not built")
fi

if ((bench)); then
  program=$build/tools/bench/bench_device
  if [[ -x $program ]]; then
    live=1 step bench "${BENCH_LIMIT:-600}" "$program" "${stages[@]}"
  else
    failed=1
    summary+=("bench              not built")
  fi
fi

echo
echo "==== $(date -u +%Y-%m-%dT%H:%MZ) $(git rev-parse --short=12 HEAD 2>/dev/null), logs in $logs"
printf '%s\n' "${summary[@]}"
exit $failed
