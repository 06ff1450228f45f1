#!/usr/bin/env bash
# Builds and tests everything. The last line is "N passed, N failed", counted in test cases.
#
#   tools/test.sh                 the cuda preset where nvcc is found, else the cpu preset
#   tools/test.sh --sanitizers    also cpu-asan and cpu-tsan
#   tools/test.sh --fuzz SECONDS  also every fuzzer for SECONDS (each fuzzer counts as one case)
#   tools/test.sh --no-setup      install nothing
# CI=true means --sanitizers and a short --fuzz.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sanitizers=0 fuzz_seconds=0 setup=1
if [[ ${CI:-} == true ]]; then
  sanitizers=1 fuzz_seconds=10
fi
while (($#)); do
  case $1 in
    --sanitizers) sanitizers=1; shift ;;
    --no-setup) setup=0; shift ;;
    --fuzz)
      if ! [[ ${2:-} =~ ^[0-9]+$ ]]; then
        echo "test.sh: --fuzz needs a number of seconds" >&2
        exit 2
      fi
      fuzz_seconds=$2; shift 2 ;;
    *) echo "test.sh: expected --sanitizers, --fuzz SECONDS or --no-setup, found $1" >&2; exit 2 ;;
  esac
done

n_passed=0 n_failed=0
n_shares=$(($(nproc) < 4 ? $(nproc) : 4))
finish() {
  echo "$n_passed passed, $n_failed failed"
  ((n_failed == 0)) || exit 1
  exit 0
}
# A step that is no test case itself (a build) but whose failure must not look like success.
failed_step() {
  echo "FAILED: $1"
  n_failed=$((n_failed + 1))
}

if ((setup)); then
  setup_flags=(--tests)
  if ((fuzz_seconds > 0)); then setup_flags+=(--fuzz); fi
  tools/setup.sh "${setup_flags[@]}" || echo "test.sh: going on with what is installed"
fi

launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi
# build preset [option...]
build() {
  local preset=$1 start=$SECONDS
  local options=("${launcher[@]}" -DTIERCEL_WERROR=ON "${@:2}")
  [[ -e build/$preset/CMakeCache.txt ]] || options+=(-G Ninja)
  echo "== $preset: build"
  cmake --preset "$preset" "${options[@]}" >/dev/null && cmake --build --preset "$preset" &&
    echo "== $preset: built ($((SECONDS - start)) s)"
}

# Adds what one test program printed: gtest's closing lines hold the counts.
count_cases() {
  local log=$1 status=$2 passed failed
  passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" | tail -n 1)
  failed=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test.*/\1/p' "$log" | tail -n 1)
  n_passed=$((n_passed + ${passed:-0}))
  n_failed=$((n_failed + ${failed:-0}))
  # A crash, a sanitizer's complaint or a time-out leaves no count of failures.
  if ((status != 0)) && [[ ${failed:-0} == 0 ]]; then n_failed=$((n_failed + 1)); fi
}

wait_for_a_core() {
  while (($(jobs -rp | wc -l) >= n_shares)); do wait -n || true; done
}

# One share of a test program's cases; leaves its output, its status and the seconds that it took.
run_share() {
  local directory=$1 name=$2 share=$3 log=$1/test-$2.$3.log status=0 start=$SECONDS
  (cd "$directory" &&
    GTEST_TOTAL_SHARDS=$n_shares GTEST_SHARD_INDEX=$share \
      ctest -R "^$name\$" --verbose --timeout 3000) >"$log.ctest" 2>&1 </dev/null || status=$?
  sed 's/^[0-9]*: //' "$log.ctest" >"$log"
  echo "$status $((SECONDS - start))" >"$log.ending"
  mv "$log.ending" "$log.ended"  # whole at once
}

# Counts and says what became of a program, once all of its shares have ended.
report() {
  local preset=$1 directory=$2 name=$3 log status seconds all_seconds=0 failed=0 share
  for ((share = 0; share < n_shares; ++share)); do
    log=$directory/test-$name.$share.log
    read -r status seconds <"$log.ended"
    all_seconds=$((all_seconds + seconds))
    count_cases "$log" "$status"
    ((status == 0)) && continue
    failed=1
    # What failed, not what passed.
    grep -v '^\[ RUN      \]\|^\[       OK \]' "$log" | tail -n 200
  done
  echo "== $preset: $name $( ((failed)) && echo FAILED || echo ok) ($all_seconds s on one core)"
  grep -h '^\[  SKIPPED \] .*)$' "$directory/test-$name".*.log | sort -u || true
}

# run_tests preset directory [name...]: ctest knows the tests, fast to slow. Each program runs by itself,
# so that its cases can be counted, in as many shares as there are cores, up to four: most cases use one.
# A core that is done goes on with the next program.
run_tests() {
  local preset=$1 directory=$2 names=("${@:3}") name share n_reported=0
  ((${#names[@]})) ||
    mapfile -t names < <(cd "$directory" && ctest -N | sed -n 's/^ *Test *#[0-9]*: //p')
  rm -f "$directory"/test-*.log.ended
  report_ended() {
    while ((n_reported < ${#names[@]})) &&
      (($(find "$directory" -maxdepth 1 -name "test-${names[n_reported]}.*.log.ended" | wc -l) ==
        n_shares)); do
      report "$preset" "$directory" "${names[n_reported]}"
      n_reported=$((n_reported + 1))
    done
  }
  for name in "${names[@]}"; do
    for ((share = 0; share < n_shares; ++share)); do
      wait_for_a_core
      report_ended
      run_share "$directory" "$name" "$share" &
    done
  done
  wait
  report_ended
}

run_fuzzer() {
  local directory=build/cpu-fuzz name=$1 fuzzer status=0
  local corpus=$directory/corpus-$name log=$directory/$name.log seeds=tests/fuzz/seeds/$name
  fuzzer=$(find "$directory" -name "$name" -type f -perm -u+x | head -n 1)
  mkdir -p "$corpus"
  [[ -d $seeds ]] || seeds=  # its inputs are read, and what is found goes into the corpus
  { [[ -n $fuzzer ]] && "$fuzzer" -max_total_time="$fuzz_seconds" -rss_limit_mb=4096 \
      -artifact_prefix="$directory/" "$corpus" ${seeds:+"$seeds"}; } >"$log" 2>&1 || status=$?
  echo "$status" >"$log.ended"
}

# One to a core; each counts as a case.
run_fuzzers() {
  local names name log
  mapfile -t names < <(basename -s .cpp -a tests/fuzz/*_fuzz.cpp)
  for name in "${names[@]}"; do
    wait_for_a_core
    run_fuzzer "$name" &
  done
  wait
  for name in "${names[@]}"; do
    log=build/cpu-fuzz/$name.log
    if (($(<"$log.ended") == 0)); then
      n_passed=$((n_passed + 1))
      echo "== fuzz: $name ok (for $fuzz_seconds s)"
    else
      n_failed=$((n_failed + 1))
      echo "== fuzz: $name FAILED"
      tail -n 40 "$log"
    fi
  done
}

build_and_test() {
  if build "$@"; then run_tests "$1" "build/$1"; else failed_step "$1 does not build"; fi
}
# With a CUDA toolkit the CUDA build is the one to test; the sanitizer builds are without it.
main=$(command -v nvcc >/dev/null && echo cuda || echo cpu)
# Benchmarks are built so that they still compile on the day that they are needed. Tests several to a
# compilation: nobody is going to change one of them.
build_and_test "$main" -DTIERCEL_BUILD_BENCH=ON -DTIERCEL_UNITY=TESTS
if ((sanitizers)); then
  build_and_test cpu-asan
  # The tests that run the program, as they are, with that one.
  TIERCEL_BINARY=$PWD/build/cpu-asan/tiercel run_tests "cpu-asan's program" "build/$main" command
  build_and_test cpu-tsan
fi
if ((fuzz_seconds > 0)); then
  if ! command -v clang++ >/dev/null; then
    failed_step "fuzzing needs clang++ (tools/setup.sh --fuzz)"
  elif build cpu-fuzz; then
    run_fuzzers
  else
    failed_step "cpu-fuzz does not build"
  fi
fi
finish
