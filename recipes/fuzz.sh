#!/usr/bin/env bash
# Feeds COUNT mutants (a million) to each reader of files under the address and undefined-behaviour sanitizers, then
# counts which lines of the readers some of them execute. docs/fuzzing.md says what is checked.
#
#   recipes/fuzz.sh [COUNT] [READER...]      readers: the first column of the table
#
# Needs no LibTorch. JOBS (1) compilers at a time; SEED (1) of the mutants. Exit status 1: an input failed; it lies in
# build/fuzz/failures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly count=${1:-1000000} jobs=${JOBS:-1} seed=${SEED:-1}
readonly readers=("${@:2}")
readonly covering=$((count < 20000 ? count : 20000))  # as many show the lines that mutants reach

build() {
  cmake -S tests/fuzz -B "$1" -G Ninja "${@:2}" > "$1.log" 2>&1 && cmake --build "$1" -j "$jobs" >> "$1.log" 2>&1 || {
    tail -n 30 "$1.log" >&2
    exit 1
  }
}

mkdir -p build
build build/fuzz
build build/fuzz-coverage -DDYDIT_COVERAGE=ON

status=0
build/fuzz/fuzz_readers --inputs "$count" --seed "$seed" --failures build/fuzz/failures "${readers[@]}" || status=$?

find build/fuzz-coverage -name '*.gcda' -delete
build/fuzz-coverage/fuzz_readers --inputs "$covering" --seed "$seed" > build/fuzz-coverage/table.txt || true
echo
python3 tests/fuzz/coverage.py build/fuzz-coverage
exit "$status"
