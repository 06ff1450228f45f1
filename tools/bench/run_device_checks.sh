#!/usr/bin/env bash
# Builds for the device of this machine, tests kernels and engine on it and measures both. A step that
# fails or takes too long does not keep the next one from running; the summary stands last.
#
#   tools/bench/run_device_checks.sh [BUILD] [--sanitize] [--no-bench] [--no-engine] [-- STAGE ...]
#
#   BUILD        build directory, default build/cuda
#   --sanitize   the tests once more under compute-sanitizer (memcheck, racecheck, synccheck)
#   --no-bench   no stages of bench_device but the ceilings
#   --no-engine  neither tests nor measurements of the whole engine (engine_bars.py)
#   STAGE ...    stages of bench_device, default all
#
# Environment: ARCHITECTURES (90a-real), LOG_DIR (BUILD/logs), JOBS, TEST_FILTER and SANITIZE_FILTER
# (as --gtest_filter, of the kernels' tests), ENGINE_FILTER and ENGINE_SANITIZE_FILTER (of the
# engine's), BARS (arguments of engine_bars.py), and the limits in seconds of each step: BUILD_LIMIT
# (1200), TEST_LIMIT (300), SANITIZE_LIMIT (600 for each tool), BENCH_LIMIT (600), BARS_LIMIT (900).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

build=build/cuda sanitize=0 bench=1 engine=1 stages=()
while (($#)); do
  case $1 in
    --sanitize) sanitize=1 ;;
    --no-bench) bench=0 ;;
    --no-engine) engine=0 ;;
    --) shift; stages=("$@"); break ;;
    -*) echo "run_device_checks.sh: expected --sanitize, --no-bench, --no-engine or --, found $1" >&2; exit 2 ;;
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
  summary+=("$(printf '%-18s %5d s  %s' "$name" $((SECONDS - begin)) "$result")")
  return "$rc"
}

# What a log has to say in few lines.
show() {
  grep -E "$2" "$logs/$1.log" | tail -n "${3:-20}"
}

step configure 120 cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DTIERCEL_CUDA=ON \
  -DTIERCEL_CUDA_ARCHITECTURES="${ARCHITECTURES:-90a-real}" -DTIERCEL_BUILD_BENCH=ON ||
  show configure 'Error|not found' 5
targets=(test_kernels_device bench_device)
((engine)) && targets+=(test_engine_device tiercel_command)
# One target's failure must not cost the others: ninja goes on with what it can.
step build "${BUILD_LIMIT:-1200}" cmake --build "$build" -j "${JOBS:-$(nproc)}" \
  --target "${targets[@]}" -- -k 0 || show build 'FAILED|error' 20

# run_tests WHAT FILTER SANITIZE_FILTER: of test_WHAT_device
run_tests() {
  local what=$1 filter=$2 sanitize_filter=$3 program=$build/tests/test_$1_device tool
  if [[ ! -x $program ]]; then
    failed=1
    summary+=("$what tests: not built")
    return
  fi
  step "$what" "${TEST_LIMIT:-300}" "$program" --gtest_filter="$filter"
  show "$what" '^\[  (FAILED|PASSED|SKIPPED)|^seed|CHECK|tests ran' 40
  ((sanitize)) || return
  for tool in memcheck racecheck synccheck; do
    step "$what-$tool" "${SANITIZE_LIMIT:-600}" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$program" --gtest_filter="$sanitize_filter"
    show "$what-$tool" 'SUMMARY|^========= (Invalid|Error|Race|Barrier|Warning)' 12
  done
}
run_tests kernels "${TEST_FILTER:-*}" "${SANITIZE_FILTER:-*}"
((engine)) && run_tests engine "${ENGINE_FILTER:-*}" "${ENGINE_SANITIZE_FILTER:-*}"

if ((bench || engine)); then
  program=$build/tools/bench/bench_device
  ((bench)) || stages=(ceilings)
  if [[ -x $program ]]; then
    live=1 step bench "${BENCH_LIMIT:-600}" "$program" "${stages[@]}"
  else
    failed=1
    summary+=("bench              not built")
  fi
fi
if ((engine)); then
  if [[ -x $build/tiercel && -f $logs/bench.log ]]; then
    # shellcheck disable=SC2086  # BARS is a list of words
    live=1 step bars "${BARS_LIMIT:-900}" python3 tools/bench/engine_bars.py "$build/tiercel" \
      --ceilings "$logs/bench.log" ${BARS:-}
  else
    failed=1
    summary+=("bars               not built, or no ceilings")
  fi
fi

echo
echo "==== $(date -u +%Y-%m-%dT%H:%MZ) $(git rev-parse --short=12 HEAD 2>/dev/null), logs in $logs"
printf '%s\n' "${summary[@]}"
exit $failed
