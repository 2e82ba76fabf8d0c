#!/usr/bin/env bash
# bench/one_token.sh: what a call with one token at context 1 costs on the calling thread, on two lines:
#   TARGET NANOSECONDS     per call, on this machine's best instruction set
#   TARGET INSTRUCTIONS    per call, counted by callgrind; valgrind 3.19 knows AVX2 but not AVX-512
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

program=build/bench/one_token
calls=1000
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$program"
target=$(valgrind --tool=callgrind --callgrind-out-file="$scratch/out" --toggle-collect=measured_calls \
  "$program" "$calls" 2>"$scratch/log" | cut -d ' ' -f 1)
instructions=$(sed -nE 's/^.* Collected : ([0-9]+)$/\1/p' "$scratch/log")
echo "$target $((instructions / calls))"
