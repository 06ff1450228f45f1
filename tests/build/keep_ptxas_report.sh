#!/usr/bin/env bash
# Compiler launcher: runs the command, keeps what ptxas says of registers and spills beside the object
# file (for ptxas_report_test.cpp), and passes everything else on.
set -u
object=
arguments=("$@")
for ((i = 0; i + 1 < ${#arguments[@]}; ++i)); do
  [[ ${arguments[i]} == -o ]] && object=${arguments[i + 1]}
done
if [[ -z $object ]]; then exec "$@"; fi
"$@" 2>"$object.ptxas"
status=$?
grep -vE '^ptxas info|^ +[0-9]+ bytes stack frame|^$' "$object.ptxas" >&2
exit "$status"
