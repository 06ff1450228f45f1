#!/usr/bin/env bash
# Builds for the device of this machine, tests kernels and engine on it and measures both. A step that
# fails or takes too long does not keep the next one from running; each says at once how it ended, and the
# summary, with what every step had to say, stands last.
#
#   tools/bench/run_device_checks.sh [BUILD] [--sanitize] [--only STEP,...] [-- STAGE ...]
#
#   BUILD        build directory, default build/cuda
#   --sanitize   the tests once more under compute-sanitizer (memcheck, racecheck, synccheck)
#   --only       of build, kernels, engine, bench (bench_device) and bars (engine_bars.py) these; bars
#                read the ceilings that bench left
#   STAGE ...    stages of bench_device, default all
#
# Environment: ARCHITECTURES (90a-real), LOG_DIR (BUILD/logs), JOBS, TEST_FILTER and SANITIZE_FILTER
# (as --gtest_filter, of the kernels' tests), ENGINE_FILTER and ENGINE_SANITIZE_FILTER (of the
# engine's), TIERCEL_CASES (30) of each random test, SHARDS (8) in which tests run side by side, so that
# a fault of the device ends one of them, BARS (arguments of engine_bars.py), the seconds that all of it may
# take, DEADLINE (none), and that each step may: BUILD_LIMIT (1200), TEST_LIMIT (300), SANITIZE_LIMIT
# (600 for each tool), BENCH_LIMIT (600), BARS_LIMIT (900).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

build=build/cuda sanitize=0 only=build,kernels,engine,bench,bars stages=()
while (($#)); do
  case $1 in
    --sanitize) sanitize=1 ;;
    --only)
      only=${2:-}
      for name in ${only//,/ }; do
        [[ ,build,kernels,engine,bench,bars, == *,$name,* ]] || only=
      done
      if [[ -z $only ]]; then
        echo "run_device_checks.sh: --only: expected build, kernels, engine, bench or bars, found '${2:-}'" >&2
        exit 2
      fi
      shift ;;
    --) shift; stages=("$@"); break ;;
    -*) echo "run_device_checks.sh: expected --sanitize, --only or --, found $1" >&2; exit 2 ;;
    *) build=$1 ;;
  esac
  shift
done
wanted() { [[ ,$only, == *,$1,* ]]; }
logs=${LOG_DIR:-$build/logs}
mkdir -p "$logs"
summary=() failed=0

# step NAME LIMIT COMMAND...: output goes to LOG_DIR/NAME.log, with live=1 also to the terminal.
step() {
  local name=$1 limit=$2 begin=$SECONDS result rc
  shift 2
  if [[ -n ${DEADLINE:-} ]]; then
    local left=$((DEADLINE - SECONDS - 10))
    if ((left < 10)); then
      failed=1
      summary+=("$(printf '%-18s          no time left' "$name")")
      echo "${summary[-1]}"
      return 1
    fi
    limit=$((limit < left ? limit : left))
  fi
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
  echo "${summary[-1]}"
  return "$rc"
}

# What a log has to say in few lines.
show() {
  grep -hE "$2" "$logs/$1.log" | tail -n "${3:-20}"
}

# in_shards COMMAND...: a program of tests in several processes.
# shellcheck disable=SC2317  # called through bash -c
in_shards() {
  local n=$SHARDS i rc=0 pids=()
  for ((i = 0; i < n; ++i)); do
    GTEST_TOTAL_SHARDS=$n GTEST_SHARD_INDEX=$i "$@" &
    pids+=($!)
  done
  for i in "${pids[@]}"; do wait "$i" || rc=$?; done
  return "$rc"
}
export -f in_shards
export SHARDS=${SHARDS:-8} TIERCEL_CASES=${TIERCEL_CASES:-30}

if wanted build; then
  step configure 120 cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DTIERCEL_CUDA=ON \
    -DTIERCEL_CUDA_ARCHITECTURES="${ARCHITECTURES:-90a-real}" -DTIERCEL_BUILD_BENCH=ON ||
    show configure 'Error|not found' 5
  targets=()
  wanted kernels && targets+=(test_kernels_device)
  wanted engine && targets+=(test_engine_device)
  wanted bench && targets+=(bench_device)
  wanted bars && targets+=(tiercel_command)
  ((${#targets[@]})) || targets=(test_kernels_device test_engine_device bench_device tiercel_command)
  # One target's failure must not cost the others: ninja goes on with what it can.
  step build "${BUILD_LIMIT:-1200}" cmake --build "$build" -j "${JOBS:-$(nproc)}" \
    --target "${targets[@]}" -- -k 0 || show build 'FAILED|error' 20
fi

# run_tests WHAT FILTER SANITIZE_FILTER: of test_WHAT_device
run_tests() {
  local what=$1 filter=$2 sanitize_filter=$3 program=$build/tests/test_$1_device tool
  wanted "$what" || return
  if [[ ! -x $program ]]; then
    failed=1
    summary+=("$what tests: not built")
    return
  fi
  step "$what" "${TEST_LIMIT:-300}" bash -c 'in_shards "$@"' in_shards "$program" --gtest_filter="$filter"
  show "$what" '^\[  (FAILED|PASSED|SKIPPED)|^seed|CHECK|tests ran' 60
  ((sanitize)) || return
  for tool in memcheck racecheck synccheck; do
    step "$what-$tool" "${SANITIZE_LIMIT:-600}" bash -c 'in_shards "$@"' in_shards compute-sanitizer \
      --tool "$tool" --error-exitcode 9 "$program" --gtest_filter="$sanitize_filter"
    show "$what-$tool" 'SUMMARY|^========= (Invalid|Error|Race|Barrier|Warning)' 24
  done
}
# What is too large for a sanitizer, and what computes on the CPU most of the time.
run_tests kernels "${TEST_FILTER:-*}" \
  "${SANITIZE_FILTER:--*Large*:*ManyCandidates*:*AMillionChunks*:*LongPlanes*:*OverlapOfKernels*:CudaLowRank.*}"
run_tests engine "${ENGINE_FILTER:-*}" \
  "${ENGINE_SANITIZE_FILTER:--Differential*:LongAppend*:*LongTexts*:SavedSession*}"

if wanted bench; then
  program=$build/tools/bench/bench_device
  if [[ -x $program ]]; then
    live=1 step bench "${BENCH_LIMIT:-600}" "$program" "${stages[@]}"
  else
    failed=1
    summary+=("bench              not built")
  fi
fi
if wanted bars; then
  if [[ -x $build/tiercel && -f $logs/bench.log ]]; then
    # shellcheck disable=SC2086  # BARS is a list of words
    live=1 step bars "${BARS_LIMIT:-900}" python3 tools/bench/engine_bars.py "$build/tiercel" \
      --ceilings "$logs/bench.log" ${BARS:-}
  else
    failed=1
    summary+=("bars               not built, or no ceilings (--only bench)")
  fi
fi

cat "$logs"/*.log >"$logs/everything.txt" 2>/dev/null
echo
echo "==== $(date -u +%Y-%m-%dT%H:%MZ) $(git rev-parse --short=12 HEAD 2>/dev/null), logs in $logs"
printf '%s\n' "${summary[@]}"
exit $failed
