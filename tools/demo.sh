#!/usr/bin/env bash
# A million-token prompt on this machine: builds, hides facts in a haystack, asks for one of them.
#
#   tools/demo.sh [--tokens N] [--question I | --all] [--model DIR] [-- FLAGS OF tiercel run, or batch]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat >&2 <<TEXT
usage: tools/demo.sh [--tokens N] [--question I | --all] [--model DIR] [-- FLAGS OF tiercel run, or batch]
  --tokens N     length of the prompt (default 1000000)
  --question I   which of the $n_facts facts to ask for, from 0 (first line) to $((n_facts - 1)) (default 5)
  --all          ask for every fact, with tiercel batch: the prompt is read once, and shared by the questions
  --model DIR    default: the demo model
exit code: 0 when every run succeeded (right or wrong answers alike), else that of the failed run
TEXT
}

tokens=1000000 n_facts=11 question=5 all=0 model=tools/demo/recall-4m
need_value() { [[ $# -ge 2 ]] || { echo "demo.sh: $1 needs a value" >&2; exit 2; }; }
while (($#)); do
  case $1 in
    --tokens) need_value "$@"; tokens=$2; shift 2 ;;
    --question) need_value "$@"; question=$2; shift 2 ;;
    --model) need_value "$@"; model=$2; shift 2 ;;
    --all) all=1; shift ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "demo.sh: unexpected argument $1" >&2; usage; exit 2 ;;
  esac
done
if ! [[ $question =~ ^[0-9]+$ ]] || ((question >= n_facts)); then
  echo "demo.sh: --question: expected 0 to $((n_facts - 1)), found $question" >&2
  exit 2
fi

if [[ -n ${TIERCEL_BINARY:-} ]]; then
  tiercel=$TIERCEL_BINARY
else
  tools/setup.sh
  preset=cpu
  if command -v nvcc >/dev/null; then preset=cuda; fi
  echo "building (build/$preset) ..." >&2
  generator=()
  [[ -e build/$preset/CMakeCache.txt ]] || generator=(-G Ninja)
  cmake --preset "$preset" "${generator[@]}" >/dev/null
  cmake --build --preset "$preset" --target tiercel_command >/dev/null
  tiercel=build/$preset/tiercel
fi

# It was made for shorter prompts than a million tokens (README, "Prompts longer than the model was trained
# for"). Flags go before these, and other models are left as they are.
if [[ $model == tools/demo/recall-4m ]]; then
  export TIERCEL_ARG_DUAL_CHUNK=${TIERCEL_ARG_DUAL_CHUNK-256K} TIERCEL_ARG_SCALE_FROM=${TIERCEL_ARG_SCALE_FROM-16K}
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# One value of the answers file; its layout is one member per line.
fact() {
  sed -n "s/^ *\"$1\": \"\\(.*\\)\",\\{0,1\\}$/\\1/p" "$work/answers.json" | sed -n "$(($2 + 1))p"
}

haystack() {
  "$tiercel" haystack --tokens "$tokens" --facts "$n_facts" --seed 1 -m "$model" \
    -o "$work/prompt.txt" --answers "$work/answers.json" "$@"
}
# run NAME COMMAND...: its exit code is the demo's.
run() {
  local name=$1 status=0
  shift
  "$@" || status=$?
  ((status == 0)) || { echo "demo.sh: tiercel $name ended with exit code $status" >&2; exit "$status"; }
}

n_asked=0 n_right=0
# compare I ANSWER
compare() {
  local expected
  expected=$(fact answer "$1")
  echo
  echo "depth:    $((100 * $1 / (n_facts - 1))) % of $tokens tokens"
  echo "question: $(fact question "$1")"
  echo "answer:  $2"
  echo "expected:$expected"
  n_asked=$((n_asked + 1))
  if [[ $2 == "$expected" ]]; then
    n_right=$((n_right + 1))
    echo "right"
  else
    echo "wrong"
  fi
}

ask() {
  haystack --ask "$question"
  run run "$tiercel" run -m "$model" -f "$work/prompt.txt" -n 8 "$@" >"$work/answer.txt"
  compare "$question" "$(head -n 1 "$work/answer.txt")"
}

ask_all() {
  local i answer
  haystack
  for ((i = 0; i < n_facts; ++i)); do
    printf '{"prompt": "\\n%s"}\n' "$(fact question "$i")"
  done >"$work/questions.jsonl"
  run batch "$tiercel" batch -m "$model" -f "$work/questions.jsonl" --prefix "$work/prompt.txt" --share-prefix \
    -n 8 -o "$work/answers.jsonl" "$@"
  for ((i = 0; i < n_facts; ++i)); do
    # Its first line, still as JSON has it.
    answer=$(sed -n "s/^{\"line\":$((i + 1)),.*\"text\":\"\\([^\"]*\\)\".*/\\1/p" "$work/answers.jsonl")
    compare "$i" "${answer%%\\n*}"
  done
  echo
  echo "$n_right of $n_asked answered exactly"
}

if ((all)); then
  ask_all "$@"
else
  ask "$@"
fi
