#!/usr/bin/env bash
# Feeds COUNT mutants (a million) to each reader of files under the address and undefined-behaviour sanitizers, then
# counts which lines of the readers some of them execute. docs/fuzzing.md says what is checked.
#
#   recipes/fuzz.sh [COUNT] [READER...]                  readers: the first column of the table
#   recipes/fuzz.sh --checkpoints [COUNT] [READER...]    whole checkpoints through load_checkpoint
#
# The readers need no LibTorch; load_checkpoint does (scripts/setup), and our code alone is built with sanitizers.
# JOBS (1) compilers at a time; SEED (1) of the mutants. Exit status 1: an input failed; it lies in build/fuzz/failures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

checkpoints=
if [[ ${1:-} == --checkpoints ]]; then
  checkpoints=1
  shift
fi
readonly count=${1:-1000000} jobs=${JOBS:-1} seed=${SEED:-1}
readonly readers=("${@:2}")
readonly covering=$((count < 20000 ? count : 20000))  # as many show the lines that mutants reach

build() {  # SOURCE FOLDER TARGET OPTION...
  cmake -S "$1" -B "$2" -G Ninja "${@:4}" > "$2.log" 2>&1 && cmake --build "$2" --target "$3" -j "$jobs" >> "$2.log" 2>&1 || {
    tail -n 30 "$2.log" >&2
    exit 1
  }
}

mkdir -p build
if [[ -n $checkpoints ]]; then
  build . build/fuzz-checkpoints fuzz_checkpoints -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDYDIT_SANITIZE=address,undefined
  # LibTorch keeps what it made once; the driver itself sees what a checkpoint does not give back.
  ASAN_OPTIONS=detect_leaks=0 exec build/fuzz-checkpoints/fuzz_checkpoints --inputs "$count" --seed "$seed" \
    --failures build/fuzz/failures "${readers[@]}"
fi
build tests/fuzz build/fuzz all
build tests/fuzz build/fuzz-coverage all -DDYDIT_COVERAGE=ON

status=0
build/fuzz/fuzz_readers --inputs "$count" --seed "$seed" --failures build/fuzz/failures "${readers[@]}" || status=$?

find build/fuzz-coverage -name '*.gcda' -delete
build/fuzz-coverage/fuzz_readers --inputs "$covering" --seed "$seed" > build/fuzz-coverage/table.txt || true
echo
python3 tests/fuzz/coverage.py build/fuzz-coverage
exit "$status"
