#!/usr/bin/env bash
# Measures llama.cpp beside Tiercel on this machine's CPU: the same model, the same lengths, in turns.
#
#   tools/peers/beside_llama_cpp.sh [LENGTH ...]      default 4096 32768
#
# Builds llama-bench out of the sources that the package llama-cpp-python brings, in PEER_DIR (default:
# a folder below /tmp, kept for the next time). llama.cpp gets its better setting: flash attention, and
# weights in fp16 or fp32, whichever CPU it is faster on (WEIGHTS, default f16).
#
# Environment: TIERCEL (build/cpu/tiercel), PEER_DIR, WEIGHTS, THREADS (all cores), N_GEN (32).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tiercel=$(realpath "${TIERCEL:-build/cpu/tiercel}")
model=$(realpath tools/demo/recall-4m)
converter=$(realpath tools/peers/write_gguf.py)
peer=${PEER_DIR:-${TMPDIR:-/tmp}/tiercel-peers/llama.cpp}
weights=${WEIGHTS:-f16} threads=${THREADS:-$(nproc)} n_gen=${N_GEN:-32}
lengths=("$@")
((${#lengths[@]})) || lengths=(4096 32768)
[[ -x $tiercel ]] || { echo "beside_llama_cpp.sh: no $tiercel; build it first (README, Build)" >&2; exit 2; }

mkdir -p "$peer"
bench=$peer/build/bin/llama-bench
if [[ ! -x $bench ]]; then
  [[ -d $peer/venv ]] || python3 -m venv "$peer/venv"
  "$peer/venv/bin/pip" install --quiet gguf
  rm -rf "$peer/source" && mkdir "$peer/source"
  "$peer/venv/bin/pip" download --quiet --no-deps --no-binary :all: -d "$peer" llama-cpp-python
  tar -xf "$peer"/llama_cpp_python-*.tar.gz --strip-components=1 --touch -C "$peer/source"
  # Its build looks for the repository that the sources were part of.
  find "$peer/source" -name .git -exec rm -rf {} +
  cmake -S "$peer/source/vendor/llama.cpp" -B "$peer/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF >"$peer/build.log"
  cmake --build "$peer/build" --target llama-bench >>"$peer/build.log"
fi
gguf=$peer/recall-4m-$weights.gguf
"$peer/venv/bin/python" "$converter" "$model" "$gguf" "$weights"

for length in "${lengths[@]}"; do
  echo "== $length tokens"
  "$bench" -m "$gguf" -t "$threads" -fa 1 -r 1 -p "$length" -n 0 2>/dev/null | grep '| *pp'
  "$bench" -m "$gguf" -t "$threads" -fa 1 -r 1 -p 0 -n "$n_gen" -d "$length" 2>/dev/null | grep '| *tg'
  for attention in "dense" "shadow --prefill select"; do
    # shellcheck disable=SC2086  # two words
    "$tiercel" bench -m "$model" --threads "$threads" -p "$length" -n "$n_gen" -r 1 \
      --attention $attention 2>/dev/null | grep -E '\| (pp|tg)'
  done
done
