#!/usr/bin/env bash
# Cancels generation COUNT times at random moments under the thread sanitizer, runs the unit tests under the address and
# undefined-behaviour sanitizers, and watches the heap over COUNT generations. docs/sanitizers.md says what is checked.
#
#   recipes/sanitize.sh [PART...]      parts: threads memory heap; all of them
#
# Needs what scripts/setup sets up. COUNT (1000); JOBS (1) compilers at a time. Logs: build/sanitize. Exit status 1:
# something was found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly count=${COUNT:-1000} logs=build/sanitize
export CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-1}
parts=("$@")
[[ ${#parts[@]} -gt 0 ]] || parts=(threads memory heap)
mkdir -p "$logs"
status=0

build() {
  scripts/build "$@" > "$logs/$1-build.log" 2>&1 || {
    tail -n 30 "$logs/$1-build.log" >&2
    exit 1
  }
}

# logged NAME COMMAND...: runs it into a log and remembers whether it failed.
logged() {
  local log=$logs/$1.log
  "${@:2}" > "$log" 2>&1 || {
    status=1
    printf '%s: FAILED, see %s\n' "$1" "$log"
    tail -n 30 "$log"
  }
}

# summary PART: tests passed, as gtest says, and reports of sanitizers in the part's logs.
summary() {
  cat "$logs/$1"*.log | awk -v part="$1" '
    match($0, /\[  PASSED  \] [0-9]+/) { passed += substr($0, RSTART + 13, RLENGTH - 13) }
    /WARNING: ThreadSanitizer|ERROR: (Address|Leak)Sanitizer|runtime error:/ { ++reports }
    END { printf "%s: %d tests passed, %d reports of sanitizers\n", part, passed, reports }'
}

for part in "${parts[@]}"; do
  case $part in
    threads)
      build tsan cancel_tests engine_tests data_tests serve_tests
      # Without tests/tsan.supp, which only training needs.
      logged threads env DYDIT_CANCELS="$count" build/tsan/cancel_tests
      logged threads-team build/tsan/engine_tests --gtest_filter='*Team*'
      logged threads-data build/tsan/data_tests
      logged threads-serve build/tsan/serve_tests --gtest_filter='Service.*:Job.*'
      grep ' cancels: ' "$logs/threads.log" || true
      ;;
    memory)
      build asan io_tests core_tests checkpoint_tests engine_tests data_tests train_tests cancel_tests serve_tests
      logged memory ctest --preset asan -V -L unit -E '^(House|program|install|fuzz)\.'
      ;;
    heap)
      build release heap_tests
      logged heap env DYDIT_GENERATIONS="$count" build/release/heap_tests
      grep ' generations: ' "$logs/heap.log" || true
      ;;
    *)
      printf 'usage: recipes/sanitize.sh [threads] [memory] [heap]\n' >&2
      exit 2
      ;;
  esac
  summary "$part"
done
exit "$status"
